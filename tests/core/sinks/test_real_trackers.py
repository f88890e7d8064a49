"""Real trackers, where their packages are installed: all receive the same names and steps, in one run over restarts.

Each start is a process of its own, as a run's are. Nothing leaves this machine: W&B is offline, the others are files.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1jax.core.metrics import read_rows
from r1jax.core.sinks.trackers import TRACKERS
from tests.environment import ROOT

MISSING = [name for name in TRACKERS if importlib.util.find_spec(name) is None]

# Resumes from the checkpoint of a step, computes some steps again, and goes on.
START = """
import os, sys
from r1jax.core.metrics import MetricsWriter
workdir, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
trackers = {name: {"project": "r1"} for name in sys.argv[4].split(",")}
writer = MetricsWriter(workdir, tensorboard=False, **trackers)
writer.rewind(first - 1)
for step in range(first, last + 1):
    row = {"loss": 1 / (step + 1), "rewards/letters/mean": step, "eval/sums/pass@1": 0.5}
    writer.write(step, row)
writer.close()
"""
STARTS = ((0, 3), (3, 5), (4, 8), (8, 9))  # three restarts; steps 3, 4, 5 and 8 are computed twice
NAMES = {"loss", "rewards/letters/mean", "eval/sums/pass@1"}


def read_records(file: Path) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log format (blocks of 32 KiB; checksum, length and kind before each piece)
    behind a header of 7 bytes.
    """
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of a record, or its last piece
            yield whole
            whole = b""


def read_wandb(workdir: Path) -> tuple[set[str], dict[str, set[int]]]:
    """Ids of the runs in the offline files, and the steps of each name."""
    from wandb.proto import wandb_internal_pb2

    ids: set[str] = set()
    steps: dict[str, set[int]] = {}
    for file in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        for data in read_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                for name in (item.key or "/".join(item.nested_key) for item in record.history.item):
                    if not name.startswith("_"):
                        steps.setdefault(name, set()).add(record.history.step.num)
    return ids, steps


def read_trackio(folder: Path) -> tuple[set[str], dict[str, list[int]]]:
    """Names of the runs of the project, and the steps of each name."""
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage
runs = SQLiteStorage.get_runs("r1")
print(json.dumps({run: SQLiteStorage.get_logs("r1", run) for run in runs}))
"""
    environment = {**os.environ, "TRACKIO_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    logs = json.loads(done.stdout.splitlines()[-1])
    steps: dict[str, list[int]] = {}
    for row in (row for rows in logs.values() for row in rows):
        for name in row.keys() - {"step", "timestamp"}:
            steps.setdefault(name, []).append(row["step"])
    return set(logs), steps


def read_mlflow(workdir: Path) -> tuple[set[str], dict[str, list[int]]]:
    """Ids of the runs of the experiment, and the steps of each name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{workdir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("r1")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = {name for run in runs for name in run.data.metrics}
    history = {n: [m.step for run in runs for m in client.get_metric_history(run.info.run_id, n)] for n in names}
    return {run.info.run_id for run in runs}, history


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {', '.join(MISSING)} (extras of these names)")
def test_all_receive_the_same_names_and_steps_in_one_run(tmp_path: Path) -> None:
    workdir, store = tmp_path / "zero", tmp_path / "trackio"
    environment = {**os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(store), "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    for first, last in STARTS:
        command = [sys.executable, "-c", START, str(workdir), str(first), str(last), ",".join(TRACKERS)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    steps = list(range(STARTS[-1][1] + 1))
    assert [row["step"] for row in read_rows(workdir / "metrics.jsonl")] == steps
    ids = json.loads((workdir / "trackers.json").read_text())
    runs, found = read_mlflow(workdir)
    assert runs == {ids["mlflow"]["r1"]}
    assert {re.sub("_at_", "@", name): sorted(seen) for name, seen in found.items()} == dict.fromkeys(NAMES, steps)
    runs, found = read_trackio(store)
    assert runs == {"zero"} and {name: sorted(seen) for name, seen in found.items()} == dict.fromkeys(NAMES, steps)
    runs, sent = read_wandb(workdir)
    assert runs == {ids["wandb"]["r1"]}
    assert {name: sorted(seen) for name, seen in sent.items()} == dict.fromkeys(NAMES, steps)
