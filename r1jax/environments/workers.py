"""Calls of environments beside the decode loop: threads that wait for them, with deadlines.

A request is answered in any order, and the caller asks for what has come (`poll`). An environment is in one call at a
time. One whose call exceeds its deadline, or whose process ends, is lost and counted; a thread that hangs in a call is
replaced by another, and what it may return later is not looked at.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from typing import Any

from r1jax.environments.contract import Contract
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.environments.homes import HOMES, START_SECONDS, Home, HomeError
from r1jax.environments.worker_process import describe_error, import_place

log = logging.getLogger(__name__)

MOST_HANGING = 64  # threads that hang before the log says so as an error
_GRACE_SECONDS = 2.0  # for a home outside of this process to notice its own deadline first


@dataclasses.dataclass(frozen=True)
class Reply:
    """The end of a call: of which trajectory and operation, its value or what it raised, and its seconds.

    fault: "" or why the environment is lost: time, memory, died.
    """

    key: int
    operation: str
    value: Any = None
    raised: str | None = None
    fault: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(eq=False)  # in a set, by identity
class _Call:
    key: int
    operation: str
    arguments: tuple[Any, ...]
    begun: float = 0.0
    is_over: bool = False


class Workers:
    """Environments of trajectories by number, and threads for their calls."""

    def __init__(self, config: EpisodeConfig):
        self.config = config
        self.hanging = 0
        self._next = 0
        self._make = HOMES[config.isolation]
        self._homes: dict[int, Home] = {}
        self._contracts: dict[int, tuple[Contract, int]] = {}
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._running: set[_Call] = set()
        self._lock = threading.Lock()
        self._threads = 0

    def next_key(self, count: int) -> int:
        """The first of `count` numbers of environments that were never given out."""
        self._next += count
        return self._next - count

    def open(self, key: int, contract: Contract, seed: int) -> None:
        """Announces the environment of a trajectory; it is made by its first call."""
        self._contracts[key] = contract, seed

    def ask(self, key: int, operation: str, *arguments: Any) -> None:
        """Begins a call of an environment; `poll` gives its end."""
        self._waiting.put(_Call(key, operation, arguments))
        with self._lock:
            missing = self._threads < self.config.workers
            self._threads += missing
        if missing:
            self._start()

    def poll(self, seconds: float) -> list[Reply]:
        """Calls that ended, waiting up to `seconds` for the first; late ones are given up."""
        found: list[Reply] = []
        end = time.monotonic() + seconds
        while True:
            self._give_up_late()
            try:
                found.append(self._replies.get(timeout=max(0.0, min(0.05, end - time.monotonic()))))
                while True:
                    found.append(self._replies.get_nowait())
            except queue.Empty:
                if found or time.monotonic() >= end:
                    return found

    def close(self, key: int) -> None:
        """Ends the environment of a trajectory."""
        self._contracts.pop(key, None)
        home = self._homes.pop(key, None)
        if home is not None:
            home.kill()

    def close_all(self) -> None:
        """Ends all environments."""
        for key in [*self._homes]:
            self.close(key)

    def shut(self) -> None:
        """Ends all environments, and the threads that do not hang."""
        self.close_all()
        with self._lock:
            threads, self._threads = self._threads, 0
        for _ in range(threads):
            self._waiting.put(None)

    def _start(self) -> None:
        threading.Thread(target=self._work, name="environment", daemon=True).start()

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            call.begun = time.monotonic()
            with self._lock:
                self._running.add(call)
            reply = self._run(call)
            with self._lock:
                self._running.discard(call)
                if call.is_over:  # given up: another thread has taken this one's place
                    self.hanging -= 1
                    return
                call.is_over = True
            self._replies.put(reply)

    def _run(self, call: _Call) -> Reply:
        told: dict[str, Any] = {"key": call.key, "operation": call.operation}
        try:
            home = self._homes.get(call.key)
            if home is None:
                contract, seed = self._contracts[call.key]
                functions = {name: import_place(place) for name, place in contract.functions.items()}
                home = self._make(contract, functions, self.config, seed)
                if call.is_over:
                    home.kill()
                else:
                    self._homes[call.key] = home
            if call.operation == "get_state":
                return Reply(**told, value=home.find_state(), seconds=time.monotonic() - call.begun)
            answer = home.ask(call.operation, *call.arguments)
            raised = answer.get("raised")
            told |= {"value": answer.get("value"), "raised": None if raised is None else str(raised)}
        except HomeError as error:
            told |= {"fault": str(error).partition(" ")[0], "raised": str(error).partition(" ")[2]}
        except BaseException as error:  # the environment cannot be made
            told |= {"fault": "died", "raised": describe_error(error)}
        return Reply(**told, seconds=time.monotonic() - call.begun)

    def _give_up_late(self) -> None:
        """Replies for calls past their deadline, and threads in place of those that hang in them."""
        now = time.monotonic()
        limit = self.config.call_seconds + (0.0 if self.config.isolation == "thread" else _GRACE_SECONDS)
        late: list[_Call] = []
        with self._lock:
            for call in [*self._running]:
                start = START_SECONDS if call.key not in self._homes and self.config.isolation != "thread" else 0.0
                if now - call.begun > limit + start:
                    call.is_over = True
                    self._running.discard(call)
                    late.append(call)
            self.hanging += len(late)
        for call in late:
            words = f"a call took longer than {self.config.call_seconds:g} s"
            self._replies.put(Reply(call.key, call.operation, None, words, "time", now - call.begun))
            self._start()
            if self.hanging == MOST_HANGING:
                log.error(
                    "%d calls of environments hang in threads, which cannot be ended: config.episode.isolation=process "
                    "ends them",
                    self.hanging,
                )
