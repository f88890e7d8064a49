"""Watchdog: ends a process without progress, after dumping the stacks of all threads.

Code that may block forever (a reward, a file system, a collective that waits for a hanging process) would otherwise
occupy the machine until somebody notices. Code that makes progress calls `beat`: a decoded row, a batch of rewards, a
micro-batch, an answered problem, a saved checkpoint. Each process of a run watches itself; the first that ends tells
the others, which dump their stacks and end too.

A compilation cannot beat and may take long, so a compiling thread has COMPILE_FACTOR times the limit.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from types import FrameType

from r1jax.core.errors import STALLED
from r1jax.core.processes import failures

COMPILE_FACTOR = 6.0
_COMPILING = ("backend_compile", "compile_or_get_cached")  # functions of jax that run while XLA compiles

_last = time.monotonic()


def beat() -> None:
    """Records progress."""
    global _last
    _last = time.monotonic()


class Watchdog:
    """Context that ends the process with exit code 76 after `minutes` without a beat (0: never)."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self._stop = threading.Event()

    def __enter__(self) -> Watchdog:
        beat()
        if self.seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(10.0, self.seconds / 4)):
            silent = time.monotonic() - _last
            limit = self.seconds * (COMPILE_FACTOR if is_compiling() else 1)
            if silent > limit:
                print(
                    f"error: no progress for {silent / 60:.1f} minutes (config.watchdog_minutes); the stacks of all "
                    "threads follow, and the process ends",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(all_threads=True)
                sys.stderr.flush()
                failures.leave(STALLED, f"no progress for {silent / 60:.1f} minutes (config.watchdog_minutes)")
                os._exit(STALLED)


def is_compiling() -> bool:
    """Whether a thread of this process is waiting for an XLA compilation."""
    return find_compilation() is not None


def find_compilation() -> tuple[str, int] | None:
    """The program that a thread of this process waits for, `compiling NAME` or `reading NAME` (from the cache of
    compiled programs), and a number that differs from that of others under way.
    """
    for frame in sys._current_frames().values():
        if found := _find_in_stack(frame):
            return found
    return None


def _find_in_stack(frame: FrameType | None) -> tuple[str, int] | None:
    while frame is not None:
        if frame.f_code.co_name.startswith(_COMPILING) and "jax" in frame.f_code.co_filename:
            name = str(frame.f_locals.get("module_name", "a program"))
            verb = "compiling" if frame.f_code.co_name.startswith(_COMPILING[0]) else "reading"
            return f"{verb} {name.removeprefix('jit_').strip('_') or name}", id(frame)
        frame = frame.f_back
    return None
