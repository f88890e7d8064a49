"""Rows of a data set outside of memory: written once to a file without a name, read back by position.

A million rows take 8 bytes each, besides what the system keeps of the file while there is room. A set below
`IN_MEMORY` bytes of texts stays in memory.
"""

from __future__ import annotations

import array
import itertools
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

IN_MEMORY = 32 << 20  # bytes of pickled rows
Row = dict[str, Any]


class RowStore(Sequence[Row]):
    """Rows in the order of `rows`; an item is a new dict each time, for any thread."""

    def __init__(self, rows: Iterable[Row]):
        self._file = tempfile.TemporaryFile(prefix="r1jax-rows-")
        self._ends = array.array("Q", [0])
        for row in rows:
            self._ends.append(self._ends[-1] + self._file.write(pickle.dumps(row, pickle.HIGHEST_PROTOCOL)))
        self._file.flush()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        begin, end = self._ends[index], self._ends[index + 1]
        return pickle.loads(os.pread(self._file.fileno(), end - begin, begin))


class RowChoice(Sequence[Row]):
    """Some rows of a store, or all in another order."""

    def __init__(self, rows: Sequence[Row], order: Sequence[int] | np.ndarray):
        self._rows, self._order = rows, np.asarray(order, np.int64)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return choose_rows(self._rows, self._order[index])
        return self._rows[int(self._order[index])]

    def __iter__(self) -> Iterator[Row]:
        return (self._rows[int(place)] for place in self._order)


def store_rows(rows: Iterable[Row]) -> Sequence[Row]:
    """The rows as a list, or in a store if they are many."""
    kept, size, rest = [], 0, iter(rows)
    for row in rest:
        kept.append(row)
        size += len(pickle.dumps(row, pickle.HIGHEST_PROTOCOL))
        if size > IN_MEMORY:
            return RowStore(itertools.chain(kept, rest))
    return kept


def choose_rows(rows: Sequence[Row], order: Sequence[int] | np.ndarray) -> Sequence[Row]:
    """The rows at these places, in this order: a list of a list, a view of a store."""
    if isinstance(rows, list):
        return [rows[int(place)] for place in order]
    return RowChoice(rows, order)
