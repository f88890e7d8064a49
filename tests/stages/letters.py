"""Rewards for the tests of the stages, named by `module:function` in configs: quick to learn, able to hang."""

import os
import time
from collections.abc import Sequence
from typing import Any

HANG, RAISE = "R1JAX_TEST_HANG_AT_CALL", "R1JAX_TEST_RAISE_AT_CALL"
_calls = 0


def letters_reward(completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """The share of lower-case letters among a completion's tokens. Call $R1JAX_TEST_HANG_AT_CALL of the training steps,
    those with groups, never returns, and call $R1JAX_TEST_RAISE_AT_CALL raises.
    """
    global _calls
    _calls += "group_ids" in columns
    while _calls and _calls == int(os.environ.get(HANG, 0)):
        time.sleep(60)
    if _calls and _calls == int(os.environ.get(RAISE, 0)):
        raise ValueError("the reward is broken")
    return [
        sum("a" <= character <= "z" for character in text) / len(ids)
        for text, ids in zip(completions, completion_ids, strict=True)
    ]


def constant_reward(completions: Sequence[str], **columns: Any) -> list[float]:
    """1 for everything: nothing to learn from."""
    return [1.0] * len(completions)


def odd_reward(
    completions: Sequence[str], completion_ids: Sequence[Sequence[int]], solution: Sequence[str], **columns: Any
) -> list[float]:
    """`letters_reward` where the sum is odd, 1 for everything where it is even: half of the groups teach nothing."""
    letters = letters_reward(completions, completion_ids)
    return [value if int(right) % 2 else 1.0 for value, right in zip(letters, solution, strict=True)]
