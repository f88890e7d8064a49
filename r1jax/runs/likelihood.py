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
            length = max(SHORTEST, 1 << (len(prompt) + len(completion) - 1).bit_length())
            sizes.setdefault(length, []).append(number)
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


def _score(graph: nnx.GraphDef, params: Params, tokens: jax.Array, temperature: jax.Array) -> jax.Array:
    """Log-prob of the token after each position, [B, T]; the last column means nothing."""
    model = merge(graph, params)
    targets = jnp.roll(tokens, -1, axis=1)
    hidden = model.hidden(tokens).hidden
    return token_logprobs(hidden, targets, model.unembed, temperature=temperature, chunk=CHUNK)[0]
