"""Grading of completions by the rewards of a run's `eval` section, so that a benchmark counts what the run's own
evaluation counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1jax.eval.extraction import find_number, find_strict
from r1jax.eval.held_out import EvalConfig, judge, make_problems
from r1jax.eval.score import Answered, Graded, Grader, grade

_READ_BY_US = frozenset(("answer_reward", "accuracy_reward"))  # rewards that read a gold as evaluation does


def make_grader(config: EvalConfig) -> Grader:
    """Grader by the rewards of an `eval` section: they decide what is strictly and leniently correct, and the format.

    Answers, for the vote and to show, are those in the requested place, or the last numbers if that is how the rewards
    read them. The grader raises UserError for a reward that is unknown or needs a column that the problems lack.
    """
    find_answer = find_number if "number_reward" in config.strict else find_strict

    def grade_by_rewards(problems: Sequence[Answered]) -> list[Graded]:
        rows = [{**problem.columns, "prompt": problem.problem} for problem in problems for _ in problem.completions]
        texts = [text for problem in problems for text in problem.completions]
        ids = [tokens for problem in problems for tokens in problem.ids or [()] * len(problem.completions)]
        found = judge(make_problems(rows, lambda prompt: (), config), config, texts, ids)
        none = np.zeros(len(texts))  # a score that applies to no completion
        verdicts = {name: iter(values == 1.0) for name, values in {"strict": none, "lenient": none, **found}.items()}
        graded = []
        for grades in grade(problems, find_answer):
            taken = {name: [bool(next(values)) for _ in grades.answers] for name, values in verdicts.items()}
            rules = [f"{' and '.join(config.strict)}: {'yes' if right else 'no'}" for right in taken["strict"]]
            formed = taken.get("format")
            unread = grades.unread and _READ_BY_US.issuperset(config.strict)
            graded.append(
                Graded(grades.answers, taken["strict"], taken["lenient"], grades.votes, rules, formed, unread)
            )
        return graded

    return grade_by_rewards
