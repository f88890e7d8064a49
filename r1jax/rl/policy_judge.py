"""The policy as its own judge: the `generate` of rewards that call a model (`get_self_rank_reward`, ...).

A judge's prompts are longer than those of the data and do not share their prefix, so they use their own engines, one
per prompt size (sampler.py), with the current weights. Seeds are a function of (seed, step, index).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from r1jax.core.seeds import derive_seed
from r1jax.core.structs import Request, SamplingConfig
from r1jax.models.transformer import Params
from r1jax.runs.sampler import Sampler
from r1jax.text.encoding import encode_prompt
from r1jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class JudgeConfig(SamplingConfig):
    """Sampling of judgements.

    Attributes:
      max_new_tokens: largest number of tokens of a judgement.
    """

    max_new_tokens: int = 128


class Judge:
    """`judge(prompts) -> texts` by the model of `graph`, within the context `weights`."""

    def __init__(self, config: JudgeConfig, graph: nnx.GraphDef, tokenizer: Tokenizer, *, seed: int, slots: int):
        self.config, self.seed, self.tokenizer = config, seed, tokenizer
        self._sampler = Sampler(graph, {}, tokenizer, tokenizer.eos_ids, slots=slots)
        self._step = self._asked = 0

    @contextlib.contextmanager
    def weights(self, params: Params, step: int) -> Iterator[None]:
        """Context in which the judge uses the weights of a step."""
        self._sampler.params, self._step, self._asked = params, step, 0
        try:
            yield
        finally:
            self._sampler.params = {}

    def __call__(self, prompts: Sequence[str | Sequence[Mapping[str, Any]]]) -> list[str]:
        """One reply per prompt, in order."""
        sampler, config = self._sampler, self.config
        sampling = config.sampling(sampler.stop_ids)
        requests = [
            Request(
                encode_prompt(self.tokenizer, prompt),
                sampling,
                derive_seed("judge", self.seed, self._step, number),
            )
            for number, prompt in enumerate(prompts, start=self._asked)
        ]
        self._asked += len(requests)
        return [sampler.decode(completion.tokens) for completion in sampler.generate(requests)]
