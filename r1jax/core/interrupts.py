"""SIGTERM, Ctrl-C and preemption notices as a flag that a loop checks between its steps.

A step cannot be interrupted, because its arrays are donated. While a finished step is unsaved, a signal sets a request,
and the loop saves and stops at the next step boundary. While nothing is unsaved, or at a second signal, it stops
immediately.

With several processes a signal to one of them stops all at the same step: they exchange requests at each step
boundary. jax's preemption service, which would swallow SIGTERM between its sync points, is asked too, for notices that
come without a signal.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np

from r1jax.core import distributed
from r1jax.core.errors import PreemptedError

log = logging.getLogger(__name__)


class Interrupts:
    """Context in which signals wait for the end of a step; `unsaved` says whether there is something to save."""

    def __init__(self) -> None:
        self.unsaved = False
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: a handler outside Python
        self._before.clear()

    def is_due(self, step: int) -> bool:
        """Whether the run should save and stop after this step. Each process asks at each step; all get the same
        answer.
        """
        if jax.process_count() == 1:
            return self._asked is not None
        from jax.experimental import multihost_utils

        asked = max(int(number) for number in distributed.from_all(np.array(self._asked or 0)))
        if multihost_utils.reached_preemption_sync_point(step):
            asked = asked or signal.SIGTERM
        self._asked = asked or None
        return bool(asked)

    def stop(self, message: str) -> None:
        """Raises the exception of the signal received: KeyboardInterrupt, or PreemptedError with the message."""
        if self._asked == signal.SIGINT:
            log.warning("stopped by Ctrl-C; %s", message)
            raise KeyboardInterrupt
        raise PreemptedError(message)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._asked is not None or not self.unsaved:
            self._asked = number
            self.stop("no step is unsaved" if not self.unsaved else "at once, before the step under way was saved")
        self._asked = number
        log.warning("%s: saving at the end of this step; again: stop at once", signal.Signals(number).name)
