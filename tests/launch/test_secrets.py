"""Secrets in launchers that pass the environment on: in no argument, dry run, log or file; the run has them.

tests/launch/test_tpu_pod.py and test_jobset.py hold the same for launch/tpu_pod.py and gke_jobset.yaml.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from stand_in import PROGRAMS, ROOT, SECRET

LAUNCH = ROOT / "launch"
NAMES = ("HF_TOKEN", "WANDB_API_KEY")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a .venv whose python says whether it has the secrets, and what it is called with."""
    (tmp_path / "launch").mkdir()
    for name in ("gpu.sh", "environment.sh", "slurm_gpu.sbatch"):
        (tmp_path / "launch" / name).write_text((LAUNCH / name).read_text())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "pyvenv.cfg").write_text(f"command = python -m venv {tmp_path}/.venv\n")
    (tmp_path / "setup.py").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(
        f"""#!/bin/bash
echo "$*" >>{tmp_path}/arguments
case "$*" in *ensurepip*) echo "{python} 3.12" ;; esac
if [ "$HF_TOKEN" = {SECRET} ] && [ "$WANDB_API_KEY" = {SECRET} ]; then echo has both; fi
"""
    )
    python.chmod(0o755)
    (tmp_path / "nvidia-smi").write_text("#!/bin/bash\necho 590.1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("script", ["gpu.sh", "slurm_gpu.sbatch"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_secret_of_the_environment_is_passed_on_and_shown_nowhere(
    place: Path, script: str, dry: tuple[str, ...]
) -> None:
    environment = {
        **dict.fromkeys(NAMES, SECRET),
        "PATH": f"{place}:{PROGRAMS}:{os.environ['PATH']}",
        "STANDIN": str(place),
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(place),
    }
    command = ["bash", "-x", str(place / "launch" / script), "--config=configs/x.py", *dry]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("has both" in done.stdout) == (not dry)
    files = [place / "arguments", place / "slurm"]  # what programs were called with
    shown = [done.stdout, done.stderr, *(file.read_text() for file in files if file.exists())]  # stderr: each command
    assert all(SECRET not in text for text in shown)


def test_skypilots_task_declares_its_secret_as_one_and_names_it_in_no_command() -> None:
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert task["secrets"] == {"HF_TOKEN": ""} and not set(task["envs"]) & set(NAMES)
    assert not any(name in task["setup"] + task["run"] for name in NAMES)
    assert all("HF_TOKEN" not in line or "--secret HF_TOKEN" in line for line in _commands("launch.md"))


@pytest.mark.parametrize("page", ["launch.md", "pods.md"])
def test_no_documented_command_holds_a_secret(page: str) -> None:
    assert not any(re.search(rf"({'|'.join(NAMES)})=\S", line) for line in _commands(page))


def _commands(page: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]
