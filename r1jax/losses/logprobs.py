"""Log-probs and entropy of given target tokens, without storing a float32 [B, T, V].

Hidden states are gathered first, so that only positions with a loss pass the output head; head and softmax then run
over chunks of each row, recomputed in the backward pass where `chunk` is set. Logits are divided by the temperature, as
in the sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from r1jax.core.reduction import row_sums


def gather_positions(hidden_BTD: jax.Array, index_BR: jax.Array) -> jax.Array:
    """Hidden states [B, T, D] at the given positions [B, R] -> [B, R, D]."""
    chex.assert_rank([hidden_BTD, index_BR], [3, 2])
    chex.assert_equal_shape_prefix([hidden_BTD, index_BR], 1, custom_message="states and index must have the same rows")
    return jnp.take_along_axis(hidden_BTD, index_BR[:, :, None], axis=1)


def token_logprobs(
    hidden_BRD: jax.Array,
    targets_BR: jax.Array,
    unembed: Callable[[jax.Array], jax.Array],
    *,
    temperature: float | jax.Array = 1.0,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target and entropy (nats) of its distribution, both float32 [B, R].

    chunk: positions of a row whose logits exist at once; must divide R (0: all positions, nothing is recomputed).
    """

    def score(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        return score_logits(unembed(hidden).astype(jnp.float32) / temperature, targets)

    return map_positions(score, (hidden_BRD, targets_BR), chunk)


def score_targets(
    hidden_BRD: jax.Array, targets_BR: jax.Array, unembed: Callable[[jax.Array], jax.Array], *, chunk: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target [B, R], and whether it is the most likely token (float32 1 or 0, no gradient) [B, R]."""

    def score(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = unembed(hidden).astype(jnp.float32)
        fixed = jax.lax.stop_gradient(logits)
        chosen = jnp.take_along_axis(fixed, targets[..., None], axis=-1)[..., 0]
        return score_logits(logits, targets)[0], (chosen >= fixed.max(-1)).astype(jnp.float32)

    return map_positions(score, (hidden_BRD, targets_BR), chunk)


def map_positions(function: Callable[..., Any], arrays: tuple[jax.Array, ...], chunk: int) -> Any:
    """`function(*arrays)` for arrays [B, R, ...] and results [B, R], over `chunk` positions of each row at a time,
    recomputed in the backward pass. chunk must divide R; 0 runs all positions at once.
    """
    chex.assert_equal_shape_prefix(arrays, 2, custom_message="all arrays must begin with the same [B, R]")
    B, R = arrays[0].shape[:2]
    if not chunk or chunk >= R:
        return function(*arrays)
    if R % chunk:
        raise ValueError(f"chunk {chunk} does not divide the {R} targets of a row")
    pieces = tuple(x.reshape(B, R // chunk, chunk, *x.shape[2:]).swapaxes(0, 1) for x in arrays)
    body = jax.checkpoint(lambda piece: function(*piece), policy=jax.checkpoint_policies.nothing_saveable)
    joined = lambda x: x.swapaxes(0, 1).reshape(B, R)
    return jax.tree.map(joined, jax.lax.map(body, pieces))


@jax.custom_vjp
def score_logits(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-prob of the targets and entropy of float32 logits [..., V].

    The backward pass is one fused sweep over the vocabulary: g_logp (onehot - p) - g_entropy p (log p + entropy).
    """
    return _score_forward(logits, targets)[0]


def _score_forward(logits: jax.Array, targets: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    chex.assert_shape(targets, logits.shape[:-1], custom_message="targets must be [...] for logits [..., V]")
    peak = logits.max(-1)
    below = logits - peak[..., None]
    powers = jnp.exp(below)
    total = row_sums(powers)
    log_total = jnp.log(total)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    entropy = log_total - row_sums(powers * below) / total
    return ((chosen - peak) - log_total, entropy), (logits, targets, peak + log_total, entropy)


def _score_backward(saved: tuple, grads: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    logits, targets, log_total, entropy = saved
    grad_logprob, grad_entropy = (grad[..., None] for grad in grads)
    logprobs = logits - log_total[..., None]
    onehot = jnp.arange(logits.shape[-1]) == targets[..., None]
    spread = grad_logprob + grad_entropy * (logprobs + entropy[..., None])
    return jnp.where(onehot, grad_logprob, 0.0) - jnp.exp(logprobs) * spread, None


score_logits.defvjp(_score_forward, _score_backward)
