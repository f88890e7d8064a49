"""A MODEL behind the server: prompts to ids, sampling with the model's own defaults, and log-probs of given tokens."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.structs import Sampling
from r1jax.eval.prompting import Prompting
from r1jax.models.adapters.adapter_bank import AdapterBank
from r1jax.rollout.continuous import ContinuousConfig, ContinuousEngine
from r1jax.runs.conversation import choose_turns
from r1jax.runs.likelihood import Likelihood
from r1jax.runs.sampler import Sampler
from r1jax.serving.requests import SamplingRequest
from r1jax.serving.worker import BusyError
from r1jax.text.chat_template import render
from r1jax.text.encoding import encode_prompt
from r1jax.text.tokenizer import Tokenizer
from r1jax.tuning.adapter_files import read_adapter
from r1jax.tuning.sampler_bank import Adapter, SamplerBank
from r1jax.weights.pretrained import require_tokenizer

KNOBS = ("temperature", "top_p", "top_k", "min_p")


class ModelHost:
    """A loaded model with its engine. name: under which clients know it. prompting: how its run asked it, or None.

    bank: of adapters that may stand beside the model, or None.
    """

    def __init__(
        self,
        name: str,
        sampler: Sampler,
        prompting: Prompting | None,
        config: ContinuousConfig,
        bank: AdapterBank | None = None,
    ):
        self.name, self.config = name, config
        self.tokenizer: Tokenizer = require_tokenizer(sampler.tokenizer, name)
        self.prompting = choose_turns(sampler, prompting)
        self.stop_ids = self.prompting.stop_ids or sampler.stop_ids
        self.vocab_size = sampler.vocab_size
        self.adapters: SamplerBank | None = None
        if bank is None:
            self.engine = ContinuousEngine(sampler.graph, sampler.params, config)
            self._likelihood = Likelihood(sampler.graph, sampler.params)
        else:
            load = lambda file: read_adapter(bank, pathlib.Path(file))
            self.adapters = SamplerBank(bank, sampler.params, load, config.slots)
            self.engine = ContinuousEngine(bank.graph, self.adapters.params, config)
            self._likelihood = Likelihood(bank.graph, self.adapters.params_of(None))

    def score(self, tokens: Sequence[int], alternatives: int) -> tuple[list[float], list[dict[int, float]]]:
        """Log-prob of each token after the first, and the likeliest ids at its place (`Likelihood`)."""
        return self.score_with(None, tokens, alternatives, None)[:2]

    def score_with(
        self, adapter: Adapter | None, tokens: Sequence[int], alternatives: int, targets: np.ndarray | None
    ) -> tuple[list[float], list[dict[int, float]], np.ndarray | None]:
        """`score` by the model with an adapter, and log-probs [T - 1, K] of `targets`. Of the engine's thread alone."""
        if self.adapters is None:
            params = None
        else:
            if adapter is not None and not self.adapters.acquire(adapter):
                raise BusyError
            params = self.adapters.params_of(adapter)
        try:
            found = self._likelihood.find_alternatives(tokens, alternatives, params=params)
            scored = None if targets is None else self._likelihood.score_targets(tokens, targets, params=params)
            return *found, scored
        finally:
            if adapter is not None and self.adapters is not None:
                self.adapters.release(adapter)

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

    def choose_sampling(self, request: SamplingRequest, limit: int | None, prompt: Sequence[int]) -> Sampling:
        """Sampling of a request: what it says, else what the model's run used, else OpenAI's defaults.

        limit: most tokens of the reply; None: the run's, else what has room after the prompt. Raises UserError if they
        do not fit.
        """
        given, room = len(prompt), self.config.max_tokens - len(prompt)
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

    def describe_tokenizer(self) -> dict[str, Any]:
        """Special tokens by their roles and the chat template, for clients that have no tokenizer of their own."""
        tokenizer = self.tokenizer
        roles = {"eos_token": self.show(tokenizer.eos_ids[0])} if tokenizer.eos_ids else {}
        return {**roles, **tokenizer.template_variables, "chat_template": tokenizer.chat_template}

    def show(self, token: int) -> str:
        """Text of one id, special tokens included."""
        return self.tokenizer.decode([token], skip_special=False)
