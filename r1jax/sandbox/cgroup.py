"""The kernel's own limit on how many processes and threads a command and its descendants are, by a control group.

A resource limit (RLIMIT_NPROC) does not apply to root, and a watch that looks every few milliseconds comes too late: in
that time a fork bomb takes the machine's process numbers from everybody, and then our own process cannot start a
thread. A control group stops it at the limit. It can be made where ours may be written: by root, in most containers, in
a delegated group. Linux, cgroups of version 1 (`pids` hierarchy) and 2; https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@dataclass(frozen=True)
class TaskGroup:
    """A control group of one command."""

    folder: Path

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command, started inside."""
        return ["/bin/sh", "-c", _JOIN, str(self.folder), *command]

    def was_full(self) -> bool:
        """Whether a process or thread was refused."""
        return any(int(line.split()[1]) for line in (self.folder / "pids.events").read_text().splitlines())


@contextlib.contextmanager
def task_group(most: int) -> Iterator[TaskGroup | None]:
    """A group for `most` tasks; None where none can be made. Whoever is inside must have been killed at the end."""
    parent = _find_parent()
    if parent is None:
        yield None
        return
    folder = _make(parent, most)
    try:
        yield TaskGroup(folder)
    finally:
        _remove(folder)


@functools.cache
def _find_parent() -> Path | None:
    """The folder of our own group, if groups that count tasks can be made in it. Tried once."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers in ("pids", ""):
            parent = _ROOT / controllers / place.lstrip("/")
            with contextlib.suppress(OSError):
                _remove(_make(parent, 1))
                return parent
    return None


def _make(parent: Path, most: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"r1jax-{os.getpid()}-", dir=parent))
    try:
        (folder / "pids.max").write_text(str(most))
        (folder / "pids.events").read_text()
    except OSError:
        folder.rmdir()
        raise
    return folder


def _remove(folder: Path) -> None:
    """Removes a group once the last of those who were killed in it is gone."""
    end = time.monotonic() + 5
    while True:
        try:
            return os.rmdir(folder)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.005)
