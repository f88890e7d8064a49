"""The objective of an update: a loss and the frozen parameters that it reads."""

from __future__ import annotations

import dataclasses

from r1jax.learner.step import Frozen, LossFn


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss of a model's own parameters.

    frozen: parameters of other models that `loss_fn` reads, by name ("teacher"). uses_advantages: completions with
    advantage 0 have no gradient, so an update may leave them out; False if every completion has one.
    """

    loss_fn: LossFn
    frozen: Frozen = dataclasses.field(default_factory=dict)
    uses_advantages: bool = True
