"""Batches of packed rows for supervised training: sources mixed by weight, shuffled by seed, packed, resumable.

Documents of many lengths share rows of one static length; each is a segment of its own and attends only to itself
(`segment_mask` in models/attention.py). grain determines the order of documents. They are packed in windows of about
`bins` rows, an epoch at most: best-fit decreasing, then the rows of the window are shuffled, so that lengths stay
mixed. Everything is a function of (seed, position): every process builds the same global batch and takes its own rows
of it, an iterator's state is two numbers, and restoring it gives the exact next batch. A thread makes batches ahead, so
that the device does not wait.

grain's own packers fill rows in order of arrival, which leaves two to four times the padding.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from r1jax.core.errors import UserError
from r1jax.data.examples import Example

Batch = dict[str, np.ndarray]
Position = tuple[int, int]  # window, row within it


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """Packing of documents into rows.

    Attributes:
      length: T, positions per row.
      bins: approximate number of rows packed together; more of them leave less padding.
      packed: False gives each document a row of its own.
      read_ahead: batches made in advance.
    """

    length: int = 1024
    bins: int = 256
    packed: bool = True
    read_ahead: int = 4


class SequenceLoader:
    """Iterator over global batches: tokens, targets, segments, positions int32 and weights float32 [B, T].

    Positions without a document have segment 0 and weight 0; at the end of the epochs whole rows may be empty.

    Args:
      sources: examples of each source, none longer than a row.
      rows: B.
      mixing: mixture weights, any positive numbers; None: by size.
      epochs: passes over the data (with mixing: until the first source is exhausted); None: no end.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Example]],
        rows: int,
        packing: PackingConfig,
        *,
        mixing: Sequence[float] | None = None,
        seed: int = 0,
        epochs: int | None = None,
    ):
        if not sources or not all(sources):
            raise UserError("every source of config.data needs at least one example to train on")
        sizes = [len(example.tokens) for source in sources for example in source]
        if max(sizes) > packing.length:
            raise UserError(f"an example of {max(sizes)} tokens is longer than config.data.length = {packing.length}")
        self._documents = _mix(sources, mixing, seed, epochs)
        self._end = None if epochs is None else len(self._documents)
        self._window = min(len(sizes), max(1, round(packing.bins * packing.length * len(sizes) / sum(sizes))))
        self._rows, self._packing, self._seed = rows, packing, seed
        self._identity = {"seed": seed, "window": self._window, "length": packing.length, "packed": packing.packed}
        self._identity["fingerprint"] = _compute_fingerprint(sources, mixing)
        self._plan: tuple[int, list[list[Example]]] = (-1, [])  # the last packed window
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sequences")
        self._ahead: collections.deque[Future[tuple[Batch | None, Position]]] = collections.deque()
        self._position = self._cursor = (0, 0)  # of the next batch to return, and of the next one to make

    def __iter__(self) -> SequenceLoader:
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) <= self._packing.read_ahead:
            self._ahead.append(self._pool.submit(self._make_next))
        batch, position = self._ahead.popleft().result()
        if batch is None:
            raise StopIteration
        self._position = position
        return batch

    def count_batches(self) -> int:
        """Number of batches in all epochs. Raises ValueError if there is no end."""
        if self._end is None:
            raise ValueError("endless data has no number of batches")
        windows = range(-(-self._end // self._window))
        return -(-sum(len(self._pack(window)) for window in windows) // self._rows)

    def get_state(self) -> dict[str, Any]:
        """State as plain numbers for JSON: the position, and what its meaning depends on."""
        return {"position": list(self._position), **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from the position of `get_state`; the number of rows may differ.

        Raises:
          UserError: if the state belongs to other data, another seed or packing, where the position would mean another
            batch.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise UserError(
                    f"the checkpoint's data has {name}={state[name]}, this run's has {name}={value}: resume with the "
                    "same config.data, or start in another --workdir"
                )
        self._drain()
        window, row = state["position"]
        self._position = self._cursor = (window, row)

    def close(self) -> None:
        """Stops the read-ahead thread."""
        self._drain()
        self._pool.shutdown()

    def _drain(self) -> None:
        while self._ahead:
            future = self._ahead.pop()
            if not future.cancel():
                future.result()

    # --- Run in the read-ahead thread ---

    def _make_next(self) -> tuple[Batch | None, Position]:
        window, row = self._cursor
        rows: list[list[Example]] = []
        while len(rows) < self._rows and (self._end is None or window * self._window < self._end):
            if self._plan[0] != window:
                self._plan = (window, self._pack(window))
            taken = self._plan[1][row : row + self._rows - len(rows)]
            rows += taken
            row += len(taken)
            if row == len(self._plan[1]):
                window, row = window + 1, 0
        self._cursor = (window, row)
        return (_lay_out(rows, self._rows, self._packing.length) if rows else None), self._cursor

    def _pack(self, window: int) -> list[list[Example]]:
        """Rows of a window."""
        start = window * self._window
        stop = start + self._window if self._end is None else min(start + self._window, self._end)
        documents = [self._documents[position] for position in range(start, stop)]
        if not self._packing.packed:
            return [[document] for document in documents]
        rows = pack_best_fit([len(document.tokens) for document in documents], self._packing.length)
        order = np.random.default_rng([self._seed, window]).permutation(len(rows))
        return [[documents[i] for i in rows[row]] for row in order]


def pack_best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Packs items into rows of at most `length`, largest first, each into the fullest row that fits; returns rows of
    indices into `sizes`.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free positions, row), sorted
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect.bisect_left(free, (sizes[index], 0))
        left, row = free.pop(at) if at < len(free) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        bisect.insort(free, (left - sizes[index], row))
    return rows


def _mix(
    sources: Sequence[Sequence[Example]], mixing: Sequence[float] | None, seed: int, epochs: int | None
) -> grain.MapDataset:
    if mixing is None:
        sources = [list(itertools.chain(*sources))]
    parts = [
        grain.MapDataset.source(source).seed(seed + number).shuffle().repeat(epochs)
        for number, source in enumerate(sources)
    ]
    if mixing is None:
        return parts[0]
    if len(mixing) != len(parts) or min(mixing) <= 0:
        raise UserError(f"the weights of config.data.sources must be positive, one per source; got {list(mixing)}")
    return grain.MapDataset.mix(parts, [share / sum(mixing) for share in mixing]) if len(parts) > 1 else parts[0]


def _compute_fingerprint(sources: Sequence[Sequence[Example]], mixing: Sequence[float] | None) -> int:
    """32-bit checksum of all examples in order and their mixture weights, to compare the data of runs."""
    checksum = zlib.crc32(repr((list(map(len, sources)), mixing and list(mixing))).encode())
    for example in itertools.chain(*sources):
        checksum = zlib.crc32(example.targets.tobytes() + example.weights.tobytes(), checksum)
    return checksum


def _lay_out(rows: Sequence[Sequence[Example]], count: int, length: int) -> Batch:
    """Arrays of `count` rows; rows without documents come last."""
    batch = {name: np.zeros((count, length), np.int32) for name in ("tokens", "targets", "segments", "positions")}
    batch["weights"] = np.zeros((count, length), np.float32)
    for row, documents in enumerate(rows):
        start = 0
        for segment, document in enumerate(documents, 1):
            stop = start + len(document.tokens)
            for name, value in zip(Example._fields, document, strict=True):
                batch[name][row, start:stop] = value
            batch["segments"][row, start:stop] = segment
            batch["positions"][row, start:stop] = np.arange(stop - start)
            start = stop
    return batch


def utilisation(batch: Batch) -> float:
    """Share of positions that hold a token."""
    return float((batch["segments"] > 0).mean())
