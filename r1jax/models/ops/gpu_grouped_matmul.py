"""The grouped matrix product as Triton kernels for NVIDIA GPUs: a program for each block of rows of one group and each
block of columns, and for the outer products one for each tile of each group's sum.

Off GPUs the same kernels run in interpret mode, for tests; they were lowered for GPUs, and have not run on one.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

TILE = 64  # rows, and contracted and resulting columns, of a tile: widths must be multiples of it


def fits(rows: jax.Array, *widths: int) -> bool:
    """Whether the kernels run for such rows: 16 bits an element, and widths of whole tiles."""
    return rows.dtype in (jnp.bfloat16, jnp.float16) and all(width % TILE == 0 for width in widths)


def multiply_blocks(
    rows_ND: jax.Array,
    kernels_EDF: jax.Array,
    expert: jax.Array,
    first: jax.Array,
    end: jax.Array,
    *,
    transposed: bool,
    interpret: bool = False,
) -> jax.Array:
    """Rows times the kernel of their group -> [N, F]; transposed: rows [N, F] times the transposed kernels -> [N, D].

    expert, first, end: for each block of `TILE` rows its expert (one behind the last: none), its first row and the end
    of its group. Rows outside all groups are not written.
    """
    count, inner = rows_ND.shape
    width = kernels_EDF.shape[1 if transposed else 2]
    whole = lambda x: pl.BlockSpec(x.shape, lambda i, n: (0,) * x.ndim)
    padded = jnp.pad(rows_ND, ((0, TILE), (0, 0)))
    out = jax.ShapeDtypeStruct((count + TILE, width), rows_ND.dtype)
    arrays = padded, kernels_EDF, expert, first, end
    return pl.pallas_call(
        functools.partial(_multiply_block, steps=inner // TILE, transposed=transposed),
        grid=(len(expert), width // TILE),
        in_specs=[whole(x) for x in arrays],
        out_specs=whole(out),
        out_shape=out,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        name="grouped_matmul",
        interpret=interpret,
    )(*arrays)[:count]


def sum_outer(
    rows_ND: jax.Array, grad_NF: jax.Array, first_E: jax.Array, end_E: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Sums of outer products [E, D, F] over the rows of each group, from its first row to its end."""
    D, F, E = rows_ND.shape[1], grad_NF.shape[1], len(first_E)
    whole = lambda x: pl.BlockSpec(x.shape, lambda e, d, f: (0,) * x.ndim)
    arrays = *(jnp.pad(x, ((0, TILE), (0, 0))) for x in (rows_ND, grad_NF)), first_E, end_E
    return pl.pallas_call(
        _sum_outer,
        grid=(E, D // TILE, F // TILE),
        in_specs=[whole(x) for x in arrays],
        out_specs=pl.BlockSpec((None, TILE, TILE), lambda e, d, f: (e, d, f)),
        out_shape=jax.ShapeDtypeStruct((E, D, F), rows_ND.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        name="grouped_matmul_outer",
        interpret=interpret,
    )(*arrays)


def _multiply_block(
    rows: Any, kernels: Any, expert: Any, first: Any, end: Any, out: Any, *, steps: int, transposed: bool
) -> None:
    """A block of rows of one group, and a block of columns."""
    i, columns = pl.program_id(0), pl.ds(pl.program_id(1) * TILE, TILE)
    owner, start = expert[i], first[i]

    @pl.when(owner < kernels.shape[0])
    def _multiply() -> None:
        own = pl.ds(start, TILE)

        def add(step: jax.Array, sums: jax.Array) -> jax.Array:
            inner = pl.ds(step * TILE, TILE)
            part = rows[own, inner]
            kernel = kernels[owner, columns, inner].T if transposed else kernels[owner, inner, columns]
            return sums + plgpu.dot(part, kernel)

        sums = jax.lax.fori_loop(0, steps, add, jnp.zeros((TILE, TILE), jnp.float32))
        inside = (start + jnp.arange(TILE) < end[i])[:, None]
        plgpu.store(out.at[own, columns], sums.astype(out.dtype), mask=inside)


def _sum_outer(rows: Any, grad: Any, first: Any, end: Any, out: Any) -> None:
    """A tile of a group's sum."""
    group, left, right = (pl.program_id(axis) for axis in range(3))
    start, stop = first[group], end[group]

    def add(step: jax.Array, sums: jax.Array) -> jax.Array:
        at = start + step * TILE
        inside = (at + jnp.arange(TILE) < stop)[:, None]
        part = rows[pl.ds(at, TILE), pl.ds(left * TILE, TILE)]
        part_grad = grad[pl.ds(at, TILE), pl.ds(right * TILE, TILE)]
        return sums + plgpu.dot(jnp.where(inside, part, 0).T, part_grad)

    turns = jax.lax.div(stop - start + TILE - 1, TILE)
    sums = jax.lax.fori_loop(0, turns, add, jnp.zeros((TILE, TILE), jnp.float32))
    out[...] = sums.astype(out.dtype)
