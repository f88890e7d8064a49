"""What is shipped to the hosts: a wheel of this checkout, configs/, host.sh and the arguments; secrets apart."""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pod.states import CloudError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("r1jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")
PASSED = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "R1JAX_CONNECT_SECONDS", *SECRETS)
ARCHIVE, ENVIRONMENT = "bundle.tgz", "env"


def python() -> str:
    """The interpreter that has pip and r1jax: that of .venv where there is one."""
    own = ROOT / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def build_wheel(folder: Path) -> Path:
    """Builds the wheel in a copy of the sources, so that no old build/ gets into it, and compares its modules with
    the checkout's.

    Raises:
      CloudError: where pip fails, or a module of the checkout is not in the wheel.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".env", ".git")
    with tempfile.TemporaryDirectory() as scratch:
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, Path(scratch) / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, Path(scratch) / name)
        command = [python(), "-m", "pip", "wheel", "--no-deps", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*command, "-w", str(folder), scratch], capture_output=True, text=True)
    if done.returncode:
        raise CloudError(f"the wheel could not be built: {done.stderr.strip()[-2000:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    missing = sorted({str(path.relative_to(ROOT)) for path in (ROOT / "r1jax").rglob("*.py")} - packed)
    if missing:
        raise CloudError(f"the wheel leaves out {len(missing)} modules, the first of them {missing[0]} (see setup.py)")
    return wheel


def pack(
    folder: Path,
    arguments: Sequence[str],
    workdir: str,
    extra: str,
    environment: Mapping[str, str],
    wheel: Path | None = None,
) -> None:
    """Makes folder/bundle.tgz and folder/env. The folder and env are readable by this user alone.

    Args:
      arguments: of r1jax.train, without --workdir.
      workdir: as the hosts see it; relative paths begin in the folder of the bundle there.
      extra: of the package, as in r1jax[tpu].
      environment: where the variables of PASSED are looked up.
      wheel: one that was built before; None builds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for left in folder.glob("tmp*"):  # of a packing that was stopped
        shutil.rmtree(left, ignore_errors=True)
    write_environment(folder / ENVIRONMENT, workdir, environment)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel = wheel or build_wheel(Path(scratch))
        with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
            archive.add(wheel, wheel.name)
            archive.add(ROOT / "configs", "configs", filter=_plain)
            archive.add(Path(__file__).parent / "host.sh", "host.sh")
            for name, text in (
                ("arguments", "".join(f"{argument}\0" for argument in arguments)),
                ("workdir", workdir),
                ("extra", extra),
            ):
                (Path(scratch) / name).write_text(text)
                archive.add(Path(scratch) / name, name)


def write_environment(path: Path, workdir: str, environment: Mapping[str, str]) -> None:
    """Writes the variables of the run as lines that a shell reads, into a file of mode 0600."""
    values = {"R1JAX_CLUSTER": "tpu", "JAX_COMPILATION_CACHE_DIR": f"{workdir}/cache"}
    values |= {key: environment[key] for key in PASSED if environment.get(key)}
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"{key}={shlex.quote(value)}\n" for key, value in values.items())


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = Path(member.name).name
    return None if name in ("__pycache__", ".env") or name.endswith(".pyc") else member
