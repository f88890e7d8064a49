"""Rows of one file, by its suffix: JSONL (plain, `.gz`, `.zst`), Parquet by row groups, ArrayRecord (each record a JSON
object). A file is read as a stream, whole or by pieces, here or in a bucket (`gs://`).

ArrayRecord is read with array_record, which comes with grain; Parquet and `.zst` with pyarrow (extra `hub`).
"""

from __future__ import annotations

import atexit
import functools
import gzip
import importlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from r1jax.core.buckets.objects import download_object, identify_object, open_object
from r1jax.core.buckets.staging import is_address
from r1jax.core.errors import UserError
from r1jax.core.extras import require
from r1jax.data.sources import RowErrors, SourceRow, find_half_character, parse_lines

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
RECORDS = (".arrayrecord", ".array_record")
SUFFIXES = (*LINES, ".parquet", *RECORDS)
_BLOCK = 1024  # records, or rows of a row group, in memory at once


class Piece(NamedTuple):
    """A part of a file: bytes of the unpacked text from a line's start on (JSONL), row groups (Parquet) or records
    (ArrayRecord); `stop` None is the end of the file, `first` the number of its first line or row.
    """

    file: str
    start: int = 0
    stop: int | None = None
    first: int = 1


def find_suffix(file: str) -> str:
    """The suffix of SUFFIXES that a name ends in; "" for any other."""
    return next((suffix for suffix in SUFFIXES if str(file).endswith(suffix)), "")


def read_piece(piece: Piece, errors: RowErrors) -> Iterator[SourceRow]:
    """The rows of a piece, in order.

    Raises UserError for a file that is missing or damaged, and for a malformed row (unless `errors` skips it).
    """
    suffix = find_suffix(piece.file)
    if suffix in LINES:
        return _read_lines(piece, errors)
    return (_read_parquet if suffix == ".parquet" else _read_records)(piece, errors)


def split_file(file: str, size: int) -> list[Piece]:
    """Pieces of about `size` bytes each that make up a file, in order."""
    suffix = find_suffix(file)
    if suffix in LINES:
        return _split_lines(file, size)
    return (_split_parquet if suffix == ".parquet" else _split_records)(file, size)


def identify_file(file: str) -> tuple[Any, ...]:
    """Facts that change when a file is written: (bytes, ...). Raises UserError if there is no such file."""
    if is_address(file):
        return identify_object(file)
    if not os.path.isfile(file):
        raise UserError(f"no such file: {file}")
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns


def open_bytes(file: str) -> IO[bytes]:
    """The bytes of a file as they are stored."""
    return open_object(file) if is_address(file) else open(file, "rb")


# --- Lines ---


def _open_text(file: str) -> IO[bytes]:
    """The unpacked bytes of a JSONL file."""
    stored = open_bytes(file)
    if file.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=stored), 1 << 20)  # type: ignore[arg-type]
    if file.endswith(".zst"):
        pyarrow = require("pyarrow", "hub", f"reading {file}")
        return io.BufferedReader(pyarrow.CompressedInputStream(stored, "zstd"), 1 << 20)
    return stored


def _iterate(stream: IO[bytes], file: str) -> Iterator[bytes]:
    """Lines of a stream. Raises UserError where the packed bytes are damaged."""
    try:
        while line := stream.readline():  # no `yield from`: a reader that ends early would close the stream
            yield line
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{file}: damaged ({' '.join(str(error).split())[:120]})") from None


class _Reader:
    """The last packed file that was read, so that pieces in order are unpacked once."""

    def __init__(self) -> None:
        self.file, self.place = "", 0
        self.stream: IO[bytes] | None = None

    def seek(self, file: str, place: int) -> IO[bytes]:
        """The stream of a packed file at a place of its text."""
        if self.stream is None or self.file != file or self.place > place:
            self.close()
            self.file, self.place, self.stream = file, 0, _open_text(file)
        while self.place < place:
            skipped = len(self.stream.read(min(1 << 20, place - self.place)))
            if not skipped:
                raise UserError(f"{file} changed while it was read: start again after it is written")
            self.place += skipped
        return self.stream

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = None


_packed = _Reader()


def _read_lines(piece: Piece, errors: RowErrors) -> Iterator[SourceRow]:
    if piece.start == 0 and piece.stop is None:
        with _open_text(piece.file) as stream:
            yield from parse_lines(_iterate(stream, piece.file), piece.file, errors)
        return
    is_packed = piece.file.endswith((".gz", ".zst"))
    stream = _packed.seek(piece.file, piece.start) if is_packed else _open_text(piece.file)
    if not is_packed:
        stream.seek(piece.start)

    def take() -> Iterator[bytes]:
        place = piece.start
        for line in _iterate(stream, piece.file):
            place += len(line)
            _packed.place = place if is_packed else _packed.place
            yield line
            if piece.stop is not None and place >= piece.stop:
                return

    yield from parse_lines(take(), piece.file, errors, first=piece.first)
    if not is_packed:
        stream.close()


