"""Multi-token prediction (DeepSeek-V3, 2412.19437, section 2.2; Gloeckle et al. 2024, 2404.19737).

Prediction depths of one block each follow the model. Depth d takes, at position i, the state of the previous depth
(initially the model's) and the embedding of token i + d, and predicts token i + d + 1 with the model's own head.
Position i depends on no token after i + d.

As in the released weights and inference code, the projection's input is [norm(embedding); norm(state)] (equation 21 of
the paper has the opposite order), and the state passed on is the one after the final norm, which the head reads. Left
out: speculative decoding with these depths.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.models.attention import Context
from r1jax.models.layers import Dtypes, Linear, RMSNorm
from r1jax.models.transformer import MakeBlock, Transformer, join_routers


class MTPBlock(nnx.Module):
    """One prediction depth: norm(block(projection([norm(embedding); norm(state)])))."""

    def __init__(self, width: int, make_block: MakeBlock, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float, **norm: Any):
        """norm: epsilon and offset of the norms."""
        norm |= dict(dtypes=dtypes, rngs=rngs)
        self.embedding_norm, self.hidden_norm = RMSNorm(width, **norm), RMSNorm(width, **norm)
        self.projection = Linear((2 * width,), (width,), ("embed", "norm"), dtypes=dtypes, rngs=rngs, std=std)
        self.block = make_block(rngs)
        self.norm = RMSNorm(width, **norm)

    def __call__(
        self, embedded_BTD: jax.Array, hidden_BTD: jax.Array, context: Context
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Normalized states [B, T, D] and the block's router statistics."""
        both = jnp.concatenate([self.embedding_norm(embedded_BTD), self.hidden_norm(hidden_BTD)], axis=-1)
        x_BTD, _, router = self.block(self.projection(both), context, None, None)
        return self.norm(x_BTD), router


def predict_ahead(
    model: Transformer,
    hidden_BTD: jax.Array,
    tokens_BT: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> tuple[list[jax.Array], dict[str, jax.Array]]:
    """Normalized states [B, T, D] of every depth, for `model.unembed`, and router statistics stacked over depths.

    hidden_BTD: output of `model.hidden` for the same tokens, positions and segments. At position i depth d (from 1)
    predicts token i + d + 1; where token i + d is in another segment, the result is meaningless and no other position
    depends on it. Not for rows that share a prompt (`prefix_ids`), which has no single next token.
    """
    chex.assert_shape(hidden_BTD, (*tokens_BT.shape, None), custom_message="states must be those of the same tokens")
    segments = jnp.ones(tokens_BT.shape, jnp.int32) if segment_ids is None else segment_ids
    states, routers = [], []
    for ahead, depth in enumerate(model.mtp or (), start=1):
        known = jnp.where(shift_left(segments, ahead) == segments, segments, 0)
        context, _ = model.make_context(tokens_BT, positions, known)
        run, params = model.runner(depth)
        hidden_BTD, router = run(params, model.embed(shift_left(tokens_BT, ahead)), hidden_BTD, context)
        states.append(hidden_BTD)
        routers.append(router)
    return states, join_routers(routers, jnp.stack)


def shift_left(x_BT: jax.Array, count: int) -> jax.Array:
    """x[:, t + count] at t; zeros past the end."""
    return jnp.pad(x_BT[:, count:], ((0, 0), (0, min(count, x_BT.shape[1]))))
