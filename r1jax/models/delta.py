"""Gated delta networks (Yang et al. 2024, 2412.06464) in place of attention, as Qwen3-Next and Qwen3.5 have them: a
matrix of fixed size per head instead of keys and values that grow with the sequence.

Queries, keys and values pass a short causal convolution of each channel; queries and keys are normalized; the rule
(ops/delta_rule.py) forgets by a rate of each head and token; a norm and a gate follow. The cache holds the matrix and
the last inputs of the convolution.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.sharding import join_rows, part_rows
from r1jax.models.attention import Context
from r1jax.models.layers import Dtypes, Linear, RMSNorm, weight
from r1jax.models.ops.delta_rule import Memory, run_chunks, step
from r1jax.models.stacks import read, write

EPSILON = 1e-6  # of the norms of queries and keys


@dataclasses.dataclass(frozen=True)
class DeltaSizes:
    """Numbers and widths of the heads of keys and of values, and the taps of the convolution. grouped: the maps of the
    inputs are laid out by heads of keys (Qwen3-Next), not one after the other (Qwen3.5).
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int = 4
    grouped: bool = False

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


class GatedDelta(nnx.Module):
    """A gated delta network. Cache: {"state": [B, N, K, V], "taps": [B, 1, taps - 1, channels]}, which counts for
    nothing where a row's first position is 0. Tokens that are not valid change nothing.
    """

    is_recurrent = True

    def __init__(self, width: int, sizes: DeltaSizes, *, epsilon: float, dtypes: Dtypes, rngs: nnx.Rngs, std: float):
        self.sizes, self.dtype = sizes, dtypes.compute
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        N, V = sizes.value_heads, sizes.value_dim
        if sizes.grouped:
            each = N // sizes.key_heads
            outputs = (sizes.key_heads, 2 * sizes.key_dim + 2 * each * V)
            self.grouped = Linear((width,), outputs, ("embed", "heads", "head_dim"), **shared)
            self.rates = Linear((width,), (sizes.key_heads, 2 * each), ("embed", "heads", None), **shared)
        else:
            self.mixed = Linear((width,), (sizes.channels,), ("embed", None), **shared)
            self.gate = Linear((width,), (N, V), ("embed", "heads", "head_dim"), **shared)
            self.write = Linear((width,), (N,), ("embed", "heads"), **shared)
            self.forget = Linear((width,), (N,), ("embed", "heads"), **shared)
        self.convolution = weight(rngs, (sizes.channels, 1, sizes.taps), (None, None, None), dtypes, std=0.5)
        self.log_rate = weight(rngs, (N,), ("heads",), dtypes, std=0.0)
        self.rate_bias = weight(rngs, (N,), ("heads",), dtypes, std=None)
        self.norm = RMSNorm(V, epsilon=epsilon, dtypes=dtypes, rngs=rngs)
        self.merge = Linear((N, V), (width,), ("heads", "head_dim", "embed"), **shared)

    def init_cache(self, rows: int, columns: int) -> dict[str, jax.Array]:
        """An empty cache of `rows` sequences; its size does not depend on `columns`."""
        sizes = self.sizes
        return {
            "state": jnp.zeros((rows, sizes.value_heads, sizes.key_dim, sizes.value_dim), jnp.float32),
            "taps": jnp.zeros((rows, 1, sizes.taps - 1, sizes.channels), self.dtype),
        }

    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: dict | None, prefix: dict | None
    ) -> tuple[jax.Array, dict | None]:
        x_BTD = join_rows(x_BTD)
        B, T = x_BTD.shape[:2]
        mixed_BTC, gate_BTNV, write_BTN, forget_BTN = self._project(x_BTD)
        valid_BT = context.valid
        first = jax.tree.map(jnp.zeros_like, self.init_cache(B, 0))
        if prefix is not None:
            first = jax.tree.map(lambda x, like: jnp.broadcast_to(x, like.shape), prefix, first)
        start = first
        if cache is not None:
            assert context.positions is not None
            begun = (context.positions[:, 0] > 0)[:, None, None, None]
            start = {name: jnp.where(begun, read(cache[name]), first[name]) for name in first}
        segments = valid_BT.astype(jnp.int32) if context.segments is None else context.segments
        continued = jnp.zeros_like(segments) if context.prefixes is None else context.prefixes
        if cache is not None:
            segments, continued = valid_BT.astype(jnp.int32), jnp.zeros_like(segments)
        past = self._find_past(segments, continued, shared=context.prefixes is not None and cache is None)
        convolved_BTC, extended = self._convolve(mixed_BTC, start["taps"][:, 0], past)
        q, k, v = self._split(convolved_BTC)
        g = -jnp.exp(self.log_rate[...].astype(jnp.float32)) * jax.nn.softplus(
            forget_BTN.astype(jnp.float32) + self.rate_bias[...].astype(jnp.float32)
        )
        beta = jax.nn.sigmoid(write_BTN.astype(jnp.float32))
        if T == 1 and cache is not None:
            out, state = step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], start["state"])
            state, out = jnp.where(valid_BT[:, :, None, None], state, start["state"]), out[:, None]
        else:
            zero, one = jnp.zeros(B, jnp.int32), jnp.ones(B, jnp.int32)
            own = one if cache is not None else zero
            memory = Memory(start["state"], own, jnp.zeros_like(start["state"]), zero)
            out, memory = run_chunks(q, k, v, g, beta, segments, continued, memory, first["state"])
            state = memory.state
        if cache is not None:
            count_B = valid_BT.sum(-1)
            places = count_B[:, None] + jnp.arange(self.sizes.taps - 1)
            taps = jnp.take_along_axis(extended, places[..., None], axis=1)[:, None]
            cache = {"state": write(cache["state"], state), "taps": write(cache["taps"], taps.astype(self.dtype))}
        gated = self.norm(out).astype(jnp.float32) * jax.nn.silu(gate_BTNV.astype(jnp.float32))
        return part_rows(self.merge(gated.astype(self.dtype))), cache

    def _project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Inputs of the convolution [B, T, C], the gate [B, T, N, V], rates of writing and forgetting [B, T, N]."""
        if not self.sizes.grouped:
            return self.mixed(x_BTD), self.gate(x_BTD), self.write(x_BTD), self.forget(x_BTD)
        sizes, (B, T) = self.sizes, x_BTD.shape[:2]
        each = sizes.value_heads // sizes.key_heads
        ends = (sizes.key_dim, 2 * sizes.key_dim, 2 * sizes.key_dim + each * sizes.value_dim)
        query, key, value, gate = jnp.split(self.grouped(x_BTD), ends, axis=-1)
        mixed = jnp.concatenate([part.reshape(B, T, -1) for part in (query, key, value)], axis=-1)
        rates = self.rates(x_BTD)
        write, forget = (part.reshape(B, T, -1) for part in jnp.split(rates, [each], axis=-1))
        return mixed, gate.reshape(B, T, sizes.value_heads, sizes.value_dim), write, forget

    def _find_past(self, segments_BT: jax.Array, continued_BT: jax.Array, *, shared: bool) -> jax.Array:
        """[B, T, taps - 1]: the place in the row, with `taps - 1` places before it, of the inputs before each token."""
        T, back = segments_BT.shape[1], self.sizes.taps - 1
        place_T = jnp.arange(T)
        starts = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        parent_BT = jnp.where(starts, back - 1, back + place_T - 1)
        if shared:
            ends = jnp.where(segments_BT[:, None, :] == continued_BT[:, :, None], place_T, -1).max(-1)
            follows = starts & (continued_BT != 0) & (ends >= 0)
            parent_BT = jnp.where(follows, back + ends, parent_BT)
        before = jnp.maximum(jnp.arange(back) - 1, 0)
        parents = jnp.concatenate([jnp.broadcast_to(before, (len(segments_BT), back)), parent_BT], axis=1)
        found, at = [], parent_BT
        for _ in range(back):
            found.append(at)
            at = jnp.take_along_axis(parents, at, axis=1)
        return jnp.stack(found, axis=-1)

    def _convolve(self, mixed_BTC: jax.Array, taps_BSC: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """silu of the causal convolution, float32, and the inputs with those before them [B, taps - 1 + T, C]."""
        kernel = self.convolution[...].astype(jnp.float32)[:, 0]
        extended = jnp.concatenate([taps_BSC.astype(mixed_BTC.dtype), mixed_BTC], axis=1)
        total = mixed_BTC.astype(jnp.float32) * kernel[:, -1]
        for back in range(1, self.sizes.taps):
            earlier = jnp.take_along_axis(extended, past[:, :, back - 1, None], axis=1)
            total = total + earlier.astype(jnp.float32) * kernel[:, -1 - back]
        return jax.nn.silu(total), extended

    def _split(self, mixed_BTC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries and keys [B, T, N, K], normalized, those of a key head for each of its value heads, and values."""
        sizes, (B, T) = self.sizes, mixed_BTC.shape[:2]
        inner = sizes.key_heads * sizes.key_dim
        query, key, value = jnp.split(mixed_BTC, [inner, 2 * inner], axis=-1)
        heads = lambda x: _normalize(x.reshape(B, T, sizes.key_heads, sizes.key_dim))
        repeat = lambda x: jnp.repeat(x, sizes.value_heads // sizes.key_heads, axis=2)
        value = value.reshape(B, T, sizes.value_heads, sizes.value_dim)
        return repeat(heads(query)) * sizes.key_dim**-0.5, repeat(heads(key)), value


def _normalize(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + EPSILON)
