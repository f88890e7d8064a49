"""The thread that owns the engine: jobs of all clients in one batch, in order of arrival.

A job is one sequence to sample. Its bursts are delivered as they come, from this thread; a job that is dropped frees
its slot at the next step. Calls that need the model for something else (prompt log-probs) run between steps.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.structs import Sampling
from r1jax.rollout.continuous import Burst, ContinuousEngine
from r1jax.tuning.sampler_bank import Adapter, SamplerBank

log = logging.getLogger(__name__)

PATIENT, HURRIED = 8, 4  # tokens of each sequence between two looks at what arrived: alone, and while others wait


class BusyError(Exception):
    """The queue is full."""


@dataclasses.dataclass(eq=False)
class Job:
    """A sequence to sample. deliver: called with each burst, the last of which has a finish reason, or with the error
    that ended the worker; it must not block. alternatives: likeliest ids to return for each token. adapter: beside the
    model (None: the bare model).
    """

    tokens: tuple[int, ...]
    sampling: Sampling
    seed: int
    deliver: Callable[[Burst | Exception], None]
    alternatives: int = 0
    adapter: Adapter | None = None


class Worker:
    """Samples jobs with an engine in a thread of its own, up to `queue` of them waiting. adapters: those of jobs, where
    the engine's parameters come from them.
    """

    def __init__(self, engine: ContinuousEngine, *, queue: int = 256, adapters: SamplerBank | None = None):
        self.engine, self.queue, self.adapters = engine, queue, adapters
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self._waiting: collections.deque[Job] = collections.deque()
        self._calls: collections.deque[tuple[Callable[[], Any], concurrent.futures.Future]] = collections.deque()
        self._live: dict[int, Job] = {}
        self._dropped: set[Job] = set()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs without a slot."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Number of jobs in slots."""
        return len(self._live)

    def submit(self, *jobs: Job) -> None:
        """Queues jobs, all or none. Raises BusyError if there is no room, or the error that ended the worker."""
        with self._changed:
            if self.error is not None:
                raise self.error
            if self._is_over or len(self._waiting) + len(jobs) > self.queue:
                raise BusyError
            self._waiting.extend(jobs)
            self._changed.notify()

    def drop(self, *jobs: Job) -> None:
        """Ends jobs whose client has left; nothing more is delivered for them. Jobs that have ended are ignored."""
        with self._changed:
            gone = set(jobs)
            self._waiting = collections.deque(job for job in self._waiting if job not in gone)
            self._dropped |= gone & set(self._live.values())
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> concurrent.futures.Future:
        """Runs a function in the worker's thread, between steps."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        with self._changed:
            if self._is_over or len(self._calls) >= self.queue:
                raise BusyError
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def stop(self, seconds: float = 30.0) -> None:
        """Takes no more jobs, and waits for those there are."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except Exception as error:  # every client must hear of it
            log.exception("the engine stopped")
            with self._changed:
                self.error, self._is_over = error, True
                jobs = [*self._live.values(), *self._waiting]
                calls, self._waiting = list(self._calls), collections.deque()
            for job in jobs:
                job.deliver(error)
            for _, future in calls:
                future.set_exception(error)

    def _wait(self) -> bool:
        """Waits for something to do; whether there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._live or self._calls or self._is_over)
            return bool(self._waiting or self._live or self._calls)

    def _turn(self) -> None:
        with self._changed:
            calls = list(self._calls)
            self._calls.clear()
            for slot in [slot for slot, job in self._live.items() if job in self._dropped]:
                self._close(slot)
            self._dropped.clear()
            arrived = [self._waiting.popleft() for _ in range(min(self.engine.free, len(self._waiting)))]
            others_wait = bool(self._waiting)
        for function, future in calls:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)
        while arrived and self._open(arrived[0]):
            arrived.pop(0)
        with self._changed:
            self._waiting.extendleft(reversed(arrived))  # until a place for an adapter is free
        alternatives = max((job.alternatives for job in self._live.values()), default=0)
        steps, ends = (HURRIED, 1) if others_wait else (PATIENT, 0)
        for burst in self.engine.step(steps, ends=ends, alternatives=alternatives):
            job = self._live[burst.slot]
            if burst.finish_reason:
                self._close(burst.slot)
            if job not in self._dropped:
                job.deliver(burst)

    def _open(self, job: Job) -> bool:
        """Gives a job a slot, if there is a place for its adapter; whether the job is done with."""
        if self.adapters is not None:
            try:
                if job.adapter is not None and not self.adapters.acquire(job.adapter):
                    return False
            except UserError as error:  # its file is gone
                job.deliver(error)
                return True
        slot = self.engine.open(job.tokens, job.sampling, job.seed)
        if self.adapters is not None:
            self.adapters.set_slot(slot, job.adapter)
        self._live[slot] = job
        return True

    def _close(self, slot: int) -> None:
        self.engine.close(slot)
        job = self._live.pop(slot)
        if self.adapters is not None and job.adapter is not None:
            self.adapters.release(job.adapter)
