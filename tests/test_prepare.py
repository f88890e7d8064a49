"""`r1jax.prepare` makes what a run then reads, with the same results as in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1jax import prepare
from r1jax.data.prepared import preparation
from r1jax.data.prepared.shard_worker import work
from tests.data.prepared.test_shard_worker import write_chats
from tests.stages import runs
from tests.stages.runs import untimed

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    data = {"sources": {"chats": {"path": PATH}}, "length": 128, "bins": 4, "eval_rows": 5}
    train = {"rows_per_step": 8, "micro_batch_size": 8}
    return ConfigDict({"stage": "sft", "steps": 4, "model": {"name": ""}, "data": data, "train": train})
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(preparation.FOLDER, str(tmp_path / "prepared"))
    monkeypatch.setattr(preparation, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(preparation, "_work", lambda job, _: work(job))
    write_chats(tmp_path / "chats.jsonl", 150)
    (tmp_path / "config.py").write_text(CONFIG.replace("PATH", repr(str(tmp_path / "chats.jsonl"))))
    return tmp_path / "config.py"


def test_a_second_start_finds_the_set(
    config: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", f"--config={config}", f"--config.model.name={tiny_model}"]
    assert prepare.main(command) == 0
    said = capsys.readouterr().out
    assert "chats: " in said and " tokens encoded in " in said and "examples of" in said
    assert prepare.main(command) == 0
    assert "chats: is prepared in" in capsys.readouterr().out
    with open(tmp_path / "chats.jsonl", "a") as file:
        file.write(json.dumps({"messages": []}) + "\n")
    assert prepare.main(command) == 2
    assert "chats.jsonl:151: messages must be" in capsys.readouterr().err


def test_a_run_without_a_set_is_refused(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["prepare", f"--config={runs.CONFIG}", f"--config.model.name={tiny_model}"]) == 2
    assert "a run of the stage 'grpo' has no supervised data set to prepare" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_ends_alike_in_memory_and_prepared(
    config: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare.main(["prepare", f"--config={config}", f"--config.model.name={tiny_model}"]) == 0
    prepared = runs.train(tmp_path / "prepared_run", tiny_model, config=config)
    monkeypatch.setenv(preparation.FOLDER, "off")
    memory = runs.train(tmp_path / "memory_run", tiny_model, config=config)
    assert untimed(prepared) == untimed(memory) and prepared[-1]["loss"] < prepared[1]["loss"]
