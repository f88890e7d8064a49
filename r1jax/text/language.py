r"""Word counts of a text by script, to measure how much of it is in a given language.

DeepSeek-R1 (arXiv:2501.12948, section 2.3.2) measures language consistency as the share of words in the target language
in the reasoning. Words are runs of letters, classified by script; scripts without spaces (Chinese, Japanese, Thai, Lao,
Khmer, Burmese) count as one word per two characters, close to dictionary segmentation. Letters of a script that is not
in `SCRIPTS` count as words of the script `other`, which belongs to no supported language.

Not counted: numbers, LaTeX commands, tags, single Latin letters, and runs of one or two Greek letters, which are
variables (`θ`, `αβ`). In code (back ticks, and fenced blocks whose lines look like code) Latin words are not counted;
in mathematics (`$...$`, `\(...\)`) and other fenced blocks only those of at least four letters are. Other scripts
count there as everywhere, because no code or formula needs them: text cannot be hidden between such marks.

Left out: languages that share a script (French and English); telling them apart takes a model or a dictionary.
"""

import re
import unicodedata
from collections import Counter

from r1jax.core.errors import UserError

# Ranges of characters by script.
SCRIPTS = {
    "latin": "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "han": "\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
    "kana": "\u3041-\u309f\u30a0-\u30ff\uff66-\uff9f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "cyrillic": "\u0400-\u052f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "arabic": "\u0600-\u065f\u066e-\u06ef\u06fa-\u06ff\u0750-\u077f",
    "hebrew": "\u0590-\u05ff",
    "devanagari": "\u0900-\u0965\u0970-\u097f",
    "thai": "\u0e00-\u0e4e",
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
_LISTED = "".join(SCRIPTS.values())
# Scripts whose vowels are marks, which `[^\W\d_]` leaves out: Indic, Tibetan, Ethiopic, Mongolian.
_WITH_MARKS = "\u0980-\u0dff\u0f00-\u0fff\u1200-\u139f\u1800-\u18af"
_UNSPACED_OTHERS = "\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # Lao, Burmese, Khmer
# Each match is one word.
_WORDS = {script: re.compile(f"[{letters}]+") for script, letters in SCRIPTS.items()}
_WORDS |= {script: re.compile(f"[{SCRIPTS[script]}]{{1,2}}") for script in ("han", "kana", "thai")}
_WORDS["greek"] = re.compile(f"[{SCRIPTS['greek']}]{{3,}}")  # one or two are variables
_WORDS["latin"] = re.compile("(?<![{0}])[aAI](?![{0}])|[{0}]{{2,}}".format(SCRIPTS["latin"]))
_WORDS["other"] = re.compile(
    rf"[{_UNSPACED_OTHERS}]{{1,2}}"
    rf"|(?![{_LISTED}])[^\W\d_](?:(?![{_LISTED}{_UNSPACED_OTHERS}])[^\W\d_]|[{_WITH_MARKS}])*"
)
_MATHEMATICAL_WORD = re.compile(f"[{SCRIPTS['latin']}]{{4,}}")  # shorter ones are names: sin, max

_FENCE = re.compile(r"`{3,}|^[ \t>]{0,8}~{3,}", re.MULTILINE)
_FENCE_NAME = re.compile(r"[ \t]*[A-Za-z0-9+#.]{1,20}[ \t]*\n")
_LINE = re.compile(r"^.", re.MULTILINE)
_CODE_LINE = re.compile(r"^[^\n=(){}\[\];:#<>]*[=(){}\[\];:#<>]", re.MULTILINE)
# Code in back ticks; mathematics in dollars, \( \) or \[ \]. Spans are short and hold no other opening mark, so
# that a search takes linear time.
_NAMES = re.compile(
    r"`([^`\n]{1,400})`|(\$\$[^$]{1,2000}\$\$|\$[^$\n]{1,400}\$"
    r"|\\\((?:[^\\\n]|\\[^()\n]){1,400}\\\)|\\\[(?:[^\\]|\\[^\[\]]){1,2000}\\\])"
)
_NO_LANGUAGE = re.compile(r"\\[A-Za-z]+|</?[A-Za-z_]+>|<[|｜][A-Za-z0-9_ ▁-]{1,60}[|｜]>")


def count_scripts(text: str) -> Counter[str]:
    """Number of words of a text in each script of `SCRIPTS`, and in `other`."""
    prose: list[str] = []
    mathematics: list[str] = []
    code: list[str] = []

    def set_apart(span: re.Match[str]) -> str:
        (mathematics if span[1] is None else code).append(span[0])
        return " "

    for number, piece in enumerate(_FENCE.split(unicodedata.normalize("NFKC", text))):
        # Every second piece is in a fence, the last one also if its fence is never closed.
        if number % 2 == 0:
            prose.append(_NAMES.sub(set_apart, piece))
        elif piece.strip():
            name = _FENCE_NAME.match(piece)
            piece = piece[name.end() :] if name else piece
            is_code = 2 * len(_CODE_LINE.findall(piece)) >= len(_LINE.findall(piece))
            (code if is_code else mathematics).append(piece)
    counts = Counter[str]()
    for pieces, latin in ((prose, _WORDS["latin"]), (mathematics, _MATHEMATICAL_WORD), (code, None)):
        words = _NO_LANGUAGE.sub(" ", "\n".join(pieces))
        for script, pattern in _WORDS.items():
            wanted = latin if script == "latin" else pattern
            if wanted and (script == "latin" or not words.isascii()):
                counts[script] += len(wanted.findall(words))
    return +counts


def language_share(text: str, language: str) -> float | None:
    """Share of the text's words in the script of `language` (an ISO 639-1 code); None for a text without words.

    Raises UserError for a language that is not in `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    counts = count_scripts(text)
    total = sum(counts.values())
    return sum(counts[script] for script in LANGUAGES[language]) / total if total else None
