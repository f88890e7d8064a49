"""Gold answers: read as a whole or not at all, and checked for a whole data set before a run.

The gold of a worked solution is the answer that it marks (answer tags, a box, GSM8K's `####`); NaN and empty cells are
not golds.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from r1jax.rewards.reader.choices import read_gold_choice
from r1jax.rewards.reader.kinds import read_answer
from r1jax.rewards.reader.places import find_marked, find_place
from r1jax.rewards.reader.spelling import plain_latex

# Rewards that compare an answer with the column `solution`.
READING_REWARDS = frozenset(("accuracy_reward", "answer_reward", "number_reward", "len_reward", "cosine_scaled_reward"))
_SHOWN = 5
_MOST_CHECKED = 50_000
_MAX_GOLD = 300
_FORMULA = re.compile(r"(?<!\\)\$[^$]*(?<!\\)\$|\\boxed|\\\(|\\\[")
_PLAIN = re.compile(
    r"[+-]?[0-9.,]*[0-9](?:/[0-9]+)?%?|-?\\frac\{[0-9]+\}\{[0-9]+\}|(?:the (?:final )?answer is )[0-9]+\.?", re.I
)
_DIGIT = re.compile("[0-9]")

_logger = logging.getLogger(__name__)


def read_gold(solution: Any) -> str | None:
    """The answer of a solution: its whole text, or the marked answer of a worked one. None for NaN, None and empty
    texts.
    """
    if solution is None or isinstance(solution, float) and not math.isfinite(solution):
        return None
    if isinstance(solution, float) and solution.is_integer() and abs(solution) < 1e15:
        solution = int(solution)
    text = str(solution).strip()
    marked = find_place(text)
    if marked is not None and marked.text:
        return marked.text.strip()
    return find_marked(text) or text or None


def write_latex(solution: Any) -> str | None:
    r"""A gold in a form that math-verify parses as a whole; None if that is impossible.

    Texts with a formula (`$x$`, `\boxed{x}`), plain numbers, and words (which math-verify does not parse) are
    unchanged. Raw LaTeX is put into a box: otherwise only a number of `2\pi` or `(3, \frac\pi2)` would be parsed.
    """
    if solution is None or isinstance(solution, float) and not math.isfinite(solution):
        return None
    text = str(solution).strip()
    if not text or _FORMULA.search(text) or _PLAIN.fullmatch(text):
        return text or None
    gold = read_gold(text) or ""
    reading = read_answer(gold)
    if reading.numeral is not None:
        numeral = reading.numeral
        top, bottom = numeral.value.numerator, numeral.value.denominator
        if abs(top) > 10**12 or bottom > 10**12:
            return rf"\boxed{{{plain_latex(gold)}}}"
        value = f"{top}" if bottom == 1 else rf"{'-' if top < 0 else ''}\frac{{{abs(top)}}}{{{bottom}}}"
        return rf"\boxed{{{value}{chr(92) + '%' if numeral.percent else ''}}}"
    if reading.kind == "text":
        if gold.startswith("\\text"):
            return rf"\boxed{{{gold}}}"
        return None if _DIGIT.search(gold) else gold
    if reading.kind in ("nothing", "unreadable") or re.fullmatch("[A-Za-z]", gold):
        return gold or None
    return rf"\boxed{{{plain_latex(gold)}}}"


def name_kind(solution: Any) -> str | None:
    """Kind of a gold (`number`, `choice`, `text`, `tuple`, …); None if it cannot be read."""
    gold = read_gold(solution)
    if gold is None or len(gold) > _MAX_GOLD:
        return None
    if read_gold_choice(gold) is not None:
        return "choice"
    kind = read_answer(gold).kind
    return None if kind in ("nothing", "unreadable") else kind


def describe_golds(golds: Sequence[Any]) -> str:
    """One line about a data set's golds: how many are read, of which kinds, and the first five rows (from 1) that are
    not.
    """
    kinds = [name_kind(gold) for gold in golds]
    counts = Counter(kind for kind in kinds if kind is not None)
    unread = [row for row, kind in enumerate(kinds, 1) if kind is None]
    parts = ", ".join(f"{count} as {kind}" for kind, count in counts.most_common())
    line = f"{len(golds) - len(unread)} of {len(golds)} golds are read: {parts or 'none'}"
    shown = "; ".join(f"row {row}: {str(golds[row - 1])[:60]!r}" for row in unread[:_SHOWN])
    return f"{line}; {len(unread)} are not: {shown}" if unread else line


def log_golds(rows: Sequence[Mapping[str, Any]], rewards: Iterable[str]) -> None:
    """Logs `describe_golds` of a run's problems, as a warning if a gold cannot be read.

    Logs nothing if no reward (by name) reads golds.
    """
    if not READING_REWARDS.intersection(rewards) or not rows or "solution" not in rows[0]:
        return
    line = describe_golds([row.get("solution") for row in rows[:_MOST_CHECKED]])
    part = f" (the first {_MOST_CHECKED})" if len(rows) > _MOST_CHECKED else ""
    _logger.log(logging.WARNING if " are not: " in line else logging.INFO, "config.data, solution%s: %s", part, line)
