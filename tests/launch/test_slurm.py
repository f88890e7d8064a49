"""launch/slurm_gpu.sbatch with stand-ins for srun and scontrol: when a job queues itself again, what is refused."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from stand_in import PROGRAMS, ROOT

SCRIPT = ROOT / "launch" / "slurm_gpu.sbatch"


class Job:
    """A job's batch shell in a folder with a .venv whose python plays the folder's file `train`."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / ".venv" / "bin").mkdir(parents=True)
        python = folder / ".venv" / "bin" / "python"
        python.write_text('#!/bin/bash\nexec bash "$STANDIN/train" "$@"\n')
        python.chmod(0o755)

    def open(self, train: str, *flags: str, **environment: str) -> subprocess.Popen:
        (self.folder / "train").write_text(train)
        own = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "STANDIN": str(self.folder),
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "7",
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), "--config=configs/x.py", *flags],
            env={**own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, train: str, *flags: str, **environment: str) -> tuple[int, str]:
        process = self.open(train, *flags, **environment)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    def queued(self) -> int:
        file = self.folder / "slurm"
        return file.read_text().count("scontrol requeue 7") if file.exists() else 0


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_notice_lets_the_run_save_and_queues_the_job_again(job: Job, number: signal.Signals) -> None:
    process = job.open('trap "sleep 0.3; echo saved; exit 75" TERM; touch "$STANDIN/up"; while :; do sleep 0.1; done')
    while not (job.folder / "up").exists():
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "saved" in out and job.queued() == 1, out


def test_a_job_that_slurm_ends_gets_no_second_sigterm(job: Job) -> None:
    """Slurm itself sends it to the tasks and to the batch shell; a second one would end the run before it has saved."""
    (job.folder / "state").write_text("COMPLETING\n")
    process = job.open('trap "exit 99" TERM; touch "$STANDIN/up"; sleep 1; echo saved; exit 75')
    while not (job.folder / "up").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "saved" in out and job.queued() == 1, out
    assert "scancel" not in (job.folder / "slurm").read_text()


@pytest.mark.parametrize("code", [0, 1, 2, 76, 77, 137])
def test_other_ends_do_not_queue_the_job_again(job: Job, code: int) -> None:
    assert job.run(f"exit {code}")[0] == code and job.queued() == 0


def test_a_mistake_after_a_notice_does_not_either(job: Job) -> None:
    process = job.open('trap "exit 2" TERM; touch "$STANDIN/up"; while :; do sleep 0.1; done')
    while not (job.folder / "up").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 2 and job.queued() == 0


def test_a_run_that_was_killed_after_the_notice_is_queued_again(job: Job) -> None:
    process = job.open('trap "kill -KILL $$" TERM; touch "$STANDIN/up"; while :; do sleep 0.1; done')
    while not (job.folder / "up").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 137 and job.queued() == 1


def test_requeues_are_bounded(job: Job) -> None:
    code, out = job.run("exit 75", SLURM_RESTART_COUNT="3", R1JAX_REQUEUES="3")
    assert code == 75 and job.queued() == 0 and "queued again 3 times already" in out


def test_arguments_arrive_and_tasks_get_their_processors(job: Job) -> None:
    code, out = job.run('printf "<%s>" "$@"', "--config.a=b c,d:e", SLURM_CPUS_PER_TASK="8")
    assert code == 0 and "<-m><r1jax.train><--config=configs/x.py><--config.a=b c,d:e>" in out
    assert (job.folder / "slurm").read_text().rstrip().endswith("cpus=8")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"SLURM_NTASKS_PER_NODE": "2", "SLURM_GPUS_ON_NODE": "8"}, "must be 8 (one task a GPU) or 1"),
        ({"SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "4"}, "8 tasks share the 4 GPUs"),
        ({"SLURM_GPUS_PER_TASK": "1", "SLURM_NTASKS_PER_NODE": "8"}, "--gpus-per-task hides"),
    ],
)
def test_shapes_that_do_not_fit_start_nothing(job: Job, shape: dict[str, str], message: str) -> None:
    code, out = job.run("exit 0", **shape)
    assert code == 2 and message in out and not (job.folder / "slurm").exists()


@pytest.mark.parametrize("tasks", ["1", "8"])
def test_shapes_that_fit_start(job: Job, tasks: str) -> None:
    assert job.run("exit 0", SLURM_NTASKS_PER_NODE=tasks, SLURM_GPUS_ON_NODE="8")[0] == 0


def test_help_and_dry_run_do_nothing_wherever_they_stand(job: Job) -> None:
    code, out = job.run("exit 1", "--help")
    assert code == 0 and "R1JAX_REQUEUES" in out and "#SBATCH --" not in out.replace("(#SBATCH", "")
    code, out = job.run("exit 1", "--dry-run")
    assert code == 0 and out.startswith("srun --kill-on-bad-exit=1 --label .venv/bin/python -m r1jax.train")
    assert not (job.folder / "slurm").exists()
    pasted = subprocess.run(
        ["bash", "-eu"],
        input=out,
        env={"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "STANDIN": str(job.folder)},
        cwd=job.folder,
        capture_output=True,
        text=True,
    )
    assert pasted.returncode == 1 and "-m r1jax.train --config=configs/x.py" in (job.folder / "slurm").read_text()
