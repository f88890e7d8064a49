"""launch/Dockerfile built, where docker, podman or buildah is, and else its steps run in plain folders without root."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import ROOT

DOCKERFILE = ROOT / "launch" / "Dockerfile"


def find_builder() -> str:
    """A program that builds images here, '' without one: docker's client alone builds none."""
    for name in ("docker", "podman", "buildah"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    return ""


BUILDER = find_builder()
NEED_ROOT = ("apt-get ", "rm -rf /var/lib/apt", "useradd ")


class Steps:
    """Instructions of a Dockerfile, each stage in a folder of its own whose venv is the image's Python."""

    def __init__(self, file: Path, folder: Path, **arguments: str):
        self.folder, self.values, self.stages = folder, dict(arguments), {}
        self.root, self.place, self.environment, self.entry, self.left_out = folder, "/", {}, [], []
        text = re.sub(r"\\\n\s*", "", "\n".join(line for line in file.read_text().splitlines() if line[:1] != "#"))
        for line in filter(None, text.splitlines()):
            verb, _, rest = line.partition(" ")
            getattr(self, f"do_{verb.lower()}")(rest)

    def do_arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        self.values.setdefault(name, default)

    def do_from(self, rest: str) -> None:
        name = rest.partition(" AS ")[2] or "last"
        self.root = self.stages[name] = self.folder / name
        subprocess.run([sys.executable, "-m", "venv", str(self.root / "venv")], check=True)

    def do_copy(self, rest: str) -> None:
        *sources, target = rest.split()
        options = [sources.pop(0) for _ in sources[:1] if sources[0].startswith("--")]
        origin = self.stages[options[0].removeprefix("--from=")] if "--from=" in "".join(options) else ROOT
        to = self.inside(target)
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__", ".env"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, to)

    def do_run(self, rest: str) -> None:
        for command in rest.split("&&"):
            if command.strip().startswith(NEED_ROOT):
                self.left_out.append(command.strip())
                continue
            inside = re.sub(r"(?<![\w.])/(src|wheels)\b", lambda match: str(self.root / match[1]), command)
            path = f"{self.root / 'venv' / 'bin'}:/usr/bin:/bin"
            own = {"PATH": path, "HOME": str(self.folder), **self.values}
            pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
            done = subprocess.run(
                ["sh", "-euc", inside], env={**pip, **own}, cwd=self.root, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{inside}: {done.stderr[-3000:]}"

    def do_workdir(self, rest: str) -> None:
        self.place = rest
        self.inside(".").mkdir(parents=True)

    def do_user(self, rest: str) -> None:
        assert rest != "root"

    def do_env(self, rest: str) -> None:
        self.environment |= dict(word.split("=", 1) for word in rest.split())

    def do_entrypoint(self, rest: str) -> None:
        self.entry = json.loads(rest)

    def inside(self, path: str) -> Path:
        """A path of the stage's image."""
        return self.root / (path.lstrip("/") if path.startswith("/") else f"{self.place.lstrip('/')}/{path}")

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """The entry point with arguments, in the image's working folder."""
        environment = {
            **self.environment,
            "PATH": f"{self.root / 'venv' / 'bin'}:/usr/bin:/bin",
            "JAX_PLATFORMS": "cpu",
        }
        command = [*self.entry, *arguments]
        return subprocess.run(command, env=environment, cwd=self.inside("."), capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(bool(BUILDER), reason="an image is built instead")
def test_the_steps_of_the_image_run_without_root_and_its_entry_point_has_the_configs(tmp_path: Path) -> None:
    """Left out: bubblewrap from Debian's packages and the user's account, which need root, and the base image."""
    steps = Steps(DOCKERFILE, tmp_path, EXTRA=os.environ.get("R1JAX_IMAGE_EXTRA", "tpu"))
    assert all(command.startswith(NEED_ROOT) for command in steps.left_out) and len(steps.left_out) == 4
    assert not list((steps.stages["last"] / "wheels").glob("*"))
    assert "Trains a model by a config file" in steps.run("--help").stdout
    done = steps.run("--config=configs/grpo_zero.py", "--dry_run")
    assert "config.train.micro_batch_size = " in done.stdout and "workdir: runs/grpo_zero" in done.stdout, done.stderr
    wrong = steps.run("--config=configs/nowhere.py")
    assert wrong.returncode == 2 and "nowhere.py" in wrong.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not BUILDER, reason="no docker, podman or buildah works here; the steps are run in a folder instead"
)
def test_the_image_is_built_and_runs_as_an_ordinary_user() -> None:
    builder, tag = BUILDER, "r1jax:test"
    build = [builder, "build", "-f", str(DOCKERFILE), "-t", tag, str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if builder != "buildah":
        shown = subprocess.run([builder, "run", "--rm", tag, "--help"], capture_output=True, text=True)
        assert "Trains a model by a config file" in shown.stdout
        user = subprocess.run([builder, "run", "--rm", "--entrypoint=id", tag, "-u"], capture_output=True, text=True)
        assert user.stdout.strip() == "1000"
