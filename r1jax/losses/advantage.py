"""Group-relative advantages (DeepSeekMath, 2402.03300, eq. 3): how much better than its siblings a completion did.

A group is the G completions of one prompt; rewards arrive as [P, G]. Where all members got the same reward there is
nothing to learn, and the advantage is exactly zero. Other scalings are further functions of this table.
"""

from __future__ import annotations

import numpy as np

EPSILON = 1e-4


def group_advantages(rewards_PG: np.ndarray, *, zero_spread: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """((r - mean) / (s + 1e-4) per group, which groups have no spread [P]); s is the sample deviation (n - 1), as in
    TRL.

    A group with s < zero_spread counts as having none. NaN rewards (no reward applied) count as having none too.
    """
    rewards = np.asarray(rewards_PG, np.float64)
    if rewards.shape[1] < 2:
        raise ValueError("group-relative advantages need groups of at least 2 completions")
    deviation = rewards.std(axis=1, ddof=1, keepdims=True)
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / (deviation + EPSILON)
    flat = ~(deviation[:, 0] >= zero_spread)
    return np.where(flat[:, None], 0.0, advantages), flat
