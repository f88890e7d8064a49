r"""Answers as MATH's answer column writes them: each is met by itself and by an equal form, by no near miss."""

import json

import pytest

from r1jax.eval.score import Answered, grade
from r1jax.rewards.answers import accuracy_reward, answer_reward
from tests.rewards.case_scores import DATA

GOLDS = [json.loads(line) for line in (DATA / "math_golds.jsonl").read_text("utf-8").splitlines()]


def boxed(key: str) -> list[str]:
    return [rf"So $\boxed{{{row[key]}}}$." for row in GOLDS]


def find_failures(values, expected):
    return [row for row, value in zip(GOLDS, values, strict=True) if value != expected]


@pytest.mark.parametrize(("key", "expected"), [("gold", 1.0), ("equal", 1.0), ("miss", 0.0)])
def test_sixty_golds(key, expected):
    assert len(GOLDS) == 60
    golds = [row["gold"] for row in GOLDS]
    assert find_failures(answer_reward(boxed(key), golds), expected) == []
    problems = [Answered(None, gold, [text]) for gold, text in zip(golds, boxed(key), strict=True)]
    assert find_failures([float(grades.correct[0]) for grades in grade(problems)], expected) == []


# `\sqrt2` in an answer is not read with open-r1's settings, and of a ratio math-verify reads no gold.
FORCED = {"gold": ["11\\sqrt2", "3:2"], "equal": ["3:2"], "miss": ["3:2"]}


@pytest.mark.parametrize("key", FORCED)
def test_accuracy_reward(key):
    failures = find_failures(accuracy_reward(boxed(key), [row["gold"] for row in GOLDS]), float(key != "miss"))
    assert [row["gold"] for row in failures] == FORCED[key]
