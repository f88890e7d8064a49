"""Attention of one query a row on the latents of a cache, as a kernel for TPUs: every latent is read once.

Two products need the same latents, scores and means. As two operations they are read twice, with the scores of all
heads in HBM in between, which are larger than the latents themselves. Here blocks of columns pass through on-chip
memory, with a running softmax (Milakov and Gimelshein 2018, 1805.02867) in float32. The kernel reads a layer inside its
stack, so that nothing is cut out of it, and columns innermost, as TPUs store a cache of 576 values a token.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.core.sharding import Axes, current_mesh, partition
from r1jax.models.ops.blockwise_attention import NEGATIVE

BLOCKS = (1024, 512, 256, 128)  # columns at a time: the first that divides
LANES = 128


def find_block(columns: int) -> int:
    """Columns that pass through at a time; 0 where the kernel cannot run."""
    return next((block for block in BLOCKS if columns % block == 0), 0)


def attend_latents(
    q_BNC: jax.Array,
    stack_LBSC: jax.Array,
    layer: jax.Array,
    bias_BS: jax.Array,
    scale: float,
    *,
    query_axes: Axes,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q latents scale + bias) latents -> [B, N, C], for the latents of one layer, on each device of the current
    mesh with its own rows. query_axes: logical axes of the queries' rows and heads.
    """
    run = functools.partial(_attend, scale=scale, interpret=interpret)
    layer_1 = layer.reshape(1).astype(jnp.int32)
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return run(q_BNC, stack_LBSC, layer_1, bias_BS)
    queries = partition((*query_axes, None), q_BNC.shape, mesh, name="latents")
    latents = partition((None, "batch", None, None), stack_LBSC.shape, mesh, name="latents")
    bias = partition(("batch", None), bias_BS.shape, mesh, name="latents")
    specs = (queries, latents, PartitionSpec(), bias)
    placed = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)
    return placed(q_BNC, stack_LBSC, layer_1, bias_BS)


def _attend(
    q_BNC: jax.Array,
    stack_LBSC: jax.Array,
    layer_1: jax.Array,
    bias_BS: jax.Array,
    *,
    scale: float,
    interpret: bool,
) -> jax.Array:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    B, N, C = q_BNC.shape
    S = bias_BS.shape[1]
    block = find_block(S)
    kernel = functools.partial(_visit, scale=scale, last=S // block - 1)
    stack_LBCS = stack_LBSC.swapaxes(2, 3)
    latents_bytes = B * S * C * stack_LBSC.dtype.itemsize
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, S // block),
            in_specs=[
                pl.BlockSpec((None, N, C), lambda b, s, layer: (b, 0, 0)),
                pl.BlockSpec((None, None, C, block), lambda b, s, layer: (layer[0], b, 0, s)),
                pl.BlockSpec((None, 1, block), lambda b, s, layer: (b, 0, s)),
            ],
            out_specs=pl.BlockSpec((None, N, C), lambda b, s, layer: (b, 0, 0)),
            scratch_shapes=[
                pltpu.VMEM((N, LANES), jnp.float32),
                pltpu.VMEM((N, LANES), jnp.float32),
                pltpu.VMEM((N, C), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q_BNC.shape, q_BNC.dtype),
        cost_estimate=pl.CostEstimate(
            flops=4 * B * N * S * C,
            transcendentals=B * N * S,
            bytes_accessed=latents_bytes + 2 * q_BNC.nbytes + bias_BS.nbytes,
        ),
        name="latent_attention",
        interpret=interpret,
    )(layer_1, q_BNC, stack_LBCS, bias_BS[:, None])


def _visit(
    _: Any, q: Any, latents: Any, bias: Any, out: Any, peak: Any, total: Any, mean: Any, *, scale: float, last: int
) -> None:
    """One block of columns of one row: the running peak and sum of the softmax [N, 128 equal lanes], and the mean."""
    from jax.experimental import pallas as pl

    step = pl.program_id(1)

    @pl.when(step == 0)
    def _begin() -> None:
        begin(peak, total, mean)

    latents_CS = latents[...]
    scores_NS = jnp.dot(q[...], latents_CS, preferred_element_type=jnp.float32) * scale + bias[...]
    add_block(scores_NS, latents_CS.T, slice(None), peak, total, mean)

    @pl.when(step == last)
    def _end() -> None:
        out[...] = (mean[...] / total[...][:, :1]).astype(out.dtype)


def begin(peak: Any, total: Any, mean: Any) -> None:
    """A softmax over no columns yet."""
    peak[...] = jnp.full(peak.shape, 2 * NEGATIVE, jnp.float32)
    total[...] = jnp.zeros(total.shape, jnp.float32)
    mean[...] = jnp.zeros(mean.shape, jnp.float32)


def add_block(scores_NS: jax.Array, values_SC: jax.Array, rows: slice, peak: Any, total: Any, mean: Any) -> None:
    """Adds columns to the running softmax of some rows: its peak and sum [N, 128 equal lanes], and its mean [N, C]."""
    before = peak[rows]
    after = jnp.maximum(before, scores_NS.max(-1, keepdims=True))
    powers_NS = jnp.exp(scores_NS - after[:, :1])
    kept = jnp.exp(before - after)
    total[rows] = total[rows] * kept + powers_NS.sum(-1, keepdims=True)
    added_NC = jnp.dot(powers_NS.astype(values_SC.dtype), values_SC, preferred_element_type=jnp.float32)
    mean[rows] = mean[rows] * kept[:, :1] + added_NC
    peak[rows] = after