def _split_lines(file: str, size: int) -> list[Piece]:
    starts, place, line, due = [(0, 1)], 0, 1, size
    with _open_text(file) as stream:
        for block in _iterate_blocks(stream, file):
            end = place + len(block)
            while due < end:
                cut = block.find(b"\n", max(0, due - place)) + 1
                if not cut:
                    break
                starts.append((place + cut, line + block.count(b"\n", 0, cut)))
                due = place + cut + size
            line += block.count(b"\n")
            place = end
    starts = [start for start in starts if start[0] < place] or starts[:1]
    stops = [start for start, _ in starts[1:]] + [place]
    return [Piece(file, start, stop, first) for (start, first), stop in zip(starts, stops, strict=True)]


def _iterate_blocks(stream: IO[bytes], file: str) -> Iterator[bytes]:
    try:
        while block := stream.read(1 << 20):
            yield block
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{file}: damaged ({' '.join(str(error).split())[:120]})") from None


# --- Parquet ---


def _open_parquet(file: str) -> Any:
    parquet = require("pyarrow.parquet", "hub", f"reading {file}")
    try:
        return parquet.ParquetFile(open_object(file) if is_address(file) else file)
    except UserError:
        raise
    except Exception as error:  # pyarrow's errors have no common base
        raise UserError(f"{file}: not a Parquet file ({str(error).splitlines()[0][:120]})") from None


def _read_parquet(piece: Piece, errors: RowErrors) -> Iterator[SourceRow]:
    table = _open_parquet(piece.file)
    stop = table.num_row_groups if piece.stop is None else piece.stop
    number = piece.first
    batches = table.iter_batches(_BLOCK, row_groups=list(range(piece.start, stop)))
    while (batch := _next_batch(batches, piece.file)) is not None:
        for columns in _to_rows(batch):
            place = f"{piece.file}:{number}"
            if isinstance(columns, dict):
                yield SourceRow(place, columns)
            else:
                errors.report(place, f"not a row of texts: {columns}")
            number += 1


def _next_batch(batches: Any, file: str) -> Any:
    try:
        return next(batches, None)
    except Exception as error:
        raise UserError(f"{file}: not a Parquet file ({str(error).splitlines()[0][:120]})") from None


def _to_rows(batch: Any) -> list[dict[str, Any] | Exception]:
    """The rows of a batch; an exception in place of one with bytes that are no text."""
    try:
        return batch.to_pylist()
    except ValueError as error:
        if batch.num_rows == 1:
            return [error]
        return [row for at in range(batch.num_rows) for row in _to_rows(batch.slice(at, 1))]


def _split_parquet(file: str, size: int) -> list[Piece]:
    table = _open_parquet(file)
    pieces, start, first, rows, held = [], 0, 1, 0, 0
    for group in range(table.num_row_groups):
        facts = table.metadata.row_group(group)
        rows, held = rows + facts.num_rows, held + facts.total_byte_size
        if held >= size or group == table.num_row_groups - 1:
            pieces.append(Piece(file, start, group + 1, first))
            start, first, rows, held = group + 1, first + rows, 0, 0
    return pieces or [Piece(file, 0, 0)]


# --- Records ---


def _open_records(file: str) -> Any:
    module = importlib.import_module("array_record.python.array_record_module")
    try:
        reader = module.ArrayRecordReader(_hold(file) if is_address(file) else file)
        count = reader.num_records()
    except UserError:
        raise
    except Exception as error:  # the C++ reader raises many types
        raise UserError(f"{file}: not an ArrayRecord file ({str(error).splitlines()[0][:120]})") from None
    if not count:  # the reader's result for a file truncated at the end of a block
        raise UserError(f"{file}: not an ArrayRecord file, or one without records")
    return reader


@functools.cache
def _hold(address: str) -> str:
    """A copy here of an object, which array_record cannot read in a bucket; removed at the end."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="r1jax-records-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / pathlib.PurePosixPath(address).name
    download_object(address, target)
    return str(target)


def _read_records(piece: Piece, errors: RowErrors) -> Iterator[SourceRow]:
    reader = _open_records(piece.file)
    stop = reader.num_records() if piece.stop is None else piece.stop
    for start in range(piece.start, stop, _BLOCK):
        try:
            records = reader.read(start, min(start + _BLOCK, stop))
        except Exception as error:
            raise UserError(f"{piece.file}: not an ArrayRecord file ({str(error).splitlines()[0][:120]})") from None
        for number, record in enumerate(records, piece.first + start - piece.start):
            place = f"{piece.file}:{number}"
            try:
                yield SourceRow(place, _parse_record(bytes(record)))
            except (ValueError, RecursionError) as error:
                errors.report(place, f"not a JSON object: {error}")
    reader.close()


def _parse_record(record: bytes) -> dict[str, Any]:
    columns = json.loads(record)
    if not isinstance(columns, dict):
        raise ValueError(f"{type(columns).__name__}")
    if broken := find_half_character(record.decode()):
        raise ValueError(f"half of a surrogate pair ({broken}) is no character")
    return columns


def _split_records(file: str, size: int) -> list[Piece]:
    reader = _open_records(file)
    count = reader.num_records()
    reader.close()
    each = max(1, round(count * size / max(1, identify_file(file)[0])))
    return [Piece(file, start, min(start + each, count), start + 1) for start in range(0, count, each)]
