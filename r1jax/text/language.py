"""Word counts of a text by script, to measure how much of it is in a given language.

DeepSeek-R1 (arXiv:2501.12948, section 2.3.2) measures language consistency as the share of words in the target language
in the reasoning. Words are runs of letters, classified by script; Chinese and Japanese, written without spaces, count
as one word per two characters, close to dictionary segmentation. Not counted: numbers, LaTeX commands, tags, fenced
code, and single Latin letters, which are variables.

Left out: languages that share a script (French and English); telling them apart takes a model or a dictionary.
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
_UNSPACED = 2  # characters per word in scripts without spaces
_WORD = re.compile("|".join(f"(?P<{script}>[{letters}]+)" for script, letters in SCRIPTS.items()))
_NO_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|\\[A-Za-z]+|</?[A-Za-z_]+>|<\|[^|<>]*\|>", re.DOTALL)


def count_scripts(text: str) -> Counter[str]:
    """Number of words of a text in each script."""
    counts = Counter[str]()
    for match in _WORD.finditer(_NO_LANGUAGE.sub(" ", text)):
        script, letters = match.lastgroup or "", len(match[0])
        if script in ("han", "kana", "thai"):
            counts[script] += -(-letters // _UNSPACED)
        elif script != "latin" or letters > 1 or match[0] in "aAI":
            counts[script] += 1
    return counts


def language_share(text: str, language: str) -> float | None:
    """Share of the text's words in the script of `language` (an ISO 639-1 code); None for a text without words.

    Raises UserError for a language that is not in `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    counts = count_scripts(text)
    total = sum(counts.values())
    return sum(counts[script] for script in LANGUAGES[language]) / total if total else None
