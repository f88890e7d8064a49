"""Processes that read a mixture are killed, and go on in other numbers: the batches are those of an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from r1jax.data.corpus import CorpusConfig, SourceConfig
from r1jax.data.prepared import preparation
from tests.data.test_golden_batches import write_rows
from tests.environment import ROOT

BATCHES, ROWS, LENGTH = 120, 8, 128
READER = """
import hashlib, json, sys, time
import numpy as np
from r1jax.data.corpus import CorpusConfig, load_corpus
from r1jax.data.prepared.opening import open_corpus
from r1jax.data.sequences import PackingConfig, SequenceLoader
from tests.data.prepared.test_killed_readers import BATCHES, LENGTH, ROWS, make_config
from tests.data.test_corpus import with_template
folder, kind, process, count, read_ahead, log, done = sys.argv[1:]
process, count, done = int(process), int(count), json.loads(done)
corpus = {"memory": load_corpus, "prepared": open_corpus}[kind](make_config(folder), with_template())
is_prepared = not any(isinstance(part, list) for part in corpus.train)
assert is_prepared == (kind == "prepared")
mine = np.arange(ROWS) * count // ROWS == process
packing = PackingConfig(LENGTH, 8, read_ahead=int(read_ahead))
loader = SequenceLoader(corpus.train, ROWS, packing, mixing=corpus.mixing, seed=5, epochs=None, mine=mine)
if done["state"]:
    loader.set_state(done["state"])
with open(log, "a") as file:
    for number in range(done["batches"], BATCHES):
        batch = next(loader)
        rows = {}
        for row in np.flatnonzero(mine):
            data = b"".join(name.encode() + batch[name][row].tobytes() for name in sorted(batch))
            rows[int(row)] = hashlib.sha256(data).hexdigest()
        file.write(json.dumps({"batches": number + 1, "state": loader.get_state(), "rows": rows}) + "\\n")
        file.flush()
        time.sleep(0.02)
loader.close()
"""
BEGIN: dict[str, Any] = {"batches": 0, "state": None}


def make_config(folder: str) -> CorpusConfig:
    sources = {name: SourceConfig(f"{folder}/{name}.jsonl", weight=1.0 + (name == "a")) for name in ("a", "b")}
    return CorpusConfig(sources, length=LENGTH, bins=8)


class Readers:
    """Processes that read the rows of each batch among them, from what was done on."""

    def __init__(self, folder: Path, kind: str, count: int, read_ahead: int, done: dict[str, Any]):
        self.logs = [folder / f"log{process}" for process in range(count)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), preparation.FOLDER: str(folder / "prepared")}
        self.processes = []
        for process, log in enumerate(self.logs):
            log.write_bytes(b"")
            parts = [folder, kind, process, count, read_ahead, log, json.dumps(done)]
            command = [sys.executable, "-c", READER, *map(str, parts)]
            self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))

    def kill_after(self, batches: int) -> None:
        """Kills all, once the first has written so many batches, unless it ends before."""
        while self.processes[0].poll() is None and self.logs[0].read_bytes().count(b"\n") < batches:
            time.sleep(0.003)
        for process in self.processes:
            process.send_signal(signal.SIGKILL)

    def end(self, found: dict[tuple[int, int], str], done: dict[str, Any]) -> tuple[dict[str, Any], set[int]]:
        """Waits for the processes, adds the digests of rows by (batch, row), and returns what is done in all of them,
        as a checkpoint would have it, and their exit codes. What was read before must be read alike.
        """
        codes = {process.wait() for process in self.processes}
        said = [[json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]] for log in self.logs]
        for line in (line for lines in said for line in lines):
            for row, digest in line["rows"].items():
                assert found.setdefault((line["batches"], int(row)), digest) == digest
        last = min((lines[-1] if lines else done for lines in said), key=lambda line: line["batches"])
        return {"batches": last["batches"], "state": last["state"]}, codes


def digest_all(found: dict[tuple[int, int], str]) -> str:
    assert len(found) == BATCHES * ROWS
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


@pytest.mark.slow
def test_killed_at_ten_moments_in_other_numbers_all_batches_are_the_same(tmp_path: Path) -> None:
    """The hash of all batches: of one process in memory, of one, two and four that read a prepared set, and of
    processes that are killed at ten random moments and go on in another number, in memory or prepared, with another
    number of batches made ahead.
    """
    write_rows(tmp_path)
    hashes = {}
    for kind, count in (("memory", 1), ("prepared", 1), ("prepared", 2), ("prepared", 4)):
        if kind == "prepared" and count == 1:
            prepare(tmp_path)
        found: dict[tuple[int, int], str] = {}
        _, codes = Readers(tmp_path, kind, count, 2, BEGIN).end(found, BEGIN)
        assert codes == {0}
        hashes[kind, count] = digest_all(found)
    assert len(set(hashes.values())) == 1, hashes
    moments, done, found, kills = random.Random(0), BEGIN, {}, 0
    while kills < 10:
        kind, count, read_ahead = moments.choice(("memory", "prepared")), moments.choice((1, 2, 4)), kills % 5
        readers = Readers(tmp_path, kind, count, read_ahead, done)
        readers.kill_after(moments.randrange(0, 12))
        done, codes = readers.end(found, done)
        assert codes <= {0, -signal.SIGKILL}
        kills += -signal.SIGKILL in codes
        assert done["batches"] < BATCHES
    _, codes = Readers(tmp_path, "prepared", 2, 4, done).end(found, done)
    assert codes == {0} and digest_all(found) == hashes["memory", 1]


def prepare(folder: Path) -> None:
    """Makes the sets, with small shards."""
    program = (
        "import sys\nfrom r1jax.data.prepared import opening, preparation\n"
        "from tests.data.prepared.test_killed_readers import make_config\n"
        "from tests.data.test_corpus import with_template\n"
        "for _ in opening.prepare_corpus(make_config(sys.argv[1]), with_template()): pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), preparation.FOLDER: str(folder / "prepared")}
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, env=environment, check=True)
