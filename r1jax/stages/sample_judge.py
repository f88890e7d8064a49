"""Judge of collected samples: the model that gave them, asked by rewards that rank or score a reply
(rewards/self_rank.py, rewards/judge.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from r1jax.models.transformer import merge
from r1jax.rl.policy_judge import Judge, JudgeConfig
from r1jax.runs.sampler import Sampler
from r1jax.weights.pretrained import require_tokenizer


class SampleJudge:
    """`judge(prompts) -> texts` by a sampler's model, which `find_sampler` gives at the first question."""

    def __init__(self, config: JudgeConfig, find_sampler: Callable[[], Sampler], *, seed: int):
        self._config, self._find, self._seed = config, find_sampler, seed
        self._judge: Judge | None = None
        self._place = self._asked = 0

    def begin(self, place: int) -> None:
        """Begins the questions about the chunk at `place`. Replies are a function of it, and of their number in it."""
        self._place, self._asked = place, 0

    def __call__(self, prompts: Sequence[Any]) -> list[str]:
        """One reply per prompt, in order."""
        sampler = self._find()
        if self._judge is None:
            tokenizer = require_tokenizer(sampler.tokenizer, "the model that judges")
            context = merge(sampler.graph, sampler.params).config.max_positions
            options = {"seed": self._seed, "slots": sampler.slots, "context": context}
            self._judge = Judge(self._config, sampler.graph, tokenizer, **options)
        with self._judge.weights(sampler.params, self._place, self._asked):
            self._asked += len(prompts)
            return self._judge(prompts)
