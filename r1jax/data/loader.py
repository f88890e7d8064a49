"""Endless batches of prompts, in an order that is a function of (seed, position) alone.

The loader uses grain's `MapDataset`: rows are shuffled anew each epoch, epochs are concatenated, and rows are read by
position. Its whole state is one number, a resumed run sees exactly the rows that the stopped run would have seen, and
the order does not depend on the number of processes: every process builds the same global batch and takes its own rows
of it (`core/distributed.py`). A batch may span two epochs, so no row is lost where the batch size does not divide the
data, and a batch may be larger than the data.

Left out: prefetching in threads (prompts are small and in memory) and packing.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import grain

from r1jax.core.errors import UserError

Prompts = list[dict[str, Any]]


def compute_checksum(rows: Iterable[dict[str, Any]]) -> int:
    """32-bit checksum of all columns of all rows in order: of everything that rewards and environments can see."""
    checksum = 0
    for row in rows:
        checksum = zlib.crc32(repr(row).encode("utf-8", "replace"), checksum)
    return checksum


def compute_fingerprint(rows: Iterable[dict[str, Any]]) -> int:
    """32-bit checksum of all prompts and solutions in order, to compare the data of runs and processes."""
    checksum = 0
    for row in rows:
        checksum = zlib.crc32(repr((row.get("prompt"), row.get("solution"))).encode("utf-8", "replace"), checksum)
    return checksum


class PromptLoader:
    """Iterator over global batches, each a list of `batch_size` rows.

    Args:
      rows: rows to iterate over; shallow copies are returned.
      batch_size: rows of the global batch.
      seed: seed of the order, 0 to 2**32 - 1.
      epochs: number of passes, after which the iterator ends, with a shorter last batch if needed; None: no end.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], batch_size: int, seed: int = 0, epochs: int | None = None):
        if not rows:
            raise UserError("there are no rows to train on (config.data)")
        if batch_size < 1 or (epochs is not None and epochs < 1):
            raise UserError(f"batches and epochs must be at least 1, got batch size {batch_size}, epochs {epochs}")
        if not 0 <= seed < 2**32:
            raise UserError(f"the seed of the data must be from 0 to 2**32 - 1, got {seed}")
        self._rows = grain.MapDataset.source(rows).seed(seed).shuffle().repeat(epochs)
        self._identity = {"seed": seed, "rows": len(rows), "fingerprint": compute_fingerprint(rows)}
        self._identity["columns"] = compute_checksum(rows)
        self._batch_size = batch_size
        self._end = None if epochs is None else epochs * len(rows)
        self._position = 0

    def __iter__(self) -> "PromptLoader":
        return self

    def __next__(self) -> Prompts:
        return self.take(self._batch_size)

    def take(self, count: int) -> Prompts:
        """The next `count` rows; fewer, or StopIteration, only at the end of `epochs`."""
        stop = self._position + count
        if self._end is not None:
            stop = min(stop, self._end)
        if stop == self._position:
            raise StopIteration
        batch = [dict(self._rows[position]) for position in range(self._position, stop)]
        self._position = stop
        return batch

    @property
    def position(self) -> int:
        """Number of rows returned so far."""
        return self._position

    @property
    def epoch(self) -> float:
        """Passes over the data so far, with fractions."""
        return self._position / self._identity["rows"]

    def get_state(self) -> dict[str, int]:
        """State as plain numbers for JSON: `position` (rows returned) and what the order depends on."""
        return {"position": self._position, **self._identity}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues from the position of `get_state`; the batch size may differ.

        Raises:
          UserError: if the state belongs to another seed or other rows, where the position would mean something else.
        """
        for name, value in self._identity.items():
            if state.get(name, value) != value:  # "columns" is unknown before 0.3.0
                raise UserError(
                    f"the checkpoint's data has {name}={state[name]}, this run's has {name}={value}: resume with the "
                    "same config.data, or start in another --workdir"
                )
        self._position = state["position"]
