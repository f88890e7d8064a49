"""The objective of an update: a loss with what it reads beside the trained parameters."""

from __future__ import annotations

import dataclasses

from r1jax.learner.step import Frozen, LossFn


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss of a model's own parameters.

    frozen: by name the parameters of other models that `loss_fn` reads ("teacher"). uses_advantages: completions
    whose advantage is 0 have no gradient, so an update may leave them out; False where every completion teaches.
    """

    loss_fn: LossFn
    frozen: Frozen = dataclasses.field(default_factory=dict)
    uses_advantages: bool = True
