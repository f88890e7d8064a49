"""TensorBoard's event files. Rows of steps that are written again replace the earlier ones on its page."""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.sinks.sink import Numbers

_openings = itertools.count()


class EventFiles:
    """A sink of event files in `folder`, made with the first row."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._events: Any = None
        self._purge_step: int | None = None  # TensorBoard discards events of earlier files from this step on

    def write(self, step: int, numbers: Numbers) -> None:
        """Appends the row as one event for each metric."""
        if self._events is None:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise UserError(
                    "TensorBoard events need the package tensorboardX: install it, or turn tensorboard off."
                ) from error
            # Its file names have a resolution of one second; two files opened within it would overwrite each other.
            suffix = f".{os.getpid()}.{next(_openings):06d}"
            folder = str(self._folder)
            self._events = SummaryWriter(logdir=folder, purge_step=self._purge_step, filename_suffix=suffix)
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step)
        self._events.flush()

    def rewind(self, step: int, last: int) -> None:
        """The next file discards what earlier ones hold of later steps."""
        self._purge_step = step + 1

    def close(self) -> None:
        """Closes the file; the next row opens another."""
        if self._events is not None:
            self._events.close()
            self._events = None
