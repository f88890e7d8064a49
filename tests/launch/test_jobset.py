"""launch/gke_jobset.yaml on a stand-in for kubectl and JobSet's controller: what an exit code ends, and the grace."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in import PROGRAMS, ROOT, SECRET

from r1jax.core.metrics import read_rows
from tests.core.test_distributed import free_port
from tests.environment import make_xla_flags
from tests.stages.runs import untimed

PLACES = {
    "<ACCOUNT>": "trainer",
    "<REGION-docker.pkg.dev/PROJECT/REPOSITORY/r1jax:TAG>": "r1jax:tpu",
    "<MATH.jsonl>": "math.jsonl",
    "<BUCKET>": "cheese",
}
PYTHON = '#!/bin/bash\nexec bash "$STANDIN/train" "$@"\n'  # the image's python plays $STANDIN/train


class Cluster:
    """The stand-in's folder; pods of two hosts a slice."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("image", "buckets/cheese/runs", "secrets/hub"):
            (folder / name).mkdir(parents=True)
        self.image(PYTHON)
        (folder / "secrets" / "hub" / "token").write_text(SECRET)
        self.file = folder / "jobset.yaml"
        text = (ROOT / "launch" / "gke_jobset.yaml").read_text()
        for place, value in PLACES.items():
            assert place in text
            text = text.replace(place, value)
        self.file.write_text(
            text.replace("parallelism: 4", "parallelism: 2").replace("completions: 4", "completions: 2")
        )

    def image(self, python: str) -> None:
        (self.folder / "image" / "python").write_text(python)
        (self.folder / "image" / "python").chmod(0o755)

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "STANDIN": str(self.folder), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
        command = [sys.executable, str(PROGRAMS / "kubectl"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    def status(self) -> dict:
        return json.loads(self.call("get", "jobset", "r1jax").stdout)

    def apply(self, train: str = "") -> None:
        (self.folder / "train").write_text(train)
        done = self.call("apply", "-f", str(self.file))
        assert done.returncode == 0, done.stderr

    def wait(self, seconds: int = 60) -> dict:
        """The JobSet's status at its end."""
        return self.until(lambda status: status["phase"] != "Running", seconds)

    def until(self, condition, seconds: int = 60) -> dict:
        for _ in range(10 * seconds):
            path = self.folder / "jobset.json"
            status = json.loads(path.read_text()) if path.exists() else {}
            if status and condition(status):
                return status
            time.sleep(0.1)
        errors = self.folder / "controller.err"
        raise AssertionError(f"{status} {self.logs()[-2000:]} {errors.read_text() if errors.exists() else ''}")

    def logs(self) -> str:
        return self.call("logs", "r1jax").stdout

    def end(self) -> None:
        (self.folder / "delete").touch()
        try:
            groups = json.loads((self.folder / "jobset.json").read_text())["groups"]
        except OSError:
            return
        for group in groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster")
    yield made
    made.end()


def test_a_run_that_ends_well_completes_the_jobset(cluster: Cluster) -> None:
    cluster.apply('echo "$JOB_COMPLETION_INDEX of $R1JAX_CLUSTER: $*"')
    assert cluster.wait()["phase"] == "Completed"
    flags = f"--workdir={cluster.folder}/buckets/cheese/runs/grpo_qwen1.5b"
    assert all(f"{index} of tpu: -m r1jax.train --config=" in cluster.logs() for index in (0, 1))
    assert cluster.logs().count(flags) == 2


@pytest.mark.parametrize("code", [2, 77])
def test_a_mistake_or_a_diverged_run_ends_the_jobset_at_once(cluster: Cluster, code: int) -> None:
    cluster.apply(
        'ready="$STANDIN/ready"\n'
        f'if [ $JOB_COMPLETION_INDEX = 1 ]; then until [ -e "$ready" ]; do sleep 0.1; done; exit {code}; fi\n'
        'trap "exit 75" TERM; touch "$ready"; while :; do sleep 0.1; done'
    )
    status = cluster.wait()
    assert status["phase"] == "Failed" and status["restarts"] == 0 and status["codes"] == [75, code]
    assert status["reason"] == "mistake: PodFailurePolicy"


@pytest.mark.parametrize("code", [1, 75, 76, 137])
def test_other_ends_start_all_pods_again(cluster: Cluster, code: int) -> None:
    cluster.apply(f"echo life $LIFE; if [ $LIFE = 0 ] && [ $JOB_COMPLETION_INDEX = 1 ]; then exit {code}; fi")
    status = cluster.wait()
    assert status["phase"] == "Completed" and status["restarts"] == 1
    assert cluster.logs().count("life 1") == 2


def test_a_preempted_node_lets_its_pods_save_and_all_go_on(cluster: Cluster) -> None:
    cluster.apply(
        'if [ $LIFE = 1 ]; then echo resumed; exit 0; fi; touch "$STANDIN/up-$JOB_COMPLETION_INDEX"\n'
        'trap "sleep 0.5; echo saved; exit 75" TERM; while :; do sleep 0.1; done'
    )
    cluster.until(lambda _: len(list(cluster.folder.glob("up-*"))) == 2)
    (cluster.folder / "preempt").touch()
    status = cluster.wait()
    assert status["phase"] == "Completed" and status["restarts"] == 1
    assert cluster.logs().count("saved") == 2 == cluster.logs().count("resumed")


def test_restarts_are_bounded(cluster: Cluster) -> None:
    cluster.file.write_text(cluster.file.read_text().replace("maxRestarts: 20", "maxRestarts: 2"))
    cluster.apply("exit 1")
    status = cluster.wait()
    assert status["phase"] == "Failed" and status["restarts"] == 2 and status["reason"] == "ReachedMaxRestarts"


def test_deleting_the_jobset_lets_the_run_save(cluster: Cluster) -> None:
    cluster.apply(
        'trap "echo saved; exit 75" TERM; touch "$STANDIN/up-$JOB_COMPLETION_INDEX"; while :; do sleep 0.1; done'
    )
    cluster.until(lambda _: len(list(cluster.folder.glob("up-*"))) == 2)
    assert cluster.call("delete", "jobset", "r1jax").returncode == 0
    assert cluster.logs().count("saved") == 2 and not (cluster.folder / "jobset.json").exists()


def test_a_file_whose_places_are_not_filled_in_is_refused(cluster: Cluster) -> None:
    done = cluster.call("apply", "-f", str(ROOT / "launch" / "gke_jobset.yaml"))
    assert done.returncode == 1 and "<...>" in done.stderr


def test_the_secret_reaches_the_run_by_its_environment_alone(cluster: Cluster) -> None:
    cluster.apply('test "$HF_TOKEN" = hf_this-is-the-secret && echo has it')
    assert cluster.wait()["phase"] == "Completed" and cluster.logs().count("has it") == 2
    for text in (cluster.file.read_text(), (cluster.folder / "calls").read_text(), cluster.logs()):
        assert SECRET not in text


@pytest.mark.slow
def test_a_real_run_whose_node_is_taken_away_ends_with_the_bits_of_an_undisturbed_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = {}
    for name in ("calm", "preempted"):
        cluster = Cluster(tmp_path / name)
        flags = f"""--config={ROOT}/tests/stages/tiny_sft.py --config.model.name={tiny_model} --config.steps=12
            --config.mesh.data=2 --config.train.micro_batch_size=4"""
        cluster.image(
            f"""#!/bin/bash
export JAX_PLATFORMS=cpu PYTHONPATH={ROOT} XLA_FLAGS="{make_xla_flags(1)}" R1JAX_PROCESS_COUNT=2
export R1JAX_COORDINATOR=localhost:$((LIFE ? {free_port()} : {free_port()})) R1JAX_PROCESS_ID=$JOB_COMPLETION_INDEX
exec {sys.executable} -m r1jax.train {" ".join(flags.split())} "${{@: -1}}"
"""
        )
        workdir = cluster.folder / "buckets" / "cheese" / "runs" / "grpo_qwen1.5b"
        try:
            cluster.apply()
            if name == "preempted":
                metrics = workdir / "metrics.jsonl"
                cluster.until(lambda _: metrics.exists() and len(read_rows(metrics)) > 2, 300)  # noqa: B023
                (cluster.folder / "preempt").touch()
            status = cluster.wait(600)
            assert status["phase"] == "Completed" and status["restarts"] == (name == "preempted"), cluster.logs()
        finally:
            cluster.end()
        rows[name] = untimed(read_rows(workdir / "metrics.jsonl"))
    assert "is saved; the same command resumes" in cluster.logs()
    assert rows["calm"] == rows["preempted"] and rows["calm"][-1]["step"] == 12
