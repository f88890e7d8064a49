"""Saved states of a policy in training that are more than its own: with a moving reference, or with a critic."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.learner.state import TrainState
from r1jax.models.transformer import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PolicyState(TrainState):
    """Saved state of a run with a moving reference: the training state, and the reference of its KL term."""

    reference: Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class CriticState(TrainState):
    """Saved state of a run with a critic: the training states of policy and critic."""

    critic: TrainState


def mix(reference: Params, params: Params, share: jax.Array) -> Params:
    """(1 - share) reference + share params, in float32; exactly the policy at share 1."""

    def move(old: Any, new: Any) -> jax.Array:
        whole = (1.0 - share) * old.astype(jnp.float32) + share * new.astype(jnp.float32)
        return whole.astype(old.dtype)

    return jax.tree.map(move, reference, params)
