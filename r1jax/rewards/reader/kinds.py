"""Kinds of answers: number, text, list, tuple, set, interval, matrix, inequality, equation, expression.

The kind follows from the spelling alone, so that kinds that cannot be equal never reach math-verify, which finds a
number in almost anything: words are a text and not a product of letters, `7, 8` is a list and not an 8, `4343_6` is a
number in another base.
"""

import functools
import re
from dataclasses import dataclass
from typing import Literal

from r1jax.rewards.reader.characters import plain_characters
from r1jax.rewards.reader.numerals import Numeral, read_numeral
from r1jax.rewards.reader.spelling import MAX_UNWRAPPED_LENGTH, plain_latex, strip_introduction

Kind = Literal[
    "nothing",
    "number",
    "text",
    "base",
    "list",
    "tuple",
    "set",
    "interval",
    "matrix",
    "inequality",
    "equation",
    "expression",
    "unreadable",
]

_FUNCTIONS = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp "
    " lim max min gcd lcm mod det dim arg sup inf sqrt"
).split()
FUNCTION_NAMES = re.compile(rf"(?<![a-zA-Z\\])(?:{'|'.join(_FUNCTIONS)})(?![a-zA-Z])")
_SHORT_WORDS = frozenset("to of is in no if at by be so it we on up an".split())
_CONNECTORS = frozenset(("or", "and"))
_WORD = re.compile(r"[^\W\d_]{2,}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end) ?\{[a-z]+\*?\}(?: ?\{[lcr|]*\})?")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|approx|sim|equiv|in|notin|mid|leqslant|geqslant)(?![a-zA-Z])")
_BASE = re.compile(r"-?[0-9A-F]+_\{?[0-9]{1,2}\}?|-?[0-9A-F]+ ?_ ?\\text\{[a-z]+\}")
_IN_WORDS = re.compile(r"\\(?:text|mbox|mathrm|operatorname) ?\{([^{}]*)\}")
_OR = re.compile(r"\\(?:text|mathrm|mbox) ?\{ ?,? ?(?:or|and) ?\}|\b(?:or|and)\b|\\q?quad(?![a-zA-Z])|;")
_ODD_END = re.compile(r"[+\-*/^?=<>|:]$|\\(?:cdot|times|pm)$|^[*/^?]")
_TIME_OR_RATIO = re.compile(r"[0-9] ?: ?[0-9]")
_SPACED_DIGITS = re.compile(r"(?<![\w.^_}])[0-9.]+ +[0-9]|[0-9]\.[0-9]+\.[0-9]")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Reading:
    """An answer read: its kind, the number if it is one, its text in normal form, and the parts of a collection."""

    kind: Kind
    text: str
    numeral: Numeral | None = None
    parts: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The reading in words."""
        if self.numeral is not None:
            return self.numeral.told
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "…"
        return f"{self.kind} of {len(self.parts)}" if self.parts else f"{self.kind} {shown}"


@functools.lru_cache(maxsize=4096)
def read_answer(answer: str) -> Reading:
    """The kind and value of a short answer; `unreadable` if it is too long to be one."""
    text = strip_introduction(plain_characters(answer[: 2 * MAX_UNWRAPPED_LENGTH]))
    if not text.strip(" ?.…_-*"):
        return Reading("nothing", text)
    if len(text) > MAX_UNWRAPPED_LENGTH:
        return Reading("unreadable", text[:100])
    numeral = read_numeral(text)
    if numeral is not None:
        return Reading("number", text, numeral)
    latex = plain_latex(text)
    if _BASE.fullmatch(latex):
        return Reading("base", latex)
    if _is_text(latex):
        return Reading("text", text)
    return _read_formula(latex)


def _is_text(latex: str) -> bool:
    if _TIME_OR_RATIO.search(latex) or re.search(r"[^\x00-\x7f]", _COMMAND.sub("", latex)):
        return True
    if latex.isalpha() and len(latex) > 1:
        return True
    if any(
        word
        for words in _IN_WORDS.findall(latex)
        for word in re.findall(r"[A-Za-z]+", words)
        if word not in _CONNECTORS
    ):
        return True
    bare = FUNCTION_NAMES.sub(" ", _COMMAND.sub(" ", _ENVIRONMENT.sub(" ", latex)))
    words = [word.lower() for word in _WORD.findall(bare)]
    return any(word in _SHORT_WORDS or len(word) > 2 and word not in _CONNECTORS for word in words)


def _read_formula(latex: str) -> Reading:
    if r"\begin" in latex:
        rows = re.split(r"\\\\", _ENVIRONMENT.sub("", latex))
        return Reading("matrix", latex, parts=tuple(part.strip() for row in rows for part in row.split("&")))
    inner = _within_brackets(latex)
    if inner is not None:
        opening, body, closing = inner
        parts = _split(body)
        if opening in ("{", r"\{"):
            return Reading("set", latex, parts=tuple(parts))
        if len(parts) > 1:
            is_tuple = opening == "(" and closing == ")" and r"\infty" not in body
            return Reading("tuple" if is_tuple else "interval", latex, parts=tuple(parts))
    if r"\cup" in latex or r"\cap" in latex:
        return Reading("interval" if re.search(r"[(\[]", latex) else "set", latex)
    if re.search(r"\\emptyset", latex):
        return Reading("set", latex)
    parts = _split(_OR.sub(",", _IN_WORDS.sub(r" \1 ", latex)))
    if len(parts) > 1:
        return Reading("list", latex, parts=tuple(parts))
    if r"\pm" in latex:
        return Reading("list", latex, parts=(latex.replace(r"\pm", "+"), latex.replace(r"\pm", "-")))
    if _RELATION.search(latex):
        return Reading("inequality", latex)
    if _ODD_END.search(latex) or _SPACED_DIGITS.search(latex):
        return Reading("unreadable", latex)
    return Reading("equation" if "=" in latex else "expression", latex)


def _within_brackets(latex: str) -> tuple[str, str, str] | None:
    """Opening bracket, content and closing bracket, if one pair spans a formula; half-open pairs count."""
    if latex.startswith(r"\{") and latex.endswith(r"\}"):
        return (r"\{", latex[2:-2], r"\}") if r"\}" not in latex[2:-2] else None
    if latex[:1] not in tuple("([") or latex[-1:] not in tuple(")]"):
        return None
    depth = 0
    for number, sign in enumerate(latex):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and number < len(latex) - 1:
            return None
    return latex[0], latex[1:-1], latex[-1]


def _split(text: str) -> list[str]:
    """Parts between commas outside brackets."""
    parts, depth, start = [], 0, 0
    for number, sign in enumerate(text):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and depth <= 0:
            parts.append(text[start:number].strip())
            start = number + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]
