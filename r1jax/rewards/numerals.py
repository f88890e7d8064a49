r"""Exact reading of numbers as people and models write them.

`1,234.50`, `$18`, `-3`, `−3`, `1/2`, `2 1/2`, `\frac{1}{2}`, `50%`, `1.5e3`, `72 clips`: each becomes a `Fraction`, so
that comparisons are exact. The text comes from a model and is untrusted: every pattern here runs in linear time, and a
numeral of more than `MAX_DIGITS` digits has no value (Python's big integers could stall the run).

Left out: decimal commas (`3,5`), number words, powers and anything that must be calculated.
"""

import re
from collections import deque
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 1000

# Possessive quantifiers `++` and atomic groups `(?>` never backtrack, so no input makes the matcher slow.
_INTEGER = r"(?>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
_NUMBER = rf"(?>(?:{_INTEGER}(?:\.[0-9]++)?|(?<![\w.])\.[0-9]++)(?:[eE][+-]?[0-9]++)?)"
_NUMERAL = (
    # A minus between two terms (`5-3`, `x-3`) is an operator, not a sign.
    r"(?P<sign>(?<![\w.)\]}])-)?(?:\\?[$€£¥₹] ?(?P<inner_sign>-)?)?"
    r"(?:"
    rf"(?:(?P<latex_whole>[0-9]++) ?)?\\[dt]?frac ?(?:\{{ ?(?P<latex_top>-?{_NUMBER}) ?\}} ?"
    rf"\{{ ?(?P<latex_bottom>-?{_NUMBER}) ?\}}|(?P<short_top>[0-9])(?P<short_bottom>[0-9]))"
    rf"|(?:(?P<whole>[0-9]++) )?(?P<top>{_NUMBER}) ?/ ?(?P<bottom>{_NUMBER})"
    rf"|(?P<plain>{_NUMBER})"
    r")"
    r"(?P<percent> ?(?:\\?%|per ?cent\b))?"
)
_UNIT = r"(?P<unit> ?\\(?:text|mathrm|mbox) ?\{[^{}0-9]*\}| [A-Za-z]{2,})?"
_ANYWHERE = re.compile(_NUMERAL)
_WHOLE = re.compile(_NUMERAL + _UNIT + r"\.?")

_MINUS_SIGNS = str.maketrans(dict.fromkeys("−–﹣－", "-"))
_SCALE_WORDS = frozenset("hundred thousand million billion trillion dozen percent".split())
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'))
_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox) ?\{([^{}]*)\}")
_DEGREES = re.compile(r" ?(?:\^ ?\\circ|\^ ?\{ ?\\circ ?\}|\\degree|°)")
_MAX_UNWRAPPED_LENGTH = 8 * MAX_DIGITS


@dataclass(frozen=True)
class Numeral:
    """A number in a text: its value as written (`50%` is 50, with `percent` True)."""

    value: Fraction
    percent: bool = False


def same_value(a: Numeral, b: Numeral) -> bool:
    """Whether two numerals mean the same number.

    `50%` equals `0.5` and, as many answer keys leave the sign out, `50`.
    """
    if a.percent == b.percent:
        return a.value == b.value
    percent, other = (a, b) if a.percent else (b, a)
    return other.value in (percent.value, percent.value / 100)


def find_last_numeral(text: str) -> Numeral | None:
    """The last number of a text; None if there is none, or if it cannot be read (too long, n/0)."""
    matches = deque(_ANYWHERE.finditer(_plain_spelling(text)), maxlen=1)
    return _value_of(matches[0]) if matches else None


def read_numeral(text: str) -> Numeral | None:
    """The number that a short text consists of; None for any other text.

    The number may be surrounded by LaTeX or Markdown wrappers, a variable (`x = 5`), a unit (`5 cm`) and a full stop.
    """
    text = unwrap(text)
    if len(text) > _MAX_UNWRAPPED_LENGTH:
        return None
    text = re.sub(r"\s+", " ", _DEGREES.sub("", _plain_spelling(text))).strip()
    text = re.sub(r"^[A-Za-z] ?= ?", "", text)
    match = _WHOLE.fullmatch(re.sub(r"^- ", "-", text))
    if match is None or _SCALE_WORDS.intersection(re.findall(r"[a-z]+", (match["unit"] or "").lower())):
        return None
    return _value_of(match)


def unwrap(text: str) -> str:
    r"""Strips white space, final full stops, and wrappers around the whole text: `$x$`, `\(x\)`, `**x**`,
    `\text{x}`.
    """
    text = text.strip()
    while len(text) <= _MAX_UNWRAPPED_LENGTH:
        inner = _strip_one_wrapper(text.removesuffix("."))
        if inner == text:
            break
        text = inner
    return text


def _strip_one_wrapper(text: str) -> str:
    text = text.strip()
    for start, end in _WRAPPERS:
        inner = text[len(start) : -len(end)]
        if len(text) > len(start) + len(end) and text.startswith(start) and text.endswith(end) and start not in inner:
            return inner.strip()
    match = _COMMAND.fullmatch(text)
    return match[1].strip() if match else text


def _plain_spelling(text: str) -> str:
    r"""Canonical spelling of minus signs and of LaTeX's digit grouping: `1{,}234`, `1\,234`, `1,\!234`."""
    text = text.translate(_MINUS_SIGNS).replace("{,}", ",").replace(r"\!", "")
    return re.sub(r"(?<=[0-9])\\,(?=[0-9]{3})", "", text).replace(r"\,", " ")


def _value_of(match: re.Match[str]) -> Numeral | None:
    """The value of a match; None if it has none (too many digits, too large an exponent, division by zero)."""
    if len(match[0]) > MAX_DIGITS:
        return None
    parts = match.groupdict()
    try:
        value = _magnitude(parts)
    except (ValueError, ZeroDivisionError):
        return None
    negative = bool(parts["sign"]) != bool(parts["inner_sign"])
    return Numeral(-value if negative else value, percent=bool(parts["percent"]))


def _magnitude(parts: dict[str, str | None]) -> Fraction:
    if parts["plain"]:
        return _fraction(parts["plain"])
    top = parts["latex_top"] or parts["short_top"] or parts["top"]
    bottom = parts["latex_bottom"] or parts["short_bottom"] or parts["bottom"]
    whole = parts["latex_whole"] or parts["whole"] or "0"
    return _fraction(whole) + _fraction(top or "") / _fraction(bottom or "")


def _fraction(digits: str) -> Fraction:
    exponent = re.search(r"[eE][+-]?([0-9]+)$", digits)
    if exponent and (len(exponent[1]) > 4 or int(exponent[1]) > MAX_DIGITS):
        raise ValueError(f"exponent above {MAX_DIGITS}")
    return Fraction(digits.replace(",", ""))
