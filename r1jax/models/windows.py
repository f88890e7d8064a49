"""Windows of attention: layers that see the last W keys or the keys of their own chunk (`see` in
ops/blockwise_attention.py), and the rings of columns that keep these keys and no others.

A ring has R columns, and the token of a row that was the u-th written to the cache (`Cache.clock` counts) is in column
u mod R. Tokens of a row follow each other without a gap, so what a column holds for a query follows from the clock and
the query's position; nothing is marked. Rings are shorter than the cache where it was made for writing few tokens at
once (`Transformer.init_cache`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.models.cache import Cache, append
from r1jax.models.ops.blockwise_attention import LONG_ROW, NEGATIVE, Segments, prefix_bias, see
from r1jax.models.stacks import read, write


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Window:
    """Inputs that all layers of one window share: the mask as a bias [B, T, R] (for long rows as segments),
    the column to write (or None), and the bias over the prefix [B, T, P] (or None).
    """

    bias: jax.Array | Segments
    column: jax.Array | None = None
    before: jax.Array | None = None


def count_columns(window: int, columns: int, chunk: int) -> int:
    """R, columns of a ring in a cache of `columns` to which `chunk` tokens at most are written at once (0: any)."""
    return min(columns, abs(window) + chunk - 1) if chunk and window else columns


def mask_window(
    window: int, mask_BTT: jax.Array | None, positions_BT: jax.Array, prefix_length: int, like: jax.Array | Segments
) -> Window:
    """The window without a cache. mask: of all keys (None for long rows); like: the bias of all keys."""
    before = prefix_bias(positions_BT, prefix_length, window) if prefix_length else None
    if isinstance(like, Segments):
        return Window(dataclasses.replace(like, positions=positions_BT, window=window), before=before)
    assert mask_BTT is not None
    seen = mask_BTT & see(positions_BT[:, :, None], positions_BT[:, None, :], window)
    return Window(jnp.where(seen, 0.0, NEGATIVE).astype(jnp.float32), before=before)


def mask_ring(window: int, cache: Cache, positions_BT: jax.Array, prefix_length: int) -> Window:
    """The window with a cache, after the new tokens at `positions` are written."""
    T, R = positions_BT.shape[1], count_columns(window, cache.length, cache.chunk)
    clock = cache.column if cache.clock is None else cache.clock
    if cache.chunk and T > cache.chunk:
        raise ValueError(f"this cache was made for {cache.chunk} tokens at once, got {T}")
    before = prefix_bias(positions_BT, prefix_length, window) if prefix_length else None
    if T >= LONG_ROW and cache.length == T:  # these tokens fill the whole cache
        return Window(Segments(positions=positions_BT, window=window), clock % R, before)
    first = clock.reshape(-1, 1, 1)
    last = first + T - 1
    written = last - (last - jnp.arange(R)) % R  # the clock of what each column holds
    back_BTR = first + jnp.arange(T)[:, None] - written
    position_BT1 = positions_BT[:, :, None]
    seen = (back_BTR >= 0) & (back_BTR <= position_BT1 - prefix_length)
    seen &= see(position_BT1, position_BT1 - back_BTR, window)
    return Window(jnp.where(seen, 0.0, NEGATIVE).astype(jnp.float32), clock % R, before)


def append_ring(buffer: Any, new: jax.Array, column: jax.Array, *, axis: int, columns: int) -> Any:
    """Like `append`, for a ring: what passes its end goes on at its beginning. columns: of the whole cache."""
    T, R = new.shape[axis], buffer.shape[axis]
    if T == 1 or R == columns:
        return append(buffer, new, column, axis=axis)
    old = read(buffer)
    places = (column.reshape(-1, 1) + jnp.arange(T)) % R
    places = jnp.broadcast_to(places, (old.shape[0], T))
    lead = (slice(None),) * (axis - 1)
    written = jax.vmap(lambda row, row_new, place: row.at[(*lead, place)].set(row_new))(
        old, new.astype(old.dtype), places
    )
    return write(buffer, written)


def turn_into_ring(rows: jax.Array, ends_B: jax.Array, clock: jax.Array, *, axis: int, columns: int) -> jax.Array:
    """Rows [B, K, ...] whose tokens lie in order from column 0 on, laid into a ring of `columns` as if the last of
    `ends` tokens had just been written, before `clock`.
    """
    back_R = (clock - 1 - jnp.arange(columns)) % columns
    source_BR = jnp.clip(ends_B[:, None] - 1 - back_R, 0, rows.shape[axis] - 1)
    shape = [rows.shape[0], 1, 1, 1]
    shape[axis] = columns
    return jnp.take_along_axis(rows, source_BR.reshape(shape), axis=axis)


def find_ring(path: Any) -> int | None:
    """The axis of columns of an array of one layer that is a ring, by its path in the cache; None for other arrays."""
    return {"ring_k": 3, "ring_v": 2}.get(getattr(path[-1], "key", ""))


def count_prefix(prefix: Any) -> int:
    """P, the tokens of a prefix by the columns of its keys; 0 without one."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(prefix):
        if getattr(path[-1], "key", None) in ("v", "ring_v", "latent"):
            return leaf.shape[-2]
    return 0
