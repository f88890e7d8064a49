"""Reads in parallel, with a bound on host memory and a bar with bytes and time left.

A group is one parameter, or a few that come from the same arrays. Beyond the arrays on the devices, host memory holds
the parts of one group (or of several small ones, up to WINDOW) and what is being read for them, up to STAGING or one
read. Groups are placed in order, the same in all processes, for placing may be an exchange between them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from r1jax.core.console import Progress
from r1jax.weights.targets import Target

WINDOW = STAGING = 512 << 20  # bytes
SMALL = 32 << 20  # bytes on this host's disk that are not worth a pool of threads
THREADS, REQUESTS = 8, 16  # reads at a time: of a disk, and over the network
QUIET_SECONDS = 2.0  # a load that ends within these shows no bar


class Read(NamedTuple):
    """One read: bytes to read, bytes of host memory that it takes meanwhile, and what does it."""

    size: int
    memory: int
    run: Callable[[], None]


class Group(NamedTuple):
    """Parameters by path that are read together, and their reads."""

    targets: dict[tuple, Target]
    reads: Sequence[Read]


def read_groups(groups: Sequence[Group], *, is_remote: bool) -> dict[tuple, jax.Array]:
    """The parameters of all groups on the devices. is_remote: whether reads are requests over the network."""
    total = sum(read.size for group in groups for read in group.reads)
    if not is_remote and total < SMALL:
        return {path: array for group in groups for path, array in _read_alone(group).items()}
    arrays: dict[tuple, jax.Array] = {}
    waiting: collections.deque[tuple[Group, list[concurrent.futures.Future]]] = collections.deque()
    staging = _Budget(STAGING)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(_Bar(total))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(REQUESTS if is_remote else THREADS))
        stack.push(lambda kind, *_: pool.shutdown(wait=True, cancel_futures=kind is not None))

        def run(read: Read) -> None:
            with staging.take(read.memory):
                read.run()
            bar.add(read.size)

        def place_first() -> None:
            group, futures = waiting.popleft()
            bar.wait(futures)
            for path, target in group.targets.items():
                arrays[path] = target.finish()

        for group in groups:
            while waiting and _count_bytes(*(held for held, _ in waiting), group) > WINDOW:
                place_first()
            for target in group.targets.values():
                target.allocate()
            waiting.append((group, [pool.submit(run, read) for read in group.reads]))
        while waiting:
            place_first()
    return arrays


def _read_alone(group: Group) -> dict[tuple, jax.Array]:
    for target in group.targets.values():
        target.allocate()
    for read in group.reads:
        read.run()
    return {path: target.finish() for path, target in group.targets.items()}


def _count_bytes(*groups: Group) -> int:
    return sum(target.nbytes for group in groups for target in group.targets.values())


class _Budget:
    """Bytes that threads may hold together; one that wants more than there are has them alone."""

    def __init__(self, limit: int):
        self._limit, self._held, self._changed = limit, 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self._limit)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


class _Bar:
    """Bytes read, of `total`, on the console once a load takes a while."""

    def __init__(self, total: int):
        self._total, self._done, self._lock = total, 0, threading.Lock()
        self._begin = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._shown: Progress | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, size: int) -> None:
        """Counts bytes, from any thread."""
        with self._lock:
            self._done += size

    def wait(self, futures: Sequence[concurrent.futures.Future]) -> None:
        """Waits for reads, and raises the first error of one."""
        pending = set(futures)
        while pending:
            done, pending = concurrent.futures.wait(pending, 0.5, concurrent.futures.FIRST_EXCEPTION)
            self._show()
            for future in done:
                future.result()

    def _show(self) -> None:
        if self._shown is None and time.monotonic() - self._begin >= QUIET_SECONDS:
            bar = Progress(self._total, title="weights", every=10.0, name_count=_format_bytes)
            self._shown = self._stack.enter_context(bar)
        if self._shown is not None:
            self._shown.update(self._done, {})


def _format_bytes(size: int) -> str:
    """Bytes as 1.2 GB, in powers of ten."""
    unit, factor = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if size >= pair[1]), ("kB", 1e3))
    return f"{size / factor:.1f} {unit}"
