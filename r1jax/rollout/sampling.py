"""Sampling of one token from logits by inverse CDF, with its log-prob.

The log-prob belongs to the distribution after temperature and before top-k / top-p / min-p, which a trainer can
recompute. The randomness is one uniform number per row, from (seed, step), so that a request's tokens do not depend on
the batch around it; Gumbel noise over the vocabulary would cost more than the output head on CPU. The filters cut at a
value: tokens tied with the last kept one are kept too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core.sharding import constrain, part_rows
from r1jax.core.structs import Sampling
from r1jax.models.transformer import Transformer

_BLOCK = 256
_WINDOW = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SamplingArrays:
    """Sampling parameters of each row as arrays [B]; see `structs.Sampling`."""

    temperature: jax.Array | np.ndarray
    top_k: jax.Array | np.ndarray
    top_p: jax.Array | np.ndarray
    min_p: jax.Array | np.ndarray

    @classmethod
    def of(cls, sampling: Sequence[Sampling], rows: int) -> Self:
        """Numpy arrays [rows] of so many samplings; further rows are zeros."""
        pad = [0] * (rows - len(sampling))
        make = lambda name, dtype: np.array([*(getattr(each, name) for each in sampling), *pad], dtype)
        floats = {name: make(name, np.float32) for name in ("temperature", "top_p", "min_p")}
        return cls(top_k=make("top_k", np.int32), **floats)

    @classmethod
    def idle(cls, rows: int) -> Self:
        """Device arrays [rows] of slots that have no request."""
        zeros, ones = jnp.zeros((rows,), jnp.float32), jnp.ones((rows,), jnp.float32)
        return cls(zeros, jnp.zeros((rows,), jnp.int32), ones, zeros)


def stop_table(sampling: Sequence[Sampling], rows: int, width: int) -> np.ndarray:
    """[rows, width] int32: the stop ids of so many samplings; -1 where there is none."""
    table = np.full((rows, width), -1, np.int32)
    for row, each in enumerate(sampling):
        table[row, : len(each.stop_ids)] = each.stop_ids
    return table


def sample_next(
    model: Transformer,
    hidden_BD: jax.Array,
    seed_B: jax.Array,
    done_B: jax.Array,
    knobs: SamplingArrays,
    *,
    filtered: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Token [B] and log-prob [B] that follow the states of a decode step, by the noise of each row's seed and number of
    tokens sampled before, and the logits [B, V].
    """
    logits_BV = part_rows(constrain(model.unembed(hidden_BD), ("group_batch", "vocab"), name="logits"))
    uniform = jax.vmap(lambda seed, done: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), done)))
    return *sample(logits_BV, uniform(seed_B, done_B), knobs, filtered=filtered), logits_BV


def sample(
    logits_BV: jax.Array, uniform_B: jax.Array, knobs: SamplingArrays, *, filtered: bool
) -> tuple[jax.Array, jax.Array]:
    """Sampled token [B] int32 and its log-prob [B] float32. `filtered` (static) compiles the top-k / top-p / min-p
    path.
    """
    greedy = knobs.temperature <= 0
    scaled_BV = logits_BV / jnp.where(greedy, 1.0, knobs.temperature)[:, None]
    peak_B = scaled_BV.max(-1)
    blocks, mass = _block_masses(scaled_BV, peak_B)
    # Barriers make the sum compile separately, so an unfiltered row gets the same bits whether or not others filter.
    log_mass_B = jnp.log(jax.lax.optimization_barrier(jax.lax.optimization_barrier(mass).sum(-1)))
    if filtered:
        cutoff_B = _cutoff(scaled_BV, peak_B + log_mass_B, peak_B, knobs)
        blocks, mass = _block_masses(jnp.where(scaled_BV >= cutoff_B[:, None], scaled_BV, -jnp.inf), peak_B)
    drawn_B = _invert(blocks, mass, peak_B, uniform_B)
    # Finding the largest logit takes as long as everything else here, so it is done only where a row needs it.
    best_B = jax.lax.cond(greedy.any(), lambda: jnp.argmax(logits_BV, -1).astype(jnp.int32), lambda: drawn_B)
    token_B = jnp.where(greedy, best_B, drawn_B)
    chosen_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B, (chosen_B - peak_B) - log_mass_B


def _block_masses(scaled_BV: jax.Array, peak_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scaled logits in blocks of tokens [B, X, 256], and the mass exp(scaled - peak) of each block [B, X]."""
    B, V = scaled_BV.shape
    count = -(-V // _BLOCK)
    padded = jnp.pad(scaled_BV, ((0, 0), (0, count * _BLOCK - V)), constant_values=-jnp.inf)
    blocks = padded.reshape(B, count, _BLOCK)
    return blocks, jnp.exp(blocks - peak_B[:, None, None]).sum(-1)


def _invert(blocks: jax.Array, mass: jax.Array, peak_B: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """First token whose cumulative mass exceeds uniform * total, in two levels, so that no [B, V] array is stored."""
    target = uniform_B * mass.sum(-1)
    block, before = _search(mass, target)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    rest = jnp.maximum(target - before, 0.0)  # below 0 by rounding, it would select a token without mass
    offset, _ = _search(jnp.exp(inside - peak_B[:, None]), rest)
    return (block * _BLOCK + offset).astype(jnp.int32)


def _search(mass: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index whose cumulative mass exceeds the target (never past the last mass by rounding), and the mass before
    it.
    """
    cumulative = jnp.cumsum(mass, -1)
    last = mass.shape[-1] - 1 - jnp.argmax(mass[:, ::-1] > 0, -1)
    index = jnp.minimum((cumulative <= target[:, None]).sum(-1), last)
    take = lambda x: jnp.take_along_axis(x, index[:, None], axis=-1)[:, 0]
    return index, take(cumulative) - take(mass)


def _cutoff(scaled_BV: jax.Array, log_total_B: jax.Array, peak_B: jax.Array, knobs: SamplingArrays) -> jax.Array:
    """Smallest scaled logit that is kept after top-k, then top-p of the remainder, then min-p.

    Sorting the vocabulary is slow, so a window of the largest logits is tried first, and all are sorted only where a
    row needs it.
    """
    V = scaled_BV.shape[-1]
    on_k = knobs.top_k > 0

    def cut(size: int) -> tuple[jax.Array, jax.Array]:
        values = jax.lax.top_k(scaled_BV, size)[0]
        kept = ~on_k[:, None] | (jnp.arange(size) < knobs.top_k[:, None])
        mass = jnp.where(kept, jnp.exp(values - log_total_B[:, None]), 0.0)
        total = jnp.where(on_k, mass.sum(-1), 1.0)
        cumulative = jnp.cumsum(mass, -1)
        keep = kept & (cumulative - mass < (knobs.top_p * total)[:, None])
        keep |= jnp.arange(size) == 0
        needs_all = jnp.where(on_k, knobs.top_k > size, (knobs.top_p < 1) & (cumulative[:, -1] < knobs.top_p))
        open_end = ~on_k & (knobs.top_p >= 1)
        return jnp.where(open_end, -jnp.inf, jnp.where(keep, values, jnp.inf).min(-1)), needs_all.any()

    small, needs_all = cut(min(V, _WINDOW))
    if V > _WINDOW:
        small = jax.lax.cond(needs_all, lambda: cut(V)[0], lambda: small)
    floor = jnp.where(knobs.min_p > 0, peak_B + jnp.log(jnp.maximum(knobs.min_p, 1e-30)), -jnp.inf)
    return jnp.maximum(small, floor)
