"""Grouped-query attention (Ainslie et al. 2023), with and without a cache, and attention masks.

The queries of one kv head are gathered into rows, so scores are one batched matmul per kv head, which XLA runs well on
CPU, GPU and TPU. Softmax in float32. A row without visible keys (padding) gives a finite mean, never NaN, and is not
used.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import Axes, constrain, join_rows, joins_rows, part_rows
from r1jax.models.cache import append
from r1jax.models.layers import Dtypes, Linear, RMSNorm, weight
from r1jax.models.ops.blockwise_attention import NEGATIVE, Segments, attend_segments
from r1jax.models.ops.cached_attention import attend_cache, fits
from r1jax.models.ops.rms_norm import normalize
from r1jax.models.ops.softmax_attention import attend_heads, attend_heads_prefixed, attend_heads_shaped
from r1jax.models.ops.splash import runs_here
from r1jax.models.rope import rotate_first
from r1jax.models.stacks import StackedLayer, read
from r1jax.models.windows import Window, append_ring, count_columns

_MOST_PIECES, _SHORTEST_PIECE = 4, 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Context:
    """Shared inputs of all layers in one forward pass: rotary tables, the mask as a bias [B, T, S] (for long rows as
    segments), valid tokens [B, T] (not padding), and the cache column to write (or None). experts: kernels of the
    layer's experts inside their stack, in place of the layer's parameters (None: these). ropes, windows: tables and
    masks of layers of other kinds, by name and by window; columns: of the whole cache; positions, segments,
    prefixes [B, T]: as the model was called. kept: keys, values and prefix of earlier layers (`Style.takes`).
    """

    rope: tuple[jax.Array, jax.Array]
    bias: jax.Array | Segments
    valid: jax.Array
    column: jax.Array | None = None
    experts: Any = None
    ropes: dict[str, tuple[jax.Array, jax.Array]] = dataclasses.field(default_factory=dict)
    windows: dict[int, Window] = dataclasses.field(default_factory=dict)
    positions: jax.Array | None = None
    segments: jax.Array | None = None
    prefixes: jax.Array | None = None
    kept: dict[str, tuple[jax.Array, jax.Array, Any]] = dataclasses.field(default_factory=dict)
    columns: int = dataclasses.field(default=0, metadata=dict(static=True))

    def keep(self, kept: dict[str, Any]) -> Context:
        """The context for later layers, with what this one keeps for them."""
        return dataclasses.replace(self, kept={**self.kept, **kept}) if kept else self


@dataclasses.dataclass(frozen=True)
class Style:
    """Options in which the attention layers of a family differ from Llama's.

    rope: name of the tables of rotation ("": the model's own; None: positions are not encoded). interleaved: pairs are
    neighbours. window: which keys a query sees (models/windows.py; 0: all). scale: of the scores (None: 1 / sqrt(H)).
    cap: soft bound of the scores (0: none). sinks: a learned score for each head takes its share of the softmax. norm:
    of queries and keys, of each head ("head"), of all heads as one vector ("width"), or without a scale and after
    the rotation ("after"). norm_offset: added to the scales of these norms. out_bias: the output has a bias. gated: a
    half of the query map's outputs gates what the heads give, through a sigmoid. stretch: (beta, L, shift): queries
    grow by 1 + beta log(1 + floor((position + shift) / L)) (Llama 4). values: of a map of their own, the same with each
    head normalized without a scale, or the keys' before their norm, normalized so (Gemma 4). keeps: name by which later
    layers find this one's keys and values; takes: name of those that this layer attends to, having none itself.
    """

    rope: str | None = ""
    interleaved: bool = False
    window: int = 0
    scale: float | None = None
    cap: float = 0.0
    sinks: bool = False
    norm: Literal["head", "width", "after"] = "head"
    norm_offset: float = 0.0
    out_bias: bool = False
    gated: bool = False
    stretch: tuple[float, float, int] | None = None
    values: Literal["own", "normed", "keys"] = "own"
    keeps: str = ""
    takes: str = ""


LLAMA = Style()


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
    **shape: Any,
) -> jax.Array:
    """softmax(q k scale + bias) v with N / K query heads per kv head -> [B, T, N, H], H the width of the values, which
    may differ from that of queries and keys.

    prefix: {"k", "v"} [1, K, P, H], to which all rows attend before their own keys. With `decoding` (many short rows,
    no gradient) it is kept once for all rows; otherwise, or with a mask of its own ("bias" [B, T, P]), it is
    concatenated to the keys of each row. causal: query t attends to no key after t, so blocks of queries may skip later
    keys. scale: default 1 / sqrt(H) of the keys. shape: cap and sinks of the scores (`attend_heads_shaped`).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    chex.assert_shape(k_BKSH, (B, None, None, H), custom_message="keys must be [B, K, S, H] for queries [B, T, N, H]")
    chex.assert_shape(v_BKSH, (*k_BKSH.shape[:3], None), custom_message="values must be [B, K, S, ...], as the keys")
    if not isinstance(bias_BTS, Segments):
        chex.assert_shape(bias_BTS, (None, T, k_BKSH.shape[2]), custom_message="the bias must be [B, T, S]")
    scale = 1 / math.sqrt(H) if scale is None else scale
    if isinstance(bias_BTS, Segments):
        return attend_segments(attend, q_BTNH, k_BKSH, v_BKSH, bias_BTS, prefix, scale=scale, **shape)
    if causal and (pieces := min(_MOST_PIECES, T // _SHORTEST_PIECE)) > 1:
        ends = [T * i // pieces for i in range(pieces + 1)]
        outs = [
            attend(
                q_BTNH[:, start:end],
                k_BKSH[:, :, :end],
                v_BKSH[:, :, :end],
                bias_BTS[:, start:end, :end],
                _cut_prefix(prefix, start, end),
                decoding=decoding,
                scale=scale,
                **shape,
            )
            for start, end in itertools.pairwise(ends)
        ]
        return jnp.concatenate(outs, axis=1)
    q_BKMH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, (N // K) * T, H)
    run: Any = functools.partial(attend_heads_shaped, **shape) if shape else attend_heads
    if prefix is None:
        out = run(q_BKMH, k_BKSH, v_BKSH, bias_BTS, scale)
    elif decoding and not shape and prefix.get("bias") is None:
        out = attend_heads_prefixed(q_BKMH, k_BKSH, v_BKSH, bias_BTS, scale, prefix["k"][0], prefix["v"][0])
    else:
        before = lambda x, y: jnp.concatenate([jnp.broadcast_to(x, (B, *x.shape[1:])), y], axis=2)
        if (own := prefix.get("bias")) is not None:
            bias_BTS = jnp.concatenate([own, jnp.broadcast_to(bias_BTS, (B, *bias_BTS.shape[1:]))], axis=2)
        else:
            bias_BTS = jnp.pad(bias_BTS, ((0, 0), (0, 0), (prefix["k"].shape[2], 0)))
        out = run(q_BKMH, before(prefix["k"], k_BKSH), before(prefix["v"], v_BKSH), bias_BTS, scale)
    return out.reshape(B, K, N // K, T, -1).transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)


def _cut_prefix(prefix: dict | None, start: int, end: int) -> dict | None:
    """The prefix for some of the queries."""
    if prefix is None or prefix.get("bias") is None:
        return prefix
    return {**prefix, "bias": prefix["bias"][:, start:end]}


def query_axes(*, parted: bool) -> Axes:
    """Logical axes of queries and outputs [B, T, N, H] in attention. parted: each device attends with all heads of its
    own rows, for keys of one head, which several devices cannot share out by heads.
    """
    return ("batch", "sequence", None, None) if parted else ("group_batch", "sequence", "heads", None)


def _runs_as_kernel(q_BTNH: jax.Array, k: Any, v: Any) -> bool:
    """Whether one query a row attends to a layer of a stack in bfloat16 on a TPU."""
    stacked = isinstance(k, StackedLayer) and q_BTNH.shape[1] == 1
    return stacked and fits(q_BTNH.shape[2], k.stack, v.stack) and runs_here()


def _attend_by_kernel(q_BTNH: jax.Array, k: StackedLayer, v: StackedLayer, bias: jax.Array | Segments) -> jax.Array:
    assert not isinstance(bias, Segments)
    return attend_cache(q_BTNH[:, 0], k.stack, v.stack, k.index, bias[:, 0])[:, None]


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions.

    qkv_bias: queries, keys and values have biases (Qwen2). norm_epsilon: RMSNorm of each head's queries and keys before
    rotation, with this epsilon and one scale for all heads (Qwen3); None: no norm. style: what else a family does.
    Cache: {"k": [B, K, H, S], "v": [B, K, S, H]}, each in the layout of its product: XLA:CPU takes four times as long
    for the scores of one query if keys are laid out like values; of a layer with a window "ring_k" and "ring_v"; of one
    that takes another's keys {}. A prefix has the same form for one row, shared by all.
    """

    key: Linear | None = None
    value: Linear | None = None
    key_norm: RMSNorm | None = None

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
        style: Style = LLAMA,
    ):
        self.kv_heads, self.head_dim, self.dtype, self.style = kv_heads, head_dim, dtypes.compute, style
        self.names = ("ring_k", "ring_v") if style.window else ("k", "v")
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        kv_axes = ("embed", "kv_heads", "head_dim")
        outputs = (heads, 2 * head_dim if style.gated else head_dim)
        self.query = Linear((width,), outputs, ("embed", "heads", "head_dim"), bias=qkv_bias, **shared)
        if not style.takes:
            self.key = Linear((width,), (kv_heads, head_dim), kv_axes, bias=qkv_bias, **shared)
        if not style.takes and style.values != "keys":
            self.value = Linear((width,), (kv_heads, head_dim), kv_axes, bias=qkv_bias, **shared)
        axes: Axes = ("heads", "head_dim", "embed")
        self.out = Linear((heads, head_dim), (width,), axes, bias=style.out_bias, **shared)
        self.norm_epsilon = norm_epsilon
        norm: dict[str, Any] = dict(epsilon=norm_epsilon, dtypes=dtypes, rngs=rngs, offset=style.norm_offset)
        together = (heads, kv_heads) if style.norm == "width" else (1, 1)
        absent = norm_epsilon is None or style.norm == "after"
        self.query_norm = None if absent else RMSNorm(together[0] * head_dim, **norm)
        self.key_norm = None if absent or style.takes else RMSNorm(together[1] * head_dim, **norm)
        self.sinks = weight(rngs, (heads,), ("heads",), dtypes, std=std) if style.sinks else None

    def init_cache(self, rows: int, columns: int, chunk: int = 0) -> dict[str, jax.Array]:
        """An empty cache of `rows` sequences of `columns` positions, in a ring where it holds a window (`chunk`)."""
        if self.style.takes:
            return {}
        shape, columns = (rows, self.kv_heads), count_columns(self.style.window, columns, chunk)
        key, value = self.names
        return {
            key: jnp.zeros((*shape, self.head_dim, columns), self.dtype),
            value: jnp.zeros((*shape, columns, self.head_dim), self.dtype),
        }

    def __call__(self, x_BTD: jax.Array, context: Context, cache: dict | None, prefix: dict | None) -> tuple[Any, ...]:
        """Outputs [B, T, D] and the cache; of a layer that keeps keys also {"kept": ...}."""
        style, (key, value) = self.style, self.names
        seen: Any = context.windows[style.window] if style.window else context
        parted = self.kv_heads == 1 and x_BTD.shape[1] == 1 and joins_rows()
        axes, x_BTD = query_axes(parted=parted), join_rows(x_BTD)
        q_BTNH, gate_BTNH = self.query(x_BTD), None
        if style.gated:
            q_BTNH, gate_BTNH = jnp.split(q_BTNH, 2, axis=-1)
        q_BTNH = self._place(_normalize(self.query_norm, q_BTNH), context, stretch=style.stretch)
        q_BTNH = constrain(q_BTNH, axes, name="query")
        k_BKSH, v_BKSH, prefix = context.kept[style.takes] if style.takes else (*self._project(x_BTD, context), prefix)
        shape: dict[str, Any] = {"cap": style.cap} if style.cap else {}
        if self.sinks is not None:
            shape["sinks_N"] = self.sinks[...]
        if cache is not None and seen.column is not None and not style.takes:
            put = functools.partial(append_ring, columns=context.columns) if style.window else append
            k_BKHS = put(cache[key], k_BKSH.swapaxes(2, 3), seen.column, axis=3)
            cache = {key: k_BKHS, value: put(cache[value], v_BKSH, seen.column, axis=2)}
            plain = prefix is None and style.scale is None and not shape and not style.gated
            if plain and _runs_as_kernel(q_BTNH, cache[key], cache[value]):
                out_BTNH = _attend_by_kernel(q_BTNH, cache[key], cache[value], seen.bias)
                return part_rows(self.out(constrain(out_BTNH, axes, name="attention"))), cache
            k_BKSH, v_BKSH = read(k_BKHS).swapaxes(2, 3), read(cache[value])
        if prefix is not None and not style.takes:
            prefix = {"k": prefix[key].swapaxes(2, 3), "v": prefix[value]}
            prefix |= {"bias": seen.before} if style.window else {}
        decoding, causal = cache is not None, seen.column is None
        out_BTNH = attend(
            q_BTNH, k_BKSH, v_BKSH, seen.bias, prefix, decoding=decoding, causal=causal, scale=style.scale, **shape
        )
        out_BTNH = constrain(out_BTNH, axes, name="attention")
        if parted:
            out_BTNH = constrain(out_BTNH, query_axes(parted=False), name="attention")
        if gate_BTNH is not None:
            out_BTNH = out_BTNH * jax.nn.sigmoid(gate_BTNH.astype(jnp.float32)).astype(out_BTNH.dtype)
        kept = {"kept": {style.keeps: (k_BKSH, v_BKSH, prefix)}}
        return part_rows(self.out(out_BTNH)), cache, *((kept,) if style.keeps else ())

    def _project(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, K, T, H] of these tokens."""
        assert self.key is not None
        k_BTKH = self.key(x_BTD)
        v_BTKH = k_BTKH if self.value is None else self.value(x_BTD)
        if self.style.values != "own":
            v_BTKH = self._scale_free(v_BTKH)
        k_BTKH = self._place(_normalize(self.key_norm, k_BTKH), context)
        return k_BTKH.transpose(0, 2, 1, 3), v_BTKH.transpose(0, 2, 1, 3)

    def _scale_free(self, x_BTNH: jax.Array) -> jax.Array:
        """Each head normalized without a scale."""
        assert self.norm_epsilon is not None
        ones = jnp.ones(x_BTNH.shape[-1:], jnp.float32)
        return normalize(x_BTNH.astype(jnp.float32), ones, self.norm_epsilon).astype(x_BTNH.dtype)

    def _place(
        self, x_BTNH: jax.Array, context: Context, *, stretch: tuple[float, float, int] | None = None
    ) -> jax.Array:
        """Queries or keys, turned by their positions; with what this style does after that."""
        name = self.style.rope
        if name is not None:
            tables = context.ropes[name] if name else context.rope
            x_BTNH = rotate_first(x_BTNH, tables, interleaved=self.style.interleaved)
        if self.style.norm == "after" and self.norm_epsilon is not None and name is not None:
            x_BTNH = self._scale_free(x_BTNH)
        if stretch is not None:
            assert context.positions is not None
            beta, length, shift = stretch
            steps = jnp.floor((context.positions + shift) / length)
            x_BTNH = x_BTNH * (1 + beta * jnp.log1p(steps))[:, :, None, None].astype(x_BTNH.dtype)
        return x_BTNH


def _normalize(norm: RMSNorm | None, x_BTNH: jax.Array) -> jax.Array:
    """Each head normalized, or all of a token's heads as one vector, by the width of the norm's scale; None: not."""
    if norm is None:
        return x_BTNH
    if norm.scale.shape[-1] == x_BTNH.shape[-1]:
        return norm(x_BTNH)
    return norm(x_BTNH.reshape(*x_BTNH.shape[:2], -1)).reshape(x_BTNH.shape)
