"""Rows of the continuous engine: the state of its slots on the devices, and the programs that change it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.models.cache import Cache, constrain_layers
from r1jax.models.transformer import Params, merge
from r1jax.rollout.sampling import SamplingArrays, sample_next
from r1jax.rollout.slots import constrain_fields, idle_fields


@dataclasses.dataclass(frozen=True)
class ContinuousConfig:
    """Static shapes.

    Attributes:
      slots: sequences held at once, sampled or parked.
      max_tokens: longest sequence, given and sampled tokens together.
      chunk: given tokens of a sequence that are fed at once.
      feed_rows: sequences that are fed at once; where the rows are split over devices, all slots are.
      burst: most tokens that a call of `step` samples for each sequence.
      max_stop_ids: most stop ids of a sequence.
      share: whether a whole chunk that sequences begin with is computed once and copied; only where the rows lie at one
        device, and no layer forgets what it held (windows, recurrent states).
    """

    slots: int = 16
    max_tokens: int = 2048
    chunk: int = 64
    feed_rows: int = 4
    burst: int = 16
    max_stop_ids: int = 8
    share: bool = False

    @property
    def columns(self) -> int:
        """Columns of the cache; a chunk is written whole, also where it holds fewer tokens."""
        return self.max_tokens + self.chunk


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Rows:
    """Changing state on the devices, one row a slot.

    layers: of the cache; token: next id to feed; length: tokens fed so far, the position of `token`; done: ids sampled
    so far; limit: the `done` at which sampling ends; active: being sampled; seed, stop [B, Z], knobs: how.
    """

    layers: Any
    token: jax.Array
    length: jax.Array
    done: jax.Array
    limit: jax.Array
    active: jax.Array
    seed: jax.Array
    stop: jax.Array
    knobs: SamplingArrays


def init_rows(graph: nnx.GraphDef, config: ContinuousConfig, params: Params) -> Rows:
    """All slots free."""
    B, room = config.slots, config.chunk + config.burst
    layers = merge(graph, params).init_cache(B, config.columns, room).layers
    return _constrain(Rows(layers=layers, length=jnp.zeros((B,), jnp.int32), **idle_fields(B, config.max_stop_ids)))


def keeps_all(rows: Rows, config: ContinuousConfig) -> bool:
    """Whether all layers keep every column of their rows."""
    return all(config.columns in x.shape[-2:] for x in jax.tree.leaves(rows.layers))


def _constrain(rows: Rows) -> Rows:
    """Sharding constraint: rows over the batch axes, and the cache like the model's."""
    return constrain_fields(rows, layers=constrain_layers(rows.layers))


def start_rows(rows: Rows, at: jax.Array, numbers: jax.Array, stop: jax.Array, knobs: SamplingArrays) -> Rows:
    """Begins to sample the slots `at` [B] (out of range: none). numbers [5, B]: token, length, done, limit and seed."""
    put = lambda old, new: old.at[at].set(new.astype(old.dtype), mode="drop")
    names = ("token", "length", "done", "limit", "seed")
    started = {name: put(getattr(rows, name), new) for name, new in zip(names, numbers, strict=True)}
    active, knobs = rows.active.at[at].set(True, mode="drop"), jax.tree.map(put, rows.knobs, knobs)
    return _constrain(dataclasses.replace(rows, **started, active=active, stop=put(rows.stop, stop), knobs=knobs))


def copy_rows(rows: Rows, source: jax.Array, at: jax.Array) -> Rows:
    """Writes the cache of the slots `source` [P] into the slots `at` [P] (out of range: none)."""
    return _constrain(dataclasses.replace(rows, layers=_put(rows.layers, at, _take(rows.layers, source))))


def _take(layers: Any, at: jax.Array) -> Any:
    """The rows `at` [P] of all layers; out of range: any row."""
    return jax.tree.map(lambda x: jnp.take(x, at, axis=_row_axis(x), mode="clip"), layers)


def _put(layers: Any, at: jax.Array, new: Any) -> Any:
    """The layers with the rows `at` [P] (out of range: none) replaced."""
    put = lambda x, row: x.at[(*[slice(None)] * _row_axis(x), at)].set(row, mode="drop")
    return jax.tree.map(put, layers, new)


