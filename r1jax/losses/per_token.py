"""Losses of single targets, summed over a batch: the ones that clients of a training service name.

With the log-prob l of a target, the sampler's log-prob q, the advantage A, a weight w, r = exp(l - q) and bounds low
and high:

    cross_entropy         -w l
    importance_sampling   -r A
    ppo                   -min(r A, clip(r, low, high) A)                  (Schulman et al. 2017, 1707.06347)
    cispo                 -stop_gradient(clip(r, low, high)) A l           (MiniMax-M1, 2506.13585)
    dro                   -(l A - beta (l - q)^2 / 2)                      (Richemond et al. 2024, 2405.19107)

These are the losses of the Tinker API by its documentation, where the loss of a batch is their plain sum and bounds are
those of the ratio itself. Each target names its loss, so that targets of many clients pass one program.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from r1jax.losses.policy import LOG_RATIO_LIMIT

LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")


def target_losses(
    logprobs: jax.Array,
    kinds: jax.Array,
    *,
    weights: jax.Array,
    sampled: jax.Array,
    advantages: jax.Array,
    low: jax.Array,
    high: jax.Array,
    beta: jax.Array,
) -> jax.Array:
    """The loss of each target; all arrays are [B, R]. kinds: indices into `LOSSES`. sampled: log-probs of the sampler.
    A target without weight and advantage has loss 0 and no gradient (but the penalty of "dro").
    """
    chex.assert_equal_shape(
        [logprobs, kinds, weights, sampled, advantages, low, high, beta],
        custom_message="log-probs and what belongs to them must be [B, R], a value for each target",
    )
    gap = logprobs - sampled
    ratio = jnp.exp(jnp.clip(gap, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    clipped = jnp.clip(ratio, low, high)
    losses = (
        -weights * logprobs,
        -ratio * advantages,
        -jnp.minimum(ratio * advantages, clipped * advantages),
        -jax.lax.stop_gradient(clipped) * advantages * logprobs,
        -(logprobs * advantages - 0.5 * beta * gap**2),
    )
    return jnp.select([kinds == number for number in range(len(LOSSES))], list(losses), 0.0)
