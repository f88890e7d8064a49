"""Kernel limits on the tasks, memory and CPU time of a command with all its descendants, by control groups.

A resource limit holds for one process (and RLIMIT_NPROC not for root), and polling every few milliseconds is too slow:
a fork bomb has used up the machine's process ids by then. A control group stops at its limit, and it counts memory that
no process has mapped: files in memory, shared memory, buffers of pipes and sockets. Groups can be created where ours,
or its parent, is writable: as root, in most containers, in a delegated group. Each of the three limits is used where
its controller can be. Linux, cgroups version 1 (`pids`, `memory` and `cpuacct` hierarchies) and 2;
https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("pids", "memory", "cpuacct")
_JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'
_KILL_SECONDS = 5.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskGroup:
    """Control group of one command: its folder by controller (one folder for all of them in version 2)."""

    folders: Mapping[str, Path]

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command wrapped so that it starts inside the group."""
        places = dict.fromkeys(map(str, self.folders.values()))
        return ["/bin/sh", "-c", _JOIN, "sh", *places, "--", *command]

    def was_full(self) -> bool:
        """Whether the kernel refused a process or thread."""
        return "pids" in self.folders and _read_field(self.folders["pids"] / "pids.events", "max") > 0

    def was_out_of_memory(self) -> bool:
        """Whether the kernel killed a process because the group's memory was used up."""
        if "memory" not in self.folders:
            return False
        folder = self.folders["memory"]
        return any(_read_field(folder / name, "oom_kill") > 0 for name in ("memory.events", "memory.oom_control"))

    def cpu_seconds(self) -> float:
        """CPU time used by all processes so far, also by those that have ended; 0 where it is not counted."""
        if "cpuacct" not in self.folders:
            return 0.0
        folder = self.folders["cpuacct"]
        with contextlib.suppress(OSError, ValueError):
            return int((folder / "cpuacct.usage").read_text()) / 1e9
        return _read_field(folder / "cpu.stat", "usage_usec") / 1e6

    def kill(self) -> None:
        """Kills all processes in the group, also those that left their parents."""
        end = time.monotonic() + _KILL_SECONDS
        while (left := self._processes()) and time.monotonic() < end:
            for process in left:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.005)

    def _processes(self) -> list[int]:
        for folder in self.folders.values():
            with contextlib.suppress(OSError, ValueError):
                # 0 stands for a process that is not in our process namespace.
                return [number for line in (folder / "cgroup.procs").read_text().split() if (number := int(line)) > 0]
        return []


@contextlib.contextmanager
def task_group(most: int, memory_bytes: int) -> Iterator[TaskGroup | None]:
    """Control group for at most `most` tasks and `memory_bytes` of memory; None where none can be created.

    At exit all its processes are killed and it is removed; one that cannot be removed is left, with a line in the log.
    """
    parents = _find_parents()
    folders = _make(parents, most, memory_bytes) if parents else {}
    if not folders:
        yield None
        return
    group = TaskGroup(folders)
    try:
        yield group
    finally:
        group.kill()
        _remove(folders)


def _find_parent() -> Path | None:
    """Folder in which groups that count tasks are created; None if there is none."""
    return _find_parents().get("pids")


@functools.cache
def _find_parents() -> Mapping[str, Path]:
    """Folder by controller in which groups can be created, found by creating one and moving a process into it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, Path] = {}
    for line in lines:
        _, controllers, place = line.split(":", 2)
        for controller in set(controllers.split(",")) & set(_CONTROLLERS):
            parent = _ROOT / controllers / place.lstrip("/")
            if works := _test({controller: parent}):
                found |= works
    own = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), None)
    if not found and own is not None and (_ROOT / "cgroup.controllers").exists():
        parent = _ROOT / own.lstrip("/")
        for folder in (parent, parent.parent) if own != "/" else (parent,):
            works = _test(dict.fromkeys(_CONTROLLERS, folder))
            if len(works) > len(found):
                found = dict(works)
    return found


def _test(parents: Mapping[str, Path]) -> Mapping[str, Path]:
    """The controllers among `parents` whose limits can be set there, if a process can enter such a group."""
    folders: Mapping[str, Path] = {}
    with contextlib.suppress(OSError):
        folders = _make(parents, 16, 1 << 30)
        if not folders:
            return {}
        done = subprocess.run(TaskGroup(folders).enter(["true"]), stderr=subprocess.DEVNULL, timeout=10)
        _remove(folders)
        if done.returncode == 0:
            return {controller: parents[controller] for controller in folders}
    return {}


def _make(parents: Mapping[str, Path], most: int, memory_bytes: int) -> dict[str, Path]:
    """Creates the folders of a group; raises OSError. Leaves out controllers that have no limit in them."""
    limits = {
        "pids": (("pids.max", most),),
        "memory": (
            ("memory.max", memory_bytes),
            ("memory.swap.max", 0),
            ("memory.limit_in_bytes", memory_bytes),
            ("memory.memsw.limit_in_bytes", memory_bytes),
        ),
        "cpuacct": (),
    }
    needed = {"pids": ("pids.max",), "memory": ("memory.max", "memory.limit_in_bytes")}
    needed["cpuacct"] = ("cpu.stat", "cpuacct.usage")
    made: dict[Path, Path] = {}
    folders: dict[str, Path] = {}
    try:
        for controller, parent in parents.items():
            if parent not in made:
                made[parent] = Path(tempfile.mkdtemp(prefix=f"r1jax-{os.getpid()}-", dir=parent))
            folder = made[parent]
            if not any((folder / name).exists() for name in needed[controller]):
                continue
            for name, value in limits[controller]:
                if (folder / name).exists():
                    (folder / name).write_text(str(value))
            folders[controller] = folder
    except OSError:
        _remove({str(place): place for place in made.values()})
        raise
    if not folders:
        _remove({str(place): place for place in made.values()})
    return folders


def _remove(folders: Mapping[str, Path]) -> None:
    """Removes a group after its last killed process is gone."""
    end = time.monotonic() + _KILL_SECONDS
    for folder in dict.fromkeys(folders.values()):
        while True:
            try:
                os.rmdir(folder)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > end:
                    log.warning("a control group of a sandbox could not be removed: %s", error)
                    break
                time.sleep(0.005)


def _read_field(file: Path, name: str) -> int:
    """The number behind a name in a file of `name number` lines; 0 if there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            field, _, value = line.partition(" ")
            if field == name:
                return int(value)
    return 0
