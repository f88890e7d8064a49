"""The rollout engine: prompts of ids in, sampled ids and their log-probs out, all under jit with static shapes.

Slots are rows of one KV cache. What all prompts begin with (a template) is computed once a call and held once. The
rest of a prompt is prefilled once (without the head) and copied into the slots of its group; a slot starts by feeding
the prompt's last token, so every forward pass of a slot gives one sampled token. All slots write at one common column
of a ring behind the prompt columns (models/cache.py): the append is one in-place update. The decode program runs
until enough slots are idle; the scheduler then refills them. The engine knows tokens only.

Left out: paged caches, chunked prefill, speculation.
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
from r1jax.core.sharding import batch_parts, constrain
from r1jax.core.structs import Completion, Request
from r1jax.models.transformer import Params, merge
from r1jax.rollout.sampling import sample
from r1jax.rollout.scheduler import Scheduler
from r1jax.rollout.slots import EngineConfig, Slots, constrain_slots, init_slots, insert, restart


class Engine:
    """Samples requests from a model of the given structure; weights are an argument of every call."""

    def __init__(self, graph: nnx.GraphDef, config: EngineConfig):
        parts = batch_parts()
        for key in ("slots", "prefill_batch"):
            if getattr(config, key) % parts:
                raise UserError(
                    f"config.rollout.{key} = {getattr(config, key)} does not divide over the {parts} parts "
                    "of the batch axes"
                )
        self.graph, self.config = graph, config
        self._init = jax.jit(functools.partial(_init, graph, config))
        self._prefill = jax.jit(functools.partial(_prefill, graph, len(config.prefix)))
        self._prefix = jax.jit(functools.partial(_prefix, graph, config.prefix))
        self._restart = jax.jit(restart, donate_argnums=0)
        self._insert = jax.jit(insert, donate_argnums=0)
        self._decode = jax.jit(functools.partial(_decode, graph), donate_argnums=2, static_argnames="filtered")
        self._slots: Slots | None = None

    def generate(
        self,
        params: Params,
        requests: Sequence[Request],
        on_complete: Callable[[int, Completion], None] = lambda number, completion: None,
    ) -> list[Completion]:
        """One completion a request, in order. Requests with equal prompts share one prefill.

        `on_complete(number of the request, completion)` is told of each as it ends, in no certain order.
        Raises UserError for a prompt or a limit beyond the engine's columns.
        """
        for request in requests:
            self._check(request)
        scheduler = Scheduler(requests, self.config)
        slots = self._slots if self._slots is not None else self._init(params)
        self._slots = None  # donated below; kept only when the call ends well
        prefix = self._prefix(params) if self.config.prefix else None
        slots, prompts = self._restart(slots), None
        filtered = any(r.sampling.top_k or r.sampling.top_p < 1 or r.sampling.min_p for r in requests)
        while not scheduler.finished:
            for tokens, fill in scheduler.refill():
                prompts = prompts if tokens is None else self._prefill(params, prefix, tokens)
                slots = self._insert(slots, prompts, fill)
            slots = self._decode(params, prefix, slots, scheduler.idle_limit, filtered=filtered)
            ended = scheduler.collect(*fetch((slots.active, slots.done, slots.tokens, slots.logprobs, slots.experts)))
            for number, completion in ended:
                on_complete(number, completion)
        self._slots = slots
        return scheduler.completions()

    def release(self) -> None:
        """Frees the cache, which is otherwise kept for the next call."""
        self._slots = None

    def _check(self, request: Request) -> None:
        config, sampling = self.config, request.sampling
        if not 1 <= len(request.tokens) <= config.max_prompt_tokens:
            raise UserError(
                f"a prompt of {len(request.tokens)} tokens, but 1 to {config.max_prompt_tokens} fit; "
                "change config.rollout.max_prompt_tokens"
            )
        if tuple(request.tokens[: len(config.prefix)]) != config.prefix or len(request.tokens) == len(config.prefix):
            raise UserError(f"a prompt does not go on from the {len(config.prefix)} tokens of the engine's prefix")
        if not 1 <= sampling.max_new_tokens <= config.max_new_tokens:
            raise UserError(
                f"a limit of {sampling.max_new_tokens} new tokens, but 1 to {config.max_new_tokens} fit; "
                "change config.rollout.max_new_tokens"
            )
        if len(sampling.stop_ids) > config.max_stop_ids:
            raise UserError(f"{len(sampling.stop_ids)} stop ids, but at most {config.max_stop_ids} are supported")


def _prefix(graph: nnx.GraphDef, prefix: tuple[int, ...], params: Params) -> Any:
    """Keys and values of the tokens that all prompts begin with."""
    return merge(graph, params).prefix(jnp.asarray(prefix, jnp.int32))


def _prefill(graph: nnx.GraphDef, start: int, params: Params, prefix: Any, tokens: jax.Array) -> Any:
    """Keys and values of prompts [P, Tp] behind the prefix of `start` tokens; columns past a prompt's end stay
    unseen.
    """
    model = merge(graph, params)
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    cache = model.init_cache(*tokens.shape)
    return model.hidden(
        constrain(tokens, ("batch", None)), positions=positions, cache=cache, prefix=prefix
    ).cache.layers


def _init(graph: nnx.GraphDef, config: EngineConfig, params: Params) -> Slots:
    """All slots idle, the cache empty."""
    columns = config.prompt_columns + config.max_new_tokens
    model = merge(graph, params)
    return init_slots(config, model.init_cache(config.slots, columns), model.routing)


def _decode(
    graph: nnx.GraphDef, params: Params, prefix: Any, slots: Slots, idle_limit: jax.Array, *, filtered: bool
) -> Slots:
    """Samples token after token until `idle_limit` slots are idle."""
    model = merge(graph, params)
    ring = slots.tokens.shape[1]
    first = slots.cache.length - ring

    def step(slots: Slots) -> Slots:
        hidden_B1D, cache, router = model.hidden(
            slots.token[:, None], positions=slots.position[:, None], cache=slots.cache, prefix=prefix
        )
        logits_BV = constrain(model.unembed(hidden_B1D[:, 0]), ("batch", "vocab"), name="logits")
        uniform = jax.vmap(lambda seed, done: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), done)))
        token, logprob = sample(logits_BV, uniform(slots.seed, slots.done), slots.knobs, filtered=filtered)
        row = jnp.arange(token.shape[0])
        at = jnp.where(slots.active, slots.done, ring)  # idle rows write nowhere
        done = slots.done + slots.active
        stopped = (token[:, None] == slots.stop).any(-1)
        experts = slots.experts
        if experts is not None:
            chosen_BLA = router["choice"][:, :, 0].swapaxes(0, 1).astype(experts.dtype)
            experts = experts.at[row, at].set(chosen_BLA, mode="drop")
        return constrain_slots(
            dataclasses.replace(
                slots,
                cache=dataclasses.replace(cache, column=first + (cache.column - first) % ring),
                token=jnp.where(slots.active, token, slots.token),
                position=slots.position + slots.active,
                done=done,
                active=slots.active & ~stopped & (done < slots.limit),
                tokens=slots.tokens.at[row, at].set(token, mode="drop"),
                logprobs=slots.logprobs.at[row, at].set(logprob, mode="drop"),
                experts=experts,
            )
        )

    return jax.lax.while_loop(lambda slots: (~slots.active).sum() < idle_limit, step, slots)
