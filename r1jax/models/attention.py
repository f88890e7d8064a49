"""Grouped-query attention (Ainslie et al. 2023), with and without a cache, and attention masks.

The queries of one kv head are gathered into rows, so scores are one batched matmul per kv head, which XLA runs well on
CPU, GPU and TPU. Softmax in float32. A row without visible keys (padding) gives a finite mean, never NaN, and is not
used.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import Axes, constrain, join_rows, joins_rows, part_rows
from r1jax.models.cache import append
from r1jax.models.layers import Dtypes, Linear, RMSNorm
from r1jax.models.ops.blockwise_attention import NEGATIVE, Segments, attend_segments
from r1jax.models.ops.cached_attention import attend_cache, fits
from r1jax.models.ops.softmax_attention import attend_heads, attend_heads_prefixed
from r1jax.models.ops.splash import runs_here
from r1jax.models.rope import rotate
from r1jax.models.stacks import StackedLayer, read

_MOST_PIECES, _SHORTEST_PIECE = 4, 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Context:
    """Shared inputs of all layers in one forward pass: rotary tables, the mask as a bias [B, T, S] (for long rows as
    segments), valid tokens [B, T] (not padding), and the cache column to write (or None). experts: kernels of the
    layer's experts inside their stack, in place of the layer's parameters (None: these).
    """

    rope: tuple[jax.Array, jax.Array]
    bias: jax.Array | Segments
    valid: jax.Array
    column: jax.Array | None = None
    experts: Any = None


def mask_bias(mask_BTS: jax.Array) -> jax.Array:
    """Additive mask: 0 where a query may attend to a key, hugely negative elsewhere; float32."""
    return jnp.where(mask_BTS, 0.0, NEGATIVE).astype(jnp.float32)


def segment_mask(segments_BT: jax.Array, prefixes_BT: jax.Array | None = None) -> jax.Array:
    """Causal mask [B, T, T] of packed rows: a token attends to earlier tokens of its own segment and of the segment it
    continues.

    Segment 0 is padding. `prefixes` names, per token, the segment that comes before its own (0: none), so that several
    completions in a row share one prompt.
    """
    length = segments_BT.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    keys, queries = segments_BT[:, None, :], segments_BT[:, :, None]
    same = keys == queries
    if prefixes_BT is not None:
        same |= keys == prefixes_BT[:, :, None]
    return causal & same & (keys != 0)


def attend(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    bias_BTS: jax.Array | Segments,
    prefix: dict | None = None,
    *,
    decoding: bool = False,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """softmax(q k scale + bias) v with N / K query heads per kv head -> [B, T, N, H], H the width of the values, which
    may differ from that of queries and keys.

    prefix: {"k", "v"} [1, K, P, H], to which all rows attend before their own keys. With `decoding` (many short rows,
    no gradient) it is kept once for all rows; otherwise it is concatenated to the keys of each row. causal: query t
    attends to no key after t, so blocks of queries may skip later keys. scale: default 1 / sqrt(H) of the keys.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    chex.assert_shape(k_BKSH, (B, None, None, H), custom_message="keys must be [B, K, S, H] for queries [B, T, N, H]")
    chex.assert_shape(v_BKSH, (*k_BKSH.shape[:3], None), custom_message="values must be [B, K, S, ...], as the keys")
    if not isinstance(bias_BTS, Segments):
        chex.assert_shape(bias_BTS, (None, T, k_BKSH.shape[2]), custom_message="the bias must be [B, T, S]")
    scale = 1 / math.sqrt(H) if scale is None else scale
    if isinstance(bias_BTS, Segments):
        return attend_segments(attend, q_BTNH, k_BKSH, v_BKSH, bias_BTS, prefix, scale=scale)
    if causal and (pieces := min(_MOST_PIECES, T // _SHORTEST_PIECE)) > 1:
        ends = [T * i // pieces for i in range(pieces + 1)]
        outs = [
            attend(
                q_BTNH[:, start:end],
                k_BKSH[:, :, :end],
                v_BKSH[:, :, :end],
                bias_BTS[:, start:end, :end],
                prefix,
                decoding=decoding,
                scale=scale,
            )
            for start, end in itertools.pairwise(ends)
        ]
        return jnp.concatenate(outs, axis=1)
    q_BKMH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, (N // K) * T, H)
    if prefix is None:
        out = attend_heads(q_BKMH, k_BKSH, v_BKSH, bias_BTS, scale)
    elif decoding:
        out = attend_heads_prefixed(q_BKMH, k_BKSH, v_BKSH, bias_BTS, scale, prefix["k"][0], prefix["v"][0])
    else:
        before = lambda x, y: jnp.concatenate([jnp.broadcast_to(x, (B, *x.shape[1:])), y], axis=2)
        bias_BTS = jnp.pad(bias_BTS, ((0, 0), (0, 0), (prefix["k"].shape[2], 0)))
        out = attend_heads(q_BKMH, before(prefix["k"], k_BKSH), before(prefix["v"], v_BKSH), bias_BTS, scale)
    return out.reshape(B, K, N // K, T, -1).transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)


def query_axes(*, parted: bool) -> Axes:
    """Logical axes of queries and outputs [B, T, N, H] in attention. parted: each device attends with all heads of its
    own rows, for keys of one head, which several devices cannot share out by heads.
    """
    return ("batch", "sequence", None, None) if parted else ("group_batch", "sequence", "heads", None)


def _runs_as_kernel(q_BTNH: jax.Array, k: Any, v: Any) -> bool:
    """Whether one query a row attends to a layer of a stack in bfloat16 on a TPU."""
    stacked = isinstance(k, StackedLayer) and q_BTNH.shape[1] == 1
    return stacked and fits(q_BTNH.shape[2], k.stack, v.stack) and runs_here()


def _attend_by_kernel(q_BTNH: jax.Array, k: StackedLayer, v: StackedLayer, context: Context) -> jax.Array:
    assert not isinstance(context.bias, Segments)
    return attend_cache(q_BTNH[:, 0], k.stack, v.stack, k.index, context.bias[:, 0])[:, None]


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions.

    qkv_bias: queries, keys and values have biases (Qwen2). norm_epsilon: RMSNorm of each head's queries and keys before
    rotation, with this epsilon and one scale for all heads (Qwen3); None: no norm. Cache: {"k": [B, K, H, S], "v": [B,
    K, S, H]}, each in the layout of its product: XLA:CPU takes four times as long for the scores of one query if keys
    are laid out like values. A prefix has the same form for one row, shared by all.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        std: float,
        qkv_bias: bool = False,
        norm_epsilon: float | None = None,
    ):
        self.kv_heads, self.head_dim, self.dtype = kv_heads, head_dim, dtypes.compute
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        kv_axes = ("embed", "kv_heads", "head_dim")
        self.query = Linear((width,), (heads, head_dim), ("embed", "heads", "head_dim"), bias=qkv_bias, **shared)
        self.key = Linear((width,), (kv_heads, head_dim), kv_axes, bias=qkv_bias, **shared)
        self.value = Linear((width,), (kv_heads, head_dim), kv_axes, bias=qkv_bias, **shared)
        self.out = Linear((heads, head_dim), (width,), ("heads", "head_dim", "embed"), **shared)
        norm: dict[str, Any] = dict(epsilon=norm_epsilon, dtypes=dtypes, rngs=rngs)
        self.query_norm = None if norm_epsilon is None else RMSNorm(head_dim, **norm)
        self.key_norm = None if norm_epsilon is None else RMSNorm(head_dim, **norm)

    def init_cache(self, rows: int, columns: int) -> dict[str, jax.Array]:
        """An empty cache of `rows` sequences of `columns` positions."""
        shape = (rows, self.kv_heads)
        return {
            "k": jnp.zeros((*shape, self.head_dim, columns), self.dtype),
            "v": jnp.zeros((*shape, columns, self.head_dim), self.dtype),
        }

    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: dict | None, prefix: dict | None
    ) -> tuple[jax.Array, dict | None]:
        parted = self.kv_heads == 1 and x_BTD.shape[1] == 1 and joins_rows()
        axes, x_BTD = query_axes(parted=parted), join_rows(x_BTD)
        q_BTNH, k_BTKH = self.query(x_BTD), self.key(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        q_BTNH = constrain(rotate(q_BTNH, context.rope), axes, name="query")
        k_BKSH = rotate(k_BTKH, context.rope).transpose(0, 2, 1, 3)
        v_BKSH = self.value(x_BTD).transpose(0, 2, 1, 3)
        if cache is not None and context.column is not None:
            k_BKHS = append(cache["k"], k_BKSH.swapaxes(2, 3), context.column, axis=3)
            cache = {"k": k_BKHS, "v": append(cache["v"], v_BKSH, context.column, axis=2)}
            if prefix is None and _runs_as_kernel(q_BTNH, **cache):
                out_BTNH = _attend_by_kernel(q_BTNH, **cache, context=context)
                return part_rows(self.out(constrain(out_BTNH, axes, name="attention"))), cache
            k_BKSH, v_BKSH = read(k_BKHS).swapaxes(2, 3), read(cache["v"])
        if prefix is not None:
            prefix = {"k": prefix["k"].swapaxes(2, 3), "v": prefix["v"]}
        decoding, causal = cache is not None, context.column is None
        out_BTNH = attend(q_BTNH, k_BKSH, v_BKSH, context.bias, prefix, decoding=decoding, causal=causal)
        out_BTNH = constrain(out_BTNH, axes, name="attention")
        if parted:
            out_BTNH = constrain(out_BTNH, query_axes(parted=False), name="attention")
        return part_rows(self.out(out_BTNH)), cache
