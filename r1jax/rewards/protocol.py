"""The optional protocol of rewards: loss exclusion, model calls, per-row marking, metrics, explanations and warm-up.

A plain function with TRL's signature is a complete reward. One that offers more is an object with `__call__` and any of
these; `RewardFunction` has all of them with neutral defaults:

    by_row              True if the value of a row depends on that row's columns alone, and calling the reward neither
                        asks a model nor records anything. `@by_row` sets it for a function.
    by_batch            True if the value of a row depends on rows of other groups too.
    collective          False for a reward of a maker with `generate` that does not use it (it asks a server).
    join_metrics(...)   the numbers of the run from those of its processes, each with its number of rows.
    warm_up(...)        called once when rewards are loaded, with the config's arguments that it names: starts workers
                        early, and raises UserError for errors of the config.
    take_calls()        returns and clears the recorded model calls, as rows for samples.jsonl.
    take_metrics()      returns and clears numbers by name (`rewards/{name}/{key}` in the metrics).
    explain(...)        called like the reward: the rule that decided the value of each row, in words, for samples;
                        None where there is nothing to tell.

Several processes share the work, and each group is scored in one of them: the rows of a `by_row` reward are split, the
groups of any other; the first process alone calls a `by_batch` reward, and any if there are no groups. Values, calls
and metrics are then exchanged, so that all processes have those of one process. Only rewards that ask the run's own
model run in all processes, because all compute its replies together.

Two more parts are not methods:

    generate(prompts)   passed to a maker that has a parameter of this name (`get_…_reward(generate, …)`). A prompt is
                        text, or messages if the data's prompts are; returns one text per prompt, in order, None where
                        there was no reply.
    OutOfLoss(value)    in the list that a reward returns, in place of a number: the row gets no loss and is left out
                        of its group's mean and spread. `Scores.out_of_loss` lists these rows.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from r1jax.rewards.completions import Completion
from r1jax.rewards.faults import Fault

Generate = Callable[[Sequence[Completion]], Sequence[str | None]]
P = ParamSpec("P")
Values = TypeVar("Values", bound=Sequence[float | None])


class Processes(Protocol):
    """The processes of a run, as implemented by r1jax/core/distributed.py."""

    def my_share(self, count: int) -> slice:
        """This process's share of `count` items."""
        ...

    def is_writer(self) -> bool:
        """Whether this is the first process."""
        ...

    def texts_from_all(self, text: str) -> list[str]:
        """Each process's text, in order."""
        ...


class OutOfLoss(float):
    """Value of a reward for a row that gets no loss. It still counts in the reward's own mean."""


