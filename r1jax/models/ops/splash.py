"""Splash attention (jax's Pallas kernel for TPUs): flash attention with segment ids that skips blocks outside the
causal mask, forward and backward, without scores in HBM.

Each device runs the kernel on its own rows and heads. Off TPUs the same kernel runs in interpret mode, for tests.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from r1jax.core.sharding import Axes, current_device, current_mesh, partition

LANES, BLOCK_Q, BLOCK_KV = 128, 512, 1024


def attend_causal(
    q_BTNH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    sinks_N: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within segments (None: one segment per row) -> [B, T, N, H], H the width of the values; to the
    last `window` tokens alone where that is given. cap, sinks_N: as in `softmax_attention.attend_heads_shaped`.

    Rows are padded to whole blocks; padding attends to itself only.
    """
    T = q_BTNH.shape[1]
    step = BLOCK_KV if T > BLOCK_KV else LANES
    length = -(-T // step) * step
    q_BNTH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype).transpose(0, 2, 1, 3)
    fill = lambda x, axis: jnp.pad(x, [(0, length - T if a == axis else 0) for a in range(x.ndim)])
    arrays = tuple(fill(x, 2) for x in (q_BNTH, k_BKTH, v_BKTH))
    run = functools.partial(_run, length=length, window=window, cap=cap, interpret=interpret)
    told = {"segments": None if segments_BT is None else fill(segments_BT, 1), "sinks": sinks_N}
    out = _on_each_device(run, arrays, {name: array for name, array in told.items() if array is not None})
    return out[:, :, :T].transpose(0, 2, 1, 3)


def _run(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None = None,
    sinks: jax.Array | None = None,
    *,
    length: int,
    window: int,
    cap: float,
    interpret: bool,
) -> jax.Array:
    kernel = _make_kernel(q.shape[1], length, window, cap, interpret)
    told = {} if sinks is None else {"sinks": sinks.astype(jnp.float32)}
    if segments is None:
        return jax.vmap(lambda q, k, v: kernel(q, k, v, **told))(q, k, v)
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, kernels.SegmentIds(ids, ids), **told))(q, k, v, segments)


def _make_kernel(heads: int, length: int, window: int, cap: float, interpret: bool) -> Any:
    """The kernel for rows of `length`, a whole number of blocks or a single block."""
    block_q, block_kv = (BLOCK_Q, BLOCK_KV) if length % BLOCK_KV == 0 else (length, length)
    sizes = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_q,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_q,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    shape = (length, length)
    own = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
    mask = masks.MultiHeadMask([own] * heads)
    options: dict[str, Any] = dict(block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    return kernels.make_splash_mha(mask, attn_logits_soft_cap=cap or None, **options)


def _on_each_device(run: Any, arrays: tuple[jax.Array, ...], told: dict[str, jax.Array]) -> jax.Array:
    """Runs on each device of the current mesh with its own rows and heads, at full length and width."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return run(*arrays, **told)
    keys, own = ("group_batch", "kv_heads", None, None), {"segments": ("group_batch", None), "sinks": ("heads",)}
    axes: tuple[Axes, ...] = (("group_batch", "heads", None, None), keys, keys, *(own[name] for name in told))
    everything = (*arrays, *told.values())
    specs = tuple(partition(a, x.shape, mesh, name="attention") for a, x in zip(axes, everything, strict=True))
    each = lambda *args: run(*args[:3], **dict(zip(told, args[3:], strict=True)))
    return jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*everything)


def runs_here() -> bool:
    """Whether the program is compiled for TPUs."""
    return current_device().platform == "tpu"
