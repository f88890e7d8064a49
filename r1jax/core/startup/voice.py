"""Lines that a command prints while it works in silence: what it loads or compiles, and for how long.

Code names what it does (`with activity("loading MODEL")`), and everything that prints calls `spoke`. The voice speaks
only after a silence, so that a command that fails at once prints its error alone, and the log of a run that reports
each step stays as it is. A compilation is recognized by the stack of its thread and named by its program.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from r1jax.core.watchdog import find_compilation

VARIABLE = "R1JAX_SILENCE_SECONDS"
FIRST, LONGEST = 1.5, 8.0  # seconds of silence before the first line, and before each further one
SETTLED = 60.0  # seconds of silence once the steps of a run have begun: a log of days
LONG_COMPILATION = 5.0  # seconds; a compilation of this length is reported when it ends

_activities: list[tuple[str, float]] = []
_spoken = time.monotonic()
_muted = False
_settled = False
_opened = False  # an activity was named, so the command is past its opening


def spoke() -> None:
    """Notes that something was shown."""
    global _spoken
    _spoken = time.monotonic()


def mute() -> None:
    """Makes the voice of this process silent: of the processes of a run the first alone speaks."""
    global _muted
    _muted = True


def settle() -> None:
    """Notes that a run is under way and reports by itself; what lasts a minute is still said."""
    global _settled
    _settled = True


@contextlib.contextmanager
def activity(name: str) -> Iterator[None]:
    """Context in which the process does what `name` says: `loading models/x.gguf`."""
    global _opened
    _opened = True
    entry = (name, time.monotonic())
    _activities.append(entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # of another thread, which ended later
            _activities.remove(entry)


def describe_activity() -> str:
    """The innermost activity with its seconds so far: `loading models/x.gguf, 12 s`; "" if none is named.

    A compilation goes before what it is a part of.
    """
    now = time.monotonic()
    if compiled := _COMPILATIONS.find():
        name, since = compiled
        return f"{name}, {max(0.0, now - since):.0f} s"
    if not _activities:
        return ""
    name, since = _activities[-1]
    return f"{name}, {max(0.0, now - since):.0f} s"


class Voice:
    """Context that prints a line on stderr after every silence, in a thread of its own.

    first, longest: seconds of silence before the first line and before each further one. $R1JAX_SILENCE_SECONDS
    replaces `longest`; 0 prints nothing. opening: the first line, until an activity is named.
    """

    def __init__(
        self,
        opening: str = "",
        *,
        first: float = FIRST,
        longest: float = LONGEST,
        write: Callable[[str], None] | None = None,
    ):
        self._opening = opening
        self._first, self._longest = first, _read_seconds(longest)
        self._write = write or _write_line
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="voice", daemon=True)

    def __enter__(self) -> Voice:
        self._begin = time.monotonic()
        spoke()
        if self._longest:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _speak(self) -> None:
        limit, compiled = min(self._first, self._longest), None
        while not self._stop.wait(min(0.25, limit / 4)):
            before, compiled = compiled, _COMPILATIONS.find()
            if before and before != compiled and (passed := time.monotonic() - before[1]) >= LONG_COMPILATION:
                self._say(f"{before[0]} took {passed:.0f} s")
            if time.monotonic() - _spoken >= limit:
                opening = "" if _opened else self._opening
                waited = time.monotonic() - self._begin
                self._say(describe_activity() or f"{opening or 'working'}, {waited:.0f} s")
                limit = max(self._longest, SETTLED) if _settled else self._longest

    def _say(self, line: str) -> None:
        if not _muted:
            self._write(line)
        spoke()


class _Compilations:
    """The compilation under way: its name, and when it was first seen."""

    def __init__(self) -> None:
        self._seen: tuple[str, float, int] | None = None

    def find(self) -> tuple[str, float] | None:
        found = find_compilation()
        if found is None:
            self._seen = None
            return None
        name, frame = found
        if self._seen is None or self._seen[2] != frame:
            self._seen = name, time.monotonic(), frame
        return self._seen[:2]


_COMPILATIONS = _Compilations()


def _write_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _read_seconds(default: float) -> float:
    try:
        return max(0.0, float(os.environ.get(VARIABLE, default)))
    except ValueError:
        return default
