"""A disk that fills up while samples, metrics, a checkpoint or the report are written: the command ends with one line and
exit code 2, what was there before is whole, and after room was made the same command ends with the same bits.

The disk is a tmpfs of some megabytes, which only root can mount; the stage only counts (tests/runs/test_loop.py).
"""

import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator

import pytest
from absl import flags

from r1jax.core.checkpoint import newest_checkpoint
from r1jax.core.commands import run_command
from r1jax.core.errors import DONE, MISTAKE
from r1jax.core.metrics import read_rows
from tests.runs.test_loop import Counter, run
from tests.stages.runs import assert_same_run

pytestmark = pytest.mark.slow

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
    return run_command("", flags.FlagValues(), [], lambda _: run(workdir, stage, steps=STEPS) and None, computes=False)


def at_step(number: int, action: Callable[[], None]) -> Callable[[int], None]:
    return lambda step: action() if step == number else None


@pytest.mark.parametrize("place", ["samples", "metrics", "checkpoint", "report"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    place: str, disk: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, workdir = {"metrics": Wide}.get(place, Long), disk / "run"
    run(tmp_path / "whole", kind(), steps=STEPS)
    stage = kind()
    if place == "report":
        stage.on_evaluate = lambda: fill(disk, 4 * PAGE) if stage.position == STEPS else None
    else:
        spare = {"samples": PAGE, "metrics": PAGE, "checkpoint": 8 * PAGE}[place]
        stage.on_step = at_step(4 if place == "checkpoint" else 5, lambda: fill(disk, spare))
    capfd.readouterr()
    assert command(workdir, stage) == MISTAKE
    errors = [line for line in capfd.readouterr().err.splitlines() if line]
    assert errors[-1].startswith("error: ") and "space" in errors[-1], errors
    assert "Traceback" not in "\n".join(errors) and len(errors) < 5, errors
    saved = {"samples": 4, "metrics": 4, "checkpoint": 2, "report": 6}[place]
    assert newest_checkpoint(workdir) == workdir / "checkpoints" / str(saved)  # with its checksums
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows))) and len(rows) > saved
    assert command(workdir, kind()) == MISTAKE or place == "report"  # still full
    assert newest_checkpoint(workdir) == workdir / "checkpoints" / str(saved)
    os.unlink(disk / "ballast")
    assert command(workdir, kind()) == DONE
    assert (workdir / "report.html").exists()
    assert_same_run(workdir, tmp_path / "whole")
