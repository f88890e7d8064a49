"""Rewards for how a reply is written: steps that can be told apart, and phrases that are not repeated. open-r1's.

Source of the penalty: Yeo et al. (arXiv 2502.03373), appendix C.2. Both are easily farmed; give them small weights.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.completions import Completion, read_texts
from r1jax.rewards.protocol import by_row

# As in open-r1, a bare "1." counts at the very start of the text only.
_STEP = re.compile(r"Step \d+:|\A\d+\.|\n[-*]|First,|Second,|Next,|Finally,")


@by_row
def reasoning_steps_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """A third for each mark of a step ("Step 2:", a bullet at a line's start, "First,"), 1.0 from three on."""
    return [min(1.0, sum(1 for _ in _STEP.finditer(text)) / 3) for text in read_texts(completions)]


def get_repetition_penalty_reward(
    ngram_size: int = 3, max_penalty: float = -1.0, language: str = "en"
) -> Callable[..., list[float]]:
    """A reward of `max_penalty` times the share of n-grams that repeat an earlier one; 0.0 under `ngram_size` words.

    Words are what stands between white space, in lower case (`en`), or what jieba finds (`zh`). Raises UserError, a
    ValueError as in open-r1, on a positive penalty and on other languages.
    """
    if max_penalty > 0:
        raise _ArgumentError(f"max_penalty {max_penalty} should not be positive")
    if language not in _SPLIT:
        raise _ArgumentError(f"language must be one of {', '.join(_SPLIT)}, got {language!r}")

    @by_row
    def repetition_penalty_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
        """See `get_repetition_penalty_reward`."""
        rewards = []
        for text in read_texts(completions):
            words = _SPLIT[language](text)
            total = len(words) - ngram_size + 1
            unique = len({tuple(words[i : i + ngram_size]) for i in range(total)})
            rewards.append((1 - unique / total) * max_penalty if total > 0 else 0.0)
        return rewards

    return repetition_penalty_reward


class _ArgumentError(UserError, ValueError):
    """What a main prints as one line, and open-r1's callers expect as a ValueError."""


def _split_english(text: str) -> list[str]:
    return text.lower().split()


def _split_chinese(text: str) -> list[str]:
    import jieba  # a second to load, for those who need it

    jieba.setLogLevel("WARNING")
    return list(jieba.cut(text))


_SPLIT: dict[str, Callable[[str], list[str]]] = {"en": _split_english, "zh": _split_chinese}
