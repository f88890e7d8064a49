"""Where the time until a run's first step goes: connecting, loading, restoring, evaluating, the step, and compiling.

Compilations happen within the other phases and are counted apart, so the parts add up to the whole.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax

COMPILATION = "/jax/core/compile/backend_compile_duration"  # one event a program, read from a cache or compiled

_compiled: list[float] = []  # seconds of each program that this process has compiled


def _note(event: str, duration_secs: float, **_: object) -> None:
    if event == COMPILATION:
        _compiled.append(duration_secs)


@functools.cache
def _listen() -> None:
    """Counts the compilations of this process, from the first call on."""
    jax.monitoring.register_event_duration_secs_listener(_note)


class StartTimes:
    """Seconds by phase of a start. A run begins one, names each phase as it begins, and finishes with the line to log.

    clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._phase = ""
        self._first = 0

    def begin(self, phase: str) -> None:
        """Starts anew, with this phase."""
        _listen()
        self._seconds, self._phase, self._first = {}, "", len(_compiled)
        self.enter(phase)

    def enter(self, phase: str) -> None:
        """Ends the phase under way, if any, and begins another."""
        self._close()
        self._phase, self._since, self._before = phase, self._clock(), len(_compiled)

    def finish(self) -> str:
        """Ends the last phase; a line of all of them."""
        self._close()
        programs = _compiled[self._first :]
        seconds = {**self._seconds, "compile": sum(programs)}
        parts = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        return f"first step after {sum(seconds.values()):.1f} s: {parts} ({len(programs)} programs)"

    def _close(self) -> None:
        if self._phase:
            passed = self._clock() - self._since - sum(_compiled[self._before :])
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + max(0.0, passed)
        self._phase = ""


START = StartTimes()  # of the run that this process is in
