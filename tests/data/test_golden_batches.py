"""Order and bits of batches as of version 0.2.0: whatever reads and prepares the data, old runs go on as they were."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r1jax.data.corpus import CorpusConfig, SourceConfig, load_corpus
from r1jax.data.loader import PromptLoader
from r1jax.data.sequences import PackingConfig, SequenceLoader
from r1jax.data.tasks import TaskConfig, load_task
from tests.data.test_corpus import with_template

WORDS = ["alpha", "béta", "gamma", "δ", "epsilon", "zeta zeta", "eta", "", "theta\n", "iota"]


def say(number: int, words: int) -> str:
    return " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(words)) + f" {number}."


def write_rows(folder: Path) -> dict[str, str]:
    """Two files: conversations of one and two turns, prompts with completions, texts; and texts alone."""
    rows: list[dict[str, Any]] = []
    for i in range(120):
        question, answer = say(i, 2 + i % 5), say(i * 3, 1 + (i * i) % 17)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if i % 3 == 0:
            rows.append({"messages": turns * (1 + i % 2)})
        elif i % 3 == 1:
            rows.append({"prompt": say(i % 40, 3), "completion": answer, "extra": i})
        else:
            rows.append({"text": say(i % 50, 1 + i % 29)})
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    texts = [{"text": say(i, 3 + i % 11)} for i in range(60)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), "utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in ("a", "b")}


def digest(batches: Iterator[Any], count: int) -> str:
    found = hashlib.sha256()
    for _, batch in zip(range(count), batches, strict=False):
        for name in sorted(batch):
            found.update(name.encode() + str(batch[name].dtype).encode() + batch[name].tobytes())
    return found.hexdigest()[:16]


CASES: dict[str, tuple[dict[str, Any], dict[str, float], str]] = {
    "plain": ({}, {}, "19f616133f6dd69d"),
    "held_out": ({"eval_rows": 9, "seed": 3, "epochs": 2}, {}, "2cffc61cd99e61db"),
    "cut_left": ({"length": 48, "truncation": "left", "packed": False}, {}, "233bb23efcf29966"),
    "dropped": ({"length": 64, "truncation": "drop", "bins": 3, "eval_rows": 4}, {}, "6710b06470b1c891"),
    "mixed": ({"bins": 5, "seed": 11}, {"a": 3.0, "b": 1.0}, "892effef21b9b28f"),
}


@pytest.mark.parametrize("case", CASES)
def test_batches_of_a_corpus(tmp_path: Path, case: str) -> None:
    settings, weights, expected = CASES[case]
    sources = {name: SourceConfig(path, weight=weights.get(name)) for name, path in write_rows(tmp_path).items()}
    config = CorpusConfig(sources, **{"length": 128, "bins": 16, **settings})
    corpus = load_corpus(config, with_template())
    packing = PackingConfig(config.length, config.bins, config.packed)
    loader = SequenceLoader(corpus.train, 4, packing, mixing=corpus.mixing, seed=config.seed, epochs=config.epochs)
    found = [digest(loader, 60), json.dumps(loader.get_state())]
    loader.close()
    if corpus.held_out:
        held = SequenceLoader([corpus.held_out], 4, packing, epochs=1)
        found.append(digest(held, 60))
        held.close()
    notes = [note.replace(str(tmp_path), "") for note in corpus.notes]
    assert hashlib.sha256(repr((found, notes)).encode()).hexdigest()[:16] == expected


def test_batches_of_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": say(i, 4), "solution": i, "tests": [i, "x"]} for i in range(70)]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = load_task(TaskConfig("file", str(path), eval_problems=7, seed=5))
    loader = PromptLoader(task.train, 8, seed=9)
    found = [repr(next(loader)) for _ in range(30)] + [repr(task.held_out)]
    assert hashlib.sha256("\n".join(found).encode()).hexdigest()[:16] == "efe802a40145bd94"
