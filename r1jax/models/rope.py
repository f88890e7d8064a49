"""Rotary position embedding (Su et al. 2021, 2104.09864) and its long-context scalings: linear, NTK-aware, Llama 3's,
YaRN (Peng et al. 2023, 2309.00071) with DeepSeek's `mscale` (2405.04434), LongRoPE (2402.13753), dynamic.

Tables are computed in float32, once per forward pass; config keys are read as transformers does. Scaling is static and
applies at every length, except that LongRoPE and the dynamic kind look at the largest position of a row in the call at
hand, as transformers does: beyond the original length, keys that a cache holds were turned by what was right then.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

Tables = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling ("llama3"), linear scaling (all frequencies divided by `factor`), or a larger
    theta: NTK-aware at every length ("ntk"), or growing with the length of the row beyond `original_positions`
    ("dynamic"); or a turn of only the first `share` of the pairs, whose partners lie half a head away ("proportional",
    Gemma 4).
    """

    kind: str = "llama3"
    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class LongRoPE:
    """LongRoPE: each frequency is divided by its factor of `short`, or of `long` in rows of more than
    `original_positions`; rotated vectors are stretched by `attention_factor` (None: by `factor`, as published).
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_positions: int = 4096
    factor: float = 32.0
    attention_factor: float | None = None


def find_positions(max_positions: int, scaling: Scaling) -> int:
    """Positions that a model was made for: those that its config names, or those that its scaling stretches to."""
    if isinstance(scaling, YaRN):
        return max(max_positions, int(scaling.factor * scaling.original_positions))
    if isinstance(scaling, RopeScaling) and scaling.kind in ("linear", "ntk", "dynamic"):
        return max(max_positions, int(scaling.factor * max_positions))
    return max_positions


@dataclasses.dataclass(frozen=True)
class YaRN:
    """YaRN scaling: frequencies with fewer than `beta_slow` turns within `original_positions` are divided by `factor`,
    those with more than `beta_fast` turns are kept, with a linear ramp between, whose ends are rounded to whole pairs
    if `truncate`.

    mscale, mscale_all_dim (0: not given) or an explicit `attention_factor` determine the length of rotated vectors
    (`attention_factor`) and the scale of DeepSeek's scores (`score_factor`).
    """

    factor: float = 40.0
    original_positions: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True


Scaling = RopeScaling | YaRN | LongRoPE | None


@dataclasses.dataclass(frozen=True)
class Rope:
    """One kind of rotation of a model: width of what is turned, base and scaling."""

    width: int
    theta: float
    scaling: Scaling = None


def make_tables(positions_BT: jax.Array, rope: Rope) -> Tables:
    """The tables of a kind of rotation for these positions."""
    longest_B = positions_BT.max(-1) + 1 if is_dynamic(rope.scaling) else None
    frequencies = rope_frequencies(rope.width, rope.theta, rope.scaling, longest_B)
    if longest_B is not None:
        frequencies = frequencies[:, None, None]
    return rope_tables(positions_BT, frequencies, attention_factor(rope.scaling))


def is_dynamic(scaling: Scaling) -> bool:
    """Whether frequencies depend on the length of a row."""
    return isinstance(scaling, LongRoPE) or isinstance(scaling, RopeScaling) and scaling.kind == "dynamic"


def rope_frequencies(head_dim: int, theta: float, scaling: Scaling, longest: jax.Array | None = None) -> jax.Array:
    """Angular frequencies [H/2] in radians per position; [B, H/2] where they depend on the length `longest` [B] of the
    rows.
    """
    frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequencies
    if isinstance(scaling, LongRoPE):
        short, long = (frequencies / jnp.asarray(each, jnp.float32) for each in (scaling.short, scaling.long))
        return short if longest is None else jnp.where(longest[:, None] > scaling.original_positions, long, short)
    if isinstance(scaling, YaRN):
        keep = _yarn_share(head_dim, theta, scaling)
    elif scaling.kind == "linear":
        return frequencies / scaling.factor
    elif scaling.kind == "proportional":
        turned = jnp.arange(head_dim // 2) < int(scaling.share * head_dim // 2)
        return jnp.where(turned, frequencies / scaling.factor, 0.0)
    elif scaling.kind in ("ntk", "dynamic"):
        stretch: Any = scaling.factor
        if scaling.kind == "dynamic":
            length = scaling.original_positions if longest is None else longest[:, None]
            length = jnp.maximum(length, scaling.original_positions).astype(jnp.float32)
            stretch = scaling.factor * length / scaling.original_positions - (scaling.factor - 1)
        base = theta * stretch ** (head_dim / (head_dim - 2))
        return base ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    else:
        wavelength = 2 * math.pi / frequencies
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        keep = jnp.clip((scaling.original_positions / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def _yarn_share(head_dim: int, theta: float, scaling: YaRN) -> jax.Array:
    """Kept share of each frequency [H/2]: 1 for fast pairs, 0 for slow ones."""

    def find_pair(turns: float) -> float:
        """Real-valued index of the pair with so many turns within the original positions."""
        return head_dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = find_pair(scaling.beta_fast), find_pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low or 0.001  # transformers' guard against a ramp of zero width
    return 1 - jnp.clip((jnp.arange(head_dim // 2, dtype=jnp.float32) - low) / span, 0.0, 1.0)


def attention_factor(scaling: Scaling) -> float:
    """YaRN's and LongRoPE's factor on rotated queries and keys; 1 without them."""
    if isinstance(scaling, LongRoPE):
        if scaling.attention_factor is not None:
            return scaling.attention_factor
        return math.sqrt(1 + math.log(max(scaling.factor, 1.0)) / math.log(scaling.original_positions))
    if not isinstance(scaling, YaRN):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def score_factor(scaling: Scaling) -> float:
    """DeepSeek's factor on attention scores for a context extended by YaRN."""
    return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2 if isinstance(scaling, YaRN) else 1.0


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_tables(positions_BT: jax.Array, frequencies: jax.Array, factor: float = 1.0) -> Tables:
    """cos and sin [B, T, 1, H/2] times `factor`, made once per forward pass and shared by all layers."""
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate_first(x_BTNH: jax.Array, tables: Tables, *, interleaved: bool = False) -> jax.Array:
    """Rotary embedding of the first elements of a head, as many as the tables turn; the others are left."""
    turn, width = rotate_pairs if interleaved else rotate, 2 * tables[0].shape[-1]
    if width == x_BTNH.shape[-1]:
        return turn(x_BTNH, tables)
    turned, rest = jnp.split(x_BTNH, [width], axis=-1)
    return jnp.concatenate([turn(turned, tables), rest], axis=-1)


def rotate(x_BTNH: jax.Array, tables: Tables) -> jax.Array:
    """Rotary embedding in the half-split layout of the Hugging Face files: pairs are (i, i + H/2)."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return _turn(first, second, tables).astype(x_BTNH.dtype)


def rotate_pairs(x_BTNH: jax.Array, tables: Tables) -> jax.Array:
    """Rotary embedding of neighbours (2i, 2i + 1), DeepSeek's layout.

    The result has the first elements of all pairs before the second ones, in queries and keys alike, so scores are the
    same.
    """
    pairs = x_BTNH.astype(jnp.float32).reshape(*x_BTNH.shape[:-1], -1, 2)
    return _turn(pairs[..., 0], pairs[..., 1], tables).astype(x_BTNH.dtype)


def _turn(first: jax.Array, second: jax.Array, tables: Tables) -> jax.Array:
    cos, sin = tables
    chex.assert_axis_dimension(
        cos, -1, first.shape[-1], custom_message="rotary tables must be those of half the width of a head"
    )
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)  # XLA:CPU: 2x a concatenate
    return turned.reshape(*first.shape[:-1], 2 * first.shape[-1])
