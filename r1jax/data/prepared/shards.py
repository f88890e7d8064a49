"""One shard of a prepared set: the examples of a piece of a source, encoded, and an index of what each row became.

`NNNNN.arrayrecord` has a record an example: the number of positions n, the n + 1 ids, a bit for each position with a
loss. `NNNNN.index` is written last, and marks a whole shard. Both are a function of the piece and the encoding alone,
byte for byte.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.core.atomic_file import replace_file
from r1jax.core.errors import UserError
from r1jax.data.corpus import CorpusConfig, SourceConfig, fit_examples, hash_row, make_errors
from r1jax.data.examples import Example
from r1jax.data.formats import Piece, read_piece
from r1jax.data.sources import SourceRow

_OPTIONS = "group_size:1,zstd:1"
# Arrays of an index, in the order of the file: of the examples, then of the rows.
_EXAMPLES = {"sizes": np.uint32, "targets": np.uint32, "crcs": np.uint32, "rows": np.uint32}
_ROWS = {"keys": np.uint64, "cut": np.uint16, "long": np.uint16, "empty": np.uint16, "failed": np.uint8}
_SHOWN = 100  # messages of malformed rows that are kept of a shard


class Index(NamedTuple):
    """Facts about a shard, or about all shards of a set together.

    Of each example: sizes (positions), targets (positions with a loss), crcs (of targets and weights), rows (its row).
    Of each row: keys (`hash_row`), the numbers of examples cut off, too long, and with nothing to learn, and whether it
    is malformed. unread: lines that are no row. faults: (row, message) of malformed rows, -1 for a line.
    """

    sizes: np.ndarray
    targets: np.ndarray
    crcs: np.ndarray
    rows: np.ndarray
    keys: np.ndarray
    cut: np.ndarray
    long: np.ndarray
    empty: np.ndarray
    failed: np.ndarray
    unread: int
    faults: list[tuple[int, str]]

    @property
    def first(self) -> str:
        """The message of the first malformed row: of a line that is no row, if there is one."""
        return min(self.faults, key=lambda fault: fault[0])[1] if self.faults else ""

    def count_examples(self, rows: np.ndarray) -> dict[str, int]:
        """Numbers of examples of these rows that are cut, too long, and with nothing to learn."""
        return {name: int(getattr(self, name)[rows].sum()) for name in ("cut", "long", "empty")}


def name_shard(folder: pathlib.Path, number: int) -> tuple[pathlib.Path, pathlib.Path]:
    """(records, index) of a shard."""
    return folder / f"{number:05d}.arrayrecord", folder / name_index(number)


def name_index(number: int) -> str:
    """The name of a shard's index."""
    return f"{number:05d}.index"


def write_shard(
    folder: pathlib.Path,
    number: int,
    piece: Piece,
    source: SourceConfig,
    config: CorpusConfig,
    encode: Callable[[SourceRow], list[Example]],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Encodes a piece. `progress` is called with the tokens of each row.

    Raises UserError for a malformed row, unless config.on_error is "skip".
    """
    module = importlib.import_module("array_record.python.array_record_module")
    records, index = name_shard(folder, number)
    draft = records.with_name(f"{records.name}.draft")
    errors, unread = make_errors(config), make_errors(config)
    found: dict[str, list[int]] = {name: [] for name in (*_EXAMPLES, *_ROWS)}
    faults: list[tuple[int, str]] = []
    writer = module.ArrayRecordWriter(str(draft), _OPTIONS)
    for number_of_row, row in enumerate(read_piece(piece, unread)):
        found["keys"].append(hash_row(row, source))
        kept: list[Example] = []
        counts = collections.Counter[str](cut=0, long=0, empty=0, failed=0)
        try:
            kept = fit_examples(encode(row), config, counts)
        except UserError as error:
            errors.report(row.place, str(error))
            counts["failed"] = 1
            faults.append((number_of_row, f"{row.place}: {error}"))
        for name, count in counts.items():
            found[name].append(count)
        for example in kept:
            writer.write(_write_record(example))
            crc = zlib.crc32(example.targets.tobytes() + example.weights.tobytes())
            values = (len(example.tokens), int(np.count_nonzero(example.weights)), crc, number_of_row)
            for name, value in zip(_EXAMPLES, values, strict=True):
                found[name].append(value)
        progress(sum(len(example.tokens) for example in kept))
    writer.close()
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, records)
    first = [(-1, unread.first)] if unread.count else []
    header = {"examples": len(found["sizes"]), "rows": len(found["keys"]), "unread": unread.count}
    lines = json.dumps({**header, "faults": [*first, *faults[:_SHOWN]]}).encode() + b"\n"
    arrays = [np.asarray(found[name], kind).tobytes() for name, kind in {**_EXAMPLES, **_ROWS}.items()]
    replace_file(index, [lines, *arrays])


def read_index(file: pathlib.Path) -> Index:
    """The index of a shard."""
    head, _, data = file.read_bytes().partition(b"\n")
    header: dict[str, Any] = json.loads(head)
    arrays: list[np.ndarray] = []
    place = 0
    for names, count in ((_EXAMPLES, header["examples"]), (_ROWS, header["rows"])):
        for kind in names.values():
            arrays.append(np.frombuffer(data, kind, count, place))
            place += arrays[-1].nbytes
    faults = [(row, text) for row, text in header["faults"]]
    return _make_index(arrays, header["unread"], faults)


def join_indexes(parts: Sequence[Index]) -> Index:
    """The index of all shards; rows are numbered through."""
    starts = np.cumsum([0, *(len(part.keys) for part in parts)])
    rows = [part.rows.astype(np.int64) + start for part, start in zip(parts, starts, strict=False)]
    moved = [part._replace(rows=own) for part, own in zip(parts, rows, strict=True)]
    count = len(_EXAMPLES) + len(_ROWS)
    arrays = [np.concatenate([part[i] for part in moved]) for i in range(count)]
    faults = [
        (row + int(start) if row >= 0 else row, text)
        for part, start in zip(parts, starts, strict=False)
        for row, text in part.faults
    ]
    return _make_index(arrays, sum(part.unread for part in parts), faults)


def _make_index(arrays: Sequence[np.ndarray], unread: int, faults: list[tuple[int, str]]) -> Index:
    named = dict(zip((*_EXAMPLES, *_ROWS), arrays, strict=True))
    return Index(unread=unread, faults=faults, **named)


def _write_record(example: Example) -> bytes:
    ids = np.concatenate([example.tokens, example.targets[-1:]]).astype("<i4")
    return np.int32(len(example.tokens)).tobytes() + ids.tobytes() + np.packbits(example.weights > 0).tobytes()


def read_record(record: bytes) -> Example:
    """The example of a record."""
    n = int(np.frombuffer(record, "<i4", 1)[0])
    ids = np.frombuffer(record, "<i4", n + 1, 4)
    bits = np.frombuffer(record, np.uint8, -1, 4 * (n + 2))
    return Example(ids[:-1], ids[1:], np.unpackbits(bits, count=n).astype(np.float32))
