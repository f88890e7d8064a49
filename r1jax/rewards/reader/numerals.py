r"""Exact reading of numbers as people and models write them.

`1,234.50`, `$18`, `-3`, `−3`, `1/2`, `2 1/2`, `\frac12`, `½`, `50%`, `1.5e3`, `1.5\times10^3`, `1 234 567`, `١٢`,
`12\text{ cm}^2`, `x = 5`: each becomes a `Fraction`, so that comparisons are exact. The text comes from a model and is
untrusted: every pattern here runs in linear time, and a numeral of more than `MAX_DIGITS` digits has no value (Python's
big integers could stall the run).

A power of ten and a reducible fraction are numbers as a whole; other powers, sums, products, roots and factorials are
not, because they must be calculated. Left out: decimal commas (`3,5`) and number words (a scale word, as in `7
million`, makes a number a text).
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from r1jax.rewards.reader.characters import plain_characters
from r1jax.rewards.reader.spelling import MAX_UNWRAPPED_LENGTH, unwrap
from r1jax.rewards.reader.units import CURRENCIES, read_unit

MAX_DIGITS = 1000

# Possessive quantifiers `++` and atomic groups `(?>` never backtrack, so no input makes the matcher slow.
_INTEGER = (
    r"(?>[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[1-9][0-9]?(?:,[0-9]{2}){1,4},[0-9]{3}(?![0-9])"
    r"|[1-9][0-9]{0,2}(?: [0-9]{3}){1,5}(?! ?[0-9])|[1-9][0-9]{0,2}(?:'[0-9]{3}){1,5}(?![0-9])|[0-9]++)"
)
_NUMBER = rf"(?>(?:{_INTEGER}(?:\.[0-9]++|\.(?![\w.]))?|(?<![\w.])\.[0-9]++)(?:[eE][+-]?[0-9]++)?)"
_POWER = r"\^ ?(?:(?P<{0}>-?[0-9]++)|\{{ ?(?P<{0}_braced>[+-]?[0-9]++) ?\}})"
_DOLLARS = r"\\?[$€£¥₹] ?"
_NUMERAL = (
    # A minus between two terms (`5-3`, `x-3`) is an operator, not a sign; a digit in a power or index is not a number.
    # No match begins inside a number, so that a failed match is not retried digit by digit.
    r"(?<![\^_0-9])(?<![0-9][.])(?<!\^\{)(?<!_\{)(?<!\^-)(?<!\^\{-)"
    rf"(?P<sign>(?<![\w.)\]}}])[+-])?(?:(?P<currency>{_DOLLARS})(?P<inner_sign>-)?)?"
    r"(?:"
    rf"(?:(?P<latex_whole>[0-9]++) ?)?\\[dtc]?frac ?(?:"
    rf"\{{ ?(?P<latex_top>[+-]?{_NUMBER}) ?\}} ?\{{ ?(?P<latex_bottom>[+-]?{_NUMBER}) ?\}}"
    rf"|\{{ ?(?P<half_top>[+-]?{_NUMBER}) ?\}} ?(?P<half_bottom>[0-9])"
    rf"|(?P<short_top>[0-9]) ?(?:(?P<short_bottom>[0-9])|\{{ ?(?P<short_braced>[+-]?{_NUMBER}) ?\}}))"
    rf"|\{{?(?P<over_top>-?{_NUMBER}) ?\\over ?(?P<over_bottom>-?{_NUMBER}) ?\}}?"
    rf"|(?:(?P<whole>[0-9]++)(?: |-(?=[0-9]++/[0-9])))?(?P<top>{_NUMBER}) ?/ ?(?:(?P<bottom>{_NUMBER})"
    rf"|\{{ ?(?P<bottom_braced>{_NUMBER}) ?\}})"
    rf"|(?:(?P<mantissa>{_NUMBER}) ?(?:\\times|\\cdot|\*|[xX]) ?)?(?P<base>{_NUMBER}) ?{_POWER.format('power')}"
    rf"|(?P<plain>{_NUMBER})"
    r")"
    r"(?!_|[0-9]|\.[0-9])"
    r"(?P<percent> ?(?:\\ ?)?(?:\\?%|(?:\\text ?\{ ?)?(?:per ?cent|pct)\b(?: ?\})?))?"
)
_ANYWHERE = re.compile(_NUMERAL)
_SCALED = re.compile(
    r"[$*})\\ ]{0,8}(?:text ?\{ ?)?(hundred|thousand|million|billion|trillion|dozen|bn|mn|k|K|M)(?![a-zA-Z])"
)
_SCALES = {
    **{"hundred": 100, "thousand": 1000, "k": 1000, "K": 1000, "dozen": 12, "million": 10**6, "mn": 10**6},
    **{"M": 10**6, "billion": 10**9, "bn": 10**9, "trillion": 10**12},
}
_CURRENCY_WORD = re.compile(
    r"^(?:\\textdollar|\\pounds|US ?\\?\$|USD|EUR|GBP|CAD|AUD|Rs\.?|INR)(?= ?[-0-9.])|^\\text ?\{ ?\\?\$ ?\}"
)
_TRAILING_CURRENCY = re.compile(r" ?(?:\\?[$€£¥₹]|\\text ?\{ ?\\?\$ ?\})$")
# Left sides of an equation that gives a value: x, x_1, \theta, f(2), AB.
_SYMBOL = (
    r"(?:[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,4}\}))?'?|\\[A-Za-z]{2,9}(?<!\\times)"
    r"|[A-Za-z] ?\([^()=]{1,12}\)|[A-Z]{2,3})"
)
_ASSIGNED = re.compile(rf"^{_SYMBOL} ?= ?(?=[^=]*$)|(?<=[0-9.}}%]) ?= ?{_SYMBOL}$")
_BOX = re.compile(r"\\[bf]?boxed ?\{|\\fbox ?\{")
_MARKED_FIRST = re.compile(r"^(\$|\*\*)([^$*]*)\1(?=.)")  # `$12$ cm`
_DIGIT = re.compile("[0-9]")
_WINDOW, _STEP = 6 * MAX_DIGITS, 3 * MAX_DIGITS
_MOST_TRIED = 20  # windows with digits and no number: nobody writes so many powers and indices
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Numeral:
    """A number in a text: its value as written (`50%` is 50, with `percent` True), and its unit ("" without one)."""

    value: Fraction
    percent: bool = False
    unit: str = ""

    @property
    def told(self) -> str:
        """The number in words: `number 12 with unit cm`."""
        value = self.value if len(str(self.value.numerator)) < 20 else f"of {len(str(self.value.numerator))} digits"
        return f"number {value}{'%' if self.percent else ''}{f' with unit {self.unit}' if self.unit else ''}"


def same_value(answer: Numeral, gold: Numeral) -> bool:
    """Whether an answer has the value of a gold; units are ignored.

    A gold of `50%` also equals `0.5` and, because many answer keys omit the sign, `50`; an answer of `50%` is 0.5 if
    the gold has no percent sign.
    """
    if answer.percent == gold.percent:
        return answer.value == gold.value
    if gold.percent:
        return answer.value in (gold.value, gold.value / 100)
    return answer.value / 100 == gold.value


def same_last_value(found: Numeral, gold: Numeral) -> bool:
    """`same_value` for the last number of a text, where `75%` may also stand for a gold of 75."""
    return same_value(found, gold) or found.percent and found.value == gold.value


def same_unit(answer: Numeral, gold: Numeral) -> bool:
    """Whether the units agree; a missing unit agrees with any."""
    return not answer.unit or not gold.unit or answer.unit == gold.unit


def find_last_numeral(text: str) -> Numeral | None:
    """The last number of a text; None if there is none, or if it cannot be read (too long, n/0).

    A scale word after it counts (`7 million`), a unit does not; digits of a power or an index are not numbers.
    """
    # Window by window from the end: most texts end with a number, and windows without digits are skipped quickly.
    tried = 0
    for end in range(len(text), 0, -_STEP):
        begin = max(0, end - _WINDOW)
        window = _plain_spelling(_BOX.sub("", text[begin:end]))
        if not _DIGIT.search(window):
            continue
        matches: deque[re.Match[str]] = deque(_ANYWHERE.finditer(window), maxlen=1)
        tried += 1
        if tried > _MOST_TRIED:
            return None
        # A match near the beginning of the window may be half a number, which the next window contains in full.
        if matches and (begin == 0 or matches[0].start() >= _WINDOW // 3 or len(matches[0][0]) > MAX_DIGITS):
            return _scaled(_value_of(matches[0]), _SCALED.match(window, matches[0].end()))
    return None


def _scaled(found: Numeral | None, scale: re.Match[str] | None) -> Numeral | None:
    return Numeral(found.value * _SCALES[scale[1]], found.percent) if found and scale else found


def read_numeral(text: str) -> Numeral | None:
    """The number that a short text consists of; None for any other text.

    The number may be surrounded by LaTeX or Markdown wrappers, brackets, a variable (`x = 5`), a currency, a unit of
    the closed list (`5 cm`, `12 m/s`, `7 apples`), and a full stop.
    """
    text = unwrap(text)
    if len(text) > MAX_UNWRAPPED_LENGTH:
        return None
    text = re.sub(r"\\(?:left|right) ?(?=[()])", "", _plain_spelling(text))
    text = _SPACES.sub(" ", _MARKED_FIRST.sub(r"\2 ", text)).strip()
    for form in _forms(text):
        if (found := _read_form(form)) is not None:
            return found
    return None


def _forms(text: str) -> Iterator[str]:
    """The text, and its forms without the left side of an equation and without brackets."""
    text = _ASSIGNED.sub("", text.removeprefix("= ").removeprefix("=")).strip()
    yield text
    for _ in range(3):
        sign, body = ("-", text[1:].strip()) if text[:1] == "-" else ("", text.removeprefix("+").strip())
        if (
            len(body) < 3 or body[0] + body[-1] not in ("()", "{}") or body[0] in body[1:] or "," in body  # a point
        ):
            return
        inner = body[1:-1].strip()
        text = inner[1:].strip() if sign and inner[:1] == "-" else sign + inner.removeprefix("+")
        yield text


def _read_form(text: str) -> Numeral | None:
    text, currency = _CURRENCY_WORD.subn("$", text)
    text = re.sub(r"^([+-]) ", r"\1", text.removeprefix("~"))
    match = _ANYWHERE.match(text)
    if match is None:
        return None
    found, rest = _value_of(match), text[match.end() :]
    if match["base"] and match["base"] != "10":
        return None  # must be calculated
    if found is None or (match["sign"] or "").startswith("+") and match["inner_sign"]:
        return None
    sign = match["currency"].strip().removeprefix("\\") if match["currency"] else ""
    unit = CURRENCIES.get(sign, "")
    if not unit and (trailing := _TRAILING_CURRENCY.fullmatch(rest)):
        unit, rest = CURRENCIES.get(re.sub(r"[^$€£¥₹]", "", trailing[0]), ""), ""
    behind = read_unit(rest)
    if behind is None or found.percent and behind:
        return None
    if unit and behind:
        unit = unit if behind == unit else f"{unit} {behind}"
    return Numeral(found.value, found.percent, unit or behind)


def _plain_spelling(text: str) -> str:
    r"""Normal form of characters and of LaTeX's digit grouping: `1{,}234`, `1\,234`, `1,\!234`."""
    text = plain_characters(text).replace("{,}", ",").replace(r"\!", "")
    text = re.sub(r"(?<=[0-9])\\[,;:](?=[0-9]{3})", " ", text)
    return re.sub(r"(?<!\\)\\[,;:\s]|~|\\q?quad(?![a-zA-Z])", " ", text)


