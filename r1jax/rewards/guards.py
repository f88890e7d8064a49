"""Guards around math-verify: the reader of answers decides which replies it may find correct.

math-verify finds a formula in almost any text and compares it by value. The kind of a reply's answer is therefore read
first: a hedge, a list or an equation in place of a number, a word that makes it another number, another unit, and an
answer inside the reasoning or retracted later are not passed on. math-verify compares the values, with open-r1's
settings. (Guards of parsed formulas, tiny numbers and equations are in `verifier_worker.py`.)
"""

import re
from collections.abc import Sequence
from typing import Any

from r1jax.rewards.reader.comparing import compare_answer
from r1jax.rewards.reader.golds import read_gold
from r1jax.rewards.reader.kinds import read_answer
from r1jax.rewards.reader.places import Place, find_line, find_place
from r1jax.text.reasoning import after_thought

# math-verify sees only the end of a longer reply, because its patterns are not linear.
_MAX_VERIFIED = 20_000
_NO_ANSWER = re.compile(r"\b(?:no|without an?) (?:final )?answer\b", re.IGNORECASE)
_UPRIGHT = re.compile(r"\\(?:text|mathrm|mbox|operatorname)")


def guard_replies(texts: Sequence[str], solution: Sequence[Any]) -> list[str]:
    """Text of each reply for math-verify: the part after the reasoning, or "" if it cannot be correct."""
    replies = [after_thought(text)[-_MAX_VERIFIED:] for text in texts]
    return [
        reply if _may_be_right(reply, read_gold(gold)) else "" for reply, gold in zip(replies, solution, strict=True)
    ]


def _may_be_right(text: str, gold: str | None) -> bool:
    boxed = find_place(text)
    place = find_line(text) if boxed is None else boxed
    if place is None:
        return not _NO_ANSWER.search(text)
    if place.text is None:
        return False
    gold = gold or ""
    wanted = read_answer(gold)
    if wanted.kind in ("nothing", "unreadable") or wanted.kind == "text" and "$" in gold.strip().strip("$"):
        return True  # a formula within a sentence, which says nothing about its kind
    verdict = compare_answer(place.text, gold)
    if verdict.by_kind:
        return False
    if wanted.numeral is not None and verdict.same is None and _UPRIGHT.search(place.text):
        return False  # `5\mathrm{i}`: math-verify takes the letter for a unit
    return verdict.same is True or boxed is not None and not _is_changed(place)


def _is_changed(place: Place) -> bool:
    """Whether the text around a box makes it another answer, which math-verify does not see."""
    return " and " in place.rule or place.rule.endswith("with its sign")
