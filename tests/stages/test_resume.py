"""Starting again: a killed run ends bit for bit like an uninterrupted one, a finished one does nothing, another config
is refused."""

import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from r1jax.core.errors import UserError
from tests.stages import runs
from tests.stages.conftest import LEARNING
from tests.stages.letters import HANG
from tests.stages.runs import assert_same_run, last_step, train

# Two updates a step, a checkpoint every two steps, an evaluation every three.
FLAGS = [
    "--config.steps=6",
    "--config.checkpoint.every_steps=2",
    "--config.train.updates_per_step=2",
    "--config.eval.every_steps=3",
]


def test_a_finished_run_does_nothing_and_says_so(
    learned: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    workdir = shutil.copytree(learned, tmp_path / "run")
    before = {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl", "config.json")}
    with caplog.at_level("INFO"):
        train(workdir, tiny_model, **LEARNING)
    assert before == {name: (workdir / name).read_bytes() for name in before}
    assert "is finished: step 20 of 20 is done" in caplog.text and "resuming" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"config\.seed = 0, this one has 1"),
        ({"optimizer__learning_rate": 1e-4}, r"config\.optimizer\.learning_rate = 0\.002, this one has 0\.0001"),
        ({"rewards": '{"number_reward": 1.0}'}, r"config\.rewards\."),
    ],
)
def test_a_workdir_of_another_config_is_refused(
    learned: pathlib.Path, tiny_model: pathlib.Path, changes: dict[str, Any], message: str
):
    before = (learned / "metrics.jsonl").read_bytes(), (learned / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        train(learned, tiny_model, **{**LEARNING, **changes})
    assert before == ((learned / "metrics.jsonl").read_bytes(), (learned / "config.json").read_bytes())


def start(model: pathlib.Path, workdir: pathlib.Path, **environment: str) -> subprocess.Popen:
    return runs.start(model, workdir, *FLAGS, **environment)


def finish(process: subprocess.Popen, workdir: pathlib.Path) -> str:
    assert process.wait(600) == 0, workdir.with_suffix(".log").read_text()
    return workdir.with_suffix(".log").read_text()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() in (None, 0) and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start(tiny_model, workdir), workdir)
    return workdir


def test_killed_and_started_again_ends_bit_for_bit_the_same(
    tiny_model: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
):
    """Killed in step 6, when step 5 is on file but the newest checkpoint is that of step 4."""
    workdir = tmp_path / "run"
    process = start(tiny_model, workdir, **{HANG: "6"})
    try:
        wait_for(lambda: last_step(workdir) == 5, process)
    finally:
        process.kill()
        process.wait()
    assert last_step(workdir) == 5
    said = finish(start(tiny_model, workdir), workdir)
    assert "from step 4 of 6" in said
    assert_same_run(workdir, uninterrupted)
