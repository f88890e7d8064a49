"""Batches of packed pairs: `SequenceLoader` with several sequences in each document.

A pair's sequences are segments of their own in one row, so that a loss which compares them needs no other row. Segment
u k + j + 1 of a row is sequence j of its pair k, with u sequences a pair; values of pairs are arrays [B, N] with N
places a row.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.data.examples import Example
from r1jax.data.preferences.pairs import Pair
from r1jax.data.sequences import Batch, PackingConfig, SequenceLoader

NO_PAIR = -1


class PairLoader(SequenceLoader):
    """Iterator over global batches: those of `SequenceLoader`, with `shares` [B, N] (1 at a pair, else 0), `margins`
    [B, N] float32, `pairs` [B, N] int32 (the number of a pair through all sources, -1 for none), and for given
    reference log-probs `reference` [B, N, u] float32.

    sequences: u. references: values of `list_pairs`' sequences by pair [pairs, u].
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Pair]],
        rows: int,
        packing: PackingConfig,
        *,
        sequences: int = 2,
        references: np.ndarray | None = None,
        **options: Any,
    ):
        pairs = [pair for source in sources for pair in source]
        self._units, self._references = sequences, references
        self._sizes = np.array([pair.sizes for pair in pairs], np.int64).reshape(-1, sequences)
        self._margins = np.array([pair.margin for pair in pairs], np.float32)
        self._longest = packing.length
        super().__init__([[Example(*pair[:3]) for pair in source] for source in sources], rows, packing, **options)
        self._identity["pairs"] = zlib.crc32(self._sizes.tobytes() + self._margins.tobytes())

    def set_references(self, references: np.ndarray) -> None:
        """Gives every pair the log-probs of the reference [pairs, u], from the next batch on."""
        self._drain()
        self._cursor, self._references = self._position, references

    def _lay_out(self, rows: Sequence[Sequence[int]]) -> Batch:
        batch, units = super()._lay_out(rows), self._units
        places = count_places(self._longest, units)
        shape = len(batch["tokens"]), places
        batch["pairs"] = np.full(shape, NO_PAIR, np.int32)
        batch["margins"] = np.zeros(shape, np.float32)
        for row, documents in enumerate(rows):
            start = 0
            for number, document in enumerate(documents):
                for unit, size in enumerate(self._sizes[document].tolist()):
                    batch["segments"][row, start : start + size] = units * number + unit + 1
                    batch["positions"][row, start : start + size] = self._places[:size]
                    start += size
                batch["pairs"][row, number] = document
                batch["margins"][row, number] = self._margins[document]
        batch["shares"] = (batch["pairs"] >= 0).astype(np.float32)
        if self._references is not None:
            found = self._references[np.maximum(batch["pairs"], 0)]
            batch["reference"] = np.where(batch["shares"][..., None] > 0, found, 0).astype(np.float32)
        return batch


def count_places(length: int, sequences: int) -> int:
    """Pairs that a row has places for: as many as fit with sequences of one token."""
    return max(1, length // sequences)
