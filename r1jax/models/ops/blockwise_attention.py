"""Attention over long rows without a stored mask; the mask follows from each token's segment.

On TPUs the splash kernel runs if tokens attend only to their own segment; on NVIDIA GPUs a kernel which knows shared
prompts too, in 16 bits, without soft caps and sinks. Otherwise (a segment continues another one, as completions of a
shared prompt do, or all rows share a prefix, or on other platforms) queries are processed in blocks: the scores of one
block exist at a time, and the backward pass recomputes them. Each quarter of the row attends only to keys up to its own
end, so 5/8 of all pairs are computed instead of the 1/2 of causal attention.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.core.sharding import current_mesh, partition
from r1jax.models.ops import gpu_attention, splash
from r1jax.models.ops.selection import NEGATIVE as NEGATIVE
from r1jax.models.ops.selection import Selection

LONG_ROW = 2048  # rows of at least this length do not store a T x T mask
BLOCK, QUARTERS = 512, 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Segments:
    """Replacement of a mask bias: the segment of each token and the segment it continues [B, T] (`segment_mask`); None
    for both means causal only.

    window: which keys of those a token sees (`see`; 0: all), by the positions [B, T] of both. selection: of those, the
    keys that an indexer selects (None: all).
    """

    ids: jax.Array | None = None
    continued: jax.Array | None = None
    positions: jax.Array | None = None
    selection: Selection | None = None
    window: int = dataclasses.field(default=0, metadata=dict(static=True))


def attend_segments(
    attend: Callable[..., jax.Array],
    q_BTNH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segments: Segments,
    prefix: Any,
    *,
    scale: float,
    **shape: Any,
) -> jax.Array:
    """Same result as `attend` with the mask of `segments`, which is made one block at a time; keys are those of the row
    itself. shape: of the scores, as in `softmax_attention.attend_heads_shaped`.
    """
    by_kernel = segments.window >= 0 and prefix is None and segments.selection is None and not _is_split(q_BTNH.shape)
    if by_kernel and not shape and gpu_attention.fits(q_BTNH, v_BKTH) and gpu_attention.runs_here():
        told = segments.ids, segments.continued, segments.positions
        return gpu_attention.attend_packed(q_BTNH, k_BKTH, v_BKTH, *told, scale=scale, window=segments.window)
    if by_kernel and segments.continued is None and splash.runs_here():
        return splash.attend_causal(q_BTNH, k_BKTH, v_BKTH, segments.ids, scale=scale, window=segments.window, **shape)
    return attend_blocks(attend, q_BTNH, k_BKTH, v_BKTH, segments, prefix, scale=scale, **shape)


def attend_blocks(
    attend: Callable[..., jax.Array],
    q_BTNH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segments: Segments,
    prefix: Any,
    *,
    scale: float,
    block: int = 0,
    tell: bool = False,
    **shape: Any,
) -> jax.Array:
    """`attend` over blocks of `block` queries (default `BLOCK`); rows are padded so that each quarter is a whole number
    of blocks. tell: the selection for each block is an argument of `attend` too.
    """
    T, block = q_BTNH.shape[1], block or BLOCK
    step = block * QUARTERS
    length = -(-T // step) * step
    fill = lambda x, axis: jnp.pad(x, [(0, length - T if a == axis else 0) for a in range(x.ndim)])
    ids = jnp.ones(q_BTNH.shape[:2], jnp.int32) if segments.ids is None else segments.ids
    q, k, v, ids = fill(q_BTNH, 1), fill(k_BKTH, 2), fill(v_BKTH, 2), fill(ids, 1)
    continued = None if segments.continued is None else fill(segments.continued, 1)
    positions = None if segments.positions is None else fill(segments.positions, 1)
    selection = None if segments.selection is None else segments.selection.fill(length)

    def attend_block(end: int, start: jax.Array) -> jax.Array:
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, start, block, axis=1)
        keys = ids[:, None, :end]
        seen = keys == take(ids)[:, :, None]
        if continued is not None:
            seen |= keys == take(continued)[:, :, None]
        seen &= (keys != 0) & (jnp.arange(end) <= (start + jnp.arange(block))[:, None])
        if positions is not None:
            seen &= see(take(positions)[:, :, None], positions[:, None, :end], segments.window)
        bias = jnp.where(seen, 0.0, NEGATIVE).astype(jnp.float32)
        before = prefix
        if prefix is not None and positions is not None:
            before = {**prefix, "bias": prefix_bias(take(positions), prefix["k"].shape[2], segments.window)}
        told = {}
        if selection is not None:
            part = selection.take(start, block, end)
            bias, own = part.narrow(bias, None)
            before = None if prefix is None else {**prefix, "bias": own}
            told = {"selection": part} if tell else {}
        return attend(take(q), k[:, :, :end], v[:, :, :end], bias, before, scale=scale, **told, **shape)

    parts = []
    for quarter in range(QUARTERS):
        first, last = quarter * length // QUARTERS, (quarter + 1) * length // QUARTERS
        run = jax.checkpoint(functools.partial(attend_block, last), policy=jax.checkpoint_policies.nothing_saveable)
        blocks = jax.lax.map(run, jnp.arange(first, last, block))  # [blocks, B, block, ...]
        parts.append(jnp.moveaxis(blocks, 0, 1).reshape(q.shape[0], last - first, *blocks.shape[3:]))
    return jnp.concatenate(parts, axis=1)[:, :T]


def see(queries: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """Whether a query at a position may see a key at an earlier one. window: W > 0: the last W positions, its own
    included; -C: those of its own chunk of C positions (Llama 4); 0: all.
    """
    if window > 0:
        return queries - keys < window
    return (
        queries // -window == keys // -window
        if window
        else jnp.ones(jnp.broadcast_shapes(queries.shape, keys.shape), bool)
    )


def prefix_bias(positions_BT: jax.Array, length: int, window: int) -> jax.Array:
    """Additive mask [B, T, P] over a prefix that all rows begin with."""
    seen = see(positions_BT[:, :, None], jnp.arange(length), window)
    return jnp.where(seen, 0.0, NEGATIVE).astype(jnp.float32)


def _is_split(shape: tuple[int, ...]) -> bool:
    """Whether the current mesh shards rows along their length."""
    mesh = current_mesh()
    return mesh is not None and partition(("group_batch", "sequence", "heads", None), shape, mesh)[1] is not None
