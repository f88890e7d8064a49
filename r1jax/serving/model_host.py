"""A MODEL behind the server: prompts to ids, sampling with the model's own defaults, and log-probs of given tokens."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.distributed import fetch
from r1jax.core.errors import UserError
from r1jax.core.sharding import batch_parts, in_layout
from r1jax.core.structs import Sampling
from r1jax.eval.prompting import Prompting
from r1jax.models.transformer import Params, merge
from r1jax.rollout.continuous import ContinuousConfig, ContinuousEngine
from r1jax.runs.conversation import choose_turns
from r1jax.runs.sampler import Sampler
from r1jax.serving.requests import SamplingRequest
from r1jax.text.chat_template import render
from r1jax.text.encoding import encode_prompt
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.pretrained import require_tokenizer

CHUNK = 64  # positions whose logits exist at once
SHORTEST = 64  # tokens of the shortest row that is scored
KNOBS = ("temperature", "top_p", "top_k", "min_p")


class ModelHost:
    """A loaded model with its engine. name: under which clients know it. prompting: how its run asked it, or None."""

    def __init__(self, name: str, sampler: Sampler, prompting: Prompting | None, config: ContinuousConfig):
        self.name, self.config = name, config
        self.tokenizer: Tokenizer = require_tokenizer(sampler.tokenizer, name)
        self.prompting, self.layout = choose_turns(sampler, prompting), sampler.layout
        self.stop_ids = self.prompting.stop_ids or sampler.stop_ids
        self.vocab_size = sampler.vocab_size
        self.engine = ContinuousEngine(sampler.graph, sampler.params, config)
        self._params = sampler.params
        self._score = jax.jit(functools.partial(_score, sampler.graph), static_argnames="alternatives")

    def encode_messages(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> tuple[int, ...]:
        """Ids of a conversation through the chat template; of a model whose run asked one question at a time, through
        its run's template. Raises UserError for messages that the template does not take.
        """
        if self.prompting.takes_turns:
            return tuple(self.tokenizer.encode(render(self.tokenizer, messages, **variables)))
        if len(messages) != 1 or not isinstance(content := messages[0].get("content"), str):
            raise UserError(
                "this model was trained with a template that holds one question: send one message with a text, or ask "
                "/v1/completions"
            )
        return encode_prompt(self.tokenizer, self.prompting.wrap(content))

    def encode_prompt(self, prompt: str | Sequence[int], *, add_special: bool = True) -> tuple[int, ...]:
        """Ids of a text as it is, or the ids themselves. Raises UserError for ids that the model does not have."""
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt, add_special=add_special))
        if any(token >= self.vocab_size for token in prompt):
            raise UserError(f"prompt: ids must be below {self.vocab_size}, got {max(prompt)}")
        return tuple(prompt)

    def choose_sampling(self, request: SamplingRequest, limit: int | None, given: int) -> Sampling:
        """Sampling of a request: what it says, else what the model's run used, else OpenAI's defaults.

        limit: most tokens of the reply; None: the run's, else what has room after the `given` ones. Raises UserError if
        they do not fit.
        """
        room = self.config.max_tokens - given
        own: dict[str, Any] = dict(self.prompting.sampling)
        if limit is None:
            limit = min(room, int(own.get("max_new_tokens", room)))
        if room < 1 or limit > room:
            raise UserError(
                f"prompt and reply must fit into {self.config.max_tokens} tokens, got {given} of the prompt and "
                f"max_tokens={limit}"
            )
        asked = {name: value for name in KNOBS if (value := getattr(request, name)) is not None}
        if asked.get("top_k") == -1:
            asked["top_k"] = 0
        values = {"temperature": 1.0, **{name: own[name] for name in KNOBS if name in own}, **asked}
        stops = tuple(dict.fromkeys((*self.stop_ids, *(request.stop_token_ids or ()))))
        if values["temperature"] == 0:  # greedy: nothing to cut
            return Sampling(temperature=0.0, max_new_tokens=limit, stop_ids=stops)
        return Sampling(**values, max_new_tokens=limit, stop_ids=stops)

    def choose_seed(self, request: SamplingRequest) -> int:
        """Seed of a request; a random one where it says nothing."""
        return int.from_bytes(os.urandom(4), "little") if request.seed is None else request.seed

    def show(self, token: int) -> str:
        """Text of one id, special tokens included."""
        return self.tokenizer.decode([token], skip_special=False)

    @in_layout
    def score(self, tokens: Sequence[int], alternatives: int) -> tuple[list[float], list[dict[int, float]]]:
        """Log-prob of each token after the first, and at its place the likeliest ids with their log-probs."""
        length = max(SHORTEST, 1 << (len(tokens) - 1).bit_length())
        padded = np.zeros((batch_parts(), length), np.int32)
        padded[:, : len(tokens)] = tokens
        logprobs, ids, values = (x[0] for x in fetch(self._score(self._params, padded, alternatives=alternatives)))
        count = len(tokens) - 1
        pairs = zip(ids[:count].tolist(), values[:count].tolist(), strict=True)
        return logprobs[:count].tolist(), [dict(zip(*pair, strict=True)) for pair in pairs]


def _score(
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
