"""The policy as its own judge: the `generate` of rewards that call a model (`get_self_rank_reward`, ...).

A judge's prompts are longer than those of the data and do not share their prefix, so they use their own engines, one
per prompt size (sampler.py), with the current weights. Seeds are a function of (seed, step, index).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from r1jax.core.seeds import derive_seed
from r1jax.core.structs import Request, SamplingConfig
from r1jax.models.flops import Work
from r1jax.models.transformer import Params
from r1jax.runs.sampler import Sampler
from r1jax.text.encoding import encode_prompt
from r1jax.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
NO_WORK = Work()


@dataclasses.dataclass(frozen=True)
class JudgeConfig(SamplingConfig):
    """Sampling of judgements.

    Attributes:
      max_new_tokens: largest number of tokens of a judgement.
    """

    max_new_tokens: int = 128


class Judge:
    """`judge(prompts) -> texts` by the model of `graph`, within the context `weights`.

    context: positions of the model. A prompt for which it is too short gets an empty reply: a completion of rare
    characters must not make engines that fill the memory. work: FLOPs of the model, for `take_flops`.
    """

    def __init__(
        self,
        config: JudgeConfig,
        graph: nnx.GraphDef,
        tokenizer: Tokenizer,
        *,
        seed: int,
        slots: int,
        context: int,
        work: Work = NO_WORK,
    ):
        self.config, self.seed, self.tokenizer, self.context, self.work = config, seed, tokenizer, context, work
        self._sampler = Sampler(graph, {}, tokenizer, tokenizer.eos_ids, slots=slots)
        self._step = self._asked = 0
        self._flops = 0.0

    @contextlib.contextmanager
    def weights(self, params: Params, step: int, asked: int = 0) -> Iterator[None]:
        """Context in which the judge uses the weights of a step, of which `asked` prompts were answered before."""
        self._sampler.params, self._step, self._asked = params, step, asked
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
        fitting = [n for n, r in enumerate(requests) if len(r.tokens) + config.max_new_tokens <= self.context]
        if len(fitting) < len(requests):
            log.warning(
                "%d of %d prompts of the judge exceed the %d positions of its model and get no reply",
                len(requests) - len(fitting),
                len(requests),
                self.context,
            )
        replies = [""] * len(requests)
        completions = sampler.generate([requests[number] for number in fitting]) if fitting else ()
        for number, completion in zip(fitting, completions, strict=True):
            replies[number] = sampler.decode(completion.tokens)
            self._flops += self.work.sample(len(requests[number].tokens), [len(completion.tokens)])
        return replies

    def take_flops(self) -> float:
        """Useful FLOPs of the replies since the last call."""
        flops, self._flops = self._flops, 0.0
        return flops
