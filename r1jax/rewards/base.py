"""Rewards by name, and their weighted sum.

A reward is `f(completions, **columns) -> list[float | None]`, the signature of TRL and open-r1: every column of the
data is a list as long as the completions, and so are `prompts`, `completion_ids` and, where there are groups,
`group_ids` (completions with equal ids answer the same prompt). None means "does not apply to this row" and is left out
of the sum. A config names rewards, with weights and arguments:

    rewards.answer_reward = 1.0
    rewards.r1_format_reward = {"weight": 0.2, "think_in_prompt": True}
    rewards.brevity = {"weight": 0.1, "function": "my_package.my_rewards:brevity_reward"}

A *gate* multiplies the sum of the other rewards and adds nothing itself (unless it has a weight too): `gate = True`
multiplies by the gate's value, clipped to 0..1; a number opens the gate for values from it on and closes it below. A
negative sum is unchanged, so that breaking a rule does not escape a punishment; None leaves a gate open.

    rewards.r1_format_reward = {"gate": True}                                    # no reward without the format
    rewards.soft_overlong_punishment = {"gate": 0.0, "max_completion_len": 512, "soft_punish_cache": 0}

`domain` restricts a reward to rows with that value in the column `domain`; for others it does not apply (None). R1's
last stage mixes problems that a rule can check with requests that a judge scores:

    rewards.judge_reward = {"weight": 1.0, "domain": "general"}

`compare_to` names another reward of the config as ground truth (its weight may be 0): the metric `agreement` is then
the share of pairs within a group that both order the same way. The optional protocol of rewards (row-wise rewards,
model calls, metrics, warm-up) is in `protocol.py`.

A new built-in reward is one function, one line in `registry.py` and one test; a user's own needs no line.
"""

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.watchdog import beat
from r1jax.rewards.completions import Completion
from r1jax.rewards.faults import Fault, call_guarded
from r1jax.rewards.learned.learned_reward import Rate
from r1jax.rewards.protocol import (
    Generate,
    Outcome,
    OutOfLoss,
    Processes,
    RewardFunction,
    as_reward,
    find_share,
    join_outcomes,
    name_of,
    select_named,
    take_outcome,
)
from r1jax.rewards.registry import REWARDS, import_place

GIVEN_CURE = (
    "; it was given to r1jax.run as a function of a program: continue by r1jax.run in that program, or start anew with "
    "the function in a module that can be imported, as module:function"
)

# Columns that `score` itself passes to every reward; they replace data columns of the same name.
_OWN_COLUMNS = frozenset(("completions", "prompts", "completion_ids", "group_ids"))


