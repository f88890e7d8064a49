"""The KV cache, an argument and a result of the model, never hidden state.

All rows write their next tokens at a common `column`, so an append is one contiguous in-place update on every platform;
or each row at a column of its own, for sequences that pause and go on (rollout/continuous.py). A row's `visible` mask
says which columns it attends to; positions are given by the caller. The rollout engine uses the columns after the
prompt as a ring buffer: a row that restarts hides its old columns, and no row is longer than the ring.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from r1jax.core.sharding import Axes, constrain
from r1jax.models.stacks import StackedLayer, read


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
    """Keys and values of all layers.

    Attributes:
      layers: each layer's attention arrays [B, K, ...] (grouped-query: keys [B, K, H, S], values [B, K, S, H]), as a
        list or as one stack [L, B, K, ...].
      visible: [B, S], columns that contain a token of the row.
      column: int32, where the next tokens are written: one scalar for all rows, or [B].
      clock: tokens written so far, where `column` goes round and layers with windows count on (None: `column`).
      chunk: most tokens that are written at once, by which layers with windows keep fewer columns (0: they keep all).
    """

    layers: Any
    visible: jax.Array
    column: jax.Array
    clock: jax.Array | None = None
    chunk: int = dataclasses.field(default=0, metadata=dict(static=True))

    @property
    def length(self) -> int:
        """S, the number of columns."""
        return self.visible.shape[1]


def constrain_layers(layers: Any) -> Any:
    """Sharding constraint on the arrays of all layers, [L,] [B, K, ...]: heads over their axes, and rows over the axes
    of rows whose widths are split; one head for all (latents) over all axes of rows.
    """
    return jax.tree.map(lambda x: constrain(x, layer_axes(x), name="cache"), layers)


def layer_axes(x: Any) -> Axes:
    """The logical axes of an array of one layer [B, K, ...], or of a stack of layers [L, B, K, ...]."""
    rows = "batch" if x.shape[-3] == 1 else "group_batch"
    return (*(None,) * (x.ndim - 4), rows, "kv_heads", None, None)


def _keep_order(x: jax.Array) -> jax.Array:
    """The array with its axes in memory as TPUs order them at a program's border, where the innermost one needs no
    padding to 128: the compiler would otherwise turn a whole cache around before a loop that writes single columns, and
    back after it.
    """
    order = list(range(x.ndim))
    if x.shape[-1] % 128 and x.shape[-2] % 128 == 0:
        order[-2:] = order[:-3:-1]
    return with_layout_constraint(x, Layout(major_to_minor=tuple(order)))


def append(buffer: Any, new: jax.Array, column: jax.Array, *, axis: int) -> Any:
    """Writes `new` into `buffer`, an array or a layer of a stack, at `column` along `axis`, in place if the buffer is
    donated or a loop carry.

    column: a scalar, or [B] for the rows of the first axis.
    """
    layer = jax.eval_shape(read, buffer)
    others = [d for d in range(layer.ndim) if d != axis]
    chex.assert_equal_shape(
        [layer, new], dims=others, custom_message="what is appended must be of the cache's shape but for its columns"
    )
    new = new.astype(layer.dtype)
    if isinstance(buffer, StackedLayer):
        return StackedLayer(_append_in_stack(buffer, new, column, axis), buffer.index)
    return _append_rows(buffer, new, column, axis)


def _append_rows(buffer: jax.Array, new: jax.Array, column: jax.Array, axis: int) -> jax.Array:
    if column.ndim:
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
        return jax.vmap(write)(buffer, new, column)
    return jax.lax.dynamic_update_slice_in_dim(buffer, new, column, axis=axis)


def _append_in_stack(buffer: StackedLayer, new: jax.Array, column: jax.Array, axis: int) -> jax.Array:
    """The stack with the columns written; where rows have columns of their own, with the layer written back whole."""
    if column.ndim:
        layer = _append_rows(read(buffer), new, column, axis)
        return jax.lax.dynamic_update_index_in_dim(buffer.stack, layer, buffer.index, 0)
    start = [jnp.zeros((), jnp.int32)] * buffer.stack.ndim
    start[0], start[1 + axis] = buffer.index, column
    stack = jax.lax.dynamic_update_slice(buffer.stack, new[None], start)
    return jax.lax.platform_dependent(stack, tpu=_keep_order, default=lambda x: x)


def cache_mask(cache: Cache, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Mask [B, T, S] for `tokens` new tokens per row (earlier visible columns, and the new ones causally), and
    `visible` [B, S] after them.
    """
    columns, first_B1 = jnp.arange(cache.length), cache.column.reshape(-1, 1)  # one row for all, or B
    new_BTS = (columns >= first_B1[..., None]) & (columns <= first_B1[..., None] + jnp.arange(tokens)[:, None])
    written_BS = (columns >= first_B1) & (columns < first_B1 + tokens)
    before_BS = cache.visible & ~written_BS
    return before_BS[:, None, :] | new_BTS, before_BS | written_BS
