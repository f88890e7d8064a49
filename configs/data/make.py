"""Writes the example data sets beside this script: small, made by rule, ours (Apache-2.0, as the rest).

    python configs/data/make.py

units.jsonl           300 conversations in which a number of units is converted, one sentence each (for sft_chat.py)
units_held_out.jsonl  100 other questions of that kind with their answers, for `python -m r1jax.evaluate`
unit_pairs.jsonl      the same 300 questions, each with a worked and an unworked answer (for dpo.py and reward_model.py)
sums.jsonl            500 sums of two numbers from 10 to 99 with their answers (for grpo_jsonl.py and distill.py)
"""

import itertools
import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent

# (one of a unit, several, how many smaller ones, their name)
UNITS = (
    ("minute", "minutes", 60, "seconds"),
    ("hour", "hours", 60, "minutes"),
    ("day", "days", 24, "hours"),
    ("week", "weeks", 7, "days"),
    ("year", "years", 12, "months"),
    ("century", "centuries", 100, "years"),
    ("dozen", "dozens", 12, "pieces"),
    ("kilometre", "kilometres", 1000, "metres"),
    ("metre", "metres", 100, "centimetres"),
    ("foot", "feet", 12, "inches"),
)


def make_units() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Conversations, and held-out questions of other pairs of number and unit."""
    pairs = list(itertools.product(range(2, 42), UNITS))
    random.Random("units").shuffle(pairs)
    rows: list[dict[str, object]] = []
    held_out: list[dict[str, object]] = []
    for count, (one, several, size, parts) in pairs:
        question = {"role": "user", "content": f"How many {parts} are {count} {several}?"}
        answer = f"One {one} has {size} {parts}, so {count} {several} are {count} x {size} = {count * size} {parts}."
        if len(held_out) < 100:
            held_out.append({"prompt": [question], "solution": str(count * size)})
        else:
            rows.append({"messages": [question, {"role": "assistant", "content": answer}]})
    return rows, held_out


def make_pairs(conversations: list[dict[str, object]]) -> list[dict[str, object]]:
    """Preferences over the questions: the worked answer, and one that is short, and wrong every other time."""
    chance, rows = random.Random("pairs"), []
    for row in conversations:
        question, answer = row["messages"]  # type: ignore[misc]
        number, parts = answer["content"].rstrip(".").split()[-2:]
        told = int(number) if chance.random() < 0.5 else int(number) + chance.choice((-10, -1, 1, 10))
        worse = {"role": "assistant", "content": f"I think it is {told} {parts}, but look it up."}
        rows.append({"prompt": [question], "chosen": [answer], "rejected": [worse]})
    return rows


def make_sums() -> list[dict[str, object]]:
    """Sums of different pairs of numbers."""
    pairs = list(itertools.combinations_with_replacement(range(10, 100), 2))
    random.Random("sums").shuffle(pairs)
    return [{"prompt": f"What is {a} + {b}?", "solution": str(a + b)} for a, b in pairs[:500]]


def write(name: str, rows: list[dict[str, object]]) -> None:
    """Writes rows as a file beside this script."""
    (HERE / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    train, held_out = make_units()
    write("units.jsonl", train)
    write("units_held_out.jsonl", held_out)
    write("unit_pairs.jsonl", make_pairs(train))
    write("sums.jsonl", make_sums())
