r"""Extraction of the answer from a completion, and comparison of answers by value, with the rewards' reader of answers.

Strict extraction takes the answer from the requested place: answer tags, the last `\boxed{}`, after GSM8K's `####`,
after `Answer:` or "the answer is". Lenient extraction takes the last number, or the last letter of a choice, anywhere.
Both ignore the reasoning. The reference answer determines the kind. Answers are equal as exact numbers, as letters or
by spelling; what remains is decided by math-verify, many pairs at once in its killable workers.
"""

from collections.abc import Hashable, Sequence
from typing import Literal

from r1jax.rewards import verifier
from r1jax.rewards.reader import golds
from r1jax.rewards.reader.choices import find_choice, find_last_letter, read_gold_choice
from r1jax.rewards.reader.comparing import MAX_ASKED, compare_answer
from r1jax.rewards.reader.kinds import read_answer
from r1jax.rewards.reader.numerals import find_last_numeral, same_last_value
from r1jax.rewards.reader.places import find_line, find_place
from r1jax.rewards.reader.spelling import plain_latex
from r1jax.text.reasoning import after_closed_thought

Kind = Literal["number", "choice", "expression"]


def find_kind(gold: str) -> Kind:
    """Kind of a reference answer."""
    if read_gold_choice(gold) is not None:
        return "choice"
    return "expression" if read_answer(gold).numeral is None else "number"


def read_gold(solution: str) -> str:
    """The reference answer of a solution: the whole text, or the final answer of a worked solution."""
    return golds.read_gold(solution) or ""


def find_strict(text: str, kind: Kind) -> str | None:
    """The answer in the requested place (the letter of a choice); None if there is none."""
    if kind == "choice":
        return find_choice(text)[1]
    place = find_place(text)
    if place is None or place.text == "":
        place = find_line(text)
    return None if place is None else place.text or None


def find_number(text: str, kind: Kind) -> str | None:
    """The last number of the reply as text, for golds that are numbers; otherwise the answer in the requested place."""
    if kind != "number":
        return find_strict(text, kind)
    found = find_last_numeral(after_closed_thought(text))
    return None if found is None else f"{found.value}{'%' if found.percent else ''}"


def is_lenient(text: str, gold: str, kind: Kind, strict: bool) -> bool:
    """Whether the last number or letter is correct. For an expression, which has neither, `strict` decides.

    If a requested place names letters, it decides (`Answer: C or D` is no choice), and later letters do not count.
    """
    if kind == "expression":
        return strict
    if kind == "choice":
        named, letter = find_choice(text)
        return (letter if named else find_last_letter(text)) == read_gold_choice(gold)
    found, wanted = find_last_numeral(after_closed_thought(text)), read_answer(gold).numeral
    return found is not None and wanted is not None and same_last_value(found, wanted)


def compare(pairs: Sequence[tuple[str, str, Kind]]) -> list[bool]:
    """For each (answer, gold, kind), whether the two are equal; gold may be another answer."""
    known = [compare_answer(answer, gold).same for answer, gold, _ in pairs]
    asked = [number for number, same in enumerate(known) if same is None]
    boxed = [(rf"\boxed{{{plain_latex(pairs[n][1])}}}", rf"\boxed{{{plain_latex(pairs[n][0])}}}") for n in asked]
    verdicts = dict(zip(asked, verifier.verify(boxed) if boxed else (), strict=True))
    return [verdicts[n] == 1.0 if same is None else same for n, same in enumerate(known)]


def find_unread(solutions: Sequence[str]) -> list[bool]:
    """For each gold, whether it cannot be read, so that no answer could be found right but one spelled like it: it is
    neither a choice, a number nor words, and too long or not parsed by math-verify.
    """
    readings = [None if read_gold_choice(gold) is not None else read_answer(gold) for gold in solutions]
    formulas = {n: r for n, r in enumerate(readings) if r is not None and r.kind not in ("number", "base", "text")}
    unread = [False] * len(solutions)
    for n, reading in formulas.items():
        unread[n] = reading.kind in ("nothing", "unreadable") or len(reading.text) > MAX_ASKED
    asked = [n for n in formulas if not unread[n]]
    boxed = [rf"\boxed{{{plain_latex(solutions[n])}}}" for n in asked]
    verdicts = verifier.verify([(gold, gold) for gold in boxed]) if asked else []
    for n, verdict in zip(asked, verdicts, strict=True):
        unread[n] = verdict is None
    return unread


def explain(answer: str | None, gold: str) -> str:
    """The rule by which an answer is compared with a gold, in words (`number 12 with unit cm`)."""
    return "no answer in the requested place" if answer is None else compare_answer(answer, gold).rule


def find_vote(answer: str, gold: str) -> tuple[str, Hashable]:
    """Vote of an answer: `("value", key)` for an exact value that equal answers share, `("none", None)` for an answer
    that cannot equal the gold (a hedge in place of a number), `("spelling", answer)` if it must be compared with the
    others.
    """
    wanted, found = read_answer(gold).numeral, read_answer(answer).numeral
    if read_gold_choice(gold) is not None or wanted is None:
        return "spelling", answer
    if found is None:
        return ("none", None) if compare_answer(answer, gold).by_kind else ("spelling", answer)
    unit = (found.unit or wanted.unit) if wanted.unit else ""
    is_share = found.percent or wanted.percent and found.value == wanted.value
    return "value", (found.value / 100 if is_share else found.value, unit)
