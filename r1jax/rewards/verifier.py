"""A pool of killable processes that ask math-verify whether an answer is correct.

SymPy can be made to compute forever (`9^{9^{9^9}}`) or to use all memory, ignoring signals and the library's own
timeouts. So each answer is judged in another process, under a deadline of processor time that the parent enforces by
SIGKILL and a memory limit that the kernel enforces; a new process then takes over the remaining answers. Training
continues in any case.

Workers start on first use (or at `warm_up`) by `subprocess`, never by fork of a process in which JAX runs, and are
kept. All communication runs in the caller's thread, in one loop over non-blocking pipes; requests go in chunks, replies
are single bytes (the protocol is in `verifier_worker.py`). Most answers need no worker: `verdict_cache.py` knows or
decides them.

Left out: sharing a pool between processes. Each training process has its own, for its own rows.
"""

import atexit
import functools
import json
import logging
import math
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from r1jax.core.startup.helper_process import minimal_environment
from r1jax.rewards import verifier_worker
from r1jax.rewards.verdict_cache import Verdict, Verdicts
from r1jax.rewards.verifier_worker import GOLD_READ, READY, RIGHT, UNKNOWN
from r1jax.sandbox.tree import read_times

# Of the worker's processor time, so that a loaded machine changes no verdict: a normal answer takes 1 to 130 ms.
DEADLINE_SECONDS = 5.0
# A worker that gets no processor (stopped, swapped out) is replaced after so many deadlines of wall-clock time.
PATIENCE = 8
MEMORY_BYTES = 1 << 30
MAX_WORKERS = 8
# Large enough that pipes cost little, small enough that few answers wait behind one that hangs.
CHUNK_SIZE = 8
# An answer whose worker got no processor, or was killed by anything but its deadline (out of memory, an operator), is
# sent once more.
MAX_ATTEMPTS = 2
_START_SECONDS = 120.0
_MAX_FAILED_STARTS = 3
_PIPE_BYTES = 1 << 16
_TICK = 0.02  # seconds between two looks at a worker whose deadline is near

_logger = logging.getLogger(__name__)


def verify(pairs: Sequence[tuple[str | None, str]], *, latex_gold: bool = False) -> list[float | None]:
    """`VerifierPool.verify` of (gold, answer) pairs, by this process's own pool and cache."""
    return _own_verdicts().verify(pairs, latex_gold=latex_gold)


def warm_up() -> None:
    """Starts the workers of this process's own pool and returns at once; they load in the background."""
    _own_pool().warm_up()


@functools.cache
def _own_verdicts() -> Verdicts:
    return Verdicts(_own_pool().judge)


@functools.cache
def _own_pool() -> "VerifierPool":
    pool = VerifierPool()
    atexit.register(pool.close)
    return pool


@dataclass(eq=False)
class _Job:
    """One answer in progress, and what is known about it."""

    gold: str
    answer: str
    latex_gold: bool
    gold_read: bool = False
    attempts: int = 0
    value: float | None = None
    replied: bool = False

    @property
    def key(self) -> tuple[str, bool]:
        """The inputs that determine whether the gold can be parsed."""
        return self.gold, self.latex_gold

    def give_up(self) -> None:
        """Settles a job that cannot be judged: a wrong answer, or no reward if already the gold exceeded the
        deadline.
        """
        self.value = 0.0 if self.gold_read else None


