"""GRPO with rewards and checkpoints in two real processes against one: the same metrics, whoever resumes."""

import pathlib
import subprocess

import numpy as np
import pytest

from r1jax.core.metrics import read_rows
from tests.core.test_distributed import free_port
from tests.stages.runs import Rows, read_completions, start, untimed

FLAGS = ["--config.mesh.data=2", "--config.steps=2", "--config.checkpoint.every_steps=1", "--config.eval.every_steps=0"]


def run_processes(count: int, model: pathlib.Path, workdir: pathlib.Path, *flags: str) -> Rows:
    """The run on two devices in all, in `count` processes of equally many."""
    device = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // count}"}
    joined = {"R1JAX_COORDINATOR": f"localhost:{free_port()}", "R1JAX_PROCESS_COUNT": str(count)} if count > 1 else {}
    processes: list[subprocess.Popen] = [
        start(model, workdir, *FLAGS, *flags, **device, **joined, R1JAX_PROCESS_ID=str(index)) for index in range(count)
    ]
    try:
        for process in processes:
            assert process.wait(timeout=400) == 0, workdir.with_suffix(".log").read_text()[-3000:]
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
def test_two_processes_are_one_run(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    expected = run_processes(1, tiny_model, tmp_path / "one")
    assert_same(run_processes(2, tiny_model, tmp_path / "two"), expected)
    assert read_completions(tmp_path / "two") == read_completions(tmp_path / "one")
    longer = run_processes(1, tiny_model, tmp_path / "one", "--config.steps=3")
    assert_same(run_processes(2, tiny_model, tmp_path / "two", "--config.steps=3"), longer)
    crossed = run_processes(1, tiny_model, tmp_path / "two", "--config.steps=4")
    assert_same(crossed, run_processes(2, tiny_model, tmp_path / "one", "--config.steps=4"))
