"""Nasty completions through every reward that reads texts: each gives a finite value or None, and none hangs."""

import functools
import math

import pytest

from r1jax.rewards.registry import REWARDS, import_place
from tests.fuzz.test_parsers import _PIECES

_SEEDS = [piece * 50 for piece in _PIECES]
NASTY = [
    *_SEEDS,
    *(f"<think>a</think><answer>{seed}</answer>" for seed in _SEEDS[:30]),
    *("", " ", "\n" * 5000, "a" * 20_000, "7 " * 10_000, r"\boxed{9^{9^{9^{9}}}}", r"\boxed{\frac{1}{0}}"),
    *(r"\boxed{(" + "x+" * 500 + "x)^{99}}", r"\boxed{factorial(10^9)}", "Score: 10\n" * 500, "<answer>" * 2000),
]
ARGUMENTS = {
    "get_repetition_penalty_reward": {"ngram_size": 3, "max_penalty": -1.0},
    "get_soft_overlong_punishment": {"max_completion_len": 100, "soft_punish_cache": 20},
}
# Those that ask a model or run programs have tests of their own.
APART = ("judge", "self_rank", "code", "contests")
PLACES = sorted({place for place in REWARDS.values() if not any(f".{name}:" in place for name in APART)})


def test_there_are_enough_of_them():
    assert len(set(NASTY)) >= 80 and len(PLACES) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_reward_bears_them(place):
    reward = import_place(place)
    name = place.partition(":")[2]
    if name.startswith("get_"):
        reward = reward(**ARGUMENTS.get(name, {}))
    count = len(NASTY)
    columns = {"solution": ["7"] * count, "prompts": ["?"] * count, "completion_ids": [[1] * 30] * count}
    if "language_consistency" in place:
        reward = functools.partial(reward, language="en")
    for completions in (NASTY, [[{"role": "assistant", "content": text}] for text in NASTY]):
        values = reward(completions=completions, **columns)
        assert len(values) == count
        assert all(value is None or math.isfinite(value) for value in values)
