"""Rows outside of memory are the same rows, in the same order, whoever reads them."""

import gc
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.data import row_store
from r1jax.data.formats import SUFFIXES
from r1jax.data.loader import PromptLoader, compute_checksum
from r1jax.data.row_store import RowStore, choose_rows, store_rows
from r1jax.data.tasks import Task, TaskConfig, leave_out_long, load_task
from tests.data.test_formats import write
from tests.data.test_golden_batches import say

ROWS = [{"prompt": say(i, 4), "solution": i, "tests": [i, None, "ä"]} for i in range(70)]


def test_a_store_is_a_sequence_of_its_rows() -> None:
    store = RowStore(ROWS)
    assert len(store) == 70 and list(store) == ROWS and store[3:9:2] == ROWS[3:9:2] and store[-1] == ROWS[-1]
    with pytest.raises(IndexError):
        store[70]
    store[0]["prompt"] = "other"
    assert store[0] == ROWS[0]
    chosen = choose_rows(store, [5, 2, 2])
    assert list(chosen) == [ROWS[5], ROWS[2], ROWS[2]] and list(chosen[1:]) == [ROWS[2]] * 2
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda place: store[place % 70], range(700))) == ROWS * 10


def test_a_task_is_the_same_in_memory_and_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *ROWS[:20]]), "utf-8")
    config = TaskConfig("file", str(path), eval_problems=7, seed=5)
    in_memory = load_task(config)
    monkeypatch.setattr(row_store, "IN_MEMORY", 0)
    stored = load_task(config)
    assert isinstance(in_memory.train, list) and not isinstance(stored.train, list)
    assert list(stored.train) == in_memory.train and list(stored.held_out) == in_memory.held_out
    assert stored.notes == in_memory.notes != ()
    one, two = (PromptLoader(task.train, 8, seed=9) for task in (in_memory, stored))
    assert [next(one) for _ in range(30)] == [next(two) for _ in range(30)]
    assert one.get_state() == two.get_state()


def test_many_prompts_take_memory_for_an_index() -> None:
    text = "a text of some length that is not shared " * 10
    gc.collect()
    tracemalloc.start()
    rows = store_rows({"prompt": f"{i} {text}", "solution": str(i)} for i in range(100_000))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(rows) == 100_000 and rows[77]["solution"] == "77"
    assert held < 2_000_000  # 40 MB of texts


def test_the_checksum_covers_every_column() -> None:
    edited = [*ROWS[:-1], {**ROWS[-1], "tests": [69, None, "ö"]}]
    assert compute_checksum(ROWS) != compute_checksum(edited)
    state = PromptLoader(ROWS, 4).get_state()
    with pytest.raises(UserError, match="the checkpoint's data has columns="):
        PromptLoader(edited, 4).set_state(state)
    del state["columns"]  # a checkpoint of 0.2.0
    PromptLoader(edited, 4).set_state(state)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_long_prompt_among_ten_thousand_of_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    texts = [f"q{i}" if i != 777 else "q" * 100 for i in range(10_000)]
    write(path, [json.dumps({"prompt": text, "completion": "a"}).encode() for text in texts])
    settings: dict[str, Any] = {"columns": {"solution": "completion"}, "template": "plain", "eval_problems": 5}
    config = TaskConfig("file", str(path), **settings)
    task = load_task(config)
    assert sorted(row["prompt"] for row in [*task.train, *task.held_out]) == sorted(texts)
    with pytest.raises(UserError, match=r"limit = 50, but a prompt of config\.data has 100 tokens.*long_prompts=skip"):
        leave_out_long(task, len, 50, config, rule="limit")
    skipping = TaskConfig("file", str(path), long_prompts="skip", **settings)
    kept, longest = leave_out_long(load_task(skipping), len, 50, skipping, rule="limit")
    assert sorted(row["prompt"] for row in [*kept.train, *kept.held_out]) == sorted({*texts} - {"q" * 100})
    assert longest == 5 and "prompts of more than 50 tokens are left out" in kept.notes[-1]


def test_what_is_too_long_is_counted() -> None:
    rows = [{"prompt": f"q{i}"} for i in range(10_000)]
    rows[777] = {"prompt": "q" * 100}
    task, config = Task(rows, rows[:5]), TaskConfig("file", "x.jsonl")
    with pytest.raises(UserError, match=r"limit = 50, but a prompt of config\.data has 100 tokens.*long_prompts=skip"):
        leave_out_long(task, len, 50, config, rule="limit")
    skipping = TaskConfig("file", "x.jsonl", long_prompts="skip")
    kept, longest = leave_out_long(task, len, 50, skipping, rule="limit")
    assert len(kept.train) == 9_999 and longest == 5 and kept.held_out == rows[:5]
    assert kept.notes == ("1 training and 0 held-out prompts of more than 50 tokens are left out",)
    assert leave_out_long(task, len, 0, config, rule="limit") == (Task(rows, rows[:5]), 100)
    with pytest.raises(UserError, match="no prompt of config.data has at most 1 tokens"):
        leave_out_long(task, len, 1, skipping, rule="limit")
