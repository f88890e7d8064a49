"""Grouped-query attention of one query a row on a cache, as a kernel for TPUs: no scores in HBM.

As in latent_attention.py, blocks of columns pass through on-chip memory with a running softmax, and a layer is read
inside its stack; here keys and values are two arrays, and all heads of a row pass through together.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.core.sharding import current_mesh, partition
from r1jax.models.ops.latent_attention import LANES, add_block, begin, find_block


def fits(query_heads: int, k_LBKHS: jax.Array, v_LBKSH: jax.Array) -> bool:
    """Whether the kernel runs for these shapes: query heads of a kv head fill registers, and kv heads are several."""
    _, _, K, H, S = k_LBKHS.shape
    narrow = k_LBKHS.dtype == v_LBKSH.dtype == jnp.bfloat16
    return narrow and K > 1 and query_heads % (8 * K) == 0 and H % LANES == 0 and bool(find_block(S))


def attend_cache(
    q_BNH: jax.Array,
    k_LBKHS: jax.Array,
    v_LBKSH: jax.Array,
    layer: jax.Array,
    bias_BS: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k / sqrt(H) + bias) v -> [B, N, H] for the keys and values of one layer, on each device of the current
    mesh with its own rows and heads.
    """
    B, N, H = q_BNH.shape
    K = k_LBKHS.shape[2]
    q_BKMH = q_BNH.reshape(B, K, N // K, H)
    run = functools.partial(_attend, interpret=interpret)
    arrays = (q_BKMH, k_LBKHS, v_LBKSH, layer.reshape(1).astype(jnp.int32), bias_BS)
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return run(*arrays).reshape(B, N, H)
    place = lambda x, *axes: partition(axes, x.shape, mesh, name="attention")
    queries = place(q_BKMH, "group_batch", "kv_heads", None, None)
    keys, values = (place(x, None, "group_batch", "kv_heads", None, None) for x in (k_LBKHS, v_LBKSH))
    specs = (queries, keys, values, PartitionSpec(), place(bias_BS, "group_batch", None))
    placed = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)
    return placed(*arrays).reshape(B, N, H)


def _attend(
    q_BKMH: jax.Array,
    k_LBKHS: jax.Array,
    v_LBKSH: jax.Array,
    layer_1: jax.Array,
    bias_BS: jax.Array,
    *,
    interpret: bool,
) -> jax.Array:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    B, K, M, H = q_BKMH.shape
    S = bias_BS.shape[1]
    block = find_block(S)
    read = B * K * S * H * (k_LBKHS.dtype.itemsize + v_LBKSH.dtype.itemsize)
    return pl.pallas_call(
        functools.partial(_visit, scale=H**-0.5, last=S // block - 1),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, S // block),
            in_specs=[
                pl.BlockSpec((None, K, M, H), lambda b, s, layer: (b, 0, 0, 0)),
                pl.BlockSpec((None, None, K, H, block), lambda b, s, layer: (layer[0], b, 0, 0, s)),
                pl.BlockSpec((None, None, K, block, H), lambda b, s, layer: (layer[0], b, 0, s, 0)),
                pl.BlockSpec((None, 1, block), lambda b, s, layer: (b, 0, s)),
            ],
            out_specs=pl.BlockSpec((None, K, M, H), lambda b, s, layer: (b, 0, 0, 0)),
            scratch_shapes=[
                pltpu.VMEM((K * M, LANES), jnp.float32),
                pltpu.VMEM((K * M, LANES), jnp.float32),
                pltpu.VMEM((K * M, H), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q_BKMH.shape, q_BKMH.dtype),
        cost_estimate=pl.CostEstimate(
            flops=4 * B * K * M * S * H,
            transcendentals=B * K * M * S,
            bytes_accessed=read + 2 * q_BKMH.nbytes + bias_BS.nbytes,
        ),
        name="cached_attention",
        interpret=interpret,
    )(layer_1, q_BKMH, k_LBKHS, v_LBKSH, bias_BS[:, None])


def _visit(
    _: Any,
    q: Any,
    keys: Any,
    values: Any,
    bias: Any,
    out: Any,
    peak: Any,
    total: Any,
    mean: Any,
    *,
    scale: float,
    last: int,
) -> None:
    """One block of columns of all heads of one row."""
    from jax.experimental import pallas as pl

    step, (K, M, _) = pl.program_id(1), q.shape

    @pl.when(step == 0)
    def _begin() -> None:
        begin(peak, total, mean)

    for head in range(K):
        scores_MS = jnp.dot(q[head], keys[head], preferred_element_type=jnp.float32) * scale + bias[...]
        add_block(scores_MS, values[head], slice(head * M, (head + 1) * M), peak, total, mean)

    @pl.when(step == last)
    def _end() -> None:
        for head in range(K):
            rows = slice(head * M, (head + 1) * M)
            out[head] = (mean[rows] / total[rows][:, :1]).astype(out.dtype)
