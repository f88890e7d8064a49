"""launch/slurm_gpu.sbatch on a real Slurm (slurm_cluster.py): time limits and preemptions leave the same bits.

Skipped where Slurm is not installed. R1JAX_SLURM_JOBS: how many jobs run into their time limit, two by default.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from slurm_cluster import Cluster, missing
from stand_in import ROOT

from r1jax.core.checkpoint import SavedArrays, newest_checkpoint
from r1jax.core.metrics import read_rows
from tests.environment import make_xla_flags
from tests.stages.runs import untimed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

STEPS = 30
JOBS = int(os.environ.get("R1JAX_SLURM_JOBS", "2"))
SHAPE = ("--nodes=1", "--cpus-per-task=1", "--gpus-per-node=0")
LIMIT = ("--time=4", "--signal=B:USR1@60")  # the notice comes 150 to 180 s after the start
# The run's program, slowed down so that a time limit comes before its end.
PROGRAM = """
import os, sys, time
__package__ = "r1jax"  # as in python -m r1jax.train
from r1jax import train
from r1jax.core.checkpoint import SavedArrays, newest_checkpoint
from r1jax.core.metrics import MetricsWriter
write = MetricsWriter.write
def slow_write(self, step, row):
    time.sleep(float(os.environ["SECONDS_A_STEP"]))
    write(self, step, row)
MetricsWriter.write = slow_write
assert sys.argv[1:3] == ["-m", "r1jax.train"]
sys.exit(train.main(sys.argv[2:]))
"""


class Runs:
    """Jobs of the batch script that train the tiny config on two devices, each in a workdir of its own."""

    def __init__(self, cluster: Cluster, folder: Path, model: Path):
        self.cluster, self.folder, self.model = cluster, folder, model
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / "program.py").write_text(PROGRAM)
        python = folder / ".venv" / "bin" / "python"
        python.write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} {folder}/program.py "$@"\n')
        python.chmod(0o755)

    def submit(self, name: str, *options: str, tasks: int, seconds: float) -> str:
        environment = {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": make_xla_flags(2 // tasks),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "SECONDS_A_STEP": str(seconds),
        }
        return self.cluster.submit(
            self.folder,
            *(*SHAPE, f"--ntasks-per-node={tasks}", *options, str(ROOT / "launch" / "slurm_gpu.sbatch")),
            f"--config={ROOT / 'tests' / 'stages' / 'tiny_sft.py'}",
            f"--config.model.name={self.model}",
            f"--config.steps={STEPS}",
            "--config.mesh.data=2",
            "--config.train.micro_batch_size=4",
            f"--workdir={self.folder / name}",
            environment=environment,
        )

    def log(self, job: str) -> str:
        path = self.folder / f"r1jax-{job}.log"
        return path.read_text() if path.exists() else ""

    def until_step(self, name: str, step: int) -> None:
        metrics = self.folder / name / "metrics.jsonl"
        self.cluster.until(lambda: metrics.exists() and any(row["step"] >= step for row in read_rows(metrics)), 300)

    def run_calm(self, tasks: int) -> str:
        """The name of a run of so many tasks that nothing disturbs."""
        name = f"calm-{tasks}"
        if not (self.folder / name).exists():
            job = self.submit(name, "--time=60", tasks=tasks, seconds=0.0)
            self.cluster.wait(job)
            words = {1: f"{self.cluster.host}: 2 x cpu;", 2: " 2 processes, 2 x cpu, 1 each: "}[tasks]
            assert self.cluster.facts(job)["JobState"] == "COMPLETED" and words in self.log(job), self.log(job)[-5000:]
        return name

    def check(self, job: str, name: str, tasks: int) -> None:
        """Asserts that the job has ended well after at least one requeue, with the bits of a calm run."""
        facts, calm = self.cluster.facts(job), self.run_calm(tasks)
        assert facts["JobState"] == "COMPLETED" and int(facts["Restarts"]) >= 1, self.log(job)[-5000:]
        assert "is saved; the same command resumes" in self.log(job)
        rows, calm_rows = (untimed(read_rows(self.folder / run / "metrics.jsonl")) for run in (name, calm))
        assert [row["step"] for row in rows][-1] == STEPS and rows == calm_rows
        saved, calm_saved = (SavedArrays(newest_checkpoint(self.folder / run)) for run in (name, calm))
        assert saved.paths == calm_saved.paths
        for path in saved.paths:
            np.testing.assert_array_equal(saved.read(path), calm_saved.read(path), err_msg=str(path))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Runs]:
    """A cluster, and its jobs."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made = Runs(cluster, tmp_path_factory.mktemp("jobs"), tiny_model)
        yield made
    finally:
        cluster.end()


def test_jobs_that_reach_their_time_limit_are_queued_again_and_end_with_the_same_bits(runs: Runs) -> None:
    """Several at a time, each through all the starts that it takes."""
    runs.run_calm(1)  # fills the cache of compiled programs
    names = [f"limit-{number}" for number in range(JOBS)]
    jobs = {runs.submit(name, *LIMIT, tasks=1, seconds=8.0): name for name in names}
    runs.cluster.wait(*jobs, seconds=1800 * JOBS)
    for job, name in jobs.items():
        runs.check(job, name, 1)
        log = runs.log(job)
        assert "USR1: the run saves and ends" in log and "exit code 75" in log and "exit code 0" in log
        assert "exit code 137" not in log and log.count("is queued again") == int(runs.cluster.facts(job)["Restarts"])


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_that_its_operator_queues_again_saves_first(runs: Runs, tasks: int) -> None:
    name = f"operator-{tasks}"
    job = runs.submit(name, "--time=30", tasks=tasks, seconds=1.0)
    runs.until_step(name, 2)
    runs.cluster.call("scontrol", "requeue", job)
    runs.cluster.wait(job)
    runs.check(job, name, tasks)


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_preempted_job_saves_and_goes_on_after_the_other(runs: Runs, tasks: int) -> None:
    name = f"preempted-{tasks}"
    job = runs.submit(name, "--time=30", tasks=tasks, seconds=1.0)
    runs.until_step(name, 2)
    script = runs.folder / "first.sh"
    script.write_text("#!/bin/bash\nsleep 2\n")
    other = runs.cluster.submit(runs.folder, "--partition=first", "--exclusive", str(script), environment={})
    runs.cluster.wait(other, job)
    assert runs.cluster.facts(other)["JobState"] == "COMPLETED"
    runs.check(job, name, tasks)


def test_a_mistake_ends_the_job_with_code_2_and_is_not_queued_again(runs: Runs) -> None:
    job = runs.cluster.submit(
        runs.folder,
        *(*SHAPE, "--ntasks-per-node=1", str(ROOT / "launch" / "slurm_gpu.sbatch"), "--config=nowhere.py"),
        environment={"PYTHONPATH": str(ROOT), "SECONDS_A_STEP": "0"},
    )
    runs.cluster.wait(job, seconds=300)
    facts = runs.cluster.facts(job)
    assert facts["JobState"] == "FAILED" and facts["ExitCode"] == "2:0" and facts["Restarts"] == "0"
    assert "nowhere.py" in runs.log(job)
