"""Programs of a critic over the packed rows of policy updates: values of tokens, and the loss that fits them to
returns.

A batch has the `SCORED` arrays of learner/policy_objective.py and, for the loss, weights, returns and old_values
[B, R].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from r1jax.learner.policy_objective import Batch, Scoring, read_states
from r1jax.learner.step import Frozen, LossFn
from r1jax.losses.value import value_loss
from r1jax.models.transformer import Params


def make_valuer(graph: nnx.GraphDef, scoring: Scoring) -> Callable[[Params, Batch], jax.Array]:
    """Function from a critic's parameters and a batch to the values of the states before its targets [B, R]."""

    def measure(params: Params, batch: Batch) -> jax.Array:
        critic, hidden_BRD = read_states(graph, params, batch, scoring)
        return critic.rate(hidden_BRD)

    return measure


def make_value_loss(graph: nnx.GraphDef, scoring: Scoring, clip: float) -> LossFn:
    """The critic's loss of a micro-batch, and its sums (losses/value.py)."""
    measure = make_valuer(graph, scoring)

    def loss_fn(params: Params, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        values = measure(params, batch)
        return value_loss(values, batch["old_values"], batch["returns"], batch["weights"], clip)

    return loss_fn


def summarize_values(sums: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of a step from the sums of its micro-batches: means over tokens."""
    total = {key: sum(float(row[key]) for row in sums) for key in sums[0]} if sums else {"tokens": 0.0}
    tokens = total["tokens"] or np.nan
    names = {"value": "value/mean", "error": "value/squared_error", "clipped": "value/clip_ratio"}
    return {name: total[key] / tokens for key, name in names.items() if key in total}
