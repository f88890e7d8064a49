r"""Words of a text by the script they are written in: how much of it is in the language it should be in.

DeepSeek-R1 (arXiv:2501.12948, section 2.3.2) measures language consistency as the share of words of the target
language in the reasoning. Words are told apart by script: runs of letters; Chinese and Japanese, which have no spaces,
count two characters a word, about what their dictionaries say. What belongs to no language is no word: numbers, LaTeX
commands, tags, fenced code, and single Latin letters, which are variables.

Left out: languages that share a script (French and English): that takes a model or a dictionary.
"""

import re
from collections import Counter

from r1jax.core.errors import UserError

# Ranges of characters by script.
SCRIPTS = {
    "latin": "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
    "kana": "\u3041-\u309f\u30a0-\u30ff\uff66-\uff9f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "cyrillic": "\u0400-\u052f",
    "greek": "\u0370-\u03ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "hebrew": "\u0590-\u05ff",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
}
LANGUAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("en", "de", "es", "fr", "it", "nl", "pl", "pt", "tr", "vi"), ("latin",)),
    "zh": ("han",),
    "ja": ("han", "kana"),
    "ko": ("hangul",),
    **dict.fromkeys(("ru", "uk", "bg"), ("cyrillic",)),
    "el": ("greek",),
    "ar": ("arabic",),
    "he": ("hebrew",),
    "hi": ("devanagari",),
    "th": ("thai",),
}
_UNSPACED = 2  # characters a word where words are not parted
_WORD = re.compile("|".join(f"(?P<{script}>[{letters}]+)" for script, letters in SCRIPTS.items()))
_NO_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|\\[A-Za-z]+|</?[A-Za-z_]+>|<\|[^|<>]*\|>", re.DOTALL)


def count_scripts(text: str) -> Counter[str]:
    """Words of a text by script."""
    counts = Counter[str]()
    for match in _WORD.finditer(_NO_LANGUAGE.sub(" ", text)):
        script, letters = match.lastgroup or "", len(match[0])
        if script in ("han", "kana", "thai"):
            counts[script] += -(-letters // _UNSPACED)
        elif script != "latin" or letters > 1 or match[0] in "aAI":
            counts[script] += 1
    return counts


def language_share(text: str, language: str) -> float | None:
    """The share of the text's words that are written as `language` (an ISO 639-1 code) is; None without words.

    Raises UserError for a language that is not among `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    counts = count_scripts(text)
    total = sum(counts.values())
    return sum(counts[script] for script in LANGUAGES[language]) / total if total else None
