"""Kernel limit on the number of processes and threads of a command and its descendants, by a control group.

A resource limit (RLIMIT_NPROC) does not apply to root, and polling every few milliseconds is too slow: by then a fork
bomb has used up the machine's process ids, and our own process cannot start a thread. A control group stops it at the
limit. One can be created where our own group is writable: as root, in most containers, in a delegated group. Linux,
cgroups version 1 (`pids` hierarchy) and 2; https://docs.kernel.org/admin-guide/cgroup-v2.html.
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
    """Control group of one command."""

    folder: Path

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command wrapped so that it starts inside the group."""
        return ["/bin/sh", "-c", _JOIN, str(self.folder), *command]

    def was_full(self) -> bool:
        """Whether the kernel refused a process or thread."""
        return any(int(line.split()[1]) for line in (self.folder / "pids.events").read_text().splitlines())


@contextlib.contextmanager
def task_group(most: int) -> Iterator[TaskGroup | None]:
    """Control group for at most `most` tasks; None where none can be created. All its processes must be dead
    at exit.
    """
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
    """Folder of our own control group, if groups that count tasks can be created in it. Tested once."""
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
    """Removes a group after its last killed process is gone."""
    end = time.monotonic() + 5
    while True:
        try:
            return os.rmdir(folder)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.005)
