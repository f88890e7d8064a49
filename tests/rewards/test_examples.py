"""The examples of docs/rewards.md pay what the page says."""

import re
from pathlib import Path

import pytest

from r1jax import rewards

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"
ROW = re.compile(r"\| `(?P<reply>.+?)` \| `(?P<gold>.+?)` \|(?P<pays>[ 01]*)\|.*\|")


def read_examples() -> dict[str, list[tuple[str, str, float | None]]]:
    """(reply, gold, value) of each row of the tables, by the reward that heads them."""
    examples: dict[str, list[tuple[str, str, float | None]]] = {}
    for part in PAGE.read_text("utf-8").split("\n### `")[1:]:
        name = part.partition("`")[0]
        rows = [match for line in part.splitlines() if (match := ROW.fullmatch(line))]
        examples[name] = [
            (row["reply"], row["gold"].strip(), float(row["pays"]) if row["pays"].strip() else None) for row in rows
        ]
    return examples


EXAMPLES = read_examples()


def test_there_are_examples():
    assert {name: len(rows) for name, rows in EXAMPLES.items()} == {
        "answer_reward": 31,
        "number_reward": 8,
        "accuracy_reward": 11,
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    replies, golds, values = zip(*EXAMPLES[name], strict=True)
    found = getattr(rewards, name)(list(replies), solution=list(golds))
    wrong = [
        (reply, gold, value)
        for (reply, gold, expected), value in zip(EXAMPLES[name], found, strict=True)
        if value != expected
    ]
    assert wrong == []
