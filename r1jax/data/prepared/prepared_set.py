"""Examples of a prepared set by position: lengths in memory, contents read when they are asked for, through grain."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import overload

import grain
import numpy as np

from r1jax.core.errors import UserError
from r1jax.data.corpus import (
    CorpusConfig,
    Encoder,
    Source,
    choose_held_out,
    encode_rows,
    hash_row,
    list_counts,
    make_errors,
    no_usable_row,
    read_held_out,
)
from r1jax.data.examples import Example
from r1jax.data.prepared.crc import join_crcs
from r1jax.data.prepared.shards import Index, join_indexes, name_shard, read_index, read_record

_BLOCK = 1024  # examples that an iteration has in memory at once


class PreparedExamples(Sequence[Example]):
    """Some examples of a set, in order. For any thread.

    Attributes:
      sizes: positions of each example, uint32 [n].
      targets: positions with a loss of each example, uint32 [n].
      checksum: of the targets and weights of all examples, and their bytes.
    """

    def __init__(self, files: Sequence[str], index: Index, places: np.ndarray):
        self._records = grain.sources.ArrayRecordDataSource([*files])
        self._places = places if len(places) < len(index.sizes) else None
        self.sizes, self.targets = index.sizes[places], index.targets[places]
        self.checksum = join_crcs(index.crcs[places], 8 * self.sizes.astype(np.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return self.read(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.read([index % len(self)])[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), _BLOCK):
            yield from self.read(range(start, min(start + _BLOCK, len(self))))

    def read(self, places: Sequence[int]) -> list[Example]:
        """The examples at these places."""
        if self._places is not None:
            places = self._places[np.asarray(places, np.int64)].tolist()
        return [read_record(record) for record in self._records.__getitems__([*places])] if len(places) else []


def open_set(folder: pathlib.Path, pieces: int, config: CorpusConfig, name: str, encode: Encoder) -> Source:
    """The examples of a whole set to train on, and those held out: those of `load_source`, in its order.

    Raises UserError for malformed rows unless config.on_error is "skip", and if no row is left to train on.
    """
    source, errors = config.sources[name], make_errors(config)
    files = [name_shard(folder, number) for number in range(pieces)]
    parts = [read_index(file) for _, file in files]
    names = [str(records) for (records, _), part in zip(files, parts, strict=True) if len(part.sizes)]
    index = join_indexes(parts)
    is_learnt = np.ones(len(index.keys), bool)
    malformed = index.unread + int(index.failed.sum())
    if malformed and config.on_error == "raise":
        raise UserError(f"{index.first}{errors.hint}")
    held_out: list[Example] = []
    held_notes: list[str] = []
    if source.eval_path is not None:
        rows = read_held_out(config, name, errors)
        held_out, counts = encode_rows(rows, encode, errors, config)
        held_keys, held_count = np.array([hash_row(row, source) for row in rows], np.uint64), len(rows)
    else:
        chosen = choose_held_out(config, name, len(index.keys))
        is_learnt[chosen] = False
        held_keys, held_count = index.keys[chosen], len(chosen)
        spans = (np.searchsorted(index.rows, chosen, side) for side in ("left", "right"))
        kept = [place for begin, end in zip(*spans, strict=True) for place in range(begin, end)]
        held_out = PreparedExamples(names, index, np.array(kept, np.int64))[:] if kept else []
        counts = index.count_examples(np.array(chosen, np.int64))
    if held_count:
        shown = list_counts(counts, config)
        held_notes = [f"{name}, held out: {len(held_out)} examples from {held_count} rows{shown}"]
    before = int(is_learnt.sum())
    if len(held_keys):
        is_learnt &= ~np.isin(index.keys, held_keys)
    learnt, places = np.flatnonzero(is_learnt), np.flatnonzero(is_learnt[index.rows])
    counts = index.count_examples(learnt)
    if not len(places):
        raise no_usable_row(config, name, counts, index.first)
    train = PreparedExamples(names, index, places)
    tokens = int(train.sizes.sum(dtype=np.int64))
    notes = [
        f"{name}: {len(train)} examples of {tokens} tokens from {len(learnt)} rows{list_counts(counts, config)}",
        *held_notes,
    ]
    if repeats := before - len(learnt):
        notes.append(f"{name}: {repeats} training rows repeat a held-out prompt and are left out")
    if malformed + errors.count:
        first = index.first or errors.first
        notes.append(f"{name}: {malformed + errors.count} malformed rows left out, the first: {first}")
    return Source(train, held_out, notes)
