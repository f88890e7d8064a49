"""The Python that launch/environment.sh picks, among stand-ins that answer its probe."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def place(file: pathlib.Path, version: str) -> None:
    """An interpreter that says what the probe asks for; "" is one with nothing behind it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/bash\necho {file} {version}\n" if version else "#!/bin/bash\nexit 127\n")
    file.chmod(0o755)


def find_python(folder: pathlib.Path) -> str:
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYENV_ROOT": str(folder / "pyenv"),
        "HOME": str(folder),
    }
    command = ["bash", "-c", "source launch/environment.sh; find_python"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_newer_versions_of_pyenv_go_before_3_11(tmp_path: pathlib.Path) -> None:
    for name, version in (("python3.11", "3.11"), ("python3.12", ""), ("python3.13", ""), ("python3", "3.11")):
        place(tmp_path / "bin" / name, version)
    assert find_python(tmp_path) == f"{tmp_path}/bin/python3.11 3.11"
    for patch in ("3.13.0", "3.12.1", "3.12.10", "3.11.9"):
        place(tmp_path / "pyenv" / "versions" / patch / "bin" / "python", patch[:4])
    assert find_python(tmp_path) == f"{tmp_path}/pyenv/versions/3.12.10/bin/python 3.12"
    place(tmp_path / "bin" / "python3.12", "3.12")
    assert find_python(tmp_path) == f"{tmp_path}/bin/python3.12 3.12"
