"""Cross entropy of the next token, and of tokens further ahead (multi-token prediction).

All are sums of negative log-probs over the tokens that carry weight; the caller divides by one global denominator,
the weight of the targets of depth 0, as equation 24 of DeepSeek-V3 (2412.19437) divides every depth by the length of
the sequence. A target counts only where it lies in the segment of the token that predicts it: packed documents do not
predict each other, padding (segment 0) predicts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from r1jax.losses.logprobs import token_logprobs

Unembed = Callable[[jax.Array], jax.Array]


def shift_targets(
    tokens_BT: jax.Array, weights_BT: jax.Array, segments_BT: jax.Array, ahead: int
) -> tuple[jax.Array, jax.Array]:
    """(the token `ahead` positions later, its weight) at every position; weight 0 where it is of another segment.

    weights_BT: of each token as a target.
    """
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
    """(sum of weighted -log p of the token `ahead` positions later, sum of the weights), float32 scalars.

    weights [B, T]: of each token as a target (default: 1). chunk: positions of a row whose logits exist at once.
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
    """Mean over the depths (states [B, T, D] each; depth d predicts d + 1 ahead) of their sums of -log p (equation 25
    without lambda); 0 without depths. Its weight in V3's training was 0.3, then 0.1.

    first: places between a position and what the first depth predicts there: 2 in tokens, 1 in an array of targets,
    which are the next tokens already.
    """
    sums = [
        next_token_loss(hidden, tokens_BT, unembed, weights=weights, segment_ids=segment_ids, ahead=ahead, chunk=chunk)
        for ahead, hidden in enumerate(depths, start=first)
    ]
    return jnp.stack([total for total, _ in sums]).mean() if sums else jnp.zeros(())
