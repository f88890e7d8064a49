"""Rollout engine: token ids of prompts in, sampled ids and their log-probs out, jitted with static shapes.

Slots are rows of one KV cache. A common prefix of all prompts (a template) is computed once per call and stored once.
The rest of each prompt is prefilled once (without the head) and copied into the slots of its group; a slot starts with
the prompt's last token, so that every forward pass of a slot gives one sampled token. All slots write at one common
column of a ring buffer after the prompt columns (models/cache.py), so an append is one in-place update. The ring grows
in a few steps until it is full for the first time, then wraps around. The decode program runs until enough slots are
idle or the cache has to grow; the scheduler then refills the slots. When no request waits and few rows are left, these
go on in a smaller batch. The engine works on tokens only.

Left out: paged caches, chunked prefill, speculative decoding.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.distributed import fetch
from r1jax.core.errors import UserError
from r1jax.core.sharding import abstract_array, batch_parts, constrain, current_layout, in_layout, settle
from r1jax.core.startup.memory import check_memory
from r1jax.core.structs import Completion, Program, Request, Sampling
from r1jax.core.watchdog import beat
from r1jax.models.flops import Work
from r1jax.models.transformer import Params, is_recurrent, merge
from r1jax.rollout.sampling import sample_next
from r1jax.rollout.scheduler import Scheduler
from r1jax.rollout.slots import (
    EngineConfig,
    Slots,
    abstract_layers,
    abstract_slots,
    constrain_slots,
    grow,
    init_slots,
    insert,
    shrink,
)

SHORT_TAIL = 32  # tokens: fewer that may be left are not worth another program


class Engine:
    """Samples requests from a model structure; weights are an argument of every call.

    Every call computes in the mesh and rules that were current at construction, in any thread.
    """

    def __init__(self, graph: nnx.GraphDef, config: EngineConfig):
        parts = batch_parts()
        for key in ("slots", "prefill_batch"):
            if getattr(config, key) % parts:
                raise UserError(
                    f"config.rollout.{key} must be divisible by the {parts} shards of the batch axes, "
                    f"got {getattr(config, key)}"
                )
        self._is_recurrent = is_recurrent(graph)
        if self._is_recurrent:  # a state cannot be shared as keys are: the prefix is computed with each prompt
            config = dataclasses.replace(config, prefix=())
        self.graph, self.config, self.layout = graph, config, current_layout()
        self._init = jax.jit(functools.partial(_init, graph, config), static_argnames="columns")
        self._prefill = jax.jit(functools.partial(_prefill, graph, len(config.prefix)))
        self._prefix = jax.jit(functools.partial(_prefix, graph, config.prefix))
        self._grow = jax.jit(functools.partial(_grow, graph, config), static_argnames="columns")
        self._insert = jax.jit(insert, donate_argnums=0)
        self._decode = jax.jit(
            functools.partial(_decode, graph, config, parts), donate_argnums=2, static_argnames="filtered"
        )
        self._shrink = jax.jit(functools.partial(_shrink, graph, config))
        self._collect = jax.jit(_collect)
        self._parts, self._tails = parts, config.tail_slots(parts)
        self._rows_at_once = max(1, int(config.slots * config.refill_share))
        self._fits = False
        self._turns = np.zeros(2)

    @in_layout
    def generate(
        self,
        params: Params,
        requests: Sequence[Request],
        on_complete: Callable[[int, Completion], None] = lambda number, completion: None,
    ) -> list[Completion]:
        """One completion per request, in order. Requests with equal prompts share one prefill.

        `on_complete(index of the request, completion)` is called as each one ends, in any order. Raises UserError for a
        prompt or a limit that exceeds the engine's columns.
        """
        for request in requests:
            self._check(request)
        self.check_memory(params)
        scheduler = Scheduler(requests, self.config, marks_ends=self._is_recurrent)
        length, *longer = self.config.cache_lengths
        tails = self._tails.copy()
        prefix = self._prefix(params) if self.config.prefix else None
        slots, prompts = self._init(params, columns=length), None
        filtered = any(r.sampling.is_filtered for r in requests)
        while not scheduler.finished:
            for tokens, fill in scheduler.refill():
                prompts = prompts if tokens is None else self._prefill(params, prefix, tokens)
                slots = settle(self._insert(slots, prompts, fill))
            few = tails[0] // self._parts if tails and not scheduler.has_waiting else -1  # of a shard
            slots = self._decode(params, prefix, slots, scheduler.idle_limit, few, filtered=filtered)
            column, active, done = fetch((slots.cache.column, slots.active, slots.done))
            beat()
            for ended in self._split(scheduler.find_ended(active)):
                rows = self._fetch_rows(slots, ended)
                for number, completion in scheduler.collect(ended, done[ended], *rows):
                    on_complete(number, completion)
            if active.reshape(self._parts, -1).sum(-1).max() <= few and not scheduler.finished:
                tails, most = tails[1:], scheduler.longest_limit - done[active].min()
                if most < SHORT_TAIL:
                    tails = []
                else:
                    slots, longer = self._keep_active(params, slots, scheduler, active, few), []
            elif longer and column == slots.cache.length:
                slots = self._grow(params, slots, columns=longer.pop(0))
        if slots.turns is not None:
            self._turns += fetch(slots.turns)
        return scheduler.completions()

    def _keep_active(self, params: Params, slots: Slots, scheduler: Scheduler, active: np.ndarray, rows: int) -> Slots:
        """The active slots alone, in so many rows of each shard, with a cache of the whole length."""
        shards = active.reshape(self._parts, -1)
        places = np.argsort(~shards, axis=-1, kind="stable")[:, :rows].astype(np.int32)  # those within a shard
        first = np.arange(self._parts)[:, None] * shards.shape[1]
        scheduler.keep_slots((first + places).ravel())
        return self._shrink(params, slots, places)

    def _split(self, ended: np.ndarray) -> list[np.ndarray]:
        """Parts of the slots that ended, of as many as travel to the host at once; of one device nothing travels."""
        most = self._rows_at_once if self.layout.devices > 1 else self.config.slots
        return [ended[first : first + most] for first in range(0, len(ended), most)]

    def _fetch_rows(self, slots: Slots, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Tokens, log-probs and experts of slots that ended, on the host: of several devices only these rows travel."""
        if self.layout.devices == 1:
            whole = fetch((slots.tokens, slots.logprobs, slots.experts))
        else:
            places = np.resize(ended, self._rows_at_once).astype(np.int32)  # those that are repeated are not looked at
            whole, ended = fetch(self._collect(slots, places)), np.arange(len(ended))
        tokens, logprobs, experts = whole
        return tokens[ended], logprobs[ended], None if experts is None else experts[ended]

    def take_metrics(self) -> dict[str, float]:
        """The share of decode steps since the last call in which a layer's experts needed a further turn; nothing where
        experts are not spread.
        """
        (steps, further), self._turns = self._turns, np.zeros(2)
        return {"rollout/further_turns": float(further / steps)} if steps else {}

    @in_layout
    def programs(self, params: Params, sampling: Sampling, work: Work) -> list[Program]:
        """prefill, insert and decode, at the cache's whole length; prefix, collect, grow and shrink where the engine
        has such a program.

        params: shapes with shardings. sampling: of the requests. work: of the model. Decoding attends, on average, to
        half of the ring. Left out: making empty slots, and decode with the fewer rows of a tail.
        """
        config, slots = self.config, self._abstract_slots(params, -1)
        prefix = abstract_layers(jax.eval_shape(self._prefix, params)) if config.prefix else None
        request = Request((*config.prefix, *range(config.prompt_columns)), sampling)
        scheduler = Scheduler([request], config, marks_ends=self._is_recurrent)
        host = (*next(scheduler.refill()), *np.zeros(2, np.int32))
        tokens, update, idle_limit, few = jax.tree.map(
            lambda x: abstract_array(x.shape, x.dtype, (None,) * x.ndim), host
        )
        prompts = abstract_layers(jax.eval_shape(self._prefill, params, prefix, tokens))
        S, Tp, R = len(config.prefix), config.prompt_columns, config.max_new_tokens
        fed, pairs = config.prefill_batch * Tp, config.slots * (S + Tp + R / 2)
        prefilled = work.forward(fed, 0, fed * (S + Tp / 2))
        decoded = work.forward(config.slots, config.slots, pairs)
        decode = (params, prefix, slots, idle_limit, few)
        programs = [
            Program("prefill", self._prefill, (params, prefix, tokens), prefilled),
            Program("insert", self._insert, (slots, prompts, update), 0.0),
            Program("decode", self._decode, decode, decoded, {"filtered": sampling.is_filtered}),
        ]
        if self.layout.devices > 1:
            places = abstract_array((self._rows_at_once,), np.int32, (None,))
            programs.append(Program("collect", self._collect, (slots, places), 0.0))
        if config.prefix:
            programs.insert(0, Program("prefix", self._prefix, (params,), work.forward(S, 0, S**2 / 2)))
        if len(config.cache_lengths) > 1:
            shorter, columns = self._abstract_slots(params, -2), config.cache_lengths[-1]
            programs.append(Program("grow", self._grow, (params, shorter), 0.0, {"columns": columns}))
        if self._tails:
            places = abstract_array((self._parts, self._tails[0] // self._parts), np.int32, (None, None))
            programs.append(Program("shrink", self._shrink, (params, slots, places), 0.0))
        return [dataclasses.replace(program, layout=self.layout) for program in programs]

    def _abstract_slots(self, params: Params, piece: int) -> Slots:
        """Slots with the cache of a length of `EngineConfig.cache_lengths`, as shapes with shardings."""
        make = functools.partial(self._init, columns=self.config.cache_lengths[piece])
        return abstract_slots(jax.eval_shape(make, params))

    def check_memory(self, params: Params) -> None:
        """Raises UserError if even the shortest cache exceeds the devices' memory. params: arrays or shapes."""
        if self._fits:
            return
        config = self.config
        head = "the cache of the sampler"
        cure = f"the tokens of completions (max_new_tokens, {config.max_new_tokens:,}), the sequences at once "
        cure += f"(config.rollout.slots or --batch_size, {config.slots:,}), or the prompts' length"
        slots = jax.eval_shape(functools.partial(self._init, columns=config.cache_lengths[0]), params)
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(slots))
        devices = self.layout.mesh.size if self.layout.mesh is not None else 1
        check_memory(size // devices, head, cure)
        self._fits = True

    def _check(self, request: Request) -> None:
        config, sampling = self.config, request.sampling
        if not 1 <= len(request.tokens) <= config.max_prompt_tokens:
            raise UserError(
                f"a prompt must have 1 to {config.max_prompt_tokens} tokens, got {len(request.tokens)}; "
                "change config.rollout.max_prompt_tokens"
            )
        if tuple(request.tokens[: len(config.prefix)]) != config.prefix or len(request.tokens) == len(config.prefix):
            raise UserError(f"a prompt must begin with the {len(config.prefix)} tokens of the engine's prefix")
        if not 1 <= sampling.max_new_tokens <= config.max_new_tokens:
            raise UserError(
                f"a request must have a limit of 1 to {config.max_new_tokens} tokens, got {sampling.max_new_tokens}; "
                "change config.rollout.max_new_tokens"
            )
        if len(sampling.stop_ids) > config.max_stop_ids:
            raise UserError(f"a request must have at most {config.max_stop_ids} stop ids, got {len(sampling.stop_ids)}")


def _prefix(graph: nnx.GraphDef, prefix: tuple[int, ...], params: Params) -> Any:
    """Keys and values of the tokens that all prompts begin with."""
    return merge(graph, params).prefix(jnp.asarray(prefix, jnp.int32))


def _prefill(graph: nnx.GraphDef, start: int, params: Params, prefix: Any, tokens: jax.Array) -> Any:
    """Keys and values of prompts [P, Tp] after the prefix of `start` tokens; columns past a prompt's end stay
    invisible.
    """
    model = merge(graph, params)
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    cache, told = model.init_cache(*tokens.shape), model.mark_valid(tokens >= 0)
    tokens = jnp.maximum(tokens, 0) if told else tokens
    return model.hidden(
        constrain(tokens, ("batch", None)), positions=positions, cache=cache, prefix=prefix, **told
    ).cache.layers


def _init(graph: nnx.GraphDef, config: EngineConfig, params: Params, *, columns: int) -> Slots:
    """All slots idle, with an empty cache."""
    model = merge(graph, params)
    return init_slots(
        config, model.init_cache(config.slots, columns, chunk=1), model.routing, counts_turns=model.sends_all
    )


def _grow(graph: nnx.GraphDef, config: EngineConfig, params: Params, slots: Slots, *, columns: int) -> Slots:
    """The same slots with a cache of more columns."""
    return grow(slots, merge(graph, params).init_cache(config.slots, columns, chunk=1))


def _shrink(graph: nnx.GraphDef, config: EngineConfig, params: Params, slots: Slots, places: jax.Array) -> Slots:
    """The slots at `places` [X, b], numbers within each shard, with a cache of the whole length."""
    return shrink(slots, places, merge(graph, params).init_cache(places.size, config.cache_lengths[-1], chunk=1))


def _collect(slots: Slots, places: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Tokens, log-probs and experts of the slots at `places`, at every device."""
    take = lambda x: constrain(jnp.take(x, places, axis=0), (None,) * x.ndim, name="ended rows")
    return jax.tree.map(take, (slots.tokens, slots.logprobs, slots.experts))


def _decode(
    graph: nnx.GraphDef,
    config: EngineConfig,
    parts: int,
    params: Params,
    prefix: Any,
    slots: Slots,
    idle_limit: jax.Array,
    few: jax.Array,
    *,
    filtered: bool,
) -> Slots:
    """Samples tokens until `idle_limit` slots are idle, at most `few` are active in each of `parts` shards (-1: never),
    or a cache that can still grow is full.
    """
    model = merge(graph, params)
    first, ring, length = config.prompt_columns, config.max_new_tokens, slots.cache.length
    turns = length == first + ring

    def step(slots: Slots) -> Slots:
        hidden_B1D, cache, router = model.hidden(
            slots.token[:, None], positions=slots.position[:, None], cache=slots.cache, prefix=prefix
        )
        token, logprob, _ = sample_next(model, hidden_B1D[:, 0], slots.seed, slots.done, slots.knobs, filtered=filtered)
        row = jnp.arange(token.shape[0])
        at = jnp.where(slots.active, slots.done, ring)  # out of range for idle rows, which write nothing
        done = slots.done + slots.active
        stopped = (token[:, None] == slots.stop).any(-1)
        experts = slots.experts
        if experts is not None:
            chosen_BLA = router["choice"][:, :, 0].swapaxes(0, 1).astype(experts.dtype)
            experts = experts.at[row, at].set(chosen_BLA, mode="drop")
        return constrain_slots(
            dataclasses.replace(
                slots,
                cache=dataclasses.replace(cache, column=first + (cache.column - first) % ring) if turns else cache,
                token=jnp.where(slots.active, token, slots.token),
                position=slots.position + slots.active,
                done=done,
                active=slots.active & ~stopped & (done < slots.limit),
                tokens=slots.tokens.at[row, at].set(token, mode="drop"),
                logprobs=slots.logprobs.at[row, at].set(logprob, mode="drop"),
                experts=experts,
                turns=None if slots.turns is None else slots.turns + jnp.stack([1, (router["overflow"] > 0).any()]),
            )
        )

    def is_on(slots: Slots) -> jax.Array:
        busy = (~slots.active).sum() < idle_limit
        busy &= slots.active.reshape(parts, -1).sum(-1).max() > few
        return busy if turns else busy & (slots.cache.column < length)

    return jax.lax.while_loop(is_on, step, slots)