def _value_of(match: re.Match[str]) -> Numeral | None:
    """The value of a match; None if it has none (too many digits, too large an exponent, division by zero)."""
    if len(match[0]) > MAX_DIGITS:
        return None
    parts = match.groupdict()
    try:
        value = _magnitude(parts)
    except (ValueError, ZeroDivisionError):
        return None
    negative = (parts["sign"] or "").startswith("-") != bool(parts["inner_sign"])
    return Numeral(-value if negative else value, percent=bool(parts["percent"]))


def _magnitude(parts: dict[str, str | None]) -> Fraction:
    if parts["plain"]:
        return _fraction(parts["plain"])
    if parts["base"]:
        return _power(parts)
    top = parts["latex_top"] or parts["half_top"] or parts["short_top"] or parts["over_top"] or parts["top"]
    bottom = parts["latex_bottom"] or parts["half_bottom"] or parts["short_bottom"] or parts["short_braced"]
    bottom = bottom or parts["over_bottom"] or parts["bottom"] or parts["bottom_braced"]
    whole = parts["latex_whole"] or parts["whole"] or "0"
    return _fraction(whole) + _fraction(top or "") / _fraction(bottom or "")


def _power(parts: dict[str, str | None]) -> Fraction:
    base, exponent = _fraction(parts["base"] or ""), int(parts["power"] or parts["power_braced"] or "")
    digits = len(str(max(base.numerator, base.denominator)))
    if abs(exponent) * digits > 2 * MAX_DIGITS:
        raise ValueError(f"a power of more than {2 * MAX_DIGITS} digits")
    mantissa = Fraction(1)
    if parts["mantissa"]:
        if base != 10:
            raise ValueError("a product that must be calculated")
        mantissa = _fraction(parts["mantissa"])
    return mantissa * base**exponent


def _fraction(digits: str) -> Fraction:
    exponent = re.search(r"[eE][+-]?([0-9]+)$", digits)
    if exponent and (len(exponent[1]) > 4 or int(exponent[1]) > MAX_DIGITS):
        raise ValueError(f"exponent of more than {MAX_DIGITS}")
    return Fraction(re.sub("[, ']", "", digits).removesuffix("."))
