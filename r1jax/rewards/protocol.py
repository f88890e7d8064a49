"""The optional protocol of rewards: what a reward may offer beyond being a function of completions and columns.

A plain function with TRL's signature is a complete reward. One that offers more is an object with `__call__` and any of
these; `RewardFunction` has all of them with neutral defaults:

    by_row              True if the value of a row depends on that row's columns alone, and calling the reward neither
                        asks a model nor records anything: the processes of a run then share its rows. A reward
                        without it runs on all rows in every process. `@by_row` says so of a function.
    warm_up(...)        called once when rewards are loaded, with those of the config's arguments that it names: starts
                        workers early, and raises UserError for what the config must change.
    take_calls()        the model calls recorded since it was last asked, as rows for samples.jsonl; it forgets them.
    take_metrics()      numbers by name since it was last asked (`rewards/{name}/{key}` in the metrics); likewise.

Two more things are no methods:

    generate(prompts)   given to a maker that has a parameter of this name (`get_…_reward(generate, …)`). A prompt is a
                        text, or messages where the data's prompts are; one text comes back for each, in order, None
                        where there was no reply.
    OutOfLoss(value)    in the list that a reward returns, in place of a number: the row gets no loss and is left out
                        of its group's mean and spread. `Scores.out_of_loss` says which rows.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import numpy as np

from r1jax.rewards.completions import Completion

Generate = Callable[[Sequence[Completion]], Sequence[str | None]]
P = ParamSpec("P")
Values = TypeVar("Values", bound=Sequence[float | None])


class Processes(Protocol):
    """The processes of a run, as r1jax/core/distributed.py has them."""

    def my_share(self, count: int) -> slice:
        """Which of `count` items are this process's."""
        ...

    def join_shares(self, mine: np.ndarray, count: int) -> np.ndarray:
        """All `count` items, of which this process brings its own."""
        ...


class OutOfLoss(float):
    """A reward's value for a row that is to have no loss. It still counts in the reward's own mean."""


class RewardFunction:
    """A reward with the optional protocol; a subclass defines `__call__` and overrides what it offers.

    Its metrics carry `__name__`, or the name of its class if it sets none.
    """

    by_row: bool = False

    def __call__(self, *args: Any, **columns: Any) -> Sequence[float | None]:
        """One value a completion; None where the reward does not apply."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Prepares for the first call."""

    def take_calls(self) -> list[dict[str, Any]]:
        """The recorded model calls, which are forgotten."""
        return []

    def take_metrics(self) -> dict[str, float]:
        """Numbers by name, which are forgotten."""
        return {}


class WrappedFunction(RewardFunction, Generic[P, Values]):
    """A function as a reward: called, named and documented like the function itself."""

    def __init__(
        self, function: Callable[P, Values], *, by_row: bool = False, warm_up: Callable[..., None] | None = None
    ):
        functools.update_wrapper(self, function, updated=())
        self.__name__ = name_of(function)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.by_row, self._function, self._warm_up = by_row, function, warm_up

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Values:
        """The function's values."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<reward {self.__name__}>"

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled and copied by name, as functions are

    def warm_up(self, **arguments: Any) -> None:
        """Calls what `declare_reward` was given, with those arguments that it takes."""
        if self._warm_up is not None:
            self._warm_up(**select_named(self._warm_up, arguments))


class AskingReward(WrappedFunction[P, Values]):
    """A function that asks a model, as a reward: records its calls and how many of the replies could be read."""

    def __init__(self, function: Callable[P, Values]):
        super().__init__(function)
        self._calls: list[dict[str, Any]] = []
        self._asked = self._readable = 0

    def record(self, calls: Sequence[dict[str, Any]], readable: int) -> None:
        """Takes in calls as rows for samples.jsonl; `readable` of them had a reply that could be read. The function
        calls this.
        """
        self._calls += calls
        self._asked += len(calls)
        self._readable += readable

    def take_calls(self) -> list[dict[str, Any]]:
        """The calls since this was last asked."""
        taken, self._calls = self._calls, []
        return taken

    def take_metrics(self) -> dict[str, float]:
        """`judgements`, their number since this was last asked, and `readable`, the share that could be read."""
        asked, readable = self._asked, self._readable
        self._asked = self._readable = 0
        return {"judgements": float(asked), "readable": readable / asked} if asked else {"judgements": 0.0}


def by_row(function: Callable[P, Values]) -> WrappedFunction[P, Values]:
    """Marks a function whose value for a row depends on that row alone (decorator)."""
    return WrappedFunction(function, by_row=True)


def declare_reward(
    *, by_row: bool = False, warm_up: Callable[..., None] | None = None
) -> Callable[[Callable[P, Values]], WrappedFunction[P, Values]]:
    """Gives a function `by_row` and a `warm_up` (decorator)."""
    return lambda function: WrappedFunction(function, by_row=by_row, warm_up=warm_up)


def as_reward(function: Callable[..., Any]) -> RewardFunction:
    """Any callable as a RewardFunction; what it has of the protocol under the protocol's names is kept."""
    if isinstance(function, RewardFunction):
        return function
    inner = function.func if isinstance(function, functools.partial) else function
    reward: WrappedFunction[..., Any] = WrappedFunction(
        function, by_row=getattr(inner, "by_row", False), warm_up=getattr(inner, "warm_up", None)
    )
    for name in ("take_calls", "take_metrics"):
        if hasattr(inner, name):
            setattr(reward, name, getattr(inner, name))
    return reward


def name_of(function: Callable[..., Any]) -> str:
    """`__name__` of a reward or maker; of the function within a partial; the class's of an object without one."""
    inner = function.func if isinstance(function, functools.partial) else function
    return getattr(inner, "__name__", type(inner).__name__)


def select_named(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes by name: all of them if it takes **any."""
    known = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return {name: value for name, value in arguments.items() if takes_all or name in known}
