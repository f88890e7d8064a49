"""Continuous batching: sequences that arrive at any time, pause, go on with given tokens, and leave.

Each slot is a row of the cache with a length of its own. A sequence is opened with its first tokens, which are fed in
chunks; it is sampled until a stop id or a limit, then its slot is parked and keeps its keys and values. `extend` goes
on with tokens that were given (a tool's reply, a user's next message), `close` frees the slot. Every token is computed
once: a sampled token is fed with what follows it, so the cache of a parked slot lacks the last one.

All programs have one shape whatever the slots hold, and each row's columns begin at 0. So a sampled token is a function
of weights, tokens, sampling and seed: neither the sequences beside it nor the time of their arrival changes a bit. Only
the number of its slot may, where a device rounds the rows of a product differently.

Left out: pages, replayed experts. The engine (engine.py) samples a batch that is known beforehand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from r1jax.core.distributed import fetch
from r1jax.core.errors import UserError
from r1jax.core.sharding import abstract_array, batch_parts, current_layout, in_layout, settle
from r1jax.core.structs import FinishReason, Program, Sampling
from r1jax.core.watchdog import beat
from r1jax.models.flops import Work
from r1jax.models.transformer import Params, is_recurrent
from r1jax.rollout.rows import (
    ContinuousConfig,
    Rows,
    copy_rows,
    decode_rows,
    feed_rows,
    init_rows,
    keeps_all,
    start_rows,
    stop_row,
)
from r1jax.rollout.sampling import SamplingArrays, stop_table
from r1jax.rollout.slots import abstract_layers, row_axes


@dataclasses.dataclass(frozen=True)
class Burst:
    """Tokens that a call of `step` sampled for a slot, with their log-probs.

    finish_reason: "" while it goes on. alternatives: for each token the likeliest ids at its place and their log-probs,
    where they were asked for.
    """

    slot: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | Literal[""]
    alternatives: tuple[dict[int, float], ...] = ()


@dataclasses.dataclass
class _Sequence:
    """The host's view of a slot: how it is sampled, the number of tokens sampled so far, given tokens that wait to be
    fed, the number of tokens in the cache, the last token sampled, and those of the last burst.
    """

    sampling: Sampling
    seed: int
    done: int
    waiting: list[int]
    length: int = 0
    last: int = -1
    is_sampled: bool = False
    burst: tuple[int, ...] = ()


class ContinuousEngine:
    """Samples sequences from a model structure and weights (None: until `load`), in the layout current at construction.

    params: of the structure, or a function from slots [B] (out of range: no slot) to the parameters for their rows.
    computed: tokens that went through the model for some sequence so far. One thread at a time may use an engine.
    """

    def __init__(
        self, graph: nnx.GraphDef, params: Params | Callable[[np.ndarray], Params] | None, config: ContinuousConfig
    ):
        if config.slots % (parts := batch_parts()):
            raise UserError(f"slots must be divisible by the {parts} shards of the batch axes, got {config.slots}")
        self.config, self.layout, self.computed = config, current_layout(), 0
        self._pad = -1 if is_recurrent(graph) else 0  # -1: padding that can be told from tokens
        self._fed_rows = min(config.feed_rows, config.slots) if parts == 1 else config.slots
        self._feed = jax.jit(functools.partial(feed_rows, graph, config), donate_argnums=1)
        self._may_share = config.share and parts == 1 and not is_recurrent(graph)
        self._copy = jax.jit(copy_rows, donate_argnums=0)
        self._start = jax.jit(start_rows, donate_argnums=0)
        self._stop = jax.jit(stop_row, donate_argnums=0)
        static = ("filtered", "alternatives")
        self._decode = jax.jit(functools.partial(decode_rows, graph, config), donate_argnums=1, static_argnames=static)
        self._init = jax.jit(functools.partial(init_rows, graph, config))
        self._all = np.arange(config.slots, dtype=np.int32)
        if params is not None:
            self.load(params)

    @in_layout
    def load(self, params: Params | Callable[[np.ndarray], Params]) -> None:
        """Takes weights; all slots are free then."""
        self._params = params if callable(params) else lambda slots: params
        self._held: dict[int, _Sequence] = {}
        self._rows: Rows = self._init(self._params(self._all))
        self._share = self._may_share and keeps_all(self._rows, self.config)
        self._marks: dict[tuple[int, tuple[int, ...]], int] = {}
        self._holders: dict[int, int] = {}  # mark of a beginning -> a slot that holds it, also after its end

    def unload(self) -> None:
        """Gives up weights and slots, so that their memory is free until `load`."""
        del self._params, self._rows

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self.config.slots - len(self._held)

    @property
    def is_idle(self) -> bool:
        """Whether all sequences are parked."""
        return not any(held.waiting or held.is_sampled for held in self._held.values())

    def open(self, tokens: Sequence[int], sampling: Sampling, seed: int, *, done: int = 0) -> int:
        """Takes a free slot for a sequence that begins with `tokens` and is sampled then; returns the slot.

        done: how many of the tokens were sampled under this seed before, of a sequence that is computed anew. Raises
        UserError if no slot is free, for an empty sequence, and for one that could become longer than `max_tokens`.
        """
        if not self.free:
            raise UserError(f"all {self.config.slots} slots are taken")
        if not tokens:
            raise UserError("a sequence must begin with at least one token")
        self._check(len(tokens), sampling)
        slot = next(slot for slot in range(self.config.slots) if slot not in self._held)
        self._holders = {mark: holder for mark, holder in self._holders.items() if holder != slot}
        self._held[slot] = _Sequence(sampling, seed, done, [*tokens])
        return slot

    def extend(self, slot: int, tokens: Sequence[int], sampling: Sampling) -> None:
        """Goes on with a parked sequence: `tokens` follow what it holds, then it is sampled up to a limit that counts
        from here. Raises UserError if it is not parked, or could become too long.
        """
        held = self._held[slot]
        if held.waiting or held.is_sampled:
            raise UserError(f"slot {slot} is being sampled: only a parked sequence can be extended")
        self._check(held.length + 1 + len(tokens), sampling)
        held.waiting, held.sampling = [held.last, *tokens], sampling

    def cut(self, slot: int, count: int) -> None:
        """Parks a slot behind the first `count` (at least 1) tokens of its last burst; the others are as if they had
        never been sampled, though they were computed.
        """
        held = self._held[slot]
        if self._pad and count < len(held.burst):
            raise UserError("tokens of a model whose layers hold a state cannot be taken back")
        if held.is_sampled:
            self._rows = self._stop(self._rows, np.int32(slot))
        ids, forgotten = held.burst, len(held.burst) - count
        held.length, held.done, held.last = held.length - forgotten, held.done - forgotten, ids[count - 1]
        held.is_sampled, held.burst = False, ids[:count]

    def close(self, slot: int) -> None:
        """Frees a slot, whatever it does."""
        if self._held.pop(slot).is_sampled:
            self._rows = self._stop(self._rows, np.int32(slot))

    @in_layout
    def step(self, steps: int = 0, *, ends: int = 0, alternatives: int = 0) -> list[Burst]:
        """Feeds what waits, then samples up to `steps` tokens (0: a burst) of every sequence that is not parked.

        Returns what was sampled; earlier, once as many sequences as `ends` have ended (0: all). alternatives: number of
        likeliest ids to return for each token; another number is another program.
        """
        self._feed_waiting()
        live = {slot: held for slot, held in self._held.items() if held.is_sampled}
        if not live:
            return []
        steps = min(steps or self.config.burst, self.config.burst)
        left = np.int32(max(0, len(live) - ends) if ends else 0)
        filtered = any(held.sampling.is_filtered for held in live.values())
        limits, static = (np.int32(steps), left), {"filtered": filtered, "alternatives": alternatives}
        self._rows, *sampled = self._decode(self._params(self._all), self._rows, *limits, **static)
        active, count, tokens, logprobs, others, values = fetch((self._rows.active, *sampled))
        beat()
        found = []
        for slot, held in live.items():
            ids = tuple(tokens[slot, : count[slot]].tolist())
            held.length, held.done, held.last = held.length + len(ids), held.done + len(ids), ids[-1]
            held.burst = ids
            held.is_sampled, self.computed = bool(active[slot]), self.computed + len(ids)
            reason: FinishReason = "stop" if held.last in held.sampling.stop_ids else "length"
            spent = tuple(logprobs[slot, : count[slot]].tolist())
            pairs = zip(others[slot, : count[slot]].tolist(), values[slot, : count[slot]].tolist(), strict=True)
            likeliest = tuple(dict(zip(*pair, strict=True)) for pair in pairs) if alternatives else ()
            found.append(Burst(slot, ids, spent, "" if held.is_sampled else reason, likeliest))
        return found

    @in_layout
    def programs(self, params: Params, sampling: Sampling, work: Work) -> list[Program]:
        """feed, start, decode, stop, and copy where beginnings are shared, for shapes of weights with shardings.

        sampling: of the requests. work: of the model. Feeding and decoding attend, on average, to half of a row.
        """
        config, count = self.config, self._fed_rows
        shapes = jax.eval_shape(self._init, params)
        rows: Any = lambda x: abstract_array(x.shape, x.dtype, row_axes(x), name="slots")
        fields = {f.name: getattr(shapes, f.name) for f in dataclasses.fields(Rows) if f.name != "layers"}
        slots = Rows(layers=abstract_layers(shapes.layers), **jax.tree.map(rows, fields))
        host = lambda tree: jax.tree.map(lambda x: abstract_array(x.shape, x.dtype, (None,) * x.ndim), tree)
        at, tokens = np.zeros(count, np.int32), np.zeros((count, config.chunk), np.int32)
        begun = host(self._describe({0: _Sequence(sampling, 0, 0, [0])}))
        fed, limits = count * config.chunk, host((np.int32(0), np.int32(0)))
        static = {"filtered": sampling.is_filtered, "alternatives": 0}
        feeding = work.forward(fed, 0, fed * config.max_tokens / 2)
        decoding = work.forward(config.slots, config.slots, config.slots * config.max_tokens / 2)
        programs = [
            Program("feed", self._feed, (params, slots, *host((at, tokens, at))), feeding),
            Program("start", self._start, (slots, *begun), 0.0),
            Program("decode", self._decode, (params, slots, *limits), decoding, static),
            Program("stop", self._stop, (slots, host(np.int32(0))), 0.0),
        ]
        if self._may_share and keeps_all(shapes, config):
            programs.append(Program("copy", self._copy, (slots, *host((at, at))), 0.0))
        return [dataclasses.replace(program, layout=self.layout) for program in programs]

    def _check(self, given: int, sampling: Sampling) -> None:
        if given + sampling.max_new_tokens > self.config.max_tokens:
            raise UserError(
                f"a sequence must have at most {self.config.max_tokens} tokens, got {given} given and up to "
                f"{sampling.max_new_tokens} to be sampled"
            )
        if len(sampling.stop_ids) > self.config.max_stop_ids:
            raise UserError(f"at most {self.config.max_stop_ids} stop ids are possible, got {len(sampling.stop_ids)}")

    def _feed_waiting(self) -> None:
        """Feeds all given tokens in order of arrival, and starts their sequences."""
        waiting = {slot: held for slot, held in self._held.items() if held.waiting}
        if self._share:
            self._share_begun([slot for slot, held in waiting.items() if not held.length])
        while fed := [slot for slot, held in waiting.items() if len(held.waiting) > 1][: self._fed_rows]:
            self._feed_once(fed)
        if waiting:
            self._rows = self._start(self._rows, *self._describe(waiting))
        for held in waiting.values():
            held.waiting, held.is_sampled = [], True

    def _share_begun(self, slots: Sequence[int]) -> None:
        """Copies whole chunks that new sequences begin with from slots that hold them, or that feed them now.

        A chunk of a sequence is computed alike in every slot, so what is shared changes no bit.
        """
        sources, depths, ends = {}, dict[int, int](), dict[int, int]()
        begun = {slot: self._mark(self._held[slot].waiting) for slot in slots}
        for slot, marks in begun.items():
            shared = max((count for count, mark in enumerate(marks, 1) if mark in self._holders), default=0)
            if shared:
                source = self._holders[marks[shared - 1]]
                sources[slot] = source, shared * self.config.chunk
                depths[slot] = depths.get(source, -1) + 1
                if source in ends:
                    ends[source] = max(ends[source], shared * self.config.chunk)
            ends.setdefault(slot, 0)
            for mark in marks[shared:]:
                self._holders[mark] = slot
        for depth in range(max(depths.values(), default=-1) + 1):
            self._feed_up_to(ends, [slot for slot in slots if depths.get(slot, 0) == depth - 1 or slot not in depths])
            self._copy_begun({slot: sources[slot] for slot in slots if depths.get(slot) == depth})
        self._holders |= {mark: slot for slot, marks in begun.items() for mark in marks}  # the newest stay longest

    def _mark(self, tokens: Sequence[int]) -> list[int]:
        """Marks of a sequence's first chunk, of its first two, …, without its last token; equal ones say the same."""
        chunk, mark, marks = self.config.chunk, 0, []
        for at in range(0, (len(tokens) - 1) // chunk * chunk, chunk):
            mark = self._marks.setdefault((mark, tuple(tokens[at : at + chunk])), len(self._marks) + 1)
            marks.append(mark)
        return marks

    def _feed_up_to(self, ends: Mapping[int, int], slots: Sequence[int]) -> None:
        """Feeds slots up to the tokens that others take from them."""
        while fed := [slot for slot in slots if self._held[slot].length < ends[slot]][: self._fed_rows]:
            self._feed_once(fed, ends)

    def _copy_begun(self, sources: Mapping[int, tuple[int, int]]) -> None:
        """Copies for each slot so many tokens of the cache of another."""
        pairs = [(source, slot) for slot, (source, _) in sources.items()]
        for at in range(0, len(pairs), self._fed_rows):
            pad = [(0, self.config.slots)] * (self._fed_rows - len(pairs[at : at + self._fed_rows]))
            places = np.array([*pairs[at : at + self._fed_rows], *pad], np.int32)
            self._rows = self._copy(self._rows, *places.T)
        for slot, (_, count) in sources.items():
            held = self._held[slot]
            held.waiting, held.length = held.waiting[count:], count

    def _feed_once(self, slots: Sequence[int], ends: Mapping[int, int] | None = None) -> None:
        """Feeds a chunk of each of these slots, up to a number of tokens that they then have."""
        config, count = self.config, self._fed_rows
        is_whole = count == config.slots  # then row and slot have one number
        at = np.full(count, config.slots, np.int32)  # out of range: no slot
        first, tokens = np.zeros(count, np.int32), np.full((count, config.chunk), self._pad, np.int32)
        if is_whole:
            at = np.arange(count, dtype=np.int32)
            behind = config.max_tokens  # of a free slot nothing is overwritten that others may take from it
            first[:] = [self._held[slot].length if slot in self._held else behind for slot in range(count)]
        for index, slot in enumerate(slots):
            held, row = self._held[slot], slot if is_whole else index
            size = min(config.chunk, len(held.waiting) - 1, ends[slot] - held.length if ends else config.chunk)
            chunk, held.waiting = held.waiting[:size], held.waiting[size:]
            at[row], first[row], tokens[row, : len(chunk)] = slot, held.length, chunk
            held.length, self.computed = held.length + len(chunk), self.computed + len(chunk)
        self._rows = settle(self._feed(self._params(at), self._rows, at, tokens, first))

    def _describe(self, waiting: dict[int, _Sequence]) -> tuple[np.ndarray, np.ndarray, np.ndarray, SamplingArrays]:
        """Slots to start (out of range: none), with token, length, done, limit and seed [5, B], stop ids, and knobs."""
        B, pad = self.config.slots, self.config.slots - len(waiting)
        slots = np.array([*waiting, *[B] * pad], np.int32)
        numbers, sampling = np.zeros((5, B), np.uint32), [held.sampling for held in waiting.values()]
        for row, held in enumerate(waiting.values()):
            limit = held.done + held.sampling.max_new_tokens
            numbers[:, row] = held.waiting[0], held.length, held.done, limit, held.seed % 2**32
        return slots, numbers, stop_table(sampling, B, self.config.max_stop_ids), SamplingArrays.of(sampling, B)
