"""Advantages: how much better than a baseline a completion did, in units of a scale.

A group is the G completions of one prompt; rewards arrive as [P, G]. The baseline is the mean of the group
(DeepSeekMath, 2402.03300, eq. 3), of its other members (RLOO, 2402.14740) or of the batch (REINFORCE++, 2501.03262).
The scale is the sample deviation (n - 1, as in TRL) of the group, that of the batch once the baseline is taken off, or
none (Dr. GRPO, 2503.20783). Mean of the group with scale of the batch is REINFORCE++'s form with a baseline.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

EPSILON = 1e-4

Baseline = Literal["group", "leave_one_out", "batch"]
Scale = Literal["group", "batch", "none"]


def group_advantages(
    rewards_PG: np.ndarray, *, baseline: Baseline = "group", scale: Scale = "group", min_group_std: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """((r - baseline) / (scale + 1e-4) [P, G], which groups have no spread [P]).

    A group whose sample deviation is below min_group_std has none, and advantage exactly zero unless the baseline is
    the batch's. A NaN reward (none applied) takes no part: it counts nowhere, and its advantage is zero.
    """
    rewards = np.asarray(rewards_PG, np.float64)
    if rewards.shape[1] < 2:
        raise ValueError("group-relative advantages need groups of at least 2 completions")
    here = ~np.isnan(rewards)
    count = here.sum(axis=1, keepdims=True)
    total = np.where(here, rewards, 0.0).sum(axis=1, keepdims=True)
    centred = np.where(here, rewards - total / np.maximum(count, 1), 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
    flat = ~(deviation[:, 0] >= min_group_std)
    if baseline == "leave_one_out":
        centred = np.where(here & (count > 1), rewards - (total - rewards) / np.maximum(count - 1, 1), 0.0)
    elif baseline == "batch":
        centred = np.where(here, rewards - total.sum() / max(here.sum(), 1), 0.0)
    if scale == "batch":
        deviation = np.sqrt((centred**2).sum() / max(here.sum() - 1, 1))
    advantages = centred if scale == "none" else centred / (deviation + EPSILON)
    return np.where(flat[:, None] & (baseline != "batch"), 0.0, advantages), flat
