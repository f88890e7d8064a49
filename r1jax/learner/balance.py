"""Expert balancing without an auxiliary loss (Wang et al. 2024, 2408.15664; DeepSeek-V3, 2412.19437, section 2.1.2).

After each update the correction bias of every expert with a load above the mean falls by a fixed rate, and that of
every other expert rises. The bias affects the selection only, so it has no gradient, no moments and no decay
(`learner/optimizer.py`); it moves by the load of the whole update, all micro-batches together.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models.transformer import Params

LOAD = "router/load"  # in the sums of a micro-batch: tokens sent to each expert [L, E], prediction depths last
BIAS = "correction_bias"


def shift_biases(params: Params, load_LE: jax.Array, rate: float) -> Params:
    """The parameters with every correction bias moved by rate * sign(mean load - load).

    load_LE: loads of the routed layers in order, then of the prediction depths; without the latter, their biases stay.
    """
    chex.assert_rank(load_LE, 2)
    moves_LE, row = rate * jnp.sign(load_LE.mean(-1, keepdims=True) - load_LE), 0
    params = dict(params)
    for part in ("layers", "stacks", "mtp"):
        flat, tree = jax.tree_util.tree_flatten_with_path(params.get(part))
        leaves = []
        for path, leaf in flat:
            if is_bias(path) and row < len(moves_LE):
                rows = leaf.size // leaf.shape[-1]
                leaf = leaf + moves_LE[row : row + rows].reshape(leaf.shape)
                row += rows
            leaves.append(leaf)
        if leaves:
            params[part] = jax.tree_util.tree_unflatten(tree, leaves)
    return params


def is_bias(path: Any) -> bool:
    """Whether a parameter, by its path in the tree, is a correction bias."""
    return getattr(path[-1], "key", None) == BIAS


def holds_biases(params: Params) -> bool:
    """Whether there are correction biases among the parameters."""
    return any(is_bias(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))


def measure_load(load_LE: Any) -> dict[str, float]:
    """Metrics of an update's loads: `router/max_violation`, the largest relative excess of any layer's most loaded
    expert over the mean; `router/mean_violation`, that excess averaged over layers; `router/load/E`, each expert's load
    over the mean, averaged over layers.
    """
    share_LE = np.asarray(load_LE, np.float64)
    share_LE = share_LE / np.maximum(share_LE.mean(-1, keepdims=True), 1e-9)
    violation_L = share_LE.max(-1) - 1
    each = {f"router/load/{expert}": float(share) for expert, share in enumerate(share_LE.mean(0))}
    return {
        "router/max_violation": float(violation_L.max()),
        "router/mean_violation": float(violation_L.mean()),
        **each,
    }
