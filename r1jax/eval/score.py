"""Scores of completions against reference answers:

    pass@1         mean over the completions of a problem, then over problems; its standard error is over problems
    pass@k         probability that one of k drawn completions is correct, unbiased (Chen et al. 2021, 2107.03374)
    cons@k         whether the most common answer of the first k is correct; the first to appear wins a tie
    lenient_pass@1 the last number or letter counts, anywhere in the text
    format_rate    share of completions with an answer in the requested place

A problem whose reference answer cannot be read is left out of all figures, counted as `unread_golds` and logged.

Answers vote together when they are equal by value. A completion has no vote without an answer, or with an answer of
another kind where a number is required.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.eval.extraction import Kind, compare, explain, find_kind, find_strict, find_unread, find_vote, is_lenient

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answered:
    """A problem with its completions. `lengths` (tokens) and `finish_reasons`, one per completion, where known.

    columns: of the problem's row, for rewards. ids: sampled ids of each completion, for rewards, where known.
    """

    problem: Any
    gold: str
    completions: Sequence[str]
    lengths: Sequence[int] | None = None
    finish_reasons: Sequence[str] | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ids: Sequence[Sequence[int]] | None = None


@dataclasses.dataclass(frozen=True)
class Graded:
    """A problem's graded completions: extracted answers, strict and lenient correctness; `votes[i]` is the index of the
    first completion with the same answer (None: no answer); `rules[i]` is the rule that decided, in words; `formed[i]`
    is whether the format is right (None: whether there is an answer); unread: the gold cannot be read, so that the rest
    says nothing.
    """

    answers: list[str | None]
    correct: list[bool]
    lenient: list[bool]
    votes: list[int | None]
    rules: list[str] = dataclasses.field(default_factory=list)
    formed: list[bool] | None = None
    unread: bool = False

    @property
    def formats(self) -> list[bool]:
        """For each completion, whether it has the format that was asked for."""
        return [answer is not None for answer in self.answers] if self.formed is None else self.formed


Grader = Callable[[Sequence[Answered]], list[Graded]]


def score(
    problems: Sequence[Answered], k: int = 0, *, grader: Grader | None = None
) -> tuple[dict[str, float | int | None], list[dict[str, Any]]]:
    """Scores of a benchmark, and one row per problem for samples.jsonl.

    k: of pass@k and cons@k; 0: the smallest number of completions of a problem. grader: decides what is correct (None:
    `grade`). Raises UserError if a problem has fewer, or if no reference answer can be read.
    """
    least = min((len(problem.completions) for problem in problems), default=0)
    if not least:
        raise UserError("there is nothing to score: every problem needs at least one completion")
    if k > least:
        raise UserError(f"num_samples is {k}, but a problem has only {least} completions")
    k, graded = k or least, (grader or grade)(problems)
    rows = [_describe(problem, grades) for problem, grades in zip(problems, graded, strict=True)]
    count = _note_unread(problems, graded)
    whole = [(problem, grades) for problem, grades in zip(problems, graded, strict=True) if not grades.unread]
    problems, graded = [problem for problem, _ in whole], [grades for _, grades in whole]
    means = [float(np.mean(grades.correct)) for grades in graded]
    pass_1, stderr = mean_and_stderr(means)
    lengths = [length for problem in problems for length in problem.lengths or ()]
    reasons = [reason for problem in problems for reason in problem.finish_reasons or ()]
    formats = [formed for grades in graded for formed in grades.formats]
    scores = {
        "n": len(problems),
        "k": k,
        "pass@1": pass_1,
        "pass@1_stderr": stderr,
        "pass@k": float(np.mean([pass_at_k(len(g.correct), sum(g.correct), k) for g in graded])),
        "cons@k": float(np.mean([is_majority_right(g, k) for g in graded])),
        "lenient_pass@1": float(np.mean([np.mean(g.lenient) for g in graded])),
        "format_rate": sum(formats) / len(formats),
        "mean_length": float(np.mean(lengths)) if lengths else None,
        "truncated": sum(reason == "length" for reason in reasons) / len(reasons) if reasons else None,
    }
    return scores | ({"unread_golds": count} if count else {}), rows


def _note_unread(problems: Sequence[Answered], graded: Sequence[Graded]) -> int:
    """Logs how many reference answers cannot be read, and returns it. Raises UserError if that is all of them."""
    golds = [problem.gold for problem, grades in zip(problems, graded, strict=True) if grades.unread]
    if len(golds) == len(problems):
        raise UserError(f"none of the {len(golds)} solutions can be read as an answer, e.g. {golds[0][:80]!r}")
    if golds:
        shown = ", ".join(repr(gold[:60]) for gold in golds[:3])
        log.warning(
            "%d of %d solutions cannot be read and are left out of the scores: %s", len(golds), len(problems), shown
        )
    return len(golds)


def grade(problems: Sequence[Answered], find_answer: Callable[[str, Kind], str | None] = find_strict) -> list[Graded]:
    """Grades all completions; comparisons that need math-verify go in two batches for all problems together.

    find_answer: (text, kind of the gold) -> the answer in the text, or None.
    """
    kinds = [find_kind(problem.gold) for problem in problems]
    answers = [
        [find_answer(text, kind) for text in problem.completions] for problem, kind in zip(problems, kinds, strict=True)
    ]
    given = [(p, s) for p, found in enumerate(answers) for s, answer in enumerate(found) if answer is not None]
    verdicts = compare([(answers[p][s] or "", problems[p].gold, kinds[p]) for p, s in given])
    right = {place for place, verdict in zip(given, verdicts, strict=True) if verdict}
    votes, unread = _group_votes(problems, answers, kinds), find_unread([problem.gold for problem in problems])
    graded = []
    for p, (problem, kind) in enumerate(zip(problems, kinds, strict=True)):
        correct = [(p, s) in right for s in range(len(answers[p]))]
        lenient = [is_lenient(t, problem.gold, kind, c) for t, c in zip(problem.completions, correct, strict=True)]
        rules = [explain(answer, problem.gold) for answer in answers[p]]
        graded.append(Graded(answers[p], correct, lenient, votes[p], rules, unread=unread[p]))
    return graded


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that k of n completions, drawn without replacement, include one of the `correct` ones."""
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def is_majority_right(grades: Graded, k: int) -> bool:
    """Whether the answer with the most votes among the first k is correct; the first to appear wins a tie."""
    votes = [vote for vote in grades.votes[:k] if vote is not None]
    return bool(votes) and grades.correct[max(dict.fromkeys(votes), key=votes.count)]


