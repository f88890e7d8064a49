"""Grouped matrix product: each run of rows is multiplied by its own kernel, without redundant work.

`jax.lax.ragged_dot` has the same semantics, but multiplies all rows by every kernel on CPU, on GPU and on some TPUs.
Here TPUs use the Pallas kernel "megablox" (after Gale et al. 2022, 2211.15841), NVIDIA GPUs Triton kernels, other
platforms a loop over blocks of rows. The backward pass is hand-written: two more products of this kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from r1jax.models.ops import gpu_attention, gpu_grouped_matmul

SMALLEST_BLOCK, LARGEST_BLOCK = 8, 128
TPU_TILES = (512, 1024, 1024)  # largest tile: rows, contracted, out


@jax.custom_vjp
def grouped_matmul(rows_ND: jax.Array, kernels_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Multiplies consecutive groups of rows, `sizes` rows per kernel -> [N, F]. Rows after the last group give zeros
    and have no gradient.
    """
    chex.assert_shape(
        kernels_EDF,
        (*sizes_E.shape, *rows_ND.shape[1:], None),
        custom_message="kernels must be [E, D, F] for rows [N, D] in E groups",
    )
    return _multiply(rows_ND, kernels_EDF, sizes_E, transposed=False)


def _forward(rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    return grouped_matmul(rows, kernels, sizes), (rows, kernels, sizes)


def _backward(saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, kernels, sizes = saved
    return _multiply(grad, kernels, sizes, transposed=True), _outer(rows, grad, sizes), None


grouped_matmul.defvjp(_forward, _backward)


def _multiply(rows: jax.Array, kernels: jax.Array, sizes: jax.Array, *, transposed: bool) -> jax.Array:
    """rows [N, D] times the kernels [E, D, F], or rows [N, F] times the transposed kernels."""
    gpu = multiply_on_gpu if _fits_gpu(rows, *kernels.shape[1:]) else None
    return _on_platform(multiply_on_tpu, gpu, multiply_in_blocks, transposed=transposed)(rows, kernels, sizes)


def _outer(rows: jax.Array, grad: jax.Array, sizes: jax.Array) -> jax.Array:
    """[E, D, F]: sum of outer products over the rows of each group."""
    gpu = outer_on_gpu if _fits_gpu(rows, rows.shape[1], grad.shape[1]) else None
    return _on_platform(outer_on_tpu, gpu, outer_in_blocks)(rows, grad, sizes)


def _fits_gpu(rows: jax.Array, *widths: int) -> bool:
    """Whether the kernels for GPUs run here, for such rows."""
    return gpu_attention.runs_here() and gpu_grouped_matmul.fits(rows, *widths)


def _on_platform(tpu: Callable, gpu: Callable | None, other: Callable, **options: Any) -> Callable:
    """Selects a function by the platform that the program is compiled for, which may differ from the one it is traced
    on.
    """
    return functools.partial(
        jax.lax.platform_dependent,
        tpu=functools.partial(tpu, **options),
        **({} if gpu is None else {"cuda": functools.partial(gpu, **options)}),
        default=functools.partial(other, **options),
    )


# --- Blocks in a loop ---


def _blocks(sizes_E: jax.Array, rows: int, block: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """For each block its expert, first row and the end of its group; and the number of blocks."""
    blocks_E, ends_E = -(-sizes_E // block), jnp.cumsum(sizes_E)
    last_E = jnp.cumsum(blocks_E)
    number = jnp.arange(rows // block + len(sizes_E))
    expert = jnp.minimum(jnp.searchsorted(last_E, number, side="right"), len(sizes_E) - 1)
    first = ends_E[expert] - sizes_E[expert] + (number - last_E[expert] + blocks_E[expert]) * block
    return expert, first, ends_E[expert], last_E[-1]


def _block_size(rows: int, experts: int) -> int:
    """Block size: about the mean group size."""
    power = 1 << max(0, (rows // experts - 1).bit_length())
    return min(max(power, SMALLEST_BLOCK), LARGEST_BLOCK)


def multiply_in_blocks(rows: jax.Array, kernels: jax.Array, sizes: jax.Array, *, transposed: bool) -> jax.Array:
    """Product block by block. Results past the end of a block's group are zeroed, then overwritten by the next
    block.
    """
    count, block = len(rows), _block_size(len(rows), len(kernels))
    expert, first, end, turns = _blocks(sizes, count, block)
    padded = jnp.pad(rows, ((0, block), (0, 0)))

    def turn(i: jax.Array, out: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(padded, first[i], block)
        kernel = jax.lax.dynamic_index_in_dim(kernels, expert[i], keepdims=False)
        inside = first[i] + jnp.arange(block) < end[i]
        product = jnp.where(inside[:, None], part @ (kernel.T if transposed else kernel), 0)
        return jax.lax.dynamic_update_slice_in_dim(out, product, first[i], 0)

    width = kernels.shape[1 if transposed else 2]
    return jax.lax.fori_loop(0, turns, turn, jnp.zeros((count + block, width), rows.dtype))[:count]


def outer_in_blocks(rows: jax.Array, grad: jax.Array, sizes: jax.Array) -> jax.Array:
    """Adds the outer product of each block to its expert's sum, in float32."""
    block = _block_size(len(rows), len(sizes))
    expert, first, end, turns = _blocks(sizes, len(rows), block)
    padded, padded_grad = (jnp.pad(x, ((0, block), (0, 0))) for x in (rows, grad))

    def turn(i: jax.Array, sums: jax.Array) -> jax.Array:
        part, part_grad = (jax.lax.dynamic_slice_in_dim(x, first[i], block) for x in (padded, padded_grad))
        inside = first[i] + jnp.arange(block) < end[i]
        new = jnp.matmul(jnp.where(inside[:, None], part, 0).T, part_grad, preferred_element_type=jnp.float32)
        old = jax.lax.dynamic_index_in_dim(sums, expert[i], keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(sums, old + new, expert[i], 0)

    sums = jnp.zeros((len(sizes), rows.shape[1], grad.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, turns, turn, sums).astype(rows.dtype)


# --- The kernels for GPUs ---


def multiply_on_gpu(
    rows: jax.Array, kernels: jax.Array, sizes: jax.Array, *, transposed: bool, interpret: bool = False
) -> jax.Array:
    """Product by the Triton kernel; rows outside all groups, which it does not write, are zeroed."""
    expert, first, end, turns = _blocks(sizes, len(rows), gpu_grouped_matmul.TILE)
    expert = jnp.where(jnp.arange(len(expert)) < turns, expert, len(sizes)).astype(jnp.int32)
    arrays = rows, kernels, expert, first.astype(jnp.int32), end.astype(jnp.int32)
    out = gpu_grouped_matmul.multiply_blocks(*arrays, transposed=transposed, interpret=interpret)
    return jnp.where((jnp.arange(len(rows)) < sizes.sum())[:, None], out, 0)


def outer_on_gpu(rows: jax.Array, grad: jax.Array, sizes: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Outer products by the Triton kernel; groups without rows give zeros."""
    ends = jnp.cumsum(sizes).astype(jnp.int32)
    return gpu_grouped_matmul.sum_outer(rows, grad, ends - sizes.astype(jnp.int32), ends, interpret=interpret)


# --- The Pallas kernel for TPUs ---


def _tile(sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tile sizes for (rows, contracted, out): no larger than necessary, in multiples of 128 lanes."""
    rows, *widths = (min(most, -(-size // 128) * 128) for most, size in zip(TPU_TILES, sizes, strict=True))
    return rows, widths[0], widths[1]


def _fill(x: jax.Array, tile: int) -> jax.Array:
    """Pads rows with zeros to a multiple of the tile."""
    return jnp.pad(x, ((0, -len(x) % tile), (0, 0)))


def multiply_on_tpu(
    rows: jax.Array, kernels: jax.Array, sizes: jax.Array, *, transposed: bool, interpret: bool = False
) -> jax.Array:
    """Product by megablox; rows outside all groups, which it does not write, are zeroed."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    inner, outer = kernels.shape[1:][::-1] if transposed else kernels.shape[1:]
    tiles = _tile((len(rows), inner, outer))
    out = gmm(
        _fill(rows, tiles[0]),
        kernels,
        sizes.astype(jnp.int32),
        preferred_element_type=rows.dtype,
        tiling=tiles,
        transpose_rhs=transposed,
        interpret=interpret,
    )
    return jnp.where((jnp.arange(len(rows)) < sizes.sum())[:, None], out[: len(rows)], 0)


def outer_on_tpu(rows: jax.Array, grad: jax.Array, sizes: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Outer products by megablox; groups without rows give zeros."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tiles = _tile((len(rows), rows.shape[1], grad.shape[1]))
    return tgmm(
        _fill(rows, tiles[0]).T,
        _fill(grad, tiles[0]),
        sizes.astype(jnp.int32),
        preferred_element_type=rows.dtype,
        tiling=tiles,
        interpret=interpret,
    )
