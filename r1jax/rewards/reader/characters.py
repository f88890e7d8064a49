r"""Normal forms of equivalent characters: digits of all scripts, minus signs, spaces, powers, fractions.

`４８`, `٤٨`, `𝟒𝟖` become `48`; `10³` becomes `10^{3}`; `2½` becomes `2 \frac{1}{2}`; thin and hard spaces become
spaces; invisible characters (zero-width spaces, soft hyphens, direction marks) are removed. Letters of other scripts
are kept. Works character by character, so that no order of accents can make it slow.
"""

import functools
import re
import unicodedata
from fractions import Fraction

_MINUS_SIGNS = "‐‑‒–−﹣－"
_NAMED = {
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "÷": "/",
    "⁄": "/",
    "∕": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∅": r"\emptyset ",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "¢": " cents",
    "Ω": "Ω",
    "″": '"',
    "′": "'",
}
_RAISED = re.compile(r"\^\{([^{}]*)\}\^\{([^{}]*)\}")
_RAISED_SIGNS = {"⁰": "0", "¹": "1", "²": "2", "³": "3", "⁺": "+", "⁻": "-", "ⁿ": "n"}


def plain_characters(text: str) -> str:
    """The text with these characters in normal form."""
    if text.isascii():
        return text
    text = text.translate(_table())
    while True:  # joins the digits of `10¹²` into one power
        joined = _RAISED.sub(r"^{\1\2}", text)
        if joined == text:
            return text
        text = joined


@functools.cache
def _table() -> dict[int, str]:
    table: dict[int, str] = {}
    for code in (*range(0x80, 0x1FC00), *range(0xE0000, 0xE0200)):
        character = chr(code)
        category = unicodedata.category(character)
        if category in ("Cf", "Mn") and code >= 0x2000 or character in "\u00ad\u061c\u180e\ufeff":
            table[code] = ""
        elif category == "Nd":
            table[code] = str(unicodedata.decimal(character))
        elif category == "Zs":
            table[code] = " "
        elif category == "No" and "VULGAR FRACTION" in unicodedata.name(character, ""):
            value = Fraction(unicodedata.numeric(character)).limit_denominator(100)
            table[code] = rf" \frac{{{value.numerator}}}{{{value.denominator}}}"
        elif 0xFF01 <= code <= 0xFF5E or 0x1D400 <= code <= 0x1D7FF:
            table[code] = unicodedata.normalize("NFKC", character)
    table |= {0x2070 + digit: f"^{{{digit}}}" for digit in range(4, 10)}
    table |= {ord(sign): f"^{{{plain}}}" for sign, plain in _RAISED_SIGNS.items()}
    table |= {ord(sign): "-" for sign in _MINUS_SIGNS}
    return table | {ord(character): plain for character, plain in _NAMED.items()}
