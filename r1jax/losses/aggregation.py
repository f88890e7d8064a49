"""From the losses of tokens to the loss of an update, as a weight per token.

"token" is the mean over all completion tokens of the update (DAPO, 2503.14476); "sequence" the mean over completions
of each one's token mean (DeepSeekMath, 2402.03300); "constant" the sum over tokens divided by the number of completions
and one constant length, so that no token's weight depends on how long its completion is (Dr. GRPO, 2503.20783).

Denominators belong to the whole update: a micro-batch gives its share of one global mean, and the gradient does not
depend on how the update was cut or on the mesh.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Aggregation = Literal["token", "sequence", "constant"]


def token_weights(
    lengths: np.ndarray, aggregation: Aggregation, *, constant: int = 1, excluded: np.ndarray | None = None
) -> np.ndarray:
    """The weight of each token of each completion in the loss of the update.

    lengths: tokens of every completion of the update, also of those whose advantage is zero. constant: the length that
    "constant" divides by. excluded: completions that count neither here nor in any denominator (weight 0).
    """
    lengths = np.asarray(lengths, np.float64)
    kept = np.ones(lengths.shape, bool) if excluded is None else ~np.asarray(excluded, bool)
    count = max(kept.sum(), 1)
    if aggregation == "token":
        weights = np.full(lengths.shape, 1.0 / max(lengths[kept].sum(), 1.0))
    elif aggregation == "sequence":
        weights = 1.0 / (np.maximum(lengths, 1.0) * count)
    else:
        weights = np.full(lengths.shape, 1.0 / (count * constant))
    return np.where(kept, weights, 0.0)
