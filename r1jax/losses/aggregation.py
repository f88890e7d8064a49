"""Aggregation of token losses into the loss of an update, as one weight per token.

"token" is the mean over all completion tokens of the update (DAPO, 2503.14476); "sequence" the mean over completions of
each one's token mean (DeepSeekMath, 2402.03300); "constant" the sum over tokens divided by the number of completions
times a constant length, so that a token's weight does not depend on the length of its completion (Dr. GRPO,
2503.20783); "sum" the same without the length, the mean over completions of their sums (LUSPO, 2602.05261).

Denominators are those of the whole update: each micro-batch contributes its share of one global mean, so the gradient
depends neither on the micro-batch size nor on the mesh.
"""

from __future__ import annotations

from typing import Literal

import chex
import numpy as np

Aggregation = Literal["token", "sequence", "constant", "sum"]


def token_weights(
    lengths: np.ndarray, aggregation: Aggregation, *, constant: int = 1, excluded: np.ndarray | None = None
) -> np.ndarray:
    """Weight of every token of each completion in the loss of the update, float64 of the shape of `lengths`.

    lengths: tokens of every completion of the update, those with advantage zero included. constant: the length that
    "constant" divides by. excluded: completions that are left out of the loss and of all denominators (weight 0).
    """
    lengths = np.asarray(lengths, np.float64)
    kept = np.ones(lengths.shape, bool) if excluded is None else ~np.asarray(excluded, bool)
    chex.assert_equal_shape([lengths, kept], custom_message="`excluded` must have one value for each completion")
    count = max(kept.sum(), 1)
    if aggregation == "token":
        weights = np.full(lengths.shape, 1.0 / max(lengths[kept].sum(), 1.0))
    elif aggregation == "sequence":
        weights = 1.0 / (np.maximum(lengths, 1.0) * count)
    else:
        weights = np.full(lengths.shape, 1.0 / (count * (constant if aggregation == "constant" else 1)))
    return np.where(kept, weights, 0.0)
