"""Batches of packed rows for supervised training: sources mixed by weight, shuffled by seed, packed, resumable.

Documents of many lengths share rows of one static length; each is a segment of its own and attends only to itself
(`segment_mask` in models/attention.py). grain determines the order of documents. They are packed in windows of about
`bins` rows, an epoch at most: best-fit decreasing, then the rows of the window are shuffled, so that lengths stay
mixed. Everything is a function of (seed, position): every process plans the same global batch by the lengths of
documents and reads the documents of its own rows, an iterator's state is two numbers, and restoring it gives the exact
next batch. A thread makes batches ahead, so that the device does not wait.

grain's own packers fill rows in order of arrival, which leaves two to four times the padding.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from r1jax.core.errors import UserError
from r1jax.data.examples import Example
from r1jax.data.prepared.crc import append_crc

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
      sources: examples of each source, none longer than a row: lists, or prepared on disk (data/prepared/).
      rows: B.
      mixing: mixture weights, any positive numbers; None: by size.
      epochs: passes over the data (with mixing: until the first source is exhausted); None: no end.
      mine: rows that this process feeds, bool [B]; None: all. The others have true segments, positions and number of
        weights, so that all processes count alike, but no tokens and targets, and their weights are at other places.
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
        mine: np.ndarray | None = None,
    ):
        if not sources or not all(map(len, sources)):
            raise UserError("every source of config.data needs at least one example to train on")
        self._shelf = _Shelf(sources)
        longest, count, tokens = int(self._shelf.sizes.max()), len(self._shelf.sizes), self._shelf.tokens
        if longest > packing.length:
            raise UserError(f"an example of {longest} tokens is longer than config.data.length = {packing.length}")
        self._mine = np.ones(rows, bool) if mine is None else mine
        self._order = _mix([len(source) for source in sources], mixing, seed, epochs)
        self._end = None if epochs is None else len(self._order)
        self._window = min(count, max(1, round(packing.bins * packing.length * count / tokens)))
        self._rows, self._packing, self._seed = rows, packing, seed
        self._identity = {"seed": seed, "window": self._window, "length": packing.length, "packed": packing.packed}
        self._identity["fingerprint"] = _compute_fingerprint(sources, mixing)
        self._plan: tuple[int, list[list[int]]] = (-1, [])  # the last packed window: rows of documents
        self._places = np.arange(packing.length, dtype=np.int32)
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
        rows: list[list[int]] = []
        while len(rows) < self._rows and (self._end is None or window * self._window < self._end):
            if self._plan[0] != window:
                self._plan = (window, self._pack(window))
            taken = self._plan[1][row : row + self._rows - len(rows)]
            rows += taken
            row += len(taken)
            if row == len(self._plan[1]):
                window, row = window + 1, 0
        self._cursor = (window, row)
        return (self._lay_out(rows) if rows else None), self._cursor

    def _pack(self, window: int) -> list[list[int]]:
        """Rows of a window, as numbers of documents."""
        start = window * self._window
        stop = start + self._window if self._end is None else min(start + self._window, self._end)
        documents = [int(self._order[position]) for position in range(start, stop)]
        if not self._packing.packed:
            return [[document] for document in documents]
        rows = pack_best_fit(self._shelf.sizes[documents].tolist(), self._packing.length)
        order = np.random.default_rng([self._seed, window]).permutation(len(rows))
        return [[documents[i] for i in rows[row]] for row in order]

    def _lay_out(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Arrays of a batch; rows without documents come last."""
        shape = self._rows, self._packing.length
        batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments", "positions")}
        batch["weights"] = np.zeros(shape, np.float32)
        mine = np.flatnonzero(self._mine[: len(rows)]).tolist()
        read = iter(self._shelf.read([document for row in mine for document in rows[row]]))
        for row, documents in enumerate(rows):
            start = 0
            for segment, document in enumerate(documents, 1):
                stop = start + int(self._shelf.sizes[document])
                if self._mine[row]:
                    for name, value in zip(Example._fields, next(read), strict=True):
                        batch[name][row, start:stop] = value
                else:
                    batch["weights"][row, start : start + self._shelf.count_targets(document)] = 1
                batch["segments"][row, start:stop] = segment
                batch["positions"][row, start:stop] = self._places[: stop - start]
                start = stop
        return batch


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


