r"""Rewards and scores measured on cases: how many wrong answers are paid, how many right ones are refused.

    python -m tests.rewards.case_scores [FILE.jsonl …] [--list] [--function=NAME]

A case is a row `{function, completion, gold, expected, klass}`: expected 1 is a right answer and 0 a wrong one, by a
verdict that careful people agree on. `function` is a reward by its name, `eval.strict`, `eval.lenient`, `eval.cons@k`
(`completion` is then a list of answers, each put into a box) or `cosine_scaled_reward>0`. A gold "NaN (float)" is the
number. The files in `data/` were written before the reader that they measure.
"""

import collections
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.eval.extraction import read_gold
from r1jax.eval.score import Answered, grade, is_majority_right
from r1jax.rewards.answers import accuracy_reward, answer_reward, number_reward
from r1jax.rewards.lengths import get_cosine_scaled_reward

DATA = Path(__file__).parent / "data"
FILES = (DATA / "attack_cases.jsonl", DATA / "answer_cases.jsonl")
Case = dict[str, Any]


class Tally(NamedTuple):
    """Counts of one function's cases, and the cases that it got wrong."""

    wrong: int
    paid: list[Case]
    right: int
    refused: list[Case]


def read_cases(*files: Path) -> list[Case]:
    """The rows of the files."""
    return [json.loads(line) for file in files or FILES for line in file.read_text("utf-8").splitlines()]


def measure(cases: Sequence[Case]) -> dict[str, Tally]:
    """A tally for each function, each asked about all its cases at once."""
    by_function: dict[str, list[Case]] = collections.defaultdict(list)
    for case in cases:
        by_function[case["function"]].append(case)
    return {name: _count(rows, _ask(name, rows)) for name, rows in sorted(by_function.items())}


def _count(rows: Sequence[Case], paid: Sequence[bool]) -> Tally:
    wrong = [(row, value) for row, value in zip(rows, paid, strict=True) if not row["expected"]]
    right = [(row, value) for row, value in zip(rows, paid, strict=True) if row["expected"]]
    return Tally(
        len(wrong), [row for row, value in wrong if value], len(right), [row for row, value in right if not value]
    )


def _ask(name: str, rows: Sequence[Case]) -> list[bool]:
    texts = [row["completion"] for row in rows]
    golds = [math.nan if row["gold"] == "NaN (float)" else row["gold"] for row in rows]
    if name.startswith("eval."):
        return _evaluate(name.removeprefix("eval."), texts, golds)
    if name == "cosine_scaled_reward>0":
        return [value > 0 for value in get_cosine_scaled_reward()(texts, golds)]
    rewards = {reward.__name__: reward for reward in (accuracy_reward, answer_reward, number_reward)}
    return [value == 1.0 for value in rewards[name](texts, golds)]


def _evaluate(key: str, texts: Sequence[Any], golds: Sequence[Any]) -> list[bool]:
    """One problem a case, all graded together."""
    lists = [[rf"\boxed{{{answer}}}" for answer in text] if isinstance(text, list) else [text] for text in texts]
    graded = grade([Answered(None, read_gold(str(gold)), found) for gold, found in zip(golds, lists, strict=True)])
    if key == "cons@k":
        return [is_majority_right(grades, len(grades.answers)) for grades in graded]
    return [(grades.lenient if key == "lenient" else grades.correct)[0] for grades in graded]


def main(arguments: Sequence[str]) -> None:
    """Prints the table, and with --list the cases that went wrong."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    wanted = [flag.partition("=")[2] for flag in flags if flag.startswith("--function=")]
    cases = read_cases(*(Path(argument) for argument in arguments if argument not in flags))
    tallies = measure([case for case in cases if not wanted or case["function"] in wanted])
    print("| function | wrong paid | right refused |\n| --- | --- | --- |")
    for name, tally in tallies.items():
        paid, refused = len(tally.paid), len(tally.refused)
        counts = ((paid, tally.wrong), (refused, tally.right))
        shares = [f"{count} of {of} ({count / max(of, 1):.1%})" for count, of in counts]
        print(f"| `{name}` | {' | '.join(shares)} |")
    if "--list" in flags:
        for name, tally in tallies.items():
            for case in (*tally.paid, *tally.refused):
                verdict = "refused" if case["expected"] else "PAID"
                print(f"{name} {verdict} {case['completion']!r} for {case['gold']!r} ({case['klass']})")


if __name__ == "__main__":
    main(sys.argv[1:])
