"""Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1; DeepSeek-V3, 2412.19437, section 2.1.1).

Keys and values of all heads are linear maps of one latent per token, and one rotated key is shared by all heads: the
cache stores the normalized latent and that key, 512 + 64 values per token and layer in V3. Two forms give the same
result:

plain      expands keys and values of every head from the latents; cheap for many queries (training, prefill). absorbed
multiplies queries by the key map and attends to the latents directly, one shared kv head of width
           512 + 64; the mean latent is multiplied by the value map. Cheap for few queries (decoding).

Static shapes decide by the number of multiplications, unless `form` is set. Latent norms use epsilon 1e-6 in every
model, as in the released code.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import constrain, join_rows, joins_rows, part_rows
from r1jax.models.attention import Context, attend, query_axes
from r1jax.models.cache import append
from r1jax.models.layers import Dtypes, Linear, RMSNorm
from r1jax.models.ops.blockwise_attention import Segments
from r1jax.models.ops.latent_attention import attend_latents, find_block
from r1jax.models.ops.splash import runs_here
from r1jax.models.rope import rotate, rotate_pairs
from r1jax.models.stacks import StackedLayer, read

Form = Literal["auto", "plain", "absorbed"]
EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class LatentSizes:
    """Widths of latent attention: latent of the queries (0: queries come from the input directly), latent of keys and
    values, and per head the unrotated keys, rotated keys and values.
    """

    query_latent: int
    latent: int
    plain_dim: int
    rotary_dim: int
    value_dim: int


class LatentAttention(nnx.Module):
    """Latent self-attention. Cache: {"latent": [B, 1, S, C + R]}, normalized latent and rotated key of each token."""

    def __init__(
        self,
        width: int,
        heads: int,
        sizes: LatentSizes,
        *,
        scale: float,
        interleaved: bool = True,
        form: Form = "auto",
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        std: float,
    ):
        """scale: of the scores. interleaved: rotated pairs are neighbours in the files' layout, not half a
        head apart.
        """
        self.sizes, self.scale, self.form, self.dtype = sizes, scale, form, dtypes.compute
        self.rotate = rotate_pairs if interleaved else rotate
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        norm: dict[str, Any] = dict(epsilon=EPSILON, dtypes=dtypes, rngs=rngs)
        query = (heads, sizes.plain_dim + sizes.rotary_dim)
        up_axes = ("from_latent", "heads", "head_dim")
        if sizes.query_latent:
            self.query_down = Linear((width,), (sizes.query_latent,), ("embed", "latent"), **shared)
            self.query_norm = RMSNorm(sizes.query_latent, **norm)
            self.query_up = Linear((sizes.query_latent,), query, up_axes, **shared)
        else:
            self.query = Linear((width,), query, ("embed", "heads", "head_dim"), **shared)
        self.kv_down = Linear((width,), (sizes.latent + sizes.rotary_dim,), ("embed", "latent"), **shared)
        self.kv_norm = RMSNorm(sizes.latent, **norm)
        self.kv_up = Linear((sizes.latent,), (heads, sizes.plain_dim + sizes.value_dim), up_axes, **shared)
        self.out = Linear((heads, sizes.value_dim), (width,), ("heads", "head_dim", "embed"), **shared)

    def init_cache(self, rows: int, columns: int) -> dict[str, jax.Array]:
        """An empty cache of `rows` sequences of `columns` positions."""
        shape = (rows, 1, columns, self.sizes.latent + self.sizes.rotary_dim)
        return {"latent": jnp.zeros(shape, self.dtype)}

    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: dict | None, prefix: dict | None
    ) -> tuple[jax.Array, dict | None]:
        axes = query_axes(parted=False)
        plain, rotary = jnp.split(self._query(x_BTD), [self.sizes.plain_dim], axis=-1)
        q_BTNH = jnp.concatenate([plain, self.rotate(rotary, context.rope)], axis=-1)
        kv_B1SC = self._latents(x_BTD, context)
        if cache is not None and context.column is not None:
            cache = {"latent": append(cache["latent"], kv_B1SC, context.column, axis=2)}
            if prefix is None and self._runs_as_kernel(x_BTD.shape[1], cache["latent"]):
                out_BTNH = self._absorbed_by_kernel(constrain(q_BTNH, axes, name="query"), cache["latent"], context)
                return part_rows(self.out(constrain(out_BTNH, axes, name="attention"))), cache
            kv_B1SC = read(cache["latent"])
        attention = self._absorbed if self._absorbs(x_BTD.shape[1], kv_B1SC.shape[2]) else self._plain
        out_BTNH = attention(constrain(q_BTNH, axes, name="query"), kv_B1SC, context, prefix, cache is not None)
        return part_rows(self.out(constrain(out_BTNH, axes, name="attention"))), cache

    def _query(self, x_BTD: jax.Array) -> jax.Array:
        if not self.sizes.query_latent:
            return self.query(join_rows(x_BTD))
        return self.query_up(join_rows(self.query_norm(self.query_down(x_BTD))))

    def _latents(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """[B, 1, T, C + R]: cache entry of each token."""
        latent, rotary = jnp.split(self.kv_down(x_BTD), [self.sizes.latent], axis=-1)
        key = self.rotate(rotary[:, :, None], context.rope)[:, :, 0]
        return jnp.concatenate([self.kv_norm(latent), key], axis=-1)[:, None]

    def _absorbs(self, queries: int, keys: int) -> bool:
        """Whether the absorbed form needs fewer multiplications per head."""
        if self.form != "auto":
            return self.form == "absorbed"
        sizes = self.sizes
        up = sizes.latent * (sizes.plain_dim + sizes.value_dim)
        plain = keys * up + queries * keys * (sizes.plain_dim + sizes.rotary_dim + sizes.value_dim)
        return queries * up + queries * keys * 2 * (sizes.latent + sizes.rotary_dim) < plain

    def _plain(
        self, q_BTNH: jax.Array, kv_B1SC: jax.Array, context: Context, prefix: dict | None, decoding: bool
    ) -> jax.Array:
        k_BNSH, v_BNSH = self._expand(join_rows(kv_B1SC))
        before = None if prefix is None else self._expand_prefix(prefix)
        causal = context.column is None
        return attend(q_BTNH, k_BNSH, v_BNSH, context.bias, before, decoding=decoding, causal=causal, scale=self.scale)

    def _expand(self, kv_B1SC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents -> keys [B, N, S, H] and values [B, N, S, H'] of all heads."""
        latent, rotary = jnp.split(kv_B1SC, [self.sizes.latent], axis=-1)
        both = self.kv_up(latent[:, 0]).transpose(0, 2, 1, 3)
        plain, values = jnp.split(both, [self.sizes.plain_dim], axis=-1)
        rotary = jnp.broadcast_to(rotary, (*plain.shape[:3], self.sizes.rotary_dim))
        return jnp.concatenate([plain, rotary], axis=-1), values

    def _expand_prefix(self, prefix: dict) -> dict:
        """Keys and values of a prefix {"latent"}, with its mask ("bias") if it has one."""
        k_BNSH, v_BNSH = self._expand(prefix["latent"])
        return {"k": k_BNSH, "v": v_BNSH, "bias": prefix.get("bias")}

    def _absorbed(
        self, q_BTNH: jax.Array, kv_B1SC: jax.Array, context: Context, prefix: dict | None, decoding: bool
    ) -> jax.Array:
        """Attention on latents. The weighted mean covers whole cache rows: dropping the rotated key's part afterwards
        is cheaper than copying the cache without it.

        Where devices share heads and not rows, queries and means change places: a device reads the latents of its own
        rows alone, for all heads.
        """
        before = None
        if prefix is not None:
            before = {"k": prefix["latent"], "v": prefix["latent"], "bias": prefix.get("bias")}
        query = self._absorb(q_BTNH)
        mean = attend(query, kv_B1SC, kv_B1SC, context.bias, before, decoding=decoding, scale=self.scale)
        return self._raise_values(mean)

    def _absorb(self, q_BTNH: jax.Array) -> jax.Array:
        """[B, T, N, C + R]: queries of latents, where these are attended to."""
        plain, rotary = jnp.split(q_BTNH, [self.sizes.plain_dim], axis=-1)
        key_up = self.kv_up.kernel[...].astype(self.dtype)[..., : self.sizes.plain_dim]
        query = jnp.einsum("BTNH,CNH->BTNC", plain, key_up)
        if (adapter := self.kv_up.adapter()) is not None:
            a_CR, key_b = adapter[0], adapter[1][..., : self.sizes.plain_dim]
            query = query + jnp.einsum("BTNR,CR->BTNC", jnp.einsum("BTNH,RNH->BTNR", plain, key_b), a_CR)
        query = jnp.concatenate([query, rotary], axis=-1)
        return _move(_move(query, parted=False), parted=True)

    def _raise_values(self, mean_BTNC: jax.Array) -> jax.Array:
        """[B, T, N, H']: values of the mean latents, where the output's weights are."""
        value_up = self.kv_up.kernel[...].astype(self.dtype)[..., self.sizes.plain_dim :]
        mean = _move(_move(mean_BTNC[..., : self.sizes.latent], parted=True), parted=False)
        out_BTNH = jnp.einsum("BTNC,CNH->BTNH", mean, value_up)
        if (adapter := self.kv_up.adapter()) is not None:
            a_CR, value_b = adapter[0], adapter[1][..., self.sizes.plain_dim :]
            out_BTNH = out_BTNH + jnp.einsum("BTNR,RNH->BTNH", jnp.einsum("BTNC,CR->BTNR", mean, a_CR), value_b)
        return out_BTNH

    def _runs_as_kernel(self, queries: int, cache: jax.Array | StackedLayer) -> bool:
        """Whether one query a row attends to a layer of a stack in bfloat16 on a TPU."""
        if queries > 1 or not isinstance(cache, StackedLayer) or not self._absorbs(1, cache.stack.shape[3]):
            return False
        return cache.stack.dtype == jnp.bfloat16 and bool(find_block(cache.stack.shape[3])) and runs_here()

    def _absorbed_by_kernel(self, q_BTNH: jax.Array, cache: StackedLayer, context: Context) -> jax.Array:
        """`_absorbed` for one query a row, on a layer inside the stack."""
        assert not isinstance(context.bias, Segments)
        axes, query = query_axes(parted=joins_rows()), self._absorb(q_BTNH)
        latents, bias = cache.stack[:, :, 0], context.bias[:, 0]
        mean_BNC = attend_latents(query[:, 0], latents, cache.index, bias, self.scale, query_axes=(axes[0], axes[2]))
        return self._raise_values(mean_BNC[:, None])


def _move(x: jax.Array, *, parted: bool) -> jax.Array:
    """Queries or means of latents at the devices of their rows (`parted`) or of their heads."""
    return constrain(x, query_axes(parted=parted), name="latents") if joins_rows() else x
