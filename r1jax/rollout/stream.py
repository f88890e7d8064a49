"""One sequence at a time, token by token, for a reader who waits: a conversation, or the first token of a reply.

The cache outlives a call: tokens that it holds already (the conversation so far) are not computed again. Prompts are
fed in chunks of one size, so that two programs serve every length; the cache grows in powers of two. A token is a
function of weights, prompt and seed alone, and the same that the engine samples.

Left out: many sequences at once, which are the engine's (engine.py).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.distributed import fetch
from r1jax.core.sharding import batch_parts, current_layout, in_layout
from r1jax.core.structs import Sampling
from r1jax.models.cache import Cache
from r1jax.models.transformer import Params, is_recurrent, merge
from r1jax.rollout.sampling import SamplingArrays, sample

log = logging.getLogger(__name__)

CHUNK = 64  # prompt tokens that are fed at once
SHORTEST = 1024  # columns of the smallest cache


class Stream:
    """Samples from a model structure and weights, with the layout current at construction."""

    def __init__(self, graph: nnx.GraphDef, params: Params):
        self._params, self.layout, self._rows = params, current_layout(), batch_parts()
        self._is_recurrent = is_recurrent(graph)
        self._init = jax.jit(functools.partial(_init, graph, self._rows), static_argnames="columns")
        self._feed = jax.jit(functools.partial(_feed, graph), donate_argnums=1)
        self._step = jax.jit(functools.partial(_step, graph), donate_argnums=1, static_argnames="filtered")
        self._cache: Cache | None = None
        self._held: list[int] = []  # ids whose keys and values the cache holds

    def generate(self, tokens: Sequence[int], sampling: Sampling, seed: int) -> Iterator[tuple[int, float]]:
        """Sampled ids with their log-probs, one by one, until a stop id (included) or the limit.

        The caller may leave off at any token; the next call begins with what its prompt and the cache have in common.
        """
        self._prepare(tokens, sampling.max_new_tokens)
        token, position = tokens[-1], len(tokens) - 1
        for done in range(sampling.max_new_tokens):
            token, logprob = self._sample(token, position + done, sampling, seed, done)
            yield token, logprob
            if token in sampling.stop_ids:
                return

    @in_layout
    def _prepare(self, tokens: Sequence[int], limit: int) -> None:
        """Feeds the prompt but its last token, after what the cache holds of it already."""
        needed = len(tokens) + limit + CHUNK  # a chunk is written whole, also where it holds fewer tokens
        if self._cache is None or self._cache.length < needed:
            columns = max(SHORTEST, 1 << (needed - 1).bit_length())
            if self._cache is not None:
                log.info("the text outgrows the cache of %d tokens; the next one holds %d", self._cache.length, columns)
            self._cache, self._held = self._init(self._params, columns=columns), []
        shared = len(os.path.commonprefix([self._held, list(tokens[:-1])]))
        if self._is_recurrent and shared < len(self._held):  # a state cannot be taken back
            shared = 0
        self._held = self._held[:shared]
        for first in range(shared, len(tokens) - 1, CHUNK):
            chunk = list(tokens[first : min(first + CHUNK, len(tokens) - 1)])
            padded = np.zeros(CHUNK, np.int32)
            padded[: len(chunk)] = chunk
            self._cache = self._feed(self._params, self._cache, padded, np.int32(first), np.int32(len(chunk)))
            self._held += chunk

    @in_layout
    def _sample(self, token: int, position: int, sampling: Sampling, seed: int, done: int) -> tuple[int, float]:
        """The id that follows `token`, which is the one at `position`."""
        place = np.array([token, position, done], np.int32), np.uint32(seed)
        knobs = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        self._cache, *drawn = self._step(
            self._params, self._cache, *place, np.array(knobs, np.float32), filtered=sampling.is_filtered
        )
        self._held = [*self._held[:position], token]
        found, logprob = fetch(tuple(drawn))
        return int(found), float(logprob)


def _init(graph: nnx.GraphDef, rows: int, params: Params, *, columns: int) -> Cache:
    return merge(graph, params).init_cache(rows, columns)


def _at(cache: Cache, column: jax.Array) -> Cache:
    """The cache with its tokens before `column` alone."""
    visible = jnp.broadcast_to(jnp.arange(cache.length) < column, cache.visible.shape)
    return Cache(cache.layers, visible, column)


def _feed(
    graph: nnx.GraphDef, params: Params, cache: Cache, tokens: jax.Array, first: jax.Array, count: jax.Array
) -> Cache:
    """Appends `count` of the `tokens` [T] to the cache, the first of them at column `first`."""
    rows = (cache.visible.shape[0], tokens.shape[0])
    positions = jnp.broadcast_to(first + jnp.arange(rows[1]), rows)
    model = merge(graph, params)
    told = model.mark_valid(jnp.broadcast_to(jnp.arange(rows[1]) < count, rows))
    states = model.hidden(jnp.broadcast_to(tokens, rows), positions=positions, cache=_at(cache, first), **told)
    assert states.cache is not None
    return _at(states.cache, first + count)


def _step(
    graph: nnx.GraphDef,
    params: Params,
    cache: Cache,
    place: jax.Array,
    seed: jax.Array,
    knobs: jax.Array,
    *,
    filtered: bool,
) -> tuple[Cache, jax.Array, jax.Array]:
    """Feeds one token, and samples the next: its id and log-prob. place: token, its position, tokens sampled so far."""
    model, rows = merge(graph, params), cache.visible.shape[0]
    token, position, done = place
    states = model.hidden(
        jnp.full((rows, 1), token), positions=jnp.full((rows, 1), position), cache=_at(cache, position)
    )
    uniform = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), done))
    temperature, top_k, top_p, min_p = (jnp.full((rows,), knob) for knob in knobs)
    arrays = SamplingArrays(temperature, top_k.astype(jnp.int32), top_p, min_p)
    logits = model.unembed(states.hidden[:, 0])
    drawn, logprob = sample(logits, jnp.full((rows,), uniform), arrays, filtered=filtered)
    return states.cache, drawn[0], logprob[0]
