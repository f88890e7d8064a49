"""What the launch scripts would do, as --dry-run prints it, and what they say to half a command line."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
POD = ["--name=r1", "--type=v6e-16", "--zone=us-east5-b", "--bucket=gs://cheese"]
TRAIN = ["--", "--config=configs/grpo_zero.py", "--config.data.path=a b.jsonl"]


def run(script: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
    plain = {key: value for key, value in os.environ.items() if key not in ("LIBTPU_INIT_ARGS", "HF_TOKEN")}
    return subprocess.run(
        ["bash", str(LAUNCH / script), *args], env={**plain, **environment}, capture_output=True, text=True
    )


def commands(script: str, *args: str, **environment: str) -> list[list[str]]:
    """The printed commands, read back as a shell reads them."""
    done = run(script, "--dry-run", *args, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("==")]


def remote(command: list[str]) -> str:
    (found,) = [part.removeprefix("--command=") for part in command if part.startswith("--command=")]
    return found


def test_a_pod_is_asked_for_set_up_run_watched_and_deleted() -> None:
    done = commands("tpu_pod.sh", *POD, "--spot", "--project=p", *TRAIN, LIBTPU_INIT_ARGS="--a=1 --b=2")
    verbs = [" ".join(command[3:5]) if command[0] == "gcloud" else command[0] for command in done]
    assert verbs == [
        "queued-resources create",
        "queued-resources describe",
        "tar",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "queued-resources delete",
    ]
    for command in done:
        if command[0] == "gcloud":
            assert command[:3] == ["gcloud", "compute", "tpus"] and command[-2:] == ["--zone=us-east5-b", "--project=p"]
    create, _, archive, copy, mount, install, train, watch, delete = done
    assert {"--node-id=r1", "--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"} <= set(create)
    assert "--exclude=runs" in archive and archive[2] in copy and "r1:r1jax.tgz" in copy
    for command in (copy, mount, install, train):
        assert "--worker=all" in command
    assert "gcsfuse --implicit-dirs --rename-dir-limit=200000 cheese /mnt/r1jax" in remote(mount)
    assert '~/venv/bin/pip install -q -e ".[tpu]"' in remote(install)
    trained = shlex.split(remote(train).removeprefix("cd r1jax && ").partition(" >")[0])
    assert trained[:4] == [
        "env",
        "R1JAX_CLUSTER=tpu",
        "JAX_COMPILATION_CACHE_DIR=/mnt/r1jax/runs/r1/cache",
        "LIBTPU_INIT_ARGS=--a=1 --b=2",
    ]
    assert trained[4:] == [
        "~/venv/bin/python",
        "-m",
        "r1jax.train",
        "--workdir=/mnt/r1jax/runs/r1",
        "--config=configs/grpo_zero.py",
        "--config.data.path=a b.jsonl",
    ]
    assert "--worker=0" in watch and "r1jax.log" in remote(watch)
    assert {"r1", "--force", "--quiet"} <= set(delete)


def test_several_slices_are_one_request_and_run_together() -> None:
    done = commands("tpu_pod.sh", *POD, "--slices=2", "--workdir=/disk/run", "--keep", *TRAIN)
    assert {"--node-prefix=r1", "--node-count=2"} <= set(done[0])
    trained = [command for command in done if any("r1jax.train" in part for part in command)]
    assert [command[5] for command in trained] == ["r1-0", "r1-1"]
    assert all("--workdir=/disk/run" in remote(command) for command in trained)
    assert not any("delete" in command for command in done)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "--name is missing"),
        (POD[:1], "--type is missing, as in --type=v6e-16"),
        (POD[:2], "--zone is missing"),
        (POD[:3], "--bucket is missing"),
        (POD, "the flags of r1jax.train are missing behind --"),
        ([*POD, "--spto"], "unknown argument --spto"),
        ([*POD, "--type=h100", "--", "x"], "no machine image is known for h100"),
        ([*POD[:3], "--workdir=runs", "--", "x"], "--workdir must be an absolute path"),
        ([*POD, "--slices=two", "--", "x"], "must be whole numbers"),
    ],
)
def test_half_a_command_line_of_a_pod_is_refused(args: list[str], message: str) -> None:
    done = run("tpu_pod.sh", "--dry-run", *args)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr and not done.stdout


def test_gpus_of_one_machine() -> None:
    done = commands("gpu.sh", "--config=configs/x.py", "--config.a=1 2", PYTHON=sys.executable)
    assert done[:2] == [["make_venv"], ["install", "gpu"]] and 'jax.devices("gpu")' in done[2][2]
    assert done[3][1:] == ["-m", "r1jax.train", "--config=configs/x.py", "--config.a=1 2"]
    assert run("gpu.sh", "--dry-run").returncode == 2


def test_gpus_of_a_slurm_cluster() -> None:
    (command,) = commands("slurm_gpu.sbatch", "--config=configs/x.py")
    assert command[:2] == ["srun", "--kill-on-bad-exit=1"] and command[-3:] == [
        "-m",
        "r1jax.train",
        "--config=configs/x.py",
    ]
    assert run("slurm_gpu.sbatch", "--dry-run").returncode == 2


def test_a_jobset_runs_the_train_command_on_every_host_of_a_slice() -> None:
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    (slices,) = job["spec"]["replicatedJobs"]
    pod = slices["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    chips = slices["template"]["spec"]["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4" and chips == 16
    assert slices["template"]["spec"]["completions"] == slices["template"]["spec"]["parallelism"]
    assert container["command"] == ["python", "-m", "r1jax.train"]
    assert {"name": "R1JAX_CLUSTER", "value": "tpu"} in container["env"]
    config = container["args"][0].removeprefix("--config=")
    assert (ROOT / config).is_file(), f"{config} does not exist"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"][1].startswith(f"--workdir={mounts['bucket']}/")


@pytest.mark.skipif(shutil.which("shellcheck", path=str(Path(sys.executable).parent)) is None, reason="no shellcheck")
def test_shellcheck_finds_nothing() -> None:
    files = sorted(map(str, [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]))
    checker = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([checker, "-x", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
