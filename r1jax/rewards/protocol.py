"""What a reward may say of a row beside a number (that it is to be left out of the loss), of its calls of a model, and
of itself (that it judges every row by itself).

All are optional, and a reward without them is TRL's. This is the whole of what `base.score` and a stage know of
rewards that call a model:

    generate(prompts) -> texts      handed to a maker (`get_…_reward(generate, …)`) by `load_rewards(…, generate=…)`.
                                    A prompt is a text, or messages where the data's prompts are; one text comes back
                                    for each, in order. A reply that could not be had is None.
    OutOfLoss(value)                in the list that a reward returns, in place of a number: the row gets no loss, and
                                    is left out of its group's mean and spread, so that the others are compared with
                                    each other. `Scores.out_of_loss` says which rows.
    function.take_calls()           the calls since it was last asked, as rows for samples.jsonl, and forgets them.
    function.take_metrics()         numbers by name since it was last asked, and forgets them.

`@by_row` marks a reward whose value for a row is a function of that row's columns alone, and which neither calls the
model nor records calls: the processes of a run share its rows. One without the mark runs on all rows in each of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from r1jax.rewards.completions import Completion

Generate = Callable[[Sequence[Completion]], Sequence[str | None]]


class Processes(Protocol):
    """The processes of a run, as r1jax/core/distributed.py has them."""

    def my_share(self, count: int) -> slice:
        """Which of `count` items are this process's."""
        ...

    def join_shares(self, mine: np.ndarray, count: int) -> np.ndarray:
        """All `count` items, of which this process brings its own."""
        ...


F = TypeVar("F", bound=Callable[..., Any])


def by_row(reward: F) -> F:
    """The mark of a reward that judges every row by itself."""
    reward.by_row = True  # type: ignore[attr-defined]
    return reward


class OutOfLoss(float):
    """A reward's value for a row that is to have no loss. It still counts in the reward's own mean."""


class CallRecord:
    """The calls that one reward made of a model, and how many of the replies could be read."""

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._asked = self._readable = 0

    def add(self, calls: Sequence[dict[str, Any]], readable: int) -> None:
        """Takes in calls as rows for samples.jsonl."""
        self._calls += calls
        self._asked += len(calls)
        self._readable += readable

    def attach(self, reward: Callable[..., Any]) -> None:
        """Gives the reward its `take_calls` and `take_metrics`."""
        reward.take_calls, reward.take_metrics = self.take_calls, self.take_metrics  # type: ignore[attr-defined]

    def take_calls(self) -> list[dict[str, Any]]:
        """The calls since this was last asked."""
        taken, self._calls = self._calls, []
        return taken

    def take_metrics(self) -> dict[str, float]:
        """`judgements`, their number since this was last asked, and `readable`, the share that could be read."""
        asked, readable = self._asked, self._readable
        self._asked = self._readable = 0
        return {"judgements": float(asked), "readable": readable / asked} if asked else {"judgements": 0.0}
