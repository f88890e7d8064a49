r"""Rewards for a reply's length: open-r1's, in characters unless tokens are stated.

`len_reward` and `get_cosine_scaled_reward` first ask math-verify whether the answer is correct. As in open-r1 they
parse the gold as LaTeX only (`$7$`, `\boxed{7}`, `\frac{1}{2}`): a bare `7` cannot be parsed, which counts as a correct
answer in the former and gives 1.0 in the latter. Write the column `solution` as LaTeX before using them.

Sources: Kimi k1.5 (arXiv 2501.12599), section 2.3.3; Yeo et al. (2502.03373), section 4; DAPO (2503.14476), eq. 13.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.rewards import verifier
from r1jax.rewards.completions import Completion, read_texts
from r1jax.rewards.guards import guard_replies
from r1jax.rewards.protocol import by_row, declare_reward


@declare_reward(by_batch=True, warm_up=verifier.warm_up)
def len_reward(
    completions: Sequence[Completion],
    solution: Sequence[Any],
    group_ids: Sequence[int] | None = None,
    per_group: bool = False,
    **columns: Any,
) -> list[float]:
    """From 0.5 for the shortest to -0.5 for the longest reply if the answer is correct; the minimum of that and 0 if
    wrong.

    Shortest and longest are those of the whole list, as in open-r1; of a row's own group, as in the paper, with
    `per_group`. If all have the same length, every reward is 0.0.
    """
    texts = read_texts(completions)
    correct = _are_correct(texts, solution)
    groups: Sequence[int] = group_ids if per_group and group_ids is not None else [0] * len(texts)
    spans: dict[int, list[int]] = {}
    for group, text in zip(groups, texts, strict=True):
        spans.setdefault(group, []).append(len(text))
    rewards = []
    for group, text, right in zip(groups, texts, correct, strict=True):
        shortest, longest = min(spans[group]), max(spans[group])
        if shortest == longest:
            rewards.append(0.0)
            continue
        value = 0.5 - (len(text) - shortest) / (longest - shortest)
        rewards.append(min(0.0, value) if right is False else value)
    return rewards


def get_cosine_scaled_reward(
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
) -> Callable[..., list[float]]:
    """A reward that falls with length from `max_value_correct` to `min_value_correct` along half a cosine wave.

    For wrong answers it rises, from `min_value_wrong` to `max_value_wrong`: longer reasoning costs less there. Fixed
    against open-r1: beyond `max_len` characters the value stays at its end, where open-r1's wave turns back.
    """

    @declare_reward(by_row=True, warm_up=verifier.warm_up)
    def cosine_scaled_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float]:
        """See `get_cosine_scaled_reward`. 1.0 where the gold cannot be parsed."""
        texts = read_texts(completions)
        rewards = []
        for text, right in zip(texts, _are_correct(texts, solution), strict=True):
            first, last = (max_value_correct, min_value_correct) if right else (min_value_wrong, max_value_wrong)
            wave = math.cos(math.pi * min(1.0, len(text) / max_len))
            rewards.append(1.0 if right is None else last + 0.5 * (first - last) * (1.0 + wave))
        return rewards

    return cosine_scaled_reward


def get_soft_overlong_punishment(
    max_completion_len: int = 16384, soft_punish_cache: int = 4096
) -> Callable[..., list[float]]:
    """A penalty in tokens: 0 up to `max_completion_len - soft_punish_cache`, then linear, -1 beyond the maximum."""

    @by_row
    def soft_overlong_punishment_reward(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        """See `get_soft_overlong_punishment`."""
        free = max_completion_len - soft_punish_cache
        rewards = []
        for length in map(len, completion_ids):
            if length <= free:
                rewards.append(0.0)
            else:
                rewards.append((free - length) / soft_punish_cache if length <= max_completion_len else -1.0)
        return rewards

    return soft_overlong_punishment_reward


def _are_correct(texts: Sequence[str], solution: Sequence[Any]) -> list[bool | None]:
    """Verdict of math-verify on each, called as open-r1 does here; None where the gold cannot be parsed."""
    golds = [None if gold is None else str(gold) for gold in solution]
    verdicts = verifier.verify(list(zip(golds, guard_replies(texts, solution), strict=True)), latex_gold=True)
    return [None if verdict is None else verdict == 1.0 for verdict in verdicts]
