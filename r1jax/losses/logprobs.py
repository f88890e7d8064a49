"""Log-probs and entropy of chosen tokens, without a stored float32 [B, T, V].

Targets are gathered first (only positions that carry a loss meet the head); the head and the softmax then run over
chunks of rows, recomputed in the backward pass where `chunk` is set. Temperature divides the logits, as the sampler's
does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.core.reduction import row_sums


def gather_positions(hidden_BTD: jax.Array, index_BR: jax.Array) -> jax.Array:
    """Rows of hidden states at the given positions -> [B, R, D]."""
    return jnp.take_along_axis(hidden_BTD, index_BR[:, :, None], axis=1)


def token_logprobs(
    hidden_BRD: jax.Array,
    targets_BR: jax.Array,
    unembed: Callable[[jax.Array], jax.Array],
    *,
    temperature: float | jax.Array = 1.0,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """(log-prob of each target, entropy in nats of its distribution), both float32 [B, R].

    chunk: positions of a row whose logits exist at once (0: all, nothing recomputed). Must divide R.
    """

    def score(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        return score_logits(unembed(hidden).astype(jnp.float32) / temperature, targets)

    return map_positions(score, (hidden_BRD, targets_BR), chunk)


def score_targets(
    hidden_BRD: jax.Array, targets_BR: jax.Array, unembed: Callable[[jax.Array], jax.Array], *, chunk: int = 0
) -> tuple[jax.Array, jax.Array]:
    """(log-prob of each target, whether none is likelier: float32 1 or 0, no gradient), both [B, R]."""

    def score(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = unembed(hidden).astype(jnp.float32)
        fixed = jax.lax.stop_gradient(logits)
        chosen = jnp.take_along_axis(fixed, targets[..., None], axis=-1)[..., 0]
        return score_logits(logits, targets)[0], (chosen >= fixed.max(-1)).astype(jnp.float32)

    return map_positions(score, (hidden_BRD, targets_BR), chunk)


def map_positions(function: Callable[..., Any], arrays: tuple[jax.Array, ...], chunk: int) -> Any:
    """`function(*arrays)` for arrays [B, R, ...] and results [B, R], over `chunk` positions of a row at a time, which
    the backward pass computes again; 0: all at once. Must divide R.
    """
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
    """(log-prob of targets, entropy) of float32 logits [..., V].

    The backward pass is one fused sweep over the vocabulary: g_logp (onehot - p) - g_entropy p (log p + entropy).
    """
    return _score_forward(logits, targets)[0]


def _score_forward(logits: jax.Array, targets: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple]:
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
