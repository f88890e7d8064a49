"""The objective of an update: a loss and the frozen parameters that it reads."""

from __future__ import annotations

import dataclasses

from r1jax.learner.step import Frozen, LossFn
from r1jax.models.flops import Work


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss of a model's own parameters.

    frozen: parameters of other models that `loss_fn` reads, by name ("teacher"); work: of the forward pass of these
    models. predicts_ahead: the loss runs the model's prediction depths too. uses_advantages: completions with advantage
    0 have no gradient, so an update may leave them out; False if every completion has one.
    """

    loss_fn: LossFn
    frozen: Frozen = dataclasses.field(default_factory=dict)
    work: Work = Work()
    predicts_ahead: bool = False
    uses_advantages: bool = True
