"""Faults of one of two processes of a run: both end in bounded time with the cause named, and the same command, started
again, ends with the result of an uninterrupted run."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from r1jax.core.errors import LOST, MISTAKE, PREEMPTED, STALLED
from tests.core.test_distributed import free_port
from tests.environment import make_xla_flags
from tests.stages.letters import HANG, RAISE
from tests.stages.runs import CONFIG, ROOT, assert_same_run, last_step

FLAGS = ["--config.steps=8", "--config.checkpoint.every_steps=2", "--config.eval.every_steps=0", "--config.mesh.data=2"]
SECONDS = 60  # within which both end
KILLS, TERMS = (int(os.environ.get(f"R1JAX_TEST_{name}", 2)) for name in ("KILLS", "TERMS"))


class Pair:
    """Two processes of one run; each has a log. odd: flags, environment and folder of the second alone. config: with
    its flags, in place of the tiny GRPO's.
    """

    def __init__(
        self,
        model: pathlib.Path,
        workdir: pathlib.Path,
        *flags: str,
        config: tuple[pathlib.Path, list[str]] = (CONFIG, FLAGS),
        odd_workdir: pathlib.Path | None = None,
        folders: tuple[pathlib.Path, pathlib.Path] = (ROOT, ROOT),
        odd: dict[str, str] | None = None,
    ):
        shared = {**os.environ, "XLA_FLAGS": make_xla_flags(1), "PYTHONPATH": str(ROOT)}
        shared |= {"R1JAX_COORDINATOR": f"localhost:{free_port()}", "R1JAX_PROCESS_COUNT": "2"}
        command = [sys.executable, "-m", "r1jax.train", f"--config={config[0]}", f"--config.model.name={model}"]
        command += config[1]
        self.logs = [workdir.with_suffix(f".{index}.log") for index in range(2)]
        self.processes = []
        for index, log in enumerate(self.logs):
            place = (odd_workdir or workdir) if index else workdir
            with open(log, "wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, f"--workdir={place}", *flags],
                        cwd=folders[index],
                        env={**shared, **((odd or {}) if index else {}), "R1JAX_PROCESS_ID": str(index)},
                        stdout=file,
                        stderr=file,
                    )
                )

    def end(self, seconds: float = 600) -> tuple[list[int], list[str]]:
        """Exit codes and logs, once both have ended by themselves."""
        try:
            end = time.monotonic() + seconds
            codes = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
            return codes, [log.read_text(errors="replace") for log in self.logs]
        except subprocess.TimeoutExpired:
            raise AssertionError("\n".join(log.read_text(errors="replace")[-3000:] for log in self.logs)) from None
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def wait_for_start(self) -> None:
        """Waits until the processes have found each other: from there on they notice a death soon."""
        while "process 2 of 2 is" not in self.logs[1].read_text(errors="replace"):
            assert all(process.poll() is None for process in self.processes)
            time.sleep(0.05)

    def wait_for_step(self, workdir: pathlib.Path, step: int) -> None:
        """Waits for a row of a step, or for the end of the run."""
        while last_step(workdir) < step and all(process.poll() is None for process in self.processes):
            time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    codes, logs = Pair(tiny_model, workdir).end()
    assert codes == [0, 0], logs
    return workdir


def finish(model: pathlib.Path, workdir: pathlib.Path, expected: pathlib.Path) -> None:
    codes, logs = Pair(model, workdir).end()
    assert codes == [0, 0], logs
    assert_same_run(workdir, expected)


@pytest.mark.slow
def test_one_process_killed_at_any_moment(
    tiny_model: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """$R1JAX_TEST_KILLS times (2), either process; some before the first step, some while saving."""
    generator = np.random.default_rng(0)
    workdir, hits = tmp_path / "run", 0
    for attempt in range(50):
        if hits == KILLS:
            break
        victim = int(generator.integers(2))
        pair, begun = Pair(tiny_model, workdir), last_step(workdir)
        if attempt % 4:
            pair.wait_for_step(workdir, begun + 1)
        else:
            pair.wait_for_start()
        time.sleep(generator.uniform(0, 0.6))
        if pair.processes[victim].poll() is not None:  # it was finished: from the start
            assert pair.end()[0] == [0, 0]
            assert_same_run(workdir, uninterrupted)
            shutil.rmtree(workdir)
            continue
        pair.processes[victim].kill()
        codes, logs = pair.end(SECONDS)
        if codes[1 - victim]:
            hits += 1
            assert codes[victim] == -signal.SIGKILL and codes[1 - victim] in (LOST, -signal.SIGABRT), logs
            # jax's own line is there where it is faster: the first process is dead, or no collective is under way.
            named = (
                f"process {victim + 1} of 2",
                "the leader task was preempted/died",
                f"sending heartbeats):\n{victim}",
            )
            assert any(text in logs[1 - victim] for text in named), logs
    assert hits == KILLS
    finish(tiny_model, workdir, uninterrupted)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_the_same_step_in_both(
    tiny_model: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """$R1JAX_TEST_TERMS times (2), either process, at random moments."""
    generator = np.random.default_rng(1)
    for attempt in range(TERMS):
        workdir = tmp_path / f"run{attempt}"
        pair = Pair(tiny_model, workdir)
        pair.wait_for_step(workdir, int(generator.integers(1, 6)))
        time.sleep(generator.uniform(0, 0.1))
        seen = last_step(workdir)
        pair.processes[attempt % 2].terminate()
        codes, logs = pair.end(SECONDS)
        assert codes == [PREEMPTED, PREEMPTED], logs
        saved = max(int(folder.name) for folder in (workdir / "checkpoints").glob("[0-9]*"))
        assert saved >= seen and last_step(workdir) == saved  # nothing that was done is lost
        finish(tiny_model, workdir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hangs", "raises"])
def test_a_reward_that_fails_in_one_process_ends_both(
    fault: str, tiny_model: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir, flags = tmp_path / "run", ["--config.guards.rewards=strict"]
    if fault == "hangs":
        flags.append("--config.watchdog_minutes=1")
    pair = Pair(tiny_model, workdir, *flags, odd={HANG if fault == "hangs" else RAISE: "4"})
    pair.wait_for_step(workdir, 3)
    codes, logs = pair.end(SECONDS + (90 if fault == "hangs" else 0))
    code = STALLED if fault == "hangs" else 1
    assert codes == [code, code], logs
    if fault == "hangs":
        assert all("no progress for" in log and "Thread 0x" in log for log in logs)
        assert "letters_reward" in logs[1]
    else:
        assert "the reward is broken" in logs[1] and "Traceback" in logs[1]
        assert "process 2 of 2" in logs[0] and "ended: ValueError: the reward is broken" in logs[0]
    finish(tiny_model, workdir, uninterrupted)


@pytest.mark.slow
def test_a_process_that_sees_an_older_checkpoint_ends_both(
    tiny_model: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir, older = (shutil.copytree(uninterrupted, tmp_path / name) for name in ("run", "older"))
    newest = max((older / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name))
    shutil.rmtree(newest)
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    codes, logs = Pair(tiny_model, workdir, odd_workdir=older).end(2 * SECONDS)
    assert codes == [MISTAKE, MISTAKE], logs
    for log in logs:
        assert "process 2 of 2" in log and "sees step 6 as the newest checkpoint" in log and log.count("error: ") == 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before
    finish(tiny_model, workdir, uninterrupted)


@pytest.mark.slow
def test_a_process_with_other_data_ends_both(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folders = (tmp_path / "a", tmp_path / "b")
    for number, folder in enumerate(folders):
        folder.mkdir()
        rows = [{"prompt": f"{i} + 1 =", "solution": str(i + 1 + number * (i == 7))} for i in range(12)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--config.data.source=file", "--config.data.path=rows.jsonl", "--config.data.args={}"]
    codes, logs = Pair(tiny_model, tmp_path / "run", *flags, folders=folders).end(2 * SECONDS)
    assert codes == [MISTAKE, MISTAKE], logs
    for log in logs:
        assert "need the same data, but process 2 of 2" in log and log.count("error: ") == 1, log
