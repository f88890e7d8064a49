"""Comparison of an answer with a gold, and the rule that decided; questions of algebra are left to math-verify.

Numbers are equal by exact value, with a unit that does not contradict the gold's; letters by letter; texts by spelling,
so that `listen` is not `silent`. Formulas are equal if spelled alike; otherwise math-verify is asked, if the kinds can
be equal at all: a list, inequality or range is not a number, an equation is one only if its left side is a symbol, and
an answer with a free variable is not.
"""

import re
from typing import NamedTuple

from r1jax.rewards.reader.choices import read_choice, read_gold_choice
from r1jax.rewards.reader.kinds import FUNCTION_NAMES, Reading, read_answer
from r1jax.rewards.reader.numerals import same_unit, same_value
from r1jax.rewards.reader.spelling import spell_latex, spell_text

_SYMBOL = re.compile(
    r"(?:\\?[a-zA-Z]|\\[a-zA-Z]{2,9})(?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,4}\}))?'?"
    r"|\\?[A-Za-z]+ ?\([^()=]{1,20}\)|[A-Z]{2,3}"
)
_FREE_LETTER = re.compile(r"[a-df-hj-zA-Z]")  # neither e nor i is a variable
_NO_COMMAND_LETTERS = re.compile(r"\\[a-zA-Z]+|\\(?:begin|end) ?\{[a-z]+\}")
_GREEK = re.compile(r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|sigma|phi|omega|Delta|Sigma|Omega|infty)(?![a-zA-Z])")
MAX_ASKED = 600


class Verdict(NamedTuple):
    """same: True, False, or None if only algebra can tell; rule: the reason in words; by_kind: whether kinds alone
    decided.
    """

    same: bool | None
    rule: str
    by_kind: bool = False


def compare_answer(answer: str, gold: str) -> Verdict:
    """Whether an answer (the text in its place) equals the gold."""
    letter = read_gold_choice(gold)
    if letter is not None:
        named = read_choice(answer)
        if named is None and spell_text(answer) == spell_text(gold) != "":
            return Verdict(True, "the choice as a whole")
        return Verdict(named == letter, f"choice {named}" if named else "no single choice", by_kind=named is None)
    found, wanted = read_answer(answer), read_answer(gold)
    if "nothing" in (found.kind, wanted.kind):
        return Verdict(False, "no answer", by_kind=True)
    if wanted.numeral is not None:
        return _compare_with_number(found, wanted)
    if "text" in (found.kind, wanted.kind) or "base" in (found.kind, wanted.kind):
        same = spell_text(answer) == spell_text(gold)
        return Verdict(same, f"{found.told}, by spelling", by_kind=not same)
    if spell_latex(found.text) == spell_latex(wanted.text) != "":
        return Verdict(True, f"{found.told}, spelled alike")
    if "unreadable" in (found.kind, wanted.kind):
        return Verdict(False, f"{found.told} for {wanted.told}", by_kind=True)
    if len(found.text) > MAX_ASKED or len(wanted.text) > MAX_ASKED:
        return Verdict(False, "too long to calculate", by_kind=True)
    if not _can_be_equal(found, wanted):
        return Verdict(False, f"{found.told} for {wanted.told}", by_kind=True)
    return Verdict(None, f"{found.told} by algebra")


def same_answer(answer: str, gold: str) -> bool:
    """Whether two short answers agree without algebra: as numbers, letters, texts, or formulas spelled alike."""
    return compare_answer(answer, gold).same is True


def _compare_with_number(found: Reading, wanted: Reading) -> Verdict:
    assert wanted.numeral is not None
    if found.numeral is not None:
        if not same_unit(found.numeral, wanted.numeral):
            return Verdict(False, f"{found.told} for unit {wanted.numeral.unit}", by_kind=True)
        return Verdict(same_value(found.numeral, wanted.numeral), found.told)
    if found.kind == "equation":
        sides = found.text.split("=")
        if len(sides) == 2 and _SYMBOL.fullmatch(sides[0].strip()) and not _has_variable(sides[1]):
            return Verdict(None, "the value of a symbol, by algebra")
        return Verdict(False, "an equation for a number", by_kind=True)
    if found.kind != "expression":
        return Verdict(False, f"{found.told} for a number", by_kind=True)
    if _has_variable(found.text) or len(found.text) > MAX_ASKED:
        return Verdict(False, "an expression with variables for a number", by_kind=True)
    return Verdict(None, f"{found.told} by algebra")


def _has_variable(latex: str) -> bool:
    letters = FUNCTION_NAMES.sub(" ", _NO_COMMAND_LETTERS.sub(" ", latex))
    return bool(_FREE_LETTER.search(letters) or _GREEK.search(latex))


def _can_be_equal(found: Reading, wanted: Reading) -> bool:
    """Whether math-verify may compare formulas of these two kinds."""
    several = ("list", "set", "tuple")
    if wanted.kind == "equation":
        left, _, right = wanted.text.partition("=")
        if found.kind == "equation":
            other = found.text.partition("=")[0].strip()
            symbols = _SYMBOL.fullmatch(left.strip()), _SYMBOL.fullmatch(other)
            return not (symbols[0] and symbols[1]) or left.strip() == other or right.strip() == other
        return found.kind in ("number", "expression") and bool(_SYMBOL.fullmatch(left.strip()))
    if wanted.kind == "inequality":
        return found.kind in ("inequality", "interval", "set", "tuple")
    if wanted.kind == "interval":
        return found.kind in ("interval", "inequality") or found.kind in several and len(found.parts) != 1
    if wanted.kind == "tuple":
        return found.kind in ("tuple", "list") and len(found.parts) == len(wanted.parts)
    if wanted.kind == "matrix":
        return found.kind == "matrix" and len(found.parts) == len(wanted.parts)
    if wanted.kind in ("list", "set"):
        if found.kind in several:
            return not found.parts or not wanted.parts or _count(found) == _count(wanted)
        return found.kind == "set" or _count(wanted) == 1 and found.kind in ("number", "expression")
    if found.kind == "equation":
        return bool(_SYMBOL.fullmatch(found.text.partition("=")[0].strip()))
    return found.kind in ("number", "expression") or found.kind in several and _count(found) == 1


def _count(reading: Reading) -> int:
    """Number of values of a collection; a part with plus-minus has two."""
    return sum(2 if r"\pm" in part else 1 for part in reading.parts)
