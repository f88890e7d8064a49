"""The files of a run that brings no data, and a vocabulary made of them."""

import json
import pathlib
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.stages import synthesize as draw
from r1jax.stages import vocabulary
from r1jax.stages.registry import resolve_run
from r1jax.text.tokenizer import Tokenizer

COUNTS = {"low": 1, "high": 20, "held_out": 30, "worked": 5, "requests": 7, "texts": 300}
PREFERENCES = {"preferences": 500, "held_out_preferences": 90}


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_problems_are_apart_and_counts_are_as_asked(tmp_path: pathlib.Path):
    draw.run(resolve_run({"stage": "synthesize", **COUNTS}).settings, tmp_path / "a")
    files = {path.stem: read(path) for path in (tmp_path / "a").glob("*.jsonl")}
    assert {name: len(rows) for name, rows in files.items()} == {
        "held_out": 30,
        "problems": 20 * 21 // 2 - 30,
        "all_domains": 20 * 21 // 2 - 30 + 7,
        "worked": 5,
        "requests": 7,
        "text": 300,
    }
    assert not {row["prompt"] for row in files["held_out"]} & {row["prompt"] for row in files["problems"]}
    assert {(row["domain"], bool(row["solution"])) for row in files["all_domains"]} == {
        ("math", True),
        ("general", False),
    }
    draw.run(resolve_run({"stage": "synthesize", **COUNTS, **PREFERENCES}).settings, tmp_path / "c")
    learnt, held_out = (read(tmp_path / "c" / f"preferences{name}.jsonl") for name in ("", "_held_out"))
    assert (len(learnt), len(held_out)) == (500, 90)
    assert not {row["prompt"] for row in learnt} & {row["prompt"] for row in held_out}
    draw.run(resolve_run({"stage": "synthesize", **COUNTS}).settings, tmp_path / "b")
    assert all((tmp_path / "b" / f"{name}.jsonl").read_text("utf-8") for name in files)
    for name in files:
        assert (tmp_path / "a" / f"{name}.jsonl").read_bytes() == (tmp_path / "b" / f"{name}.jsonl").read_bytes()


def test_a_vocabulary_of_the_texts(tmp_path: pathlib.Path):
    draw.run(resolve_run({"stage": "synthesize", **COUNTS}).settings, tmp_path / "data")
    path = str(tmp_path / "data" / "text.jsonl")
    settings = resolve_run({"stage": "vocabulary", "path": path, "size": 420}).settings
    vocabulary.run(settings, tmp_path / "vocabulary")
    tokenizer = Tokenizer.from_path(tmp_path / "vocabulary")
    assert tokenizer is not None and 380 < tokenizer.vocab_size <= 420
    text = "Question: What is 3 + 4?\nReply: <think> 个位相加: 3 + 4 = 7. </think>"
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) < len(text) * 0.8


@pytest.mark.parametrize("change", [{"texts": -1}, {"held_out": 10_000}, {"sums": 3}])
def test_a_mistake_is_told(tmp_path: pathlib.Path, change: dict[str, int]):
    with pytest.raises(UserError):
        draw.run(resolve_run({"stage": "synthesize", **COUNTS, **change}).settings, tmp_path)
