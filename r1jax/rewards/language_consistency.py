"""The language-consistency reward of DeepSeek-R1 (2501.12948, section 2.3.2), against mixed languages in the reasoning.

The value is the share of a reply's words in the target language, classified by script (`r1jax.text.language` defines
words). R1 adds it to the accuracy reward, at a small cost in accuracy.

    rewards.language_consistency_reward = {"weight": 0.2, "language": "en"}

Left out: languages that share a script, which cannot be told apart here (French passes for English).
"""

from collections.abc import Sequence
from typing import Any

from r1jax.rewards.completions import Completion, read_texts
from r1jax.rewards.protocol import by_row
from r1jax.text.language import language_share


@by_row
def language_consistency_reward(
    completions: Sequence[Completion], language: str | Sequence[str | None], **columns: Any
) -> list[float | None]:
    """The share of words in `language`: an ISO 639-1 code for all rows, or a column of them.

    None for a text without words, and for a row without a language. Raises UserError for an unknown language.
    """
    languages = [language] * len(completions) if isinstance(language, str) else language
    return [
        None if target is None else language_share(text, target)
        for text, target in zip(read_texts(completions), languages, strict=True)
    ]