class RewardFunction:
    """A reward with the optional protocol; a subclass defines `__call__` and overrides what it needs.

    Its metrics carry `__name__`, or the name of its class if it sets none.
    """

    by_row: bool = False
    by_batch: bool = False
    collective: bool = True

    def __call__(self, *args: Any, **columns: Any) -> Sequence[float | None]:
        """One value per completion; None where the reward does not apply."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Prepares for the first call."""

    def take_calls(self) -> list[dict[str, Any]]:
        """Returns and clears the recorded model calls."""
        return []

    def take_metrics(self) -> dict[str, float]:
        """Returns and clears numbers by name."""
        return {}

    def join_metrics(self, parts: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
        """The numbers of all processes: (rows, numbers) of each -> means over rows."""
        names = dict.fromkeys(name for _, numbers in parts for name in numbers)
        return {
            name: sum(rows * numbers[name] for rows, numbers in parts if name in numbers)
            / sum(rows for rows, numbers in parts if name in numbers)
            for name in names
        }

    def explain(self, completions: Sequence[Completion], **columns: Any) -> Sequence[str | None]:
        """The rule that decided the value of each row, in words."""
        return [None] * len(completions)


class WrappedFunction(RewardFunction, Generic[P, Values]):
    """A function as a reward, with the function's own call signature, name and documentation."""

    def __init__(
        self,
        function: Callable[P, Values],
        *,
        by_row: bool = False,
        by_batch: bool = False,
        warm_up: Callable[..., None] | None = None,
        explain: Callable[..., Sequence[str | None]] | None = None,
    ):
        functools.update_wrapper(self, function, updated=())
        self.__name__ = name_of(function)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.by_row, self.by_batch = by_row, by_batch
        self._function, self._warm_up, self._explain = function, warm_up, explain

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Values:
        """The function's values."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<reward {self.__name__}>"

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled and copied by name, like functions

    def warm_up(self, **arguments: Any) -> None:
        """Calls the `warm_up` of `declare_reward` with the arguments that it takes."""
        if self._warm_up is not None:
            self._warm_up(**select_named(self._warm_up, arguments))

    def explain(self, completions: Sequence[Completion], **columns: Any) -> Sequence[str | None]:
        """Calls the `explain` of `declare_reward` with the columns that it takes."""
        if self._explain is None:
            return super().explain(completions)
        return self._explain(**select_named(self._explain, {"completions": completions, **columns}))


class AskingReward(WrappedFunction[P, Values]):
    """A function that asks a model, as a reward: records its calls and how many replies were readable.

    collective: whether it asks the `generate` of the run, in place of a server.
    """

    def __init__(self, function: Callable[P, Values], *, collective: bool = True):
        super().__init__(function)
        self.collective = collective
        self._calls: list[dict[str, Any]] = []
        self._asked = self._readable = 0

    def record(self, calls: Sequence[dict[str, Any]], readable: int) -> None:
        """Records calls as rows for samples.jsonl, `readable` of them with a readable reply; called by the function."""
        self._calls += calls
        self._asked += len(calls)
        self._readable += readable

    def take_calls(self) -> list[dict[str, Any]]:
        """Returns and clears the recorded calls."""
        taken, self._calls = self._calls, []
        return taken

    def take_metrics(self) -> dict[str, float]:
        """Returns and clears `judgements`, the number of calls, and `readable`, the share of readable replies."""
        asked, readable = self._asked, self._readable
        self._asked = self._readable = 0
        return {"judgements": float(asked), "readable": readable / asked} if asked else {"judgements": 0.0}

    def join_metrics(self, parts: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
        """The numbers of all processes' calls."""
        asked = sum(numbers["judgements"] for _, numbers in parts)
        readable = sum(round(numbers["judgements"] * numbers.get("readable", 0.0)) for _, numbers in parts)
        return {"judgements": asked, "readable": readable / asked} if asked else {"judgements": 0.0}


def by_row(function: Callable[P, Values]) -> WrappedFunction[P, Values]:
    """Decorator: marks a function whose value for a row depends on that row alone."""
    return WrappedFunction(function, by_row=True)


def declare_reward(
    *,
    by_row: bool = False,
    by_batch: bool = False,
    warm_up: Callable[..., None] | None = None,
    explain: Callable[..., Sequence[str | None]] | None = None,
) -> Callable[[Callable[P, Values]], WrappedFunction[P, Values]]:
    """Decorator: gives a function `by_row` or `by_batch`, a `warm_up` and an `explain`."""
    return lambda function: WrappedFunction(
        function, by_row=by_row, by_batch=by_batch, warm_up=warm_up, explain=explain
    )


def as_reward(function: Callable[..., Any]) -> RewardFunction:
    """Any callable as a RewardFunction; its own methods of the protocol are kept."""
    if isinstance(function, RewardFunction):
        return function
    inner = function.func if isinstance(function, functools.partial) else function
    reward: WrappedFunction[..., Any] = WrappedFunction(
        function,
        by_row=getattr(inner, "by_row", False),
        by_batch=getattr(inner, "by_batch", False),
        warm_up=getattr(inner, "warm_up", None),
        explain=getattr(inner, "explain", None),
    )
    for name in ("take_calls", "take_metrics", "join_metrics", "collective"):
        if hasattr(inner, name):
            setattr(reward, name, getattr(inner, name))
    return reward


def name_of(function: Callable[..., Any]) -> str:
    """`__name__` of a reward or maker; of the function inside a partial; of the class of an object without one."""
    inner = function.func if isinstance(function, functools.partial) else function
    return getattr(inner, "__name__", type(inner).__name__)


def select_named(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a function takes by name: all of them if it takes **any."""
    known = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return {name: value for name, value in arguments.items() if takes_all or name in known}


# --- Several processes ---


@dataclass(frozen=True)
class Outcome:
    """Result of one reward: values by row, the model calls that it recorded, and its own metrics."""

    values: dict[int, float | None] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def find_share(
    function: RewardFunction, rows: Sequence[int], group_ids: Sequence[int] | None, processes: Processes | None
) -> tuple[Sequence[int], int]:
    """The rows that this process scores, and the number of groups before them. Without processes: all rows."""
    if processes is None:
        return rows, 0
    if function.by_row:
        return rows[processes.my_share(len(rows))], 0
    if function.by_batch or group_ids is None:
        return (rows if processes.is_writer() else []), 0
    groups = list(dict.fromkeys(group_ids[row] for row in rows))
    share = processes.my_share(len(groups))
    own = set(groups[share])
    return [row for row in rows if group_ids[row] in own], share.start


def take_outcome(
    function: RewardFunction, rows: Sequence[int], values: Sequence[float | None], groups_before: int
) -> Outcome:
    """The outcome of a call on some rows; `row` and `group` of recorded calls count from the first of them."""
    calls = [dict(call) for call in function.take_calls()]
    for call in calls:
        if "row" in call:
            call["row"] = rows[call["row"]]
        if isinstance(call.get("group"), int):
            call["group"] += groups_before
    return Outcome(dict(zip(rows, values, strict=True)), calls, dict(function.take_metrics()))


def join_outcomes(function: RewardFunction, own: Outcome, processes: Processes) -> Outcome:
    """The outcome of all processes together, the same in each: values bit for bit, with their marks."""
    kinds = (OutOfLoss, Fault)
    marked = {
        row: (None if value is None else float(value), [isinstance(value, kind) for kind in kinds])
        for row, value in own.values.items()
    }
    sent = json.dumps([marked, own.calls, own.metrics], default=_to_plain)
    parts = [json.loads(text) for text in processes.texts_from_all(sent)]
    values: dict[int, float | None] = {}
    for found, _, _ in parts:
        for row, (value, (out_of_loss, fault)) in found.items():
            values[int(row)] = Fault() if fault else OutOfLoss(value) if out_of_loss else value
    metrics = function.join_metrics([(len(found), numbers) for found, _, numbers in parts if found])
    return Outcome(values, [call for _, calls, _ in parts for call in calls], metrics)


def _to_plain(value: Any) -> Any:
    """A number of any library as one of Python, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
