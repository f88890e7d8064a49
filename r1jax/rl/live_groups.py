"""Groups that live over several steps, and which of them a step trains on.

With `config.rollout.max_staleness = n` a step trains as soon as it has its groups; others go on under the next weights.
A group that began at step s is trained on at step s + n at the latest. For that at most (n + 1) x prompts_per_step
groups live, and a step waits for the oldest where those that it would leave could not all be trained on in time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.core.structs import Completion, FinishReason, Request


@dataclasses.dataclass
class Member:
    """A completion so far: its ids, their log-probs, the step whose weights sampled each, and why it ended ("": it did
    not). request: what was asked for.
    """

    request: Request
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)
    finish_reason: FinishReason | str = ""

    def complete(self, step: int) -> Completion:
        """The completion, with ages as of `step`."""
        reason: Any = self.finish_reason
        ages = step - np.array(self.steps, np.int32)
        return Completion(tuple(self.tokens), tuple(self.logprobs), reason, ages=ages)


@dataclasses.dataclass
class LiveGroup:
    """A row of the data with its completions. begun: the step at which it began; place: among those of that step."""

    row: dict[str, Any]
    begun: int
    place: int
    members: list[Member]

    @property
    def is_complete(self) -> bool:
        """Whether all members ended."""
        return all(member.finish_reason for member in self.members)

    def get_state(self) -> dict[str, Any]:
        """State for JSON; prompt, sampling and seed follow from row, step and place."""
        members = [[m.tokens, m.logprobs, m.steps, m.finish_reason] for m in self.members]
        return {"row": self.row, "begun": self.begun, "place": self.place, "members": members}

    def set_members(self, saved: Sequence[Sequence[Any]]) -> None:
        """Goes on from the members of a state."""
        self.members = [Member(old.request, *each) for old, each in zip(self.members, saved, strict=True)]


def choose_groups(groups: Sequence[LiveGroup], count: int, step: int, staleness: int) -> list[int]:
    """Places of the `count` groups that `step` trains on: the first complete ones. [] while there are fewer, or while
    those that are left could not all be trained on in time, `count` a step.

    groups: in the order in which they began.
    """
    chosen = [place for place, group in enumerate(groups) if group.is_complete][:count]
    taken = set(chosen)
    left = [group.begun for place, group in enumerate(groups) if place not in taken]
    in_time = all(begun + staleness >= step + 1 + place // count for place, begun in enumerate(left))
    return chosen if len(chosen) == count and in_time else []