def mean_and_stderr(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean over problems and its standard error (sample standard deviation, n - 1; 0 for a single problem)."""
    count = len(values)
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else 0.0


def _group_votes(
    problems: Sequence[Answered], answers: Sequence[Sequence[str | None]], kinds: Sequence[Kind]
) -> list[list[int | None]]:
    """For each completion, the index of the first one of its problem with the same answer."""
    firsts: list[dict[str, int]] = []  # first completion of each answer, by spelling
    pairs: list[tuple[int, str, str]] = []
    for p, found in enumerate(answers):
        spelled: dict[str, int] = {}
        values: dict[Hashable, int] = {}
        compared: dict[str, bool] = {}  # one spelling of each voting answer, and whether it has an exact value
        for s, answer in enumerate(found):
            if answer is None or answer in spelled:
                continue
            by, key = find_vote(answer, problems[p].gold)
            if by == "none":
                continue
            spelled[answer] = values.setdefault(key, s) if by == "value" else s
            if spelled[answer] == s:
                compared[answer] = by == "value"
        firsts.append(spelled)
        pairs += [(p, a, b) for a, b in itertools.combinations(compared, 2) if not (compared[a] and compared[b])]
    same = compare([(b, a, kinds[p]) for p, a, b in pairs])
    for (p, a, b), equal in zip(pairs, same, strict=True):
        if equal:
            old, new = firsts[p][b], min(firsts[p][a], firsts[p][b])
            firsts[p] = {answer: new if first == old else first for answer, first in firsts[p].items()}
    return [
        [None if answer is None else first.get(answer) for answer in found]
        for found, first in zip(answers, firsts, strict=True)
    ]


def _describe(problem: Answered, grades: Graded) -> dict[str, Any]:
    row = {
        "problem": problem.problem,
        "gold": problem.gold,
        "completions": list(problem.completions),
        "answers": grades.answers,
        "correct": grades.correct,
        "lenient_correct": grades.lenient,
        "rules": grades.rules,
    }
    if grades.unread:
        row["unread_gold"] = True
    known = {"lengths": problem.lengths, "finish_reasons": problem.finish_reasons}
    return row | {name: list(values) for name, values in known.items() if values is not None}
