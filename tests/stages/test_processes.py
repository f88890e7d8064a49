"""Whole runs in two and four real processes against one: the same metrics, samples and checkpoints, whoever resumes."""

import pathlib
import subprocess

import numpy as np
import pytest

from r1jax.core.metrics import read_rows
from tests.core.test_distributed import free_port
from tests.environment import make_xla_flags
from tests.stages.runs import CONFIG, Rows, read_completions, start, untimed

DEVICES = 4
STAGES = {
    "grpo": (CONFIG, ["--config.eval.every_steps=0"]),
    "sft": (CONFIG.with_name("tiny_sft.py"), ["--config.train.micro_batch_size=2"]),
}


def run_processes(stage: str, count: int, steps: int, model: pathlib.Path, workdir: pathlib.Path) -> Rows:
    """The run up to so many steps on four devices in all, in `count` processes of equally many; its rows so far."""
    config, flags = STAGES[stage]
    environment = {"XLA_FLAGS": make_xla_flags(DEVICES // count)}
    if count > 1:
        environment |= {"R1JAX_COORDINATOR": f"localhost:{free_port()}", "R1JAX_PROCESS_COUNT": str(count)}
    common = [f"--config.mesh.data={DEVICES}", f"--config.steps={steps}", "--config.checkpoint.every_steps=1"]
    processes: list[subprocess.Popen] = [
        start(model, workdir, *common, *flags, config=config, **environment, R1JAX_PROCESS_ID=str(index))
        for index in range(count)
    ]
    try:
        for process in processes:
            assert process.wait(timeout=600) == 0, workdir.with_suffix(".log").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return read_rows(workdir / "metrics.jsonl")


def assert_same(rows: Rows, expected: Rows) -> None:
    rows, expected = untimed(rows), untimed(expected)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert set(row) == set(other)
        for key, value in other.items():
            np.testing.assert_allclose(row[key], value, rtol=1e-5, atol=1e-5, err_msg=f"step {row['step']}: {key}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_several_processes_are_one_run(stage: str, tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Two begin and four go on, one begins and goes on; then the first is taken over by one, and the other by two."""
    run = lambda count, steps, name: run_processes(stage, count, steps, tiny_model, tmp_path / name)
    assert_same(run(2, 2, "many"), run(1, 2, "one"))
    assert_same(run(4, 3, "many"), run(1, 3, "one"))
    assert_same(run(1, 4, "many"), run(2, 4, "one"))
    if stage == "grpo":
        assert read_completions(tmp_path / "many") == read_completions(tmp_path / "one")
