"""A process with its descendants: which limit they exceed together, as far as /proc shows it.

For what control groups count (`cgroup.py`) the kernel's numbers are used. Where there is none, resident memory is added
up over the tree, with the entries of the scratch folder at the kilobyte of memory that each takes, and CPU time over
all processes seen so far. A process that lives between two looks and whose parent ignores its end is then missed.
"""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from r1jax.sandbox.cgroup import TaskGroup
from r1jax.sandbox.limits import Limits, Status

_OWN = 4  # processes of the sandbox itself: two of bwrap, shells
_ENTRY_BYTES = 1024
_PAGE, _TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


class Tree:
    """The process `pid` and its descendants, in a control group if there is one; `scratch` is their folder's path as
    they see it, "" if its entries are not to be counted.
    """

    def __init__(self, pid: int, group: TaskGroup | None, scratch: str = ""):
        self.pid, self.group, self.scratch = pid, group, scratch
        self._counts = frozenset(group.folders if group else ())
        self._seen: dict[tuple[int, str], float] = {}

    def look(self, limits: Limits) -> Status | None:
        """The limit that the tree exceeds at this moment, if any."""
        tree = [self.pid, *descendants(self.pid, 4 * limits.processes)]
        if len(tree) > limits.processes + _OWN:
            return "processes"
        resident = sum(map(_read_resident, tree))
        if "memory" not in self._counts and self.scratch:
            resident += _ENTRY_BYTES * _count_entries(f"/proc/{tree[-1]}/root{self.scratch}")
        if resident > limits.memory_bytes:
            return "memory"
        used = self.group.cpu_seconds() if self.group and "cpuacct" in self._counts else self._add_up_time(tree)
        return "time" if used > limits.cpu_seconds else None

    def _add_up_time(self, tree: list[int]) -> float:
        """CPU seconds of all processes seen so far, or of the present ones and their ended children if that is more."""
        present = 0.0
        for pid in tree:
            with contextlib.suppress(OSError, IndexError, ValueError):
                times = read_times(pid)
                self._seen[pid, times.start] = times.own
                present += times.own + times.ended
        return max(present, sum(self._seen.values()))


class Times(NamedTuple):
    """CPU seconds of a process, with its threads and in the kernel too, and of its ended children; its start, in the
    system's ticks.
    """

    own: float
    ended: float
    start: str


def read_times(pid: int) -> Times:
    """Times of a process so far. Raises OSError, ValueError or IndexError where /proc does not tell."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, ended = (sum(map(int, fields[place : place + 2])) / _TICK for place in (11, 13))
    return Times(own, ended, fields[19])


def descendants(pid: int, most: int) -> list[int]:
    """Process ids below `pid`; stops soon after `most` are found."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) <= most:
        parent = waiting.pop()
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                children = [int(child) for child in Path(f"/proc/{parent}/task/{task}/children").read_text().split()]
                found += children
                waiting += children
        except OSError:
            continue
    return found


def _read_resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _count_entries(folder: str) -> int:
    """Files and folders in the file system of a folder; 0 if it is not reachable."""
    with contextlib.suppress(OSError):
        status = os.statvfs(folder)
        return status.f_files - status.f_ffree
    return 0
