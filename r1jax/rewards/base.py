"""Rewards by name, and their weighted sum.

A reward is `f(completions, **columns) -> list[float | None]`, the signature of TRL and open-r1: every column of the
data arrives as a list as long as the completions, and so do `prompts` and `completion_ids`. None means "does not apply
to this row" and is left out of the sum. A config names rewards, with weights and arguments:

    rewards.answer_reward = 1.0
    rewards.r1_format_reward = {"weight": 0.2, "think_in_prompt": True}
    rewards.brevity = {"weight": 0.1, "function": "my_package.my_rewards:brevity_reward"}

A new reward of ours is one function, one line in `REGISTRY`, and one test; a user's needs no line.
"""

import difflib
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.rewards.answers import accuracy_reward, answer_reward, number_reward
from r1jax.rewards.completions import Completion
from r1jax.rewards.tags import format_reward, r1_format_reward, tag_count_reward

RewardFunction = Callable[..., Sequence[float | None]]

# Names as in the code, and beside them the short ones that open-r1's recipes use.
REGISTRY: dict[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "accuracy_reward": accuracy_reward,
    "answer_reward": answer_reward,
    "format": format_reward,
    "format_reward": format_reward,
    "number_reward": number_reward,
    "r1_format_reward": r1_format_reward,
    "tag_count": tag_count_reward,
    "tag_count_reward": tag_count_reward,
}
# What `score` itself hands to every reward; a data column of the same name gives way.
_OWN_COLUMNS = frozenset(("completions", "prompts", "completion_ids"))


@dataclass(frozen=True)
class Reward:
    """A reward function with its weight; `name` is the function's `__name__` and names its metrics."""

    name: str
    function: RewardFunction
    weight: float


@dataclass(frozen=True)
class Scores:
    """What `score` returns: `total` float64[B], and by name each reward's unweighted float64[B], NaN for None."""

    total: np.ndarray
    by_name: dict[str, np.ndarray]


def load_rewards(spec: Mapping[str, Any]) -> tuple[Reward, ...]:
    """Resolves `{name: weight}` or `{name: {weight, function, **arguments}}` into rewards, in the order given.

    A name is in `REGISTRY` or is `module:function`; where a config cannot hold such a key (dots), `function` says it
    and the name is free. Arguments go to the function by keyword; a function named `get_...` is called once with them
    and returns the reward, as in open-r1. A reward's `warm_up()`, if it has one, is called once. Raises UserError.
    """
    rewards = [_load_reward(name, value) for name, value in spec.items()]
    if not rewards:
        raise UserError("config.rewards: at least one reward must be named, got none")
    names = [reward.name for reward in rewards]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"config.rewards: each reward may be given once, got {', '.join(sorted(repeated))} twice")
    for reward in rewards:
        getattr(reward.function, "warm_up", lambda: None)()
    return tuple(rewards)


def score(
    rewards: Sequence[Reward],
    *,
    prompts: Sequence[Completion],
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> Scores:
    """Scores B completions: `total` is the sum of weight times value over the rewards that apply to a row (0 if none).

    Raises UserError if a reward needs a column that is not there, or returns anything but B finite numbers or None.
    """
    columns = {
        **columns,
        "completions": completions,
        "prompts": prompts,
        "completion_ids": completion_ids,
    }
    by_name = {reward.name: _call(reward, columns, len(completions)) for reward in rewards}
    total = np.zeros(len(completions))
    for reward in rewards:
        total += reward.weight * np.nan_to_num(by_name[reward.name], nan=0.0)
    return Scores(total, by_name)


def _load_reward(name: str, value: Any) -> Reward:
    where = f"config.rewards.{name}"
    arguments = dict(value.items()) if hasattr(value, "items") else {"weight": value}
    weight = arguments.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise UserError(f"{where}: a weight must be a finite number, got {weight!r}")
    function = _find_function(str(arguments.pop("function", name)), where)
    function = _bind(function, arguments, where)
    return Reward(_name_of(function), function, float(weight))


def _find_function(name: str, where: str) -> RewardFunction:
    if name in REGISTRY:
        return REGISTRY[name]
    if ":" not in name:
        close = difflib.get_close_matches(name, REGISTRY, n=3) or sorted(REGISTRY)
        raise UserError(
            f"{where}: no reward is called {name!r}; did you mean {', '.join(close)}? (Or module:function.)"
        )
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: cannot import {name!r} ({error})") from error
    if not callable(function):
        raise UserError(f"{where}: {name!r} must be a function, got {type(function).__name__}")
    return function


def _bind(function: RewardFunction, arguments: dict[str, Any], where: str) -> RewardFunction:
    """The function with a config's arguments in place; a `get_...` function makes the reward from them."""
    is_maker = _name_of(function).startswith("get_")
    if not is_maker and not arguments:
        return function
    known = inspect.signature(function).parameters.values()
    named = [p.name for p in known if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # Columns reach a reward through **columns unseen; a misspelt argument must not.
    if unknown := [key for key in arguments if key not in named or key in _OWN_COLUMNS]:
        raise UserError(f"{where}: unknown argument {unknown[0]!r}; {_name_of(function)} takes {', '.join(named)}")
    if is_maker:
        return function(**arguments)  # type: ignore[return-value]
    return functools.partial(function, **arguments)


def _name_of(function: Callable[..., Any]) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    return getattr(inner, "__name__", type(inner).__name__)


def _call(reward: Reward, columns: Mapping[str, Any], count: int) -> np.ndarray:
    values = reward.function(**_select_columns(reward, columns))
    if len(values) != count:
        raise UserError(f"reward {reward.name} must return one value a completion: {count}, got {len(values)}")
    result = np.array([math.nan if value is None else float(value) for value in values])
    if np.isinf(result).any():
        raise UserError(f"reward {reward.name} must return finite numbers or None, got {result[np.isinf(result)][0]}")
    return result


def _select_columns(reward: Reward, columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns a reward asks for (all of them if it takes **columns), less those that its config has bound."""
    parameters = inspect.signature(reward.function).parameters.values()
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and parameter.name not in columns:
            raise UserError(
                f"reward {reward.name} needs a data column {parameter.name!r}, got {', '.join(sorted(columns))}; "
                "map one to that name in config.data"
            )
    bound = reward.function.keywords if isinstance(reward.function, functools.partial) else {}
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    wanted = columns if takes_all else {p.name for p in parameters}
    return {name: column for name, column in columns.items() if name in wanted and name not in bound}
