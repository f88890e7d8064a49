"""The KV cache: an argument and a result of the model, never hidden state.

All rows write their next tokens at one common `column`, so an append is one contiguous in-place update on every
platform. Which columns a row may see is its `visible` mask; positions are the caller's. The rollout engine treats the
columns after the prompt as a ring: a row that starts anew hides its ring, and no row lives longer than one turn of
it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.core.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
    """`layers`: per layer the attention's own arrays [B, K, ...] (grouped: keys [B, K, H, S], values [B, K, S, H]), a
    list, or one stack [L, B, K, ...].

    visible [B, S]: columns that hold a token of this row. column: int32 scalar, where the next tokens are written.
    """

    layers: Any
    visible: jax.Array
    column: jax.Array

    @property
    def length(self) -> int:
        """S, the number of columns."""
        return self.visible.shape[1]


def constrain_layers(layers: Any) -> Any:
    """Pins the arrays of all layers, [L,] [B, K, ...], to their place: rows over the batch axes, heads over theirs."""
    axes = ("batch", "kv_heads", None, None)
    return jax.tree.map(lambda x: constrain(x, (*(None,) * (x.ndim - 4), *axes), name="cache"), layers)


def append(buffer: jax.Array, new: jax.Array, column: jax.Array, *, axis: int) -> jax.Array:
    """Writes `new` into `buffer` at `column` along `axis`, in place where the buffer is donated or a loop carry."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), column, axis=axis)


def cache_mask(cache: Cache, tokens: int) -> tuple[jax.Array, jax.Array]:
    """(mask [B, T, S], visible [B, S] afterwards) for `tokens` new tokens a row: earlier visible columns, and
    causally the new ones.
    """
    columns = jnp.arange(cache.length)
    new_TS = (columns >= cache.column) & (columns <= cache.column + jnp.arange(tokens)[:, None])
    written_S = (columns >= cache.column) & (columns < cache.column + tokens)
    before_BS = cache.visible & ~written_S
    return before_BS[:, None, :] | new_TS, before_BS | written_S
