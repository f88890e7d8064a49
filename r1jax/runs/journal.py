"""A JSONL file with one row per input, in the order of the inputs, which a restarted program continues.

Results come in any order and wait in memory for their turn, so line n of the file always belongs to input n and a kill
loses only results that were not yet due. When reopened, the file keeps every row that belongs to one of the inputs, at
any position, and reports which inputs remain: inputs may be added, removed or moved. If the rows on file are not simply
the first ones of the new order, the old file is renamed to NAME.old and its rows are copied when due. Rows that no
longer belong to an input are never deleted: they stay in NAME.old-1, NAME.old-2, ….

Left out: several writers. One process writes, and tells the others which inputs remain.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from r1jax.core.errors import UserError
from r1jax.core.metrics import Row

log = logging.getLogger(__name__)

Identify = Callable[[Row], str | None]

_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


class _Line(NamedTuple):
    file: Path
    offset: int
    length: int
    identity: str | None
    digest: str


class Journal:
    """Opens `path` for the results of inputs with these identities, in this order; equal ones are told apart by order.

    identify: the identity of the input that a row on file completes, None for an incomplete row. unit: inputs whose
    results depend on one another, in the last digit: of so many at a time all are kept or none, where a kill left the
    first rows of the file. known: identities by the digest of their line, for lines that need not be parsed. Raises
    UserError if the file cannot be written.

    Attributes:
      identities: those of the inputs.
      todo: inputs without a result.
      kept: digests of the first lines of the file, those that were in their place when it was opened.
    """

    def __init__(
        self,
        path: str | Path,
        identities: Sequence[str],
        identify: Identify,
        *,
        unit: int = 1,
        known: Mapping[str, str] | None = None,
    ):
        self.path, self.count = Path(path), len(identities)
        self._waiting = dict[int, bytes]()
        self._old = self.path.with_name(self.path.name + ".old")
        try:
            lines = _scan(self.path, identify, known or {})
            kept = next((n for n, line in enumerate(lines) if line.identity not in identities[n : n + 1]), len(lines))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if any(line.identity for line in lines[kept:]):
                if self._old.exists():  # killed while copying rows: rows written since then go there too
                    _append(self._old, lines[kept:])
                else:
                    os.replace(self.path, self._old)
                    lines, kept = [], 0
            elif kept < self.count and not self._old.exists():
                kept -= kept % unit
            others = _scan(self._old, identify, known or {})
            self._found = {n: line for n, line in _match(identities, others).items() if n >= kept}
            self._next = kept
            self._ends = array.array("q", itertools.accumulate(line.length for line in lines[:kept]))
            self._file = open(self.path, "ab")
            self._file.truncate(self._size)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        self.kept = [line.digest for line in lines[:kept]]
        self.todo = [number for number in range(kept, self.count) if number not in self._found]
        self.identities, self._identify = identities, identify
        self._write_due()

    @property
    def done(self) -> int:
        """Number of rows on file, from the first on."""
        return self._next

    def put(self, number: int, row: Row) -> None:
        """Accepts the result of an input; it is written and flushed once all earlier ones are."""
        self.put_line(number, to_line(row))

    def put_line(self, number: int, line: bytes) -> None:
        """Accepts the result of an input as its line, made by `to_line`."""
        self._waiting[number] = line
        self._write_due()

    def read(self, number: int) -> bytes:
        """The line of an input whose result is on file."""
        start = self._ends[number - 1] if number else 0
        return _read(_Line(self.path, start, self._ends[number] - start, None, ""))

    def close(self) -> None:
        """Closes the file. Once all rows are written, NAME.old is removed, or kept under a number if it has
        other rows.
        """
        self._file.close()
        if self._next == self.count and self._old.exists():
            self._retire()

    @property
    def _size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _retire(self) -> None:
        own = set(self.identities)
        lines = _scan(self._old, self._identify, {})
        others = sum(line.identity is not None and line.identity not in own for line in lines)
        if not others:
            self._old.unlink()
            return
        place = find_free_name(self._old)
        os.replace(self._old, place)
        log.warning("%s: %d rows no longer belong to an input; they are in %s", self.path, others, place)

    def _write_due(self) -> None:
        while self._next in self._waiting or self._next in self._found:
            line = self._waiting.pop(self._next, None)
            line = _read(self._found[self._next]) if line is None else line
            self._file.write(line)
            self._ends.append(self._size + len(line))
            self._next += 1
        self._file.flush()


def find_free_name(path: Path) -> Path:
    """The first of NAME-1, NAME-2, … that no file has."""
    places = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(place for place in places if not place.exists())


def digest_line(line: bytes) -> str:
    """Digest of a line of a journal, its end included."""
    return hashlib.blake2b(line, digest_size=12).hexdigest()


def _match(identities: Sequence[str], lines: Sequence[_Line]) -> dict[int, _Line]:
    """For each input, the line with its result, if there is one; each line serves one input."""
    free = defaultdict[str | None, list[_Line]](list)
    for line in reversed(lines):
        free[line.identity].append(line)
    return {n: free[identity].pop() for n, identity in enumerate(identities) if free.get(identity)}


def _append(old: Path, lines: Sequence[_Line]) -> None:
    with open(old, "ab") as file:
        file.writelines(_read(line) for line in lines if line.identity is not None)
        file.flush()
        os.fsync(file.fileno())


def _read(line: _Line) -> bytes:
    with open(line.file, "rb") as file:
        file.seek(line.offset)
        return file.read(line.length)


def to_line(row: Row) -> bytes:
    """The row as one line: Unicode line separators are escaped, and so are characters that UTF-8 cannot encode (half a
    surrogate pair).
    """
    text = json.dumps(row, ensure_ascii=False, default=str)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode() + b"\n"


def _scan(path: Path, identify: Identify, known: Mapping[str, str]) -> list[_Line]:
    """The lines of a file, each with the identity of the input that it completes."""
    if not path.exists():
        return []
    lines, offset = [], 0
    with open(path, "rb") as file:
        for line in file:
            digest = digest_line(line)
            lines.append(_Line(path, offset, len(line), known.get(digest) or _identify(line, identify), digest))
            offset += len(line)
    return lines


def _identify(line: bytes, identify: Identify) -> str | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return identify(row) if isinstance(row, dict) and line.endswith(b"\n") else None
