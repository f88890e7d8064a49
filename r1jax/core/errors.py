"""Errors that end a command with one line or an exit code of their own, and the exit codes (explained in
docs/reliability.md).

Launch scripts decide by these codes: 75 means run the same command again, 2 means that it would fail again.
"""

from __future__ import annotations

DONE = 0
MISTAKE = 2  # a user's mistake: a wrong flag, file or config; the same command fails again
PREEMPTED = 75  # stopped by SIGTERM or a preemption notice after saving; the same command resumes
STALLED = 76  # stopped by the watchdog for lack of progress
DIVERGED = 77  # too many updates in a row were not finite; the last finite checkpoint is kept
LOST = 78  # another process of the run died or lost its connection; the newest checkpoint is kept
INTERRUPTED = 130  # Ctrl-C, after saving


class UserError(Exception):
    """A rule that the input breaks. The message states the rule, the value got, and the config key or file to
    change.
    """


class PreemptedError(SystemExit):
    """Stop of a run at its machine's request; the message says what was saved.

    Not an `Exception`, so that a handler of ordinary errors in a reward or library does not swallow it.
    """

    def __init__(self, message: str):
        super().__init__(PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


def stop_at_signal(*_: object) -> None:
    """Handler of SIGTERM that ends a command where no loop of steps saves first (interrupts.py)."""
    raise PreemptedError("what is on file is kept; the same command resumes")


class DivergedError(Exception):
    """Stop of a run because its updates were no longer finite."""
