"""Rewards for the form of a reply: marked steps, and no repeated phrases. open-r1's.

Source of the penalty: Yeo et al. (arXiv 2502.03373), appendix C.2. Both are easily exploited; give them small weights.
"""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.startup.program_cache import find_user_cache
from r1jax.rewards.completions import Completion, read_texts
from r1jax.rewards.protocol import by_row

# As in open-r1, a bare "1." counts at the very start of the text only.
_STEP = re.compile(r"Step \d+:|\A\d+\.|\n[-*]|First,|Second,|Next,|Finally,")


@by_row
def reasoning_steps_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """A third for each step mark ("Step 2:", a bullet at a line's start, "First,"), up to 1.0."""
    return [min(1.0, sum(1 for _ in _STEP.finditer(text)) / 3) for text in read_texts(completions)]


def get_repetition_penalty_reward(
    ngram_size: int = 3, max_penalty: float = -1.0, language: str = "en"
) -> Callable[..., list[float]]:
    """A reward of `max_penalty` times the share of n-grams that repeat an earlier one; 0.0 for fewer than `ngram_size`
    words.

    Words are separated by white space, in lower case (`en`), or found by jieba (`zh`). Raises UserError (also a
    ValueError, as in open-r1) for a positive penalty and for other languages.
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
    """A UserError that is also a ValueError, which callers of open-r1's functions expect."""


def _split_english(text: str) -> list[str]:
    return text.lower().split()


def _split_chinese(text: str) -> list[str]:
    import jieba  # takes a second to load, so only on demand

    jieba.setLogLevel("WARNING")
    if jieba.dt.tmp_dir is None:  # its default is the machine's shared one, where another user may have left a file
        jieba.dt.tmp_dir = _make_private_folder()
    return list(jieba.cut(text))


def _make_private_folder() -> str:
    """A folder for jieba's cache that only this user can write: in the user's cache, else one for this process."""
    folder = find_user_cache() / "jieba"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK):
            return str(folder)
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="r1jax-jieba-")


_SPLIT: dict[str, Callable[[str], list[str]]] = {"en": _split_english, "zh": _split_chinese}
