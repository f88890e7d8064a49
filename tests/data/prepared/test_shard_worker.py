"""Workers share the shards of a set, whoever starts them; killed at any moment, what is done is done."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1jax.core.errors import UserError
from r1jax.data.corpus import CorpusConfig, SourceConfig, load_corpus
from r1jax.data.prepared import opening, preparation
from tests.data.prepared.test_prepared_set import digest_folder
from tests.data.test_corpus import with_template
from tests.data.test_golden_batches import say
from tests.environment import ROOT

PIECE = 40_000
PREPARE = """
import sys
from r1jax.data.corpus import CorpusConfig, SourceConfig
from r1jax.data.prepared import opening, preparation
from tests.data.test_corpus import with_template
preparation.PIECE_BYTES = int(sys.argv[2])
config = CorpusConfig({"main": SourceConfig(sys.argv[1])}, length=256)
for line in opening.prepare_corpus(config, with_template()):
    print(line)
"""


def write_chats(path: Path, count: int) -> None:
    turns = lambda i: [{"role": "user", "content": say(i, 9)}, {"role": "assistant", "content": say(i, 30 + i % 90)}]
    path.write_text("".join(json.dumps({"messages": turns(i)}) + "\n" for i in range(count)), "utf-8")


def start(path: Path, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, preparation.FOLDER: str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PREPARE, str(path), str(PIECE)]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def read_stamps(folder: Path) -> dict[str, int]:
    """When each whole shard was written."""
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*.index")}


def test_workers_make_what_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(preparation.FOLDER, str(tmp_path / "prepared"))
    monkeypatch.setattr(preparation, "PIECE_BYTES", PIECE)
    path = tmp_path / "chats.jsonl"
    write_chats(path, 120)
    config = CorpusConfig({"main": SourceConfig(str(path))}, length=256)
    lines = list(opening.prepare_corpus(config, with_template()))
    memory = load_corpus(config, with_template())
    assert "tokens encoded in" in lines[0] and lines[1:] == list(memory.notes)
    (prepared,) = opening.open_corpus(config, with_template()).train
    assert [example.targets.tolist() for example in prepared] == [e.targets.tolist() for e in memory.train[0]]
    with open(path, "a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"chats\.jsonl:121: not a JSON object.*on_error=skip"):
        list(opening.prepare_corpus(config, with_template()))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_ten_moments_the_bytes_are_the_same(tmp_path: Path, processes: int) -> None:
    path, expected, folder = tmp_path / "chats.jsonl", tmp_path / "expected", tmp_path / "killed"
    write_chats(path, 6_000)
    begin = time.monotonic()
    undisturbed = start(path, expected)
    assert undisturbed.wait(600) == 0, expected.with_suffix(".log").read_text()
    whole = time.monotonic() - begin
    shards = len(read_stamps(expected))
    assert shards >= 30
    moments, kept, kills, redone = random.Random(processes), {}, 0, 0
    while kills < 10:
        running = [start(path, folder) for _ in range(processes)]
        time.sleep(whole * (0.3 + 0.5 * moments.random()))
        for process in running:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        assert {process.wait() for process in running} <= {0, -9}
        time.sleep(1.0)  # the workers see that stdin is closed
        stamps = read_stamps(folder)
        redone += sum(stamps[name] != stamp for name, stamp in kept.items())
        kept = stamps
        if len(stamps) == shards:  # so fast that it begins again
            assert digest_folder(folder) == digest_folder(expected)
            subprocess.run(["rm", "-r", str(folder)], check=True)
            kept = {}
    running = [start(path, folder) for _ in range(processes)]
    for process in running:
        assert process.wait(600) == 0, folder.with_suffix(".log").read_text()
    assert digest_folder(folder) == digest_folder(expected)
    assert redone == 0 and len(read_stamps(folder)) == shards
    assert not [file for file in folder.rglob("*.draft")]