@dataclass(frozen=True)
class Reward:
    """A reward function with its weight; `name` is the function's `__name__` and names its metrics.

    `gate` is None, True (a factor) or the value from which the gate is open. `domain` "" means all rows. `arguments`
    are the config's, passed at every call. `make` builds the function of a reward that can ask a model from `generate`
    or `rate`, and tells whether it got one; None for all others. `collective` marks one that asks a model on the run's
    devices, which all processes compute together. `asks` is "generate" or "rate" for a maker that takes it, and
    `options` are the arguments of a maker.
    """

    name: str
    function: RewardFunction
    weight: float
    gate: bool | float | None = None
    compare_to: str | None = None
    domain: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[Mapping[str, Any]], tuple[RewardFunction, bool]] | None = None
    collective: bool = False
    asks: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Accepts a plain function or a partial, too."""
        function: Any = self.function
        if isinstance(function, functools.partial) and not function.args:
            object.__setattr__(self, "arguments", {**function.keywords, **self.arguments})
            function = function.func
        object.__setattr__(self, "function", as_reward(function))


@dataclass(frozen=True)
class Scores:
    """Result of `score`.

    Attributes:
      total: float64 [B].
      by_name: unweighted values of each reward, float64 [B], NaN for None.
      out_of_loss: bool [B], rows that some reward takes out of the loss.
      calls: model calls of rewards, as rows for samples.jsonl, `reward` first.
      metrics: further numbers from rewards, under full names (`rewards/{name}/…`).
    """

    total: np.ndarray
    by_name: dict[str, np.ndarray]
    out_of_loss: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    calls: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def by_group(self, group_size: int) -> np.ndarray:
        """Totals [P, G] of groups of that size, NaN for completions that are out of the loss."""
        return np.where(self.out_of_loss, np.nan, self.total).reshape(-1, group_size)


def load_rewards(
    spec: Mapping[str, Any], *, generate: Generate | None = None, rate: Rate | None = None
) -> tuple[Reward, ...]:
    """Resolves `{name: weight}` or `{name: {weight, gate, compare_to, domain, function, **arguments}}`, in order.

    A name is in `REWARDS` or is `module:function`; where a config cannot have such a key (dots), `function` gives it
    and the name is free. Arguments are passed to the function by keyword; a function named `get_...`, or a class, is
    called once with them and returns the reward, as in open-r1. `generate` and `rate` are passed to makers that take
    them. Each reward's `warm_up` is called once. Raises UserError.
    """
    return connect_rewards(read_rewards(spec), generate, rate)


def read_rewards(spec: Mapping[str, Any]) -> tuple[Reward, ...]:
    """Like `load_rewards`, before the model is loaded: makes all checks, and warms up the rewards that ask no model.

    Makers that take `generate` or `rate` are called with a placeholder, to check their arguments and learn their
    rewards' names; these rewards raise RuntimeError when called, until `connect_rewards` has rebuilt them.
    """
    rewards = [_read_reward(name, value) for name, value in spec.items()]
    if not rewards:
        raise UserError("config.rewards must name at least one reward, got none")
    names = [reward.name for reward in rewards]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"config.rewards: each reward may be given once, got {', '.join(sorted(repeated))} twice")
    by_key = dict(zip(spec, names, strict=True)) | {name: name for name in names}
    for index, reward in enumerate(rewards):
        if reward.compare_to is not None:
            if by_key.get(reward.compare_to, reward.name) == reward.name:
                raise UserError(
                    f"config.rewards.{reward.name}.compare_to must name another reward of the config, "
                    f"got {reward.compare_to!r}"
                )
            rewards[index] = dataclasses.replace(reward, compare_to=by_key[reward.compare_to])
        if reward.make is None:
            _warm_up(reward)
    return tuple(rewards)


def connect_rewards(
    rewards: Sequence[Reward], generate: Generate | None, rate: Rate | None = None
) -> tuple[Reward, ...]:
    """The rewards of `read_rewards`, with those that can ask a model rebuilt with `generate`, and those that score by
    one with `rate`. Raises UserError if one needs a model and `generate` is None.
    """
    connected, models = [], {"generate": generate, "rate": rate}
    for reward in rewards:
        if reward.make is not None:
            function, asks = reward.make(models)
            reward = dataclasses.replace(reward, function=function, make=None)
            reward = dataclasses.replace(reward, collective=asks and reward.function.collective)
            _warm_up(reward)
        connected.append(reward)
    return tuple(connected)


def score(
    rewards: Sequence[Reward],
    *,
    prompts: Sequence[Completion],
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    group_size: int | None = None,
    processes: Processes | None = None,
    strict: bool = True,
) -> Scores:
    """Scores B completions: `total` is the sum of weight times value over the rewards that apply, times the gates.

    `group_size` consecutive completions answer one prompt; rewards receive this as the column `group_ids`. With
    `processes`, every process calls this with the same rows and gets the same result, and each group is scored by one
    of them (`find_share`).
    strict: a reward that raises, or returns anything but B finite numbers or None, ends the run (True), or does not
    apply to the rows concerned (faults.py). Raises UserError if a reward needs a missing column.
    """
    count = len(completions)
    columns = {**columns, "completions": completions, "prompts": prompts, "completion_ids": completion_ids}
    if group_size:
        columns["group_ids"] = [row // group_size for row in range(count)]
    places = {reward.name: _find_rows(reward, columns, count) for reward in rewards}
    outcomes = {reward.name: _call(reward, columns, places[reward.name], processes, strict) for reward in rewards}
    returned = {name: [outcome.values.get(row) for row in range(count)] for name, outcome in outcomes.items()}
    by_name = {name: np.array([math.nan if v is None else float(v) for v in vs]) for name, vs in returned.items()}
    faults = {name: np.array([isinstance(v, Fault) for v in vs], bool) for name, vs in returned.items()}
    dropped = [any(isinstance(values[row], OutOfLoss) for values in returned.values()) for row in range(count)]
    calls: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    for reward in rewards:
        calls += [{"reward": reward.name, **call} for call in outcomes[reward.name].calls]
        own = dict(outcomes[reward.name].metrics)
        if reward.compare_to:
            own["agreement"] = _agreement(by_name[reward.name], by_name[reward.compare_to], columns.get("group_ids"))
        if faults[reward.name].any():
            own["faults"] = float(faults[reward.name].sum())
        metrics |= {f"rewards/{reward.name}/{key}": value for key, value in own.items()}
    return Scores(_total(rewards, by_name, faults, count), by_name, np.array(dropped, dtype=bool), calls, metrics)


def explain_values(
    rewards: Sequence[Reward], scores: Scores, completions: Sequence[Completion], columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, str]]:
    """The rules that decided the values of each completion, in words, by the name of the reward; of rewards that tell
    them, where they apply.
    """
    rules: list[dict[str, str]] = [{} for _ in completions]
    for reward in rewards:
        told = reward.function.explain(completions=completions, **columns)
        for row, (rule, value) in enumerate(zip(told, scores.by_name[reward.name], strict=True)):
            if rule is not None and not math.isnan(value):
                rules[row][reward.name] = rule
    return rules


def _total(
    rewards: Sequence[Reward], by_name: Mapping[str, np.ndarray], faults: Mapping[str, np.ndarray], count: int
) -> np.ndarray:
    total, factor = np.zeros(count), np.ones(count)
    for reward in rewards:
        values = by_name[reward.name]
        total += reward.weight * np.nan_to_num(values, nan=0.0)
        if reward.gate is True:
            factor *= np.clip(np.nan_to_num(values, nan=1.0), 0.0, 1.0)
        elif reward.gate is not None and reward.gate is not False:
            factor *= np.isnan(values) | (values >= reward.gate)
        if reward.gate is not None and reward.gate is not False:
            factor *= ~faults[reward.name]
    return np.where(total > 0, total * factor, total)


def _agreement(values: np.ndarray, truth: np.ndarray, group_ids: Sequence[int] | None) -> float:
    """Share of pairs within groups, of different true value, that are ordered alike, ties counting half; NaN without
    such pairs.
    """
    groups = np.zeros(len(values)) if group_ids is None else np.array(group_ids)
    pairs = alike = 0.0
    for group in np.unique(groups):
        inside = (groups == group) & ~np.isnan(values) & ~np.isnan(truth)
        better = np.sign(truth[inside][:, None] - truth[inside][None, :]) > 0
        pairs += better.sum()
        ordered = np.sign(values[inside][:, None] - values[inside][None, :])
        alike += ((1 + ordered) / 2)[better].sum()
    return float(alike / pairs) if pairs else math.nan


def _read_reward(name: str, value: Any) -> Reward:
    where = f"config.rewards.{name}"
    arguments = dict(value.items()) if hasattr(value, "items") else {"weight": value}
    gate, compare_to = arguments.pop("gate", None), arguments.pop("compare_to", None)
    domain = arguments.pop("domain", "")
    weight = arguments.pop("weight", 1.0 if gate is None or gate is False else 0.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise UserError(f"{where}: a weight must be a finite number, got {weight!r}")
    if gate is not None and not (isinstance(gate, (bool, int, float)) and math.isfinite(gate)):
        raise UserError(f"{where}: a gate must be True or the smallest value that opens it, got {gate!r}")
    found: Any = _find_function(str(arguments.pop("function", name)), where)
    is_maker = isinstance(found, type) or name_of(found).startswith("get_")
    _check_arguments(found, arguments, where, is_maker)
    make, asked, options = None, None, dict[str, Any]()
    if is_maker:
        known = inspect.signature(found).parameters
        asked = next((name for name in ("generate", "rate") if name in known and name not in arguments), None)
        if asked:
            make = functools.partial(_make, found, asked, arguments, where)
        options = arguments
        found, arguments = found(**arguments, **({asked: _no_model} if asked else {})), {}
    plain = (name_of(found), found, float(weight), gate, compare_to, str(domain), arguments, make)
    return Reward(*plain, asks=asked or "", options=options)


def _find_function(name: str, where: str) -> Callable[..., Any]:
    """The reward function or maker of a name."""
    if name in REWARDS:
        name = REWARDS[name]
    elif ":" not in name:
        close = difflib.get_close_matches(name, REWARDS, n=3) or sorted(REWARDS)
        raise UserError(f"{where}: unknown reward {name!r}; did you mean {', '.join(close)}? (Or module:function.)")
    try:
        function = import_place(name)
    except (ImportError, AttributeError, ValueError) as error:
        given = name.startswith("__main__:") or "<locals>" in name
        raise UserError(f"{where}: cannot import {name!r} ({error}){GIVEN_CURE if given else ''}") from error
    if not callable(function):
        raise UserError(f"{where}: {name!r} must be a function, got {type(function).__name__}")
    return function


def _check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], where: str, is_maker: bool) -> None:
    known = inspect.signature(function).parameters.values()
    named = [p.name for p in known if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_all = is_maker and any(p.kind is p.VAR_KEYWORD for p in known)
    # **columns accepts any name, so a misspelt argument must be found here.
    if unknown := [key for key in arguments if (key not in named and not takes_all) or key in _OWN_COLUMNS]:
        choices = [name for name in named if name not in {*_OWN_COLUMNS, "generate", "rate"}] or ["none"]
        raise UserError(f"{where}: unknown argument {unknown[0]!r}; {name_of(function)} takes {', '.join(choices)}")
    if is_maker:
        needed = {p.name for p in known if p.default is p.empty and p.name in named} - {"generate"}
        if missing := needed - {*arguments}:
            raise _missing(function, missing, where)


def _make(
    maker: Callable[..., Any], asked: str, arguments: Mapping[str, Any], where: str, models: Mapping[str, Any]
) -> tuple[RewardFunction, bool]:
    """Calls a maker that takes `generate` or `rate`; tells whether there was one."""
    if models[asked] is not None:
        return as_reward(maker(**arguments, **{asked: models[asked]})), True
    if inspect.signature(maker).parameters[asked].default is inspect.Parameter.empty:
        raise _missing(maker, {asked}, where)
    return as_reward(maker(**arguments)), False


def _missing(maker: Callable[..., Any], names: set[str], where: str) -> UserError:
    return UserError(f"{where}: {name_of(maker)} needs {', '.join(sorted(names))}, not given here")


def _no_model(*prompts: Any, **columns: Any) -> Any:
    raise RuntimeError("a reward was called before connect_rewards gave it a model")


def _warm_up(reward: Reward) -> None:
    reward.function.warm_up(**select_named(reward.function.warm_up, reward.arguments))


def _find_rows(reward: Reward, columns: Mapping[str, Any], count: int) -> Sequence[int]:
    """The rows that a reward applies to."""
    if not reward.domain:
        return range(count)
    if "domain" not in columns:
        raise UserError(
            f"config.rewards.{reward.name}.domain = {reward.domain!r} needs a data column 'domain', got "
            f"{', '.join(sorted(columns))}"
        )
    return [row for row in range(count) if columns["domain"][row] == reward.domain]


def _call(
    reward: Reward,
    columns: Mapping[str, Any],
    rows: Sequence[int],
    processes: Processes | None,
    strict: bool,
) -> Outcome:
    """Values, calls and metrics of all processes, for the rows that the reward applies to."""
    shared = None if reward.collective else processes
    mine, groups_before = find_share(reward.function, rows, columns.get("group_ids"), shared)
    selected = _select_columns(reward, columns)
    if len(mine) < len(columns["completions"]):
        selected = {name: [column[row] for row in mine] for name, column in selected.items()}
    call = lambda: reward.function(**selected, **reward.arguments)
    values: Sequence[float | None] = call_guarded(reward.name, call, len(mine), strict=strict) if mine else []
    beat()
    own = take_outcome(reward.function, mine, values, groups_before)
    return join_outcomes(reward.function, own, shared) if shared else own


def _select_columns(reward: Reward, columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns that a reward takes (all of them if it takes **columns), except those set by its config."""
    parameters = inspect.signature(reward.function).parameters.values()
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and parameter.name not in columns and parameter.name not in reward.arguments:
            raise UserError(
                f"reward {reward.name} needs a data column {parameter.name!r}, got {', '.join(sorted(columns))}; "
                "map one to that name in config.data"
            )
    wanted = select_named(reward.function, columns)
    return {name: column for name, column in wanted.items() if name not in reward.arguments}
