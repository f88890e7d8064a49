r"""Extraction of the answer from a completion, and comparison of answers by value.

Strict extraction takes the answer from the requested place: answer tags, the last `\boxed{}`, after GSM8K's `####`, or,
for a choice, after `Answer:`. Lenient extraction takes the last number, or the last letter of a choice, anywhere. The
reference answer determines the kind. Answers are equal as exact numbers, as letters or by spelling; what remains is
decided by math-verify, many pairs at once in its killable workers.
"""

import re
from collections.abc import Sequence
from typing import Literal

from r1jax.rewards import verifier
from r1jax.rewards.answers import find_answer, same_answer
from r1jax.rewards.numerals import Numeral, find_last_numeral, read_numeral, same_value

Kind = Literal["number", "choice", "expression"]

GSM8K_MARK = "####"
LETTERS = "A-H"  # the next letter, I, is a word
_CHOICE = re.compile(rf"\(?([{LETTERS}])\)?\.?")
_ANSWER_LINE = re.compile(rf"(?i:answer)\**[ \t]*:[ \t\*$(]*(?:\\[a-z]+\{{)?\(?([{LETTERS}])(?![\w'])")
_LETTER_IN_PLACE = re.compile(rf"\W*(?:\\text\w*\s?\{{)?\W*([{LETTERS}])(?![\w'])")
# A capital A before a word is the article.
_LONE_LETTER = re.compile(rf"(?<![\w'\\])([{LETTERS}])(?![\w'])(?<!A(?= [a-z]))")


def find_kind(gold: str) -> Kind:
    """Kind of a reference answer."""
    if _CHOICE.fullmatch(gold.strip()):
        return "choice"
    return "expression" if read_numeral(gold) is None else "number"


def read_gold(solution: str) -> str:
    """The reference answer of a solution: the whole text, or the final answer of a worked solution."""
    return _find_marked(solution) or solution.strip()


def find_strict(text: str, kind: Kind) -> str | None:
    """The answer in the requested place (the letter of a choice); None if there is none."""
    marked = _find_marked(text)
    if kind != "choice":
        return marked
    if marked is not None:
        letter = _LETTER_IN_PLACE.match(marked)
        return letter[1] if letter else None
    lines = _ANSWER_LINE.findall(text)
    return lines[-1] if lines else None


def is_lenient(text: str, gold: str, kind: Kind, strict: bool) -> bool:
    """Whether the last number or letter is correct. For an expression, which has neither, `strict` decides."""
    if kind == "expression":
        return strict
    if kind == "choice":
        letters = _LONE_LETTER.findall(text)
        return bool(letters) and letters[-1] == _read_letter(gold)
    found, wanted = find_last_numeral(text), read_numeral(gold)
    return found is not None and wanted is not None and same_value(found, wanted)


def compare(pairs: Sequence[tuple[str, str, Kind]]) -> list[bool]:
    """For each (answer, gold, kind), whether the two are equal; gold may be another answer."""
    known = [_compare(*pair) for pair in pairs]
    asked = [number for number, same in enumerate(known) if same is None]
    boxed = [(rf"\boxed{{{pairs[n][1]}}}", rf"\boxed{{{pairs[n][0]}}}") for n in asked]
    verdicts = dict(zip(asked, verifier.verify(boxed) if boxed else (), strict=True))
    return [verdicts[n] == 1.0 if same is None else same for n, same in enumerate(known)]


def _compare(answer: str, gold: str, kind: Kind) -> bool | None:
    """Whether two answers are equal; None if only algebra can tell."""
    if kind == "choice":
        return _read_letter(answer) == _read_letter(gold)
    found, wanted = _read_number(answer, kind), _read_number(gold, kind)
    if found is not None and wanted is not None:
        return same_value(found, wanted)
    if same_answer(answer, gold):
        return True
    return None if answer.strip() and gold.strip() else False


def _read_number(answer: str, kind: Kind) -> Numeral | None:
    """A number, also with words around it (`18 dollars a day`) where a number is expected and no algebra is."""
    found = read_numeral(answer)
    if found is None and kind == "number" and not re.search(r"[\\^=*+/]|\d\s*-", answer):
        return find_last_numeral(answer)
    return found


def _find_marked(text: str) -> str | None:
    answer = find_answer(text)
    if answer is None and GSM8K_MARK in text:
        answer = text.rpartition(GSM8K_MARK)[2].strip().partition("\n")[0].strip()
    return answer or None


def _read_letter(answer: str) -> str:
    return re.sub(r"\W", "", answer)
