"""Parts of PPO with a critic (Schulman et al. 2017, 1707.06347), for the tokens of completions.

The value of a token is that of the state before it. Generalized advantage estimation (1506.02438, eq. 16) with the
rewards r and values V of one completion, V = 0 after its last token:

    d_t = r_t + gamma V_{t+1} - V_t        A_t = d_t + gamma lambda A_{t+1}        R_t = A_t + V_t

The critic's loss is max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, so that one step moves no value by more
than c. lambda 1 is what DeepSeek-R1's authors found PPO to need (2501.12948, A.3): 0.95 was far worse.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np


def estimate_advantages(
    rewards: np.ndarray, values: np.ndarray, lengths: np.ndarray, *, gamma: float = 1.0, decay: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns, float64, of all tokens of completions, one after the other; decay is lambda.

    rewards, values: of every token. lengths: tokens of each completion.
    """
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    chex.assert_equal_shape([rewards, values], custom_message="rewards and values must have one entry a token")
    advantages, start = np.zeros(rewards.shape), 0
    for stop in np.cumsum(lengths).tolist():
        following = carried = 0.0
        for place in range(stop - 1, start - 1, -1):
            carried = rewards[place] + gamma * following - values[place] + gamma * decay * carried
            advantages[place], following = carried, values[place]
        start = stop
    return advantages, advantages + values


def whiten(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Values with mean 0 and standard deviation 1 over the entries `inside`."""
    chosen = values[inside]
    if len(chosen) < 2:
        return np.zeros_like(values)
    return (values - chosen.mean()) / (chosen.std() + 1e-8)


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, weights: jax.Array, clip: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one micro-batch, and metrics summed over its tokens; all arrays [B, R]. clip 0 is no clipping.

    weights: share of each token in the update's loss, 0 at padding, where NaN inputs have no effect.
    """
    chex.assert_rank(values, 2)
    chex.assert_equal_shape(
        [values, old_values, returns, weights], custom_message="values, returns and weights must be [B, R]"
    )
    inside = weights > 0
    values, old_values, returns = (jnp.where(inside, x, 0.0) for x in (values, old_values, returns))
    error = (values - returns) ** 2
    metrics = {"tokens": 1.0 * inside, "value": values, "error": error}
    if clip:
        near = jnp.clip(values, old_values - clip, old_values + clip)
        metrics["clipped"] = 1.0 * ((near - returns) ** 2 > error)
        error = jnp.maximum(error, (near - returns) ** 2)
    sums = {name: jax.lax.stop_gradient((value * inside).sum()) for name, value in metrics.items()}
    return 0.5 * (error * weights).sum(), sums
