"""Grouped matrix product with the kernels of one layer inside the stack of all, as a kernel for TPUs and few rows.

A product that takes a layer's kernels as an array has them cut out of the stack first: for the experts of a decode step
that is twice their own bytes more. Here blocks are read where they lie. All rows pass through at once, with those of
other groups set to 0: with few groups a device, decoding waits for the weights and not for the products.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

MOST_PRODUCTS = 2048  # rows times groups: beyond, grouped_matmul does less
_TILES = (1024, 512, 256, 128)
_ROWS = 16  # rows are filled up to a multiple


def find_tile(width: int) -> int:
    """The largest tile that divides a width; 0 if none does."""
    whole = width if width <= _TILES[0] and width % _TILES[-1] == 0 else 0
    return whole or next((tile for tile in _TILES if width % tile == 0), 0)


def fits(rows: jax.Array, stack_LEDF: jax.Array) -> bool:
    """Whether the kernel runs for these shapes."""
    _, groups, inner, outer = stack_LEDF.shape
    narrow = rows.dtype == stack_LEDF.dtype == jnp.bfloat16
    return narrow and len(rows) * groups <= MOST_PRODUCTS and bool(find_tile(inner) and find_tile(outer))


def multiply_in_stack(
    rows_ND: jax.Array, stack_LEDF: jax.Array, layer: jax.Array, sizes_E: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """`grouped_matmul` of the rows and one layer's kernels -> [N, F]; rows after the last group give zeros."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    count = len(rows_ND)
    rows_ND = jnp.pad(rows_ND, ((0, -count % _ROWS), (0, 0)))
    N, D = rows_ND.shape
    E, F = stack_LEDF.shape[1], stack_LEDF.shape[3]
    inner, outer = find_tile(D), find_tile(F)
    ends_E = jnp.cumsum(sizes_E.astype(jnp.int32))
    places = jnp.concatenate([layer.reshape(1).astype(jnp.int32), jnp.zeros(1, jnp.int32), ends_E])
    out = pl.pallas_call(
        functools.partial(_visit, last=(E - 1, D // inner - 1)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(F // outer, E, D // inner),
            in_specs=[
                pl.BlockSpec((N, inner), lambda f, e, d, places: (0, d)),
                pl.BlockSpec((None, None, inner, outer), lambda f, e, d, places: (places[0], e, d, f)),
            ],
            out_specs=pl.BlockSpec((N, outer), lambda f, e, d, places: (0, f)),
            scratch_shapes=[pltpu.VMEM((N, outer), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((N, F), rows_ND.dtype),
        cost_estimate=pl.CostEstimate(
            flops=2 * N * E * D * F,
            transcendentals=0,
            bytes_accessed=E * D * F * stack_LEDF.dtype.itemsize
            + (N * D * E * (F // outer) + N * F) * rows_ND.dtype.itemsize,
        ),
        name="stacked_matmul",
        interpret=interpret,
    )(places, rows_ND, stack_LEDF)
    return out[:count]


def _visit(places: Any, rows: Any, kernel: Any, out: Any, sums: Any, *, last: tuple[int, int]) -> None:
    """One block of one group's kernel. places: the layer, then 0 and the end of each group."""
    from jax.experimental import pallas as pl

    group, block = pl.program_id(1), pl.program_id(2)

    @pl.when((group == 0) & (block == 0))
    def _begin() -> None:
        sums[...] = jnp.zeros(sums.shape, jnp.float32)

    begin, end = places[1 + group], places[2 + group]

    @pl.when(begin < end)
    def _add() -> None:
        number = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
        own = jnp.where((number >= begin) & (number < end), rows[...], jnp.zeros((), rows.dtype))
        sums[...] += jnp.dot(own, kernel[...], preferred_element_type=jnp.float32)

    @pl.when((group == last[0]) & (block == last[1]))
    def _end() -> None:
        out[...] = sums[...].astype(out.dtype)
