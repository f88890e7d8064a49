"""Multi-token prediction (DeepSeek-V3, 2412.19437, section 2.2; Gloeckle et al. 2024, 2404.19737).

Behind the model stand further depths of one block each. Depth d takes, at every position i, the state of the depth
before (of the model itself at first) and the embedding of token i + d, and predicts token i + d + 1 with the model's
own head. The causal chain is kept: position i sees nothing beyond token i + d.

As the released weights and the programs that serve them have it: the projection's input is the embedding's norm
first, then the state's (the paper's equation 21 has them the other way round), and the state handed on is the one the
head reads, after the final norm. Left out: drafting with these depths while decoding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.models.attention import Context
from r1jax.models.layers import Dtypes, Linear, RMSNorm
from r1jax.models.transformer import MakeBlock, Transformer, join_routers


class MTPBlock(nnx.Module):
    """One prediction depth: norm(block(projection([norm(embedding); norm(state)])))."""

    def __init__(
        self, width: int, make_block: MakeBlock, *, epsilon: float, dtypes: Dtypes, rngs: nnx.Rngs, std: float
    ):
        norm: dict[str, Any] = dict(epsilon=epsilon, dtypes=dtypes, rngs=rngs)
        self.embedding_norm, self.hidden_norm = RMSNorm(width, **norm), RMSNorm(width, **norm)
        self.projection = Linear((2 * width,), (width,), ("embed", "norm"), dtypes=dtypes, rngs=rngs, std=std)
        self.block = make_block(rngs)
        self.norm = RMSNorm(width, **norm)

    def __call__(
        self, embedded_BTD: jax.Array, hidden_BTD: jax.Array, context: Context
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Normed states [B, T, D] and the block's router statistics."""
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
    """(normed states [B, T, D] of every depth, for `model.unembed`; router statistics stacked over the depths).

    hidden_BTD: what `model.hidden` gives for the same tokens, positions and segments. At position i depth d (from 1)
    predicts token i + d + 1; where token i + d is not of the same segment, it gives numbers without meaning, which no
    other position sees. Rows that share a prompt (`prefix_ids`) have no single token after it and are not for this.
    """
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
    """x[:, t + count] at t; zeros behind the end."""
    return jnp.pad(x_BT[:, count:], ((0, 0), (0, min(count, x_BT.shape[1]))))