class VerifierPool:
    """Worker processes that judge (gold, answer) pairs by math-verify. Thread-safe; callers take turns."""

    def __init__(
        self,
        max_workers: int | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Starts nothing yet. `max_workers` defaults to the cores that this process may use, at most 8."""
        self.max_workers = max_workers or min(MAX_WORKERS, _count_usable_cores())
        self.deadline_seconds = deadline_seconds
        self.memory_bytes = memory_bytes
        self._workers: list[_Worker] = []
        self._waiting: deque[_Job] = deque()
        self._unreadable_golds: set[tuple[str, bool]] = set()
        self._failed_starts = 0
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts all workers and returns at once; they load math-verify (about a second) in the background."""
        with self._lock:
            self._start_workers(self.max_workers)

    def verify(self, pairs: Sequence[tuple[str | None, str]], *, latex_gold: bool = False) -> list[float | None]:
        """Judges (gold, answer) pairs: 1.0 equal, 0.0 not equal or past the deadline, None if the gold is unreadable.

        With `latex_gold` math-verify is called as in open-r1's length rewards. Raises RuntimeError if workers do not
        start, for example because math-verify is not installed.
        """
        return [verdict.value for verdict in self.judge(pairs, latex_gold=latex_gold)]

    def judge(self, pairs: Sequence[tuple[str | None, str]], *, latex_gold: bool = False) -> list[Verdict]:
        """Like `verify`, and for each value whether a worker replied or it was given up."""
        jobs = [_Job(gold or "", answer, latex_gold) for gold, answer in pairs]
        with self._lock:
            try:
                self._run(jobs)
            except BaseException:
                self._stop_workers()  # replies in transit must not be taken for replies to the next call's jobs
                raise
        return [Verdict(job.value, job.replied) for job in jobs]

    def close(self) -> None:
        """Kills the workers. A later call starts new ones."""
        with self._lock:
            self._stop_workers()

    def process_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def _run(self, jobs: list[_Job]) -> None:
        self._waiting = deque(job for job in jobs if job.gold.strip())
        if not self._waiting:
            return
        # Few answers do not justify starting many processes, but running ones share the work evenly.
        self._start_workers(min(self.max_workers, -(-len(self._waiting) // CHUNK_SIZE)))
        chunk_size = min(CHUNK_SIZE, -(-len(self._waiting) // len(self._workers)))
        while self._waiting or any(worker.jobs for worker in self._workers):
            self._assign(chunk_size)
            for worker in self._wait():
                if not worker.write() or not self._read(worker):
                    self._handle_death(worker)
            for worker in self._workers:
                if worker.jobs and worker.seconds_left() <= 0:
                    self._handle_deadline(worker)

    def _assign(self, chunk_size: int) -> None:
        """Gives each idle worker a chunk of consecutive jobs: they share a gold, which a worker parses once."""
        for index, worker in enumerate(self._workers):
            if worker.jobs:
                continue
            if worker.process.poll() is not None:
                worker = self._replace(index)
            while self._waiting and len(worker.jobs) < chunk_size:
                job = self._waiting.popleft()
                if job.key not in self._unreadable_golds:
                    worker.give(job)

    def _wait(self) -> list["_Worker"]:
        """Sleeps until a busy worker can be read or written, or until the next deadline."""
        busy = [worker for worker in self._workers if worker.jobs]
        if not busy:
            return []
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
                if worker.unsent:
                    selector.register(worker.requests, selectors.EVENT_WRITE, worker)
            events = selector.select(max(_TICK, min(worker.seconds_left() for worker in busy)))
            return list({id(key.data): key.data for key, _ in events}.values())

    def _read(self, worker: "_Worker") -> bool:
        """Processes available replies; returns False if the worker is dead."""
        try:
            replies = worker.replies.read(_PIPE_BYTES)
        except ConnectionError:
            return False
        for code in replies or b"":
            self._take(worker, bytes([code]))
        return replies is None or len(replies) > 0

    def _take(self, worker: "_Worker", reply: bytes) -> None:
        if reply == READY:
            worker.ready, self._failed_starts = True, 0
        elif reply == GOLD_READ:
            worker.jobs[0].gold_read = True
            return
        else:
            job = worker.jobs.popleft()
            job.value, job.replied = None if reply == UNKNOWN else float(reply == RIGHT), True
            self._note_gold(job)
        worker.begin()

    def _handle_deadline(self, worker: "_Worker") -> None:
        if worker.ready and worker.has_worked():
            job = worker.jobs.popleft()
            job.give_up()
            self._note_gold(job)
        elif worker.ready:  # the machine's fault, which tells nothing of the gold or the answer
            job = worker.jobs[0]
            job.attempts += 1
            if job.attempts >= MAX_ATTEMPTS:
                worker.jobs.popleft()
                _logger.warning("a math-verify worker got no processor time; its answer gets no reward")
        else:
            self._note_failed_start("took too long to load math-verify")
        self._bury(worker)

    def _handle_death(self, worker: "_Worker") -> None:
        exit_code = worker.process.wait()
        if not worker.ready:
            self._note_failed_start(
                f"ended with exit code {exit_code} while loading math-verify; see its message above"
            )
        elif exit_code != 0 and worker.jobs:  # 0: it retired after a reply, which is not the next job's fault
            job = worker.jobs[0]
            job.attempts += 1
            if job.attempts >= MAX_ATTEMPTS:
                worker.jobs.popleft().give_up()
                self._note_gold(job)
        self._bury(worker)

    def _bury(self, worker: "_Worker") -> None:
        """Replaces a worker; its remaining jobs go to the next free one."""
        for job in worker.jobs:
            job.gold_read = False
        self._waiting.extendleft(reversed(worker.jobs))
        self._replace(self._workers.index(worker))

    def _replace(self, index: int) -> "_Worker":
        self._workers[index].stop()
        self._workers[index] = _Worker.start(self.deadline_seconds, self.memory_bytes)
        return self._workers[index]

    def _start_workers(self, count: int) -> None:
        while len(self._workers) < count:
            self._workers.append(_Worker.start(self.deadline_seconds, self.memory_bytes))

    def _stop_workers(self) -> None:
        while self._workers:
            self._workers.pop().stop()

    def _note_gold(self, job: _Job) -> None:
        """Remembers and logs a gold that cannot be parsed, so that it costs one deadline and one log line in total."""
        if not job.gold_read and job.key not in self._unreadable_golds:
            self._unreadable_golds.add(job.key)
            _logger.warning("math-verify cannot parse this solution; its rows get no reward: %.100r", job.gold)

    def _note_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            self._failed_starts = 0
            raise RuntimeError(f"a math-verify worker {reason}")


@dataclass(eq=False)
class _Worker:
    """One process, its jobs in order, and the earliest time at which it may have started the first of them, with the
    processor time that the process had used by then.
    """

    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    replies: IO[bytes]
    deadline_seconds: float
    ready: bool = False
    began: float = field(default_factory=time.monotonic)
    worked: float = 0.0
    jobs: deque[_Job] = field(default_factory=deque)
    unsent: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(cls, deadline_seconds: float, memory_bytes: int) -> "_Worker":
        """Starts a process; it reports when it is ready."""
        # Run by path and with -P, so that it imports nothing of this package and nothing beside the file. The alarm by
        # which an orphan ends itself comes after our deadline. It has its own session: the parent handles Ctrl-C.
        command = [sys.executable, "-P", verifier_worker.__file__, str(2 * deadline_seconds), str(memory_bytes)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env=minimal_environment(),
        )
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        return cls(process, process.stdin, process.stdout, deadline_seconds)

    def give(self, job: _Job) -> None:
        """Queues a job; `write` sends it."""
        if not self.jobs:
            self.begin()
        self.jobs.append(job)
        self.unsent += json.dumps([job.gold, job.answer, job.latex_gold]).encode() + b"\n"

    def write(self) -> bool:
        """Sends as much as the pipe takes; returns False if the worker is dead."""
        try:
            while self.unsent:
                sent = self.requests.write(memoryview(self.unsent)[:_PIPE_BYTES].tobytes())
                if sent is None:
                    break
                del self.unsent[:sent]
        except ConnectionError:
            return False
        return True

    def begin(self) -> None:
        """Notes that the first job begins now."""
        self.began, self.worked = time.monotonic(), _read_cpu_seconds(self.process.pid)

    def has_worked(self) -> bool:
        """Whether the first job has used its processor time; where that cannot be read, the wall clock counts."""
        used = _read_cpu_seconds(self.process.pid) - self.worked
        return math.isnan(used) or used >= self.deadline_seconds

    def seconds_left(self) -> float:
        """Least seconds until the first job (or, before any job, the start) exceeds its time."""
        waited = time.monotonic() - self.began
        if not self.ready:
            return _START_SECONDS - waited
        used = _read_cpu_seconds(self.process.pid) - self.worked
        if math.isnan(used):
            return self.deadline_seconds - waited
        return min(PATIENCE * self.deadline_seconds - waited, self.deadline_seconds - used)

    def stop(self) -> None:
        """Kills the process and frees its pipes."""
        self.process.kill()
        self.process.wait()
        self.requests.close()
        self.replies.close()


def _count_usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_cpu_seconds(process_id: int) -> float:
    """Processor time of a process so far; NaN where /proc does not tell."""
    try:
        return read_times(process_id).own
    except (OSError, ValueError, IndexError):
        return math.nan