class _Shelf:
    """The documents of all sources by a number that counts through them. sizes: positions of each."""

    def __init__(self, sources: Sequence[Sequence[Example]]):
        self._sources = sources
        self._starts = np.cumsum([0, *map(len, sources)])
        self.sizes = np.concatenate([_measure(source) for source in sources])
        self.tokens = int(self.sizes.sum(dtype=np.int64))

    def read(self, documents: Sequence[int]) -> list[Example]:
        """The documents, in this order; those of a source on disk in one request."""
        places = np.asarray(documents, np.int64)
        owners = np.searchsorted(self._starts, places, "right") - 1
        found: list[Example | None] = [None] * len(documents)
        for number in np.unique(owners).tolist():
            own = np.flatnonzero(owners == number)
            for place, example in zip(
                own, _read(self._sources[number], places[own] - self._starts[number]), strict=True
            ):
                found[place] = example
        return [example for example in found if example is not None]

    def count_targets(self, document: int) -> int:
        """Positions of a document that have a loss."""
        number = int(np.searchsorted(self._starts, document, "right")) - 1
        source, place = self._sources[number], document - int(self._starts[number])
        known = getattr(source, "targets", None)
        return int(np.count_nonzero(source[place].weights) if known is None else known[place])


def _measure(source: Sequence[Example]) -> np.ndarray:
    known = getattr(source, "sizes", None)
    return np.array([len(example.tokens) for example in source], np.uint32) if known is None else known


def _read(source: Sequence[Example], places: np.ndarray) -> list[Example]:
    read = getattr(source, "read", None)
    return [source[place] for place in places.tolist()] if read is None else read(places.tolist())


def _mix(counts: Sequence[int], mixing: Sequence[float] | None, seed: int, epochs: int | None) -> grain.MapDataset:
    """Numbers of documents (`_Shelf`) by position, of sources with these numbers of them."""
    starts = np.cumsum([0, *counts]).tolist()
    if mixing is None:
        starts = [0, starts[-1]]
    parts = [
        grain.MapDataset.range(start, stop).seed(seed + number).shuffle().repeat(epochs)
        for number, (start, stop) in enumerate(itertools.pairwise(starts))
    ]
    if mixing is None:
        return parts[0]
    if len(mixing) != len(parts) or min(mixing) <= 0:
        raise UserError(f"the weights of config.data.sources must be positive, one per source; got {list(mixing)}")
    return grain.MapDataset.mix(parts, [share / sum(mixing) for share in mixing]) if len(parts) > 1 else parts[0]


def _compute_fingerprint(sources: Sequence[Sequence[Example]], mixing: Sequence[float] | None) -> int:
    """32-bit checksum of all examples in order and their mixture weights, to compare the data of runs."""
    checksum = zlib.crc32(repr((list(map(len, sources)), mixing and list(mixing))).encode())
    for source in sources:
        if (known := getattr(source, "checksum", None)) is not None:
            checksum = append_crc(checksum, *known)
            continue
        for example in source:
            checksum = zlib.crc32(example.targets.tobytes() + example.weights.tobytes(), checksum)
    return checksum


def identify_examples(source: Sequence[Example]) -> Iterator[Any]:
    """Values that are equal for equal examples, for `agree_on_data`; of those on disk without reading them."""
    if (known := getattr(source, "checksum", None)) is not None:
        yield (len(source), *known)
        return
    for example in source:
        yield example.tokens.tobytes()


def utilisation(batch: Batch) -> float:
    """Share of positions that hold a token."""
    return float((batch["segments"] > 0).mean())
