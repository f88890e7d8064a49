"""A pipeline of every kind of stage killed at random moments: started again, it ends with the same models, sets,
metrics and evaluations. R1JAX_TEST_PIPELINE_KILLS times (3).
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import time
from typing import Any

import pytest

from r1jax.core.errors import DONE
from tests.chaos.moments import wait_until
from tests.chaos.spawner import Spawner
from tests.stages.pipeline.test_pipeline import CONFIG, read_record
from tests.stages.runs import assert_same_run

KILLS = int(os.environ.get("R1JAX_TEST_PIPELINE_KILLS", 3))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(spawner: Spawner, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("pipeline") / "run"
    with spawner.start(workdir, f"--config={CONFIG}") as attempt:
        assert attempt.wait() == DONE, workdir.with_suffix(".log").read_text()
    return workdir


def read_states(workdir: pathlib.Path) -> dict[str, Any]:
    try:
        return {name: entry["status"] for name, entry in read_record(workdir).items()}
    except FileNotFoundError:
        return {}


def assert_same_pipeline(one: pathlib.Path, other: pathlib.Path) -> None:
    assert "Traceback" not in one.with_suffix(".log").read_text()
    expected, found = read_record(other), read_record(one)
    for name, entry in expected.items():
        assert found[name]["outputs"] == entry["outputs"] and found[name]["metrics"] == entry["metrics"], name
        folder = entry["folder"]
        if (other / folder / "checkpoints").exists():
            assert_same_run(one / folder, other / folder)
        for file in (other / folder).glob("*.jsonl"):
            if file.name != "metrics.jsonl":
                assert (one / folder / file.name).read_bytes() == file.read_bytes(), file


def test_killed_at_any_moment_it_ends_the_same(spawner: Spawner, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    draw, workdir, found = random.Random(0), tmp_path / "run", collections.Counter[str]()
    entries = read_record(whole).values()
    seconds = sum(entry["seconds"] for entry in entries) / len(entries)
    while found.total() < KILLS:
        begun = read_states(workdir)
        with spawner.start(workdir, f"--config={CONFIG}") as attempt:
            if draw.random() < 0.75:  # in a stage or at its end; else mostly in the start
                wait_until(lambda begun=begun: read_states(workdir) != begun, attempt)
            end = time.monotonic() + draw.uniform(0, 2 * seconds)
            wait_until(lambda end=end: time.monotonic() > end, attempt)
            attempt.send(signal.SIGKILL)
            if (code := attempt.wait()) == DONE:  # it came to its end first: anew
                assert_same_pipeline(workdir, whole)
                shutil.rmtree(workdir)
                continue
            assert code == -signal.SIGKILL, workdir.with_suffix(".log").read_text()
            states = read_states(workdir)
            found[next((name for name, state in states.items() if state == "running"), "between stages")] += 1
    with spawner.start(workdir, f"--config={CONFIG}") as attempt:
        assert attempt.wait() == DONE, workdir.with_suffix(".log").read_text()
    assert_same_pipeline(workdir, whole)
    print(f"pipeline: {found.total()} kills, {json.dumps(found)}")
