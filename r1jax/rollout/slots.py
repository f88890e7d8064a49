"""Slots: the rows of the engine's cache with their sampling state, and how requests are put into them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core.sharding import Axes, abstract_array, constrain
from r1jax.models.cache import Cache, constrain_layers, layer_axes
from r1jax.models.windows import find_ring, turn_into_ring
from r1jax.rollout.sampling import SamplingArrays

_NO_ROWS = ("cache", "turns")  # fields of `Slots` that are no array of rows
_SHORTEST_PIECE = 32  # columns; each length of the cache compiles one more program
_ROWS = 8  # a batch of a multiple of 8 rows gives a row the same bits on CPU


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Static shapes of the engine.

    Attributes:
      slots: sequences decoded at once.
      max_prompt_tokens, max_new_tokens: longest prompt and completion.
      prefill_batch: prompts per prefill.
      refill_share: share of slots that must be idle before the host refills them while requests wait.
      cache_pieces: largest number of steps in which the cache grows while the ring fills for the first time, so that
        early tokens do not attend over unwritten columns; growing holds the old and the new cache at once.
      tails: largest number of smaller batches, each a quarter of the one before, in which the last rows of a call go on
        (`tail_slots`); each compiles the decode program once more.
      max_stop_ids: most stop ids per request.
      prefix: ids that every prompt begins with, computed once per call and stored once.
      record_experts: completions include the selected experts, for a trainer that replays them.
    """

    slots: int = 64
    max_prompt_tokens: int = 128
    max_new_tokens: int = 128
    prefill_batch: int = 8
    refill_share: float = 0.125
    cache_pieces: int = 4
    tails: int = 1
    max_stop_ids: int = 8
    prefix: tuple[int, ...] = ()
    record_experts: bool = False

    @property
    def prompt_columns(self) -> int:
        """Cache columns of a prompt, without the prefix."""
        return self.max_prompt_tokens - len(self.prefix)

    @property
    def cache_lengths(self) -> list[int]:
        """Columns of the cache as it grows; the last is its full length."""
        pieces = max(1, min(self.cache_pieces, self.max_new_tokens // _SHORTEST_PIECE))
        return [self.prompt_columns + -(-self.max_new_tokens * piece // pieces) for piece in range(1, pieces + 1)]

    def tail_slots(self, parts: int) -> list[int]:
        """Rows of the smaller batches, for rows in `parts` shards: multiples of 8 a shard, and at most half of the
        batch before. None for completions too short to pay for the program.
        """
        sizes, whole = [self.slots], parts * _ROWS
        for _ in range(self.tails if self.max_new_tokens >= 2 * _SHORTEST_PIECE else 0):
            sizes.append(-(-sizes[-1] // (4 * whole)) * whole)
        return [size for before, size in itertools.pairwise(sizes) if 2 * size <= before]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Slots:
    """Changing state of the engine, one row per slot.

    token: next id to feed; position: its rotary position; done: number of ids sampled so far; limit: most ids; active:
    still sampling; seed: of the request; stop [B, Z]: its stop ids, -1 unused; tokens, logprobs [B, R]: sampled so far;
    experts [B, R, L, A]: the routers' selections (None: not recorded). turns [2]: decode steps so far, and those in
    which a layer's experts needed a further turn (None: they never do).
    """

    cache: Cache
    token: jax.Array
    position: jax.Array
    done: jax.Array
    limit: jax.Array
    active: jax.Array
    seed: jax.Array
    stop: jax.Array
    knobs: SamplingArrays
    tokens: jax.Array
    logprobs: jax.Array
    experts: jax.Array | None = None
    turns: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SlotUpdate:
    """Requests to insert, one entry per slot.

    slot: index (out of range: ignored); prompt: row of the prefilled batch; columns: prompt tokens after the prefix;
    position: of the prompt's last token, which is fed first.
    """

    slot: np.ndarray
    prompt: np.ndarray
    columns: np.ndarray
    position: np.ndarray
    token: np.ndarray
    limit: np.ndarray
    seed: np.ndarray
    stop: np.ndarray
    knobs: SamplingArrays


def init_slots(config: EngineConfig, cache: Cache, routing: tuple[int, int], *, counts_turns: bool = False) -> Slots:
    """All slots idle; `cache` is an empty one of `slots` rows, `routing` the model's."""
    B, R = config.slots, config.max_new_tokens
    first = jnp.int32(config.prompt_columns)
    cache = dataclasses.replace(cache, column=first, clock=None if cache.clock is None else first)
    return constrain_slots(
        Slots(
            cache=cache,
            position=jnp.zeros((B,), jnp.int32),
            **idle_fields(B, config.max_stop_ids),
            tokens=jnp.zeros((B, R), jnp.int32),
            logprobs=jnp.zeros((B, R), jnp.float32),
            experts=jnp.zeros((B, R, *routing), jnp.int16) if config.record_experts else None,
            turns=jnp.zeros(2, jnp.int32) if counts_turns else None,
        )
    )


def idle_fields(slots: int, stop_ids: int) -> dict[str, Any]:
    """How idle slots are sampled: the fields that `Slots` and `rows.Rows` share. stop_ids: most of a slot."""
    zeros = lambda dtype=jnp.int32: jnp.zeros((slots,), dtype)
    return dict(
        token=zeros(),
        done=zeros(),
        limit=zeros(),
        active=zeros(bool),
        seed=zeros(jnp.uint32),
        stop=jnp.full((slots, stop_ids), -1, jnp.int32),
        knobs=SamplingArrays.idle(slots),
    )


def constrain_slots(slots: Slots) -> Slots:
    """Sharding constraint: rows over the batch axes, and the cache like the model's."""
    layers, visible = constrain_layers(slots.cache.layers), _constrain_rows(slots.cache.visible)
    cache = dataclasses.replace(slots.cache, layers=layers, visible=visible)
    return constrain_fields(slots, cache=cache, turns=slots.turns)


def constrain_fields(state: Any, **others: Any) -> Any:
    """A dataclass with its arrays split by rows over the batch axes; `others` replace its fields that are no such
    arrays.
    """
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in others}
    return dataclasses.replace(state, **jax.tree.map(_constrain_rows, fields), **others)


def _constrain_rows(x: jax.Array) -> jax.Array:
    return constrain(x, row_axes(x), name="slots")


def abstract_slots(slots: Slots) -> Slots:
    """Shapes of slots with the shardings that `constrain_slots` pins."""
    rows: Any = lambda x: abstract_array(x.shape, x.dtype, row_axes(x), name="slots")
    fields = {f.name: getattr(slots, f.name) for f in dataclasses.fields(Slots) if f.name not in _NO_ROWS}
    layers, cache = abstract_layers(slots.cache.layers), slots.cache
    whole: Any = lambda x: abstract_array(x.shape, x.dtype, (None,) * x.ndim, name="slots")
    turns = jax.tree.map(whole, slots.turns)
    told = {"visible": cache.visible, "column": cache.column, "clock": cache.clock}
    cache = dataclasses.replace(cache, layers=layers, **jax.tree.map(rows, told))
    return Slots(cache=cache, turns=turns, **jax.tree.map(rows, fields))


def abstract_layers(layers: Any) -> Any:
    """Shapes of the layers of a cache with the shardings that `constrain_layers` pins."""
    return jax.tree.map(lambda x: abstract_array(x.shape, x.dtype, layer_axes(x), name="cache"), layers)


def row_axes(x: Any) -> Axes:
    """The logical axes of an array with a row a slot; a scalar has none."""
    return ("batch", *(None,) * (x.ndim - 1)) if x.ndim else ()


def grow(slots: Slots, empty: Cache) -> Slots:
    """The same slots with a longer cache, of the shapes of `empty`."""
    fill = lambda x, shape: jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, shape.shape, strict=True)])
    old = slots.cache
    layers = jax.tree.map(fill, old.layers, empty.layers)
    cache = dataclasses.replace(old, layers=layers, visible=fill(old.visible, empty.visible))
    return constrain_slots(dataclasses.replace(slots, cache=cache))


def shrink(slots: Slots, places: jax.Array, empty: Cache) -> Slots:
    """The slots at `places` alone, with a cache of the shapes of `empty`, which may be longer.

    places [X, b]: of each of X shards, numbers within it, so that no row changes its device.
    """
    parts, rows = places.shape

    def take(x: jax.Array) -> jax.Array:
        shards = x.reshape(parts, -1, *x.shape[1:])
        return jax.vmap(lambda shard, at: jnp.take(shard, at, axis=0))(shards, places).reshape(
            parts * rows, *x.shape[1:]
        )

    def take_layer(x: jax.Array) -> jax.Array:
        return jax.vmap(take)(x) if x.ndim > 4 else take(x)  # scanned layers carry a leading layer axis

    old = slots.cache
    fields = {f.name: getattr(slots, f.name) for f in dataclasses.fields(Slots) if f.name not in _NO_ROWS}
    kept = dataclasses.replace(
        slots,
        cache=dataclasses.replace(old, layers=jax.tree.map(take_layer, old.layers), visible=take(old.visible)),
        **jax.tree.map(take, fields),
    )
    return grow(kept, empty)


def insert(slots: Slots, prompts: Any, fill: SlotUpdate) -> Slots:
    """Copies prompts (their part after the prefix) into slots and starts them."""
    cache, at = slots.cache, fill.slot
    prompt_B = jnp.full(slots.active.shape, -1).at[at].set(fill.prompt, mode="drop")  # -1: the slot is unchanged
    ends_B = jnp.ones_like(prompt_B).at[at].set(fill.columns, mode="drop") - 1
    copy = functools.partial(_copy_prompts, prompt_B=prompt_B, ends_B=ends_B, clock=cache.clock)
    visible = jnp.arange(cache.length) < (fill.columns - 1)[:, None]
    put = lambda old, new: old.at[at].set(new, mode="drop")
    return constrain_slots(
        dataclasses.replace(
            slots,
            cache=dataclasses.replace(
                cache,
                layers=jax.tree_util.tree_map_with_path(copy, cache.layers, prompts),
                visible=put(cache.visible, visible),
            ),
            token=put(slots.token, fill.token),
            position=put(slots.position, fill.position),
            done=put(slots.done, 0),
            limit=put(slots.limit, fill.limit),
            active=put(slots.active, True),
            seed=put(slots.seed, fill.seed),
            stop=put(slots.stop, fill.stop),
            knobs=jax.tree.map(put, slots.knobs, fill.knobs),
        )
    )


def _copy_prompts(
    path: Any,
    buffer: jax.Array,
    prompts: jax.Array,
    *,
    prompt_B: jax.Array,
    ends_B: jax.Array,
    clock: jax.Array | None,
) -> jax.Array:
    """A cache array [L,] [B, K, ...] with rows of `prompts` [L,] [P, K, ...] copied into the first columns of each
    updated slot, or into the columns of a ring (models/windows.py) that stand before the clock. ends: tokens of each
    row of the prompts that are in the cache.

    Slots gather their rows; scattering rows to slots would need them on every device, as many as there are slots.
    Layers are processed one at a time, because all prompts of a layer are on every device during the copy.
    """
    copy = functools.partial(_copy_prompts, prompt_B=prompt_B, ends_B=ends_B, clock=clock)
    if buffer.ndim > 4:  # scanned layers carry a leading layer axis
        one = lambda index, x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
        body = lambda index, whole: jax.lax.dynamic_update_index_in_dim(
            whole, copy(path, one(index, whole), one(index, prompts)), index, 0
        )
        return jax.lax.fori_loop(0, len(buffer), body, buffer)
    slot = layer_axes(buffer)
    everywhere = constrain(prompts, (None, *slot[1:]), name="prompts")
    rows = constrain(jnp.take(everywhere, jnp.maximum(prompt_B, 0), axis=0), slot, name="slots")
    if (axis := find_ring(path)) is not None:
        assert clock is not None
        rows = turn_into_ring(rows, ends_B, clock, axis=axis, columns=buffer.shape[axis])
    old = buffer[:, *map(slice, rows.shape[1:])]  # prompts have fewer columns and otherwise equal sizes
    taken = jnp.where((prompt_B >= 0)[:, None, None, None], rows, old)
    return jax.lax.dynamic_update_slice(buffer, taken, (0, 0, 0, 0))
