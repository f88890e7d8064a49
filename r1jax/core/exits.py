"""Exit codes of the commands, and the exceptions that lead to them (docs/reliability.md lists what to do after each).

The launch scripts decide by these codes: 75 asks for the same command again, 2 would fail again.
"""

from __future__ import annotations

DONE = 0
MISTAKE = 2  # a user's mistake: a wrong flag, file or config; the same command fails again
PREEMPTED = 75  # stopped by SIGTERM or a preemption notice after saving; the same command goes on
STALLED = 76  # the watchdog saw no progress
DIVERGED = 77  # too many updates in a row were not finite; the last finite checkpoint is kept
INTERRUPTED = 130  # Ctrl-C, after saving


class PreemptedError(SystemExit):
    """A run that stopped at the request of its machine; the message says what was saved.

    No `Exception`, so that a handler of ordinary errors in a reward or a library does not swallow it.
    """

    def __init__(self, message: str):
        super().__init__(PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class DivergedError(Exception):
    """A run that stopped because its updates were no longer finite."""