def _row_axis(x: jax.Array) -> int:
    """The axis of rows of a layer's array; scanned layers carry a leading layer axis."""
    return x.ndim - 4


def stop_row(rows: Rows, slot: jax.Array) -> Rows:
    """Parks a slot."""
    return _constrain(dataclasses.replace(rows, active=rows.active.at[slot].set(False)))


def feed_rows(
    graph: nnx.GraphDef,
    config: ContinuousConfig,
    params: Params,
    rows: Rows,
    at: jax.Array,
    tokens_PT: jax.Array,
    first_P: jax.Array,
) -> Rows:
    """Writes keys and values of `tokens_PT` into the slots `at` [P] (out of range: none) from the columns `first_P` on.

    Where all slots are fed, row and slot have one number, and no row moves between devices.
    """
    is_whole = tokens_PT.shape[0] == config.slots
    layers = rows.layers if is_whole else _take(rows.layers, at)
    positions_PT = first_P[:, None] + jnp.arange(tokens_PT.shape[1])
    cache = _make_cache(config, layers, first_P)
    model = merge(graph, params)
    told = model.mark_valid(tokens_PT >= 0)
    tokens_PT = jnp.maximum(tokens_PT, 0) if told else tokens_PT
    fed = model.hidden(tokens_PT, positions=positions_PT, cache=cache, **told).cache
    assert fed is not None
    layers = fed.layers if is_whole else _put(rows.layers, at, fed.layers)
    return _constrain(dataclasses.replace(rows, layers=layers))


def _make_cache(config: ContinuousConfig, layers: Any, length: jax.Array) -> Cache:
    """Cache of rows that hold `length` [B] tokens each; a ring has room for a chunk's rest and a burst that was cut."""
    visible = jnp.arange(config.columns) < length[:, None]
    return Cache(layers, visible, length, chunk=config.chunk + config.burst)


def decode_rows(
    graph: nnx.GraphDef,
    config: ContinuousConfig,
    params: Params,
    rows: Rows,
    steps: jax.Array,
    left: jax.Array,
    *,
    filtered: bool,
    alternatives: int,
) -> tuple[Rows, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Samples up to `steps` tokens of each active row, or until at most `left` rows are active: the rows, how many were
    sampled [B], these tokens and log-probs [B, burst], and the likeliest ids and log-probs [B, burst, alternatives].
    """
    model, before_B = merge(graph, params), rows.done
    B, row_B = config.slots, jnp.arange(config.slots)

    def step(carry: tuple) -> tuple:
        index, rows, tokens, logprobs, others, values = carry
        states = model.hidden(
            rows.token[:, None],
            positions=rows.length[:, None],
            cache=_make_cache(config, rows.layers, rows.length),
            **model.mark_valid(rows.active[:, None]),
        )
        token_B, logprob_B, logits_BV = sample_next(
            model, states.hidden[:, 0], rows.seed, rows.done, rows.knobs, filtered=filtered
        )
        at = jnp.where(rows.active, index, config.burst)  # out of range for parked rows, which write nothing
        done = rows.done + rows.active
        stopped = (token_B[:, None] == rows.stop).any(-1)
        changed = dataclasses.replace(
            rows,
            layers=states.cache.layers,
            token=jnp.where(rows.active, token_B, rows.token),
            length=rows.length + rows.active,
            done=done,
            active=rows.active & ~stopped & (done < rows.limit),
        )
        put = lambda old, new: old.at[row_B, at].set(new, mode="drop")
        if alternatives:
            heat_B1 = jnp.where(rows.knobs.temperature > 0, rows.knobs.temperature, 1.0)[:, None]
            top = jax.lax.top_k(jax.nn.log_softmax(jax.lax.optimization_barrier(logits_BV) / heat_B1), alternatives)
            values, others = put(values, top[0]), put(others, top[1])
        return index + 1, _constrain(changed), put(tokens, token_B), put(logprobs, logprob_B), others, values

    def is_on(carry: tuple) -> jax.Array:
        index, rows, *_ = carry
        return (index < steps) & (rows.active.sum() > left)

    empty = lambda *shape: (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    carry = jnp.int32(0), rows, *empty(B, config.burst), *empty(B, config.burst, alternatives)
    _, rows, tokens, logprobs, others, values = jax.lax.while_loop(is_on, step, carry)
    return rows, rows.done - before_B, tokens, logprobs, others, values
