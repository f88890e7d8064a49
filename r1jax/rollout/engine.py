"""Rollout engine: token ids of prompts in, sampled ids and their log-probs out, jitted with static shapes.

Slots are rows of one KV cache. A common prefix of all prompts (a template) is computed once per call and stored once.
The rest of each prompt is prefilled once (without the head) and copied into the slots of its group; a slot starts with
the prompt's last token, so that every forward pass of a slot gives one sampled token. All slots write at one common
column of a ring buffer after the prompt columns (models/cache.py), so an append is one in-place update. The ring grows
in a few steps until it is full for the first time, then wraps around. The decode program runs until enough slots are
idle or the cache has to grow; the scheduler then refills the slots. The engine works on tokens only.

Left out: paged caches, chunked prefill, speculative decoding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.distributed import fetch
from r1jax.core.errors import UserError
from r1jax.core.sharding import batch_parts, constrain, current_layout, in_layout
from r1jax.core.structs import Completion, Request
from r1jax.models.transformer import Params, merge
from r1jax.rollout.sampling import sample
from r1jax.rollout.scheduler import Scheduler
from r1jax.rollout.slots import EngineConfig, Slots, constrain_slots, grow, init_slots, insert


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
        self.graph, self.config, self.layout = graph, config, current_layout()
        self._init = jax.jit(functools.partial(_init, graph, config), static_argnums=1)
        self._prefill = jax.jit(functools.partial(_prefill, graph, len(config.prefix)))
        self._prefix = jax.jit(functools.partial(_prefix, graph, config.prefix))
        self._grow = jax.jit(functools.partial(_grow, graph, config), static_argnums=2)
        self._insert = jax.jit(insert, donate_argnums=0)
        self._decode = jax.jit(functools.partial(_decode, graph, config), donate_argnums=2, static_argnames="filtered")

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
        scheduler = Scheduler(requests, self.config)
        length, *longer = self.config.cache_lengths
        prefix = self._prefix(params) if self.config.prefix else None
        slots, prompts = self._init(params, length), None
        filtered = any(r.sampling.top_k or r.sampling.top_p < 1 or r.sampling.min_p for r in requests)
        while not scheduler.finished:
            for tokens, fill in scheduler.refill():
                prompts = prompts if tokens is None else self._prefill(params, prefix, tokens)
                slots = self._insert(slots, prompts, fill)
            slots = self._decode(params, prefix, slots, scheduler.idle_limit, filtered=filtered)
            column, *rows = fetch(
                (slots.cache.column, slots.active, slots.done, slots.tokens, slots.logprobs, slots.experts)
            )
            for number, completion in scheduler.collect(*rows):
                on_complete(number, completion)
            if longer and column == slots.cache.length:
                slots = self._grow(params, slots, longer.pop(0))
        return scheduler.completions()

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
    cache = model.init_cache(*tokens.shape)
    return model.hidden(
        constrain(tokens, ("batch", None)), positions=positions, cache=cache, prefix=prefix
    ).cache.layers


def _init(graph: nnx.GraphDef, config: EngineConfig, params: Params, columns: int) -> Slots:
    """All slots idle, with an empty cache."""
    model = merge(graph, params)
    return init_slots(config, model.init_cache(config.slots, columns), model.routing)


def _grow(graph: nnx.GraphDef, config: EngineConfig, params: Params, slots: Slots, columns: int) -> Slots:
    """The same slots with a cache of more columns."""
    return grow(slots, merge(graph, params).init_cache(config.slots, columns))


def _decode(
    graph: nnx.GraphDef,
    config: EngineConfig,
    params: Params,
    prefix: Any,
    slots: Slots,
    idle_limit: jax.Array,
    *,
    filtered: bool,
) -> Slots:
    """Samples tokens until `idle_limit` slots are idle, or until a cache that can still grow is full."""
    model = merge(graph, params)
    first, ring, length = config.prompt_columns, config.max_new_tokens, slots.cache.length
    turns = length == first + ring

    def step(slots: Slots) -> Slots:
        hidden_B1D, cache, router = model.hidden(
            slots.token[:, None], positions=slots.position[:, None], cache=slots.cache, prefix=prefix
        )
        logits_BV = constrain(model.unembed(hidden_B1D[:, 0]), ("batch", "vocab"), name="logits")
        uniform = jax.vmap(lambda seed, done: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), done)))
        token, logprob = sample(logits_BV, uniform(slots.seed, slots.done), slots.knobs, filtered=filtered)
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
            )
        )

    def is_on(slots: Slots) -> jax.Array:
        busy = (~slots.active).sum() < idle_limit
        return busy if turns else busy & (slots.cache.column < length)

    return jax.lax.while_loop(is_on, step, slots)
