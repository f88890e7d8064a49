"""Sparse latent attention (DeepSeek Sparse Attention, DeepSeek-V3.2-Exp): latent attention to the keys that a small
indexer selects (ops/selection.py).

The indexer's own queries come from the latent of the queries and its key from the layer's input; a part of both is
rotated, in halves. It receives no gradient from the model and gives none to it: its loss is among the layer's
statistics ("index"). One query a row reads the selected latents alone; more queries mask what was not selected.
Left out: the released kernel's Hadamard transform and 8-bit products, which only round.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import constrain, join_rows, part_rows
from r1jax.models.attention import Context, query_axes
from r1jax.models.cache import append
from r1jax.models.layers import Dtypes, Linear, weight
from r1jax.models.mla import EPSILON, LatentAttention, LatentSizes
from r1jax.models.ops.blockwise_attention import Segments, attend_blocks
from r1jax.models.ops.selection import Selection, learn
from r1jax.models.rope import Tables, rotate_first
from r1jax.models.stacks import read


@dataclasses.dataclass(frozen=True)
class IndexSizes:
    """Heads of the indexer and their width, and `count`, the keys that a query attends to. dense: all queries attend to
    all keys, while the indexer learns (the report's warm-up).
    """

    heads: int
    head_dim: int
    count: int
    dense: bool = False


class LayerNorm(nnx.Module):
    """(x - mean) / deviation * scale + bias over the last axis, in float32 (Ba et al. 2016)."""

    def __init__(self, width: int, *, epsilon: float, dtypes: Dtypes, rngs: nnx.Rngs):
        self.epsilon, self.compute = epsilon, dtypes.compute
        self.scale = weight(rngs, (width,), ("norm",), dtypes, std=None)
        self.bias = weight(rngs, (width,), ("norm",), dtypes, std=0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return (x * scale + bias).astype(self.compute)


class Indexer(nnx.Module):
    """Queries, weights and keys of the index scores."""

    def __init__(self, width: int, latent: int, sizes: IndexSizes, *, dtypes: Dtypes, rngs: nnx.Rngs, std: float):
        self.sizes = sizes
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        heads = (sizes.heads, sizes.head_dim)
        self.query = Linear((latent,), heads, ("from_latent", None, "head_dim"), **shared)
        self.key = Linear((width,), (sizes.head_dim,), ("embed", "head_dim"), **shared)
        self.key_norm = LayerNorm(sizes.head_dim, epsilon=EPSILON, dtypes=dtypes, rngs=rngs)
        self.weights = Linear((width,), (sizes.heads,), ("embed", None), **shared)

    def keys(self, x_BTD: jax.Array, rope: Tables) -> jax.Array:
        """[B, 1, T, H]: the key of each token."""
        key_BTH = self.key_norm(self.key(jax.lax.stop_gradient(x_BTD)))
        return rotate_first(key_BTH[:, :, None], rope)[:, :, 0][:, None]

    def select(
        self, x_BTD: jax.Array, latent_BTC: jax.Array, keys_B1SH: jax.Array, prefix: dict | None, rope: Tables
    ) -> Selection:
        """The selection for these queries. keys: of the row; prefix: its keys at "index", or None."""
        x_BTD, latent_BTC = jax.lax.stop_gradient((x_BTD, latent_BTC))
        queries = rotate_first(self.query(latent_BTC), rope)
        weights = self.weights(x_BTD).astype(jnp.float32) * (self.sizes.heads * self.sizes.head_dim) ** -0.5
        count = 0 if self.sizes.dense else self.sizes.count
        return Selection(queries, weights, keys_B1SH[:, 0], None if prefix is None else prefix["index"][:, 0], count)


class SparseLatentAttention(LatentAttention):
    """Latent self-attention to selected keys. Cache: {"latent": [B, 1, S, C + R], "index": [B, 1, S, H]}, beside the
    latents the indexer's key of each token.
    """

    def __init__(self, width: int, heads: int, sizes: LatentSizes, *, index: IndexSizes, **options: Any):
        """index: sizes of the indexer; others as those of LatentAttention, whose queries need a latent."""
        super().__init__(width, heads, sizes, **options)
        shared = {name: options[name] for name in ("dtypes", "rngs", "std")}
        self.indexer = Indexer(width, sizes.query_latent, index, **shared)

    def init_cache(self, rows: int, columns: int) -> dict[str, jax.Array]:
        """An empty cache of `rows` sequences of `columns` positions."""
        keys = jnp.zeros((rows, 1, columns, self.indexer.sizes.head_dim), self.dtype)
        return {**super().init_cache(rows, columns), "index": keys}

    def __call__(  # type: ignore[override]  # with statistics behind the cache
        self, x_BTD: jax.Array, context: Context, cache: dict | None, prefix: dict | None
    ) -> tuple[jax.Array, dict | None, dict[str, jax.Array]]:
        latent_BTC = self.query_norm(self.query_down(x_BTD))
        plain, rotary = jnp.split(self.query_up(join_rows(latent_BTC)), [self.sizes.plain_dim], axis=-1)
        q_BTNH = jnp.concatenate([plain, self.rotate(rotary, context.rope)], axis=-1)
        q_BTNH = constrain(q_BTNH, query_axes(parted=False), name="query")
        kv_B1SC, keys_B1SH = self._latents(x_BTD, context), self.indexer.keys(x_BTD, context.rope)
        if cache is not None and context.column is not None:
            new = {"latent": kv_B1SC, "index": keys_B1SH}
            cache = {name: append(cache[name], new[name], context.column, axis=2) for name in new}
            kv_B1SC, keys_B1SH = read(cache["latent"]), read(cache["index"])
        selection = self.indexer.select(x_BTD, latent_BTC, keys_B1SH, prefix, context.rope)
        told: dict[str, jax.Array] = {}
        if cache is not None and prefix is None and x_BTD.shape[1] == 1 and not selection.is_whole:
            out_BTNH = self._gathered(q_BTNH, kv_B1SC, context, selection)
        else:
            out_BTNH, told = self._masked(q_BTNH, kv_B1SC, context, prefix, selection)
        return part_rows(self.out(constrain(out_BTNH, query_axes(parted=False), name="attention"))), cache, told

    def _masked(
        self, q_BTNH: jax.Array, kv_B1SC: jax.Array, context: Context, prefix: dict | None, selection: Selection
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Attention with what was not selected masked, and without a cache the indexer's loss."""
        bias, own, decoding = context.bias, None, context.column is not None
        if isinstance(bias, Segments):
            bias = dataclasses.replace(bias, selection=selection)
        else:
            bias, own = selection.narrow(bias, None)
        narrowed = dataclasses.replace(context, bias=bias)
        before = None if prefix is None else {"latent": prefix["latent"], "bias": own}
        attention = self._absorbed if self._absorbs(q_BTNH.shape[1], kv_B1SC.shape[2]) else self._plain
        out_BTNH = attention(q_BTNH, kv_B1SC, narrowed, before, decoding)
        if decoding:
            return out_BTNH, {}
        k_BNSH, v_BNSH = self._expand(join_rows(kv_B1SC))
        expanded = None if before is None else self._expand_prefix(before)
        if isinstance(bias, Segments):
            loss = attend_blocks(learn, q_BTNH, k_BNSH, v_BNSH, bias, expanded, scale=self.scale, tell=True)
        else:
            loss = learn(q_BTNH, k_BNSH, v_BNSH, bias, expanded, scale=self.scale, selection=selection)
        return out_BTNH, {"index": jnp.where(context.valid, loss[..., 0, 0], 0.0).sum()}

    def _gathered(self, q_BTNH: jax.Array, kv_B1SC: jax.Array, context: Context, selection: Selection) -> jax.Array:
        """Attention of one query a row to the selected latents, which alone are read."""
        assert not isinstance(context.bias, Segments)
        bias_B1S = selection.mask(context.bias, None)
        _, places = jax.lax.top_k(jnp.where(bias_B1S < 0, bias_B1S, selection.score()), selection.count)
        chosen_B1KC = jnp.take_along_axis(kv_B1SC, places[:, 0][:, None, :, None], axis=2)
        bias_B1K = jnp.take_along_axis(bias_B1S, places, axis=-1)
        return self._absorbed(q_BTNH, chosen_B1KC, dataclasses.replace(context, bias=bias_B1K), None, True)
