"""A teacher without a model, whose samples follow from the number of the prompt, and rewards that count their calls.

What surrounds it is real: chunks, journals, scores, filters and the set. Samples of a chunk end in any order.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from r1jax.core.structs import Completion
from r1jax.runs.model_setup import ModelConfig
from r1jax.stages import collection

MODEL = ModelConfig(preset="llama_tiny")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
scored: list[str] = []  # completions that the reward has seen


class StubSampler:
    """Decodes ids to words."""

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(WORDS[token % len(WORDS)] for token in tokens)


class StubWindows:
    """Stands for r1jax.runs.generate.Windows."""

    def __init__(self, config: collection.TeacherSampling):
        self._config, self.sampled = config, list[int]()

    def sample(self, numbers: Sequence[int], on_row: Callable[[int, list[Completion]], None]) -> None:
        self.sampled += numbers
        order = list(numbers)
        random.Random(len(order)).shuffle(order)
        for number in order:
            generator = random.Random(number)
            groups = []
            for _ in range(self._config.num_samples):
                tokens = tuple(
                    generator.randrange(12) for _ in range(generator.randrange(3, self._config.max_new_tokens))
                )
                reason = "length" if generator.random() < 0.1 else "stop"
                groups.append(Completion(tokens, tuple(-generator.random() for _ in tokens), reason))
            first = groups[0]
            if generator.random() < 0.3:  # the last one says it again, or nearly
                groups[-1] = first
            elif generator.random() < 0.3:
                groups[-1] = Completion((*first.tokens, number % 12), (*first.logprobs, -0.5), first.finish_reason)
            on_row(number, groups)


def install(monkeypatch: pytest.MonkeyPatch) -> list[StubWindows]:
    """Puts the stub in place of every teacher; the list gets what was loaded."""
    loaded: list[StubWindows] = []

    def load(teacher: Any) -> Any:
        loaded.append(StubWindows(teacher._config))
        return StubSampler(), loaded[-1]

    monkeypatch.setattr(collection.Teacher, "_load", load)
    return loaded


def words_reward(completions: Sequence[str], solution: Sequence[str], **columns: Any) -> list[float]:
    """The share of words that are not the solution. $R1JAX_TEST_REWARD_SECONDS: time that each sample takes."""
    scored.extend(completions)
    time.sleep(len(completions) * float(os.environ.get("R1JAX_TEST_REWARD_SECONDS", 0)))
    return [
        1 - text.split().count(right) / max(1, len(text.split()))
        for text, right in zip(completions, solution, strict=True)
    ]


def letters_and_time_reward(completions: Sequence[str], completion_ids: Sequence[Any], **columns: Any) -> list[float]:
    """The share of lower-case letters among tokens, after $R1JAX_TEST_REWARD_SECONDS for each sample."""
    time.sleep(len(completions) * float(os.environ.get("R1JAX_TEST_REWARD_SECONDS", 0)))
    return [
        sum("a" <= character <= "z" for character in text) / len(ids)
        for text, ids in zip(completions, completion_ids, strict=True)
    ]
