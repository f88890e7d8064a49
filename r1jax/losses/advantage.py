"""Advantages: the reward of a completion minus a baseline, divided by a scale.

A group is the G completions of one prompt; rewards are [P, G]. The baseline is the mean of the group (DeepSeekMath,
2402.03300, eq. 3), the mean of its other members (RLOO, 2402.14740) or the mean of the batch (REINFORCE++, 2501.03262).
The scale is the sample standard deviation (n - 1, as in TRL) of the group, that of the batch after the baseline is
subtracted, or none (Dr. GRPO, 2503.20783). Group mean with batch scale is the variant of REINFORCE++ with a baseline.
"critic", the learned values of PPO, is estimated token by token (losses/value.py).
"""

from __future__ import annotations

from typing import Literal

import chex
import numpy as np

EPSILON = 1e-4

Baseline = Literal["group", "leave_one_out", "batch", "critic"]
Scale = Literal["group", "batch", "none"]


def group_advantages(
    rewards_PG: np.ndarray, *, baseline: Baseline = "group", scale: Scale = "group", min_group_std: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages (r - baseline) / (scale + 1e-4) [P, G], and which groups have zero spread [P].

    A group has zero spread if its sample standard deviation is below min_group_std; its advantages are then exactly
    zero, unless the baseline is "batch". A NaN reward (no reward applied to the row) is left out of every mean and
    deviation, and its advantage is zero. Raises ValueError for groups of one completion.
    """
    rewards = np.asarray(rewards_PG, np.float64)
    chex.assert_rank(rewards, 2, custom_message="rewards must be [P, G], a row for each prompt")
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
