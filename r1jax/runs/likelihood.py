"""Log-probs of given completions under a model."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.distributed import fetch
from r1jax.core.errors import UserError
from r1jax.core.sharding import batch_parts, current_layout, in_layout
from r1jax.losses.logprobs import token_logprobs
from r1jax.models.transformer import Params, merge

ROWS = 8  # sequences of a forward pass
SHORTEST, CHUNK = 64, 64  # positions of the shortest row; those whose logits exist at once


class Likelihood:
    """Scores token ids with a model structure and weights, with the layout current at construction."""

    def __init__(self, graph: nnx.GraphDef, params: Params):
        self._params, self.layout = params, current_layout()
        self._score = jax.jit(functools.partial(_score, graph))
        self._score_targets = jax.jit(functools.partial(_score_targets, graph))
        self._describe = jax.jit(functools.partial(_describe, graph), static_argnames="alternatives")

    @in_layout
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
    ) -> list[list[float]]:
        """Log-prob of each id of each completion after its prompt, in nats. Rows of like lengths share a program."""
        if temperature <= 0:
            raise UserError(f"temperature must be positive, got {temperature}")
        if not all(prompts):
            raise UserError("a completion is scored after at least one token: a prompt is empty")
        parts, found = batch_parts(), [[0.0]] * len(prompts)
        rows = -(-ROWS // parts) * parts
        sizes: dict[int, list[int]] = {}
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            sizes.setdefault(find_length(len(prompt) + len(completion)), []).append(number)
        for length, numbers in sizes.items():
            for first in range(0, len(numbers), rows):
                tokens, batch = np.zeros((rows, length), np.int32), numbers[first : first + rows]
                for row, number in enumerate(batch):
                    ids = [*prompts[number], *completions[number]]
                    tokens[row, : len(ids)] = ids
                scored = fetch(self._score(self._params, tokens, np.float32(temperature)))
                for row, number in enumerate(batch):
                    start = len(prompts[number]) - 1
                    found[number] = scored[row, start : start + len(completions[number])].tolist()
        return found

    @in_layout
    def find_alternatives(
        self, tokens: Sequence[int], alternatives: int, *, params: Params | None = None
    ) -> tuple[list[float], list[dict[int, float]]]:
        """Log-prob of each token after the first, and the likeliest ids at its place with their log-probs. params: in
        place of the weights given at construction.
        """
        padded = np.zeros((batch_parts(), find_length(len(tokens))), np.int32)
        padded[:, : len(tokens)] = tokens
        logprobs, ids, values = (
            x[0] for x in fetch(self._describe(params or self._params, padded, alternatives=alternatives))
        )
        count = len(tokens) - 1
        pairs = zip(ids[:count].tolist(), values[:count].tolist(), strict=True)
        return logprobs[:count].tolist(), [dict(zip(*pair, strict=True)) for pair in pairs]

    @in_layout
    def score_targets(
        self, tokens: Sequence[int], targets_TK: np.ndarray, *, params: Params | None = None
    ) -> np.ndarray:
        """Log-probs [T - 1, K] of ids (below 0: any) in the place of each token after the first. params: as above."""
        padded = np.zeros((batch_parts(), find_length(len(tokens))), np.int32)
        padded[:, : len(tokens)] = tokens
        K = targets_TK.shape[1]
        width = 1 << (K - 1).bit_length()
        asked = np.zeros((*padded.shape, width), np.int32)
        asked[:, : len(tokens) - 1, :K] = np.maximum(targets_TK, 0)
        return fetch(self._score_targets(params or self._params, padded, asked))[0, : len(tokens) - 1, :K]


def find_length(tokens: int) -> int:
    """Positions of the row that holds so many tokens: few lengths, so that few programs are compiled."""
    return max(SHORTEST, 1 << (tokens - 1).bit_length())


def _score(graph: nnx.GraphDef, params: Params, tokens: jax.Array, temperature: jax.Array) -> jax.Array:
    """Log-prob of the token after each position, [B, T]; the last column means nothing."""
    model = merge(graph, params)
    targets = jnp.roll(tokens, -1, axis=1)
    hidden = model.hidden(tokens).hidden
    return token_logprobs(hidden, targets, model.unembed, temperature=temperature, chunk=CHUNK)[0]


def _score_targets(graph: nnx.GraphDef, params: Params, tokens_BT: jax.Array, targets_BTK: jax.Array) -> jax.Array:
    """Log-probs [B, T, K] of K ids after each position."""
    model = merge(graph, params)
    B, T, K = targets_BTK.shape
    hidden = jnp.repeat(model.hidden(tokens_BT).hidden, K, axis=1)
    return token_logprobs(hidden, targets_BTK.reshape(B, T * K), model.unembed, chunk=CHUNK)[0].reshape(B, T, K)


def _describe(
    graph: nnx.GraphDef, params: Params, tokens_BT: jax.Array, *, alternatives: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probs [B, T - 1] of the tokens after the first; likeliest ids and log-probs [B, T - 1, alternatives]."""
    model = merge(graph, params)
    hidden_BTD = model.hidden(tokens_BT).hidden
    B, T, D = hidden_BTD.shape
    after_BT = jnp.roll(tokens_BT, -1, axis=1)

    def score(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden, after = chunk
        logprobs = jax.nn.log_softmax(model.unembed(hidden))
        values, ids = jax.lax.top_k(logprobs, alternatives)
        return jnp.take_along_axis(logprobs, after[..., None], axis=-1)[..., 0], ids, values

    chunks = hidden_BTD.reshape(B, T // CHUNK, CHUNK, D).swapaxes(0, 1), after_BT.reshape(B, -1, CHUNK).swapaxes(0, 1)
    scored = jax.lax.map(score, chunks)
    return tuple(x.swapaxes(0, 1).reshape(B, T, *x.shape[3:])[:, :-1] for x in scored)  # type: ignore[return-value]
