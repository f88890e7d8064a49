"""A disk that fills up while samples, metrics, a checkpoint or the report are written: the command ends with one line
and exit code 2, what was there before is whole, and after room was made the same command ends with the same bits.

The disk is a tmpfs of some megabytes, which only root can mount; the stage only counts (tests/runs/test_loop.py).
"""

import gc
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from absl import flags

from r1jax.core import console
from r1jax.core.checkpoint import newest_checkpoint
from r1jax.core.commands import run_command
from r1jax.core.errors import DONE, MISTAKE
from r1jax.core.metrics import read_rows
from tests.runs.test_loop import Counter, run
from tests.stages.runs import ROOT, assert_same_run

# Where one file cannot be written, orbax abandons the writing of the others: coroutines that complain when collected.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

SIZE, PAGE = 8 << 20, 4096
STEPS = 6


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    gc.collect()
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Long(Counter):
    """A stage whose samples are longer than the rest of a page."""

    def step(self, step: int) -> tuple[dict, list[dict]]:
        metrics, samples = super().step(step)
        return metrics, [{**row, "text": "x" * 3 * PAGE} for row in samples]


class Wide(Long):
    """A stage whose metrics are, too."""

    def step(self, step: int) -> tuple[dict, list[dict]]:
        metrics, samples = super().step(step)
        return metrics | {f"{'m' * 100}{number}": float(number) for number in range(100)}, samples[:0]


def fill(disk: pathlib.Path, spare: int) -> None:
    """Fills the disk but for some bytes."""
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(bytes(PAGE)):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - spare))


def command(workdir: pathlib.Path, stage: Counter) -> int:
    def action(_: list[str]) -> None:
        console.set_up_logging()
        run(workdir, stage, steps=STEPS)

    return run_command("", flags.FlagValues(), [], action, computes=False)


def fill_after_save(workdir: pathlib.Path) -> None:
    """Fills the disk but for some checksums, once the last checkpoint, which is written meanwhile, is there."""
    while not (workdir / "checkpoints" / str(STEPS)).exists():
        time.sleep(0.01)
    fill(workdir.parent, 5 * PAGE)


def begin(place: str, workdir: pathlib.Path) -> int:
    """Runs the command, whose disk is full from the moment on at which `place` is to be written."""
    disk, stage = workdir.parent, KINDS[place]()
    if place == "report":
        stage.on_evaluate = lambda: fill_after_save(workdir) if stage.position == STEPS else None
    else:
        number, spare = {"samples": (5, PAGE), "metrics": (5, PAGE), "checkpoint": (4, 8 * PAGE)}[place]
        stage.on_step = lambda step: fill(disk, spare) if step == number else None
    return command(workdir, stage)


KINDS = {"samples": Long, "metrics": Wide, "checkpoint": Long, "report": Long}
SAVED = {"samples": 4, "metrics": 4, "checkpoint": 2, "report": 6}


@pytest.mark.parametrize("place", KINDS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    place: str, disk: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir, kind = disk / "run", KINDS[place]
    run(tmp_path / "whole", kind(), steps=STEPS)
    code = f"import pathlib, sys; from {__name__} import begin; sys.exit(begin({place!r}, pathlib.Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(workdir)], cwd=ROOT, capture_output=True, text=True)
    errors = done.stderr.splitlines()
    assert done.returncode == MISTAKE, done.stderr
    assert errors[-1].startswith("error: no space is left on the disk for /") and "repeat the command" in errors[-1]
    assert "Traceback" not in done.stderr and len(errors) < 5, done.stderr
    saved = workdir / "checkpoints" / str(SAVED[place])
    assert newest_checkpoint(workdir) == saved
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows))) and len(rows) > SAVED[place]
    assert command(workdir, kind()) == MISTAKE  # it is still full
    assert newest_checkpoint(workdir) == saved
    os.unlink(disk / "ballast")
    assert command(workdir, kind()) == DONE
    assert (workdir / "report.html").exists()
    assert_same_run(workdir, tmp_path / "whole")
