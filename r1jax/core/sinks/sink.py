"""Interface of the places that show a run's metrics beside metrics.jsonl, which is the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

Numbers = Mapping[str, int | float]


class Sink(Protocol):
    """A view of the metrics of one run. A new one is a class with these methods, and a line in trackers.py."""

    def write(self, step: int, numbers: Numbers) -> None:
        """Shows the finite metrics of a step; steps rise, but for those written again after `rewind`."""

    def rewind(self, step: int, last: int) -> None:
        """Prepares for rows after `step` to be written again, of which those up to `last` were written before. Called
        before the first row of a start.
        """

    def close(self) -> None:
        """Flushes and closes; writing opens it again."""
