"""The clipped policy-gradient surrogate of PPO as GRPO uses it, with an optional KL term to a reference.

Per token: -min(r A, clip(r, 1 - low, 1 + high) A) + beta * k3, with r = exp(logp - old_logp) and k3 = exp(ref - logp)
- (ref - logp) - 1 (Schulman's estimator; DeepSeekMath, 2402.03300, eq. 4). Purely on-policy the old log-probs are the
stopped new ones and r is exactly 1.

Aggregation: "token" is the mean over all completion tokens of the update (DAPO, 2503.14476); "sequence" is the mean
over completions of each one's token mean (DeepSeekMath). Both denominators belong to the whole update, so a micro-
batch gives its share of one global mean and the gradient does not depend on how the update was cut. Here that share
is a weight per token, made where the whole update is known (`token_weights`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Aggregation = Literal["token", "sequence"]
LOG_RATIO_LIMIT = 20.0


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig:
    """Constants of the surrogate; `kl_coefficient` 0 needs no reference model."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.0
    aggregation: Aggregation = "token"


def token_weights(lengths: np.ndarray, aggregation: Aggregation) -> np.ndarray:
    """The weight of each token of each completion in the loss of the update; they sum to 1 over all its tokens.

    lengths: tokens of every completion of the update, also of those whose advantage is zero.
    """
    lengths = np.asarray(lengths, np.float64)
    if aggregation == "token":
        return np.full(lengths.shape, 1.0 / max(lengths.sum(), 1.0))
    return 1.0 / (np.maximum(lengths, 1.0) * max(len(lengths), 1))


def policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    config: PolicyLossConfig,
    *,
    reference_logprobs: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, weighted sums of metrics) of one micro-batch; all arrays [B, R], float32.

    weights: share of each token in the update's loss, 0 at padding. Masked positions cannot make NaN.
    """
    inside = weights > 0
    logprobs = jnp.where(inside, logprobs, 0.0)
    old_logprobs = jnp.where(inside, old_logprobs, 0.0)
    advantages = jnp.where(inside, advantages, 0.0)
    log_ratio = jnp.clip(logprobs - old_logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    per_token = -jnp.minimum(ratio * advantages, clipped * advantages)
    low = inside & (ratio < 1.0 - config.clip_low) & (advantages < 0)
    high = inside & (ratio > 1.0 + config.clip_high) & (advantages > 0)
    metrics = {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}
    if reference_logprobs is not None:
        gap = jnp.clip(jnp.where(inside, reference_logprobs, 0.0) - logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        k3 = jnp.exp(gap) - gap - 1.0
        per_token = per_token + config.kl_coefficient * k3
        metrics["kl"] = k3
    sums = {name: jax.lax.stop_gradient((value * inside).sum()) for name, value in metrics.items()}
    return (per_token * weights).sum(), sums
