"""Cross entropy of the next token, and of tokens further ahead (multi-token prediction).

All losses are sums of negative log-probs over weighted tokens; the caller divides by one global denominator, the target
weight of depth 0, as equation 24 of DeepSeek-V3 (2412.19437) divides every depth by the sequence length. A target
counts only where it is in the segment of the token that predicts it: packed documents do not predict each other, and
padding (segment 0) predicts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from r1jax.losses.logprobs import token_logprobs

Unembed = Callable[[jax.Array], jax.Array]


def shift_targets(
    tokens_BT: jax.Array, weights_BT: jax.Array, segments_BT: jax.Array, ahead: int
) -> tuple[jax.Array, jax.Array]:
    """Token `ahead` positions later and its weight, at every position; weight 0 where it belongs to another segment.

    weights_BT: weight of each token as a target.
    """
    chex.assert_rank(tokens_BT, 2)
    chex.assert_equal_shape(
        [tokens_BT, weights_BT, segments_BT], custom_message="tokens, weights and segments must be [B, T]"
    )
    shift = lambda x: jnp.pad(x[:, ahead:], ((0, 0), (0, min(ahead, x.shape[1]))))
    inside = (shift(segments_BT) == segments_BT) & (segments_BT != 0)
    return shift(tokens_BT), jnp.where(inside, shift(weights_BT), 0).astype(jnp.float32)


def next_token_loss(
    hidden_BTD: jax.Array,
    tokens_BT: jax.Array,
    unembed: Unembed,
    *,
    weights: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    ahead: int = 1,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of -log p of the token `ahead` positions later, and the sum of weights, float32 scalars.

    weights [B, T]: weight of each token as a target (default 1). chunk: positions of a row whose logits exist at once.
    """
    weights = jnp.ones(tokens_BT.shape, jnp.float32) if weights is None else weights
    segments = jnp.ones(tokens_BT.shape, jnp.int32) if segment_ids is None else segment_ids
    targets, weights = shift_targets(tokens_BT, weights, segments, ahead)
    logprobs, _ = token_logprobs(hidden_BTD, targets, unembed, chunk=chunk)
    return -jnp.where(weights > 0, weights * logprobs, 0.0).sum(), weights.sum()


def mtp_loss(
    depths: Sequence[jax.Array],
    tokens_BT: jax.Array,
    unembed: Unembed,
    *,
    weights: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    first: int = 2,
    chunk: int = 0,
) -> jax.Array:
    """Mean over depths of their summed -log p (equation 25 without lambda); 0 without depths.

    depths: hidden states [B, T, D] of each depth; depth d predicts d + 1 tokens ahead. DeepSeek-V3 trained with lambda
    0.3, then 0.1. first: offset that the first depth predicts: 2 for tokens, 1 for an array of targets, which are next
    tokens already.
    """
    sums = [
        next_token_loss(hidden, tokens_BT, unembed, weights=weights, segment_ids=segment_ids, ahead=ahead, chunk=chunk)
        for ahead, hidden in enumerate(depths, start=first)
    ]
    return jnp.stack([total for total, _ in sums]).mean() if sums else jnp.zeros(())
