import os
import pathlib
import subprocess
import sys

import pytest

import r1jax

WORKING = [
    ("0.10.0", "0.12.7"),
    ("0.10.2", "0.12.8"),
    ("0.11.0", "0.12.8"),
    ("0.11.1", "0.12.9"),
    ("0.11.2", "0.12.10"),
]
WORKING += [("0.12.0.1", "0.12.12"), ("0.12.0", "0.12.10"), ("0.12.0.dev20261101+abc", "0.12.12")]
BROKEN = [("0.11.1", "0.12.8"), ("0.11.2", "0.12.9"), ("0.12.0.1", "0.12.8"), ("0.12.0", "0.12.9")]


@pytest.mark.parametrize(("jax", "flax", "works"), [(*p, True) for p in WORKING] + [(*p, False) for p in BROKEN])
def test_pairs(jax: str, flax: str, works: bool):
    fault = r1jax._find_fault(jax, flax)
    assert (not fault) == works
    if not works:
        assert f"jax {jax} and flax {flax}" in fault and "pip install 'flax>=0.12.10,<0.13'" in fault


@pytest.mark.parametrize("command", [["-m", "r1jax.train", "--help"], ["-c", "import r1jax"]])
def test_a_pair_that_cannot_work_is_one_line(command: list[str], tmp_path: pathlib.Path):
    for name, version in (("jax", "0.12.0"), ("flax", "0.12.8")):
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{pathlib.Path(r1jax.__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
    )
    line = "jax 0.12.0 and flax 0.12.8 do not work together; pip install 'flax>=0.12.10,<0.13'"
    assert done.returncode == 1
    if command[0] == "-m":
        assert done.stderr == f"error: {line}\n"
    else:
        assert done.stderr.splitlines()[-1] == f"ImportError: {line}"


def test_the_changelog_dates_this_version():
    text = (pathlib.Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    assert f"## {r1jax.__version__} - 2" in text
