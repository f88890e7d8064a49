"""Launch scripts: what --dry-run prints, what --help does, and gpu.sh on stand-ins for a driver and a .venv."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from r1jax import serve
from r1jax.core import errors
from r1jax.serving.app import OPEN

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"


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


def test_gpus_of_one_machine() -> None:
    done = commands("gpu.sh", "--config=configs/x.py", "--config.a=1 2", PYTHON=sys.executable)
    assert done[-3] == ["env", f"PYTHON={sys.executable}", "bash", "launch/environment.sh", "install", "gpu"]
    assert 'jax.devices("gpu")' in done[-2][2]
    assert done[-1][1:] == ["-m", "r1jax.train", "--config=configs/x.py", "--config.a=1 2"]
    assert run("gpu.sh", "--dry-run").returncode == 2


def test_flags_of_gpu_sh_stand_anywhere() -> None:
    done = run("gpu.sh", "--config=configs/x.py", "--cuda12", "--dry-run")
    assert done.returncode == 0 and "install gpu-cuda12" in done.stdout
    assert done.stdout.rstrip().endswith("-m r1jax.train --config=configs/x.py")


@pytest.mark.parametrize(
    "script", ["gpu.sh", "local.sh", "test.sh", "slurm_gpu.sbatch", "environment.sh", "pod/host.sh"]
)
def test_help_is_printed_and_does_nothing(script: str) -> None:
    done = run(script, "--config=configs/x.py", "--help") if "host" not in script else run(script, "--help")
    assert done.returncode == 0 and "bash" in done.stdout and len(done.stdout.splitlines()) > 5 and not done.stderr


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which the named programs are these shell scripts."""
    for name, script in scripts.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("driver", "flags", "message"),
    [
        ("exit 9", (), "finds no NVIDIA driver"),
        ("echo 550.54.15", (), "is 550.54.15, and CUDA for gpu needs 580 or later (or add --cuda12)"),
        ("echo 470.1", ("--cuda12",), "is 470.1, and CUDA for gpu-cuda12 needs 525"),
    ],
)
def test_the_driver_is_checked_before_anything_is_made(
    tmp_path: Path, driver: str, flags: tuple[str, ...], message: str
) -> None:
    done = run("gpu.sh", *flags, "--config=configs/x.py", **programs(tmp_path, nvidia_smi=driver))
    assert done.returncode == 2 and message in done.stderr and not done.stdout


def checkout(folder: Path) -> Path:
    """A checkout whose .venv is whole, and whose python notes its arguments in the file `calls`."""
    shutil.copytree(LAUNCH, folder / "launch")
    (folder / "setup.py").write_text("# metadata")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "pyvenv.cfg").write_text(f"command = python -m venv {folder}/.venv\n")
    python = folder / ".venv" / "bin" / "python"
    python.write_text(
        f"""#!/bin/bash
case "$*" in
  *ensurepip*) echo "{folder}/.venv/bin/python 3.12" ;;
  *r1jax.train*)
    trap 'echo got TERM; exit 75' TERM
    echo "train $$ $*" >>{folder}/calls
    for i in {{1..300}}; do sleep .1; done
    ;;
  *) echo "$*" >>{folder}/calls ;;
esac
"""
    )
    python.chmod(0o755)
    return folder


def test_cuda_is_installed_after_the_development_tools_and_only_once(tmp_path: Path) -> None:
    root = checkout(tmp_path / "work")
    command = ["bash", str(root / "launch" / "environment.sh"), "install"]
    for extra in ("dev", "gpu", "gpu", "gpu-cuda12", "gpu", "dev"):
        assert subprocess.run([*command, extra], capture_output=True).returncode == 0
    assert subprocess.run(command, capture_output=True).returncode == 0  # the package itself came with each
    calls = (root / "calls").read_text()
    assert [line.split()[-1] for line in calls.splitlines()] == [
        f".[{extra},reasoning-gym]" for extra in ("dev", "gpu", "gpu-cuda12")
    ]


def test_sigterm_reaches_the_run_and_its_exit_code_comes_back(tmp_path: Path) -> None:
    root = checkout(tmp_path / "work")
    environment = {**os.environ, **programs(tmp_path, nvidia_smi="echo 590.1")}
    command = ["bash", str(root / "launch" / "gpu.sh"), "--config=configs/x.py"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while not (root / "calls").exists() or f"train {process.pid} " not in (root / "calls").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "got TERM" in out


def test_the_dry_run_of_gpu_sh_is_a_script_that_runs(tmp_path: Path) -> None:
    root = checkout(tmp_path / "work")
    environment = {**os.environ, **programs(tmp_path, nvidia_smi="echo 590.1")}
    flags = ["--dry-run", "--config=configs/x.py", '--config.text=it\'s "so" and $so']
    python = root / ".venv" / "bin" / "python"
    python.write_text(python.read_text().replace("for i in {1..300}; do sleep .1; done", "exit 0"))
    shown = subprocess.run(["bash", str(root / "launch" / "gpu.sh"), *flags], env=environment, capture_output=True)
    assert not (root / "calls").exists()
    done = subprocess.run(["bash", "-eu"], input=shown.stdout, env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    calls = (root / "calls").read_text()
    assert ".[gpu,reasoning-gym]" in calls and 'jax.devices("gpu")' in calls
    assert calls.rstrip().endswith('-m r1jax.train --config=configs/x.py --config.text=it\'s "so" and $so')


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
    assert container["args"][-1].startswith(f"--workdir={mounts['bucket']}/")
    assert container["args"][1].startswith(f"--config.data.path={mounts['bucket']}/")  # no default in this config
    bucket = pod["volumes"][0]["csi"]["volumeAttributes"]
    assert pod["hostNetwork"] and bucket["hostNetworkPodKSA"] == "true"  # else the bucket is asked for as the node
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_a_deployment_serves_by_flags_that_exist_on_all_chips_of_its_host() -> None:
    deployment, service = yaml.safe_load_all((LAUNCH / "gke_serve.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "r1jax.serve"]
    values = serve.define_flags()
    assert values(["serve", *container["args"]]) == ["serve"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert int(rows) * int(columns) == chips and values.mesh == f"fsdp={chips}"
    assert values.host == "0.0.0.0" and container["env"][0]["name"] == serve.KEY_VARIABLE
    (port,) = service["spec"]["ports"]
    assert {port["port"]} == {each["containerPort"] for each in container["ports"]} == {values.port}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert container["startupProbe"]["httpGet"]["path"] in OPEN


def test_a_mistake_ends_the_jobset_and_a_preemption_does_not() -> None:
    spec = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [errors.MISTAKE, errors.DIVERGED]
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == 20


def test_the_image_is_made_of_files_that_are_there_and_sent_to_the_build() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    sources = {source for parts in copied for source in parts if not source.startswith("--")}
    sent = {line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert sources == sent and all((ROOT / source).exists() for source in sources) and "configs" in sources
    assert "USER r1jax" in lines and 'ENTRYPOINT ["python", "-m", "r1jax.train"]' in lines


@pytest.mark.skipif(shutil.which("shellcheck", path=str(Path(sys.executable).parent)) is None, reason="no shellcheck")
def test_shellcheck_finds_nothing() -> None:
    files = sorted(map(str, [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *LAUNCH.glob("*/*.sh")]))
    checker = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([checker, "-x", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
