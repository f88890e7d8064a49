"""How a command ends: its exit code, and one line where the cause is no fault of the program."""

import errno
import os
import signal
from collections.abc import Callable

import pytest
from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import MISTAKE, PREEMPTED


def end(action: Callable[[], None]) -> int:
    return run_command("", flags.FlagValues(), [], lambda _: action(), computes=False)


def test_sigterm_where_no_loop_waits_for_it_has_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert end(lambda: os.kill(os.getpid(), signal.SIGTERM)) == PREEMPTED
    assert capsys.readouterr().err.startswith("stopped by SIGTERM: ")
    assert signal.getsignal(signal.SIGTERM) is before


def fail(*errors: Exception) -> Callable[[], None]:
    """Raises the errors, each while the one before is handled."""

    def action() -> None:
        try:
            if errors[:-1]:
                fail(*errors[:-1])()
        finally:
            raise errors[-1]

    return action


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/metrics.jsonl")


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        ([FULL], "error: no space is left on the disk for /disk/metrics.jsonl: make room"),
        ([FULL, OSError("handle is closed")], "error: no space is left on the disk for /disk/metrics.jsonl: make room"),
        ([ValueError("UNKNOWN: write failed: No space left on device")], "error: no space is left on the disk: make"),
        ([OSError(errno.EDQUOT, "Quota", "x")], "error: no space is left in the quota for x"),
    ],
)
def test_a_full_disk_is_one_line(errors: list[Exception], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert end(fail(*errors)) == MISTAKE
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1 and "repeat the command" in said


def test_other_errors_are_shown_whole() -> None:
    with pytest.raises(FileNotFoundError):
        end(fail(FileNotFoundError(errno.ENOENT, "no such file", "x")))
