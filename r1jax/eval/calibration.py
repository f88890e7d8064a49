"""Calibration of a reward model: how often the preferred text is the one that it gives the higher probability.

Of two texts with scores s and t the model says that the first is preferred with probability sigmoid(s - t). Each pair
is shown in an order that follows from its number, so that the frequency of "the first is preferred" is compared with
the predicted probability over the whole interval, in tenths.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

BINS = 10


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Tenths of the predicted probability that hold pairs, each a dict of `low`, `high`, `pairs`, `predicted` (mean),
    `observed` (share), `stderr` (of the share, from the predictions); `error`, the mean gap of predicted and observed
    over pairs; and the number of `pairs`.
    """

    pairs: int
    error: float
    tenths: list[dict[str, Any]]

    @property
    def is_calibrated(self) -> bool:
        """Whether each tenth is within five points, or two standard errors, of what was predicted."""
        return all(abs(t["predicted"] - t["observed"]) <= max(0.05, 2 * t["stderr"]) for t in self.tenths)


def measure_calibration(scores: np.ndarray) -> Calibration:
    """Calibration over pairs with scores [pairs, 2] of the preferred and the other text."""
    gaps = np.asarray(scores, np.float64).reshape(-1, 2)
    gaps = (gaps[:, 0] - gaps[:, 1])[~np.isnan(gaps).any(axis=1)]
    preferred = np.random.default_rng(0).integers(0, 2, len(gaps)) == 0  # whether the first one shown is preferred
    predicted = 1 / (1 + np.exp(-np.clip(np.where(preferred, gaps, -gaps), -500, 500)))
    which = np.minimum((predicted * BINS).astype(int), BINS - 1)
    tenths, total = [], 0.0
    for number in np.unique(which).tolist():
        inside = which == number
        count, said, seen = int(inside.sum()), float(predicted[inside].mean()), float(preferred[inside].mean())
        stderr = math.sqrt(float((predicted[inside] * (1 - predicted[inside])).sum())) / count
        edges = {"low": number / BINS, "high": (number + 1) / BINS}
        tenths.append({**edges, "pairs": count, "predicted": said, "observed": seen, "stderr": stderr})
        total += count * abs(said - seen)
    return Calibration(len(gaps), total / len(gaps) if len(gaps) else float("nan"), tenths)
