"""A JSONL file with one row per input, in the order of the inputs, which a restarted program continues.

Results come in any order and wait in memory for their turn, so line n of the file always belongs to input n and a kill
loses only results that were not yet due. When reopened, the file keeps every row that belongs to one of the inputs, at
any position, and reports which inputs remain: inputs may be added, removed or moved. If the rows on file are not simply
the first ones of the new order, the old file is renamed to NAME.old and its rows are copied when due. Rows that no
longer belong to an input are never deleted: they stay in NAME.old-1, NAME.old-2, ….

Left out: several writers. One process writes; the others only read which inputs remain.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
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


class Journal:
    """Opens `path` for the results of inputs with these identities, in this order; equal ones are told apart by order.

    identify: the identity of the input that a row on file completes, None for an incomplete row. active: whether this
    process writes. Raises UserError if the file cannot be written.
    """

    def __init__(self, path: str | Path, identities: Sequence[str], identify: Identify, *, active: bool = True):
        self.path, self.count = Path(path), len(identities)
        self._active, self._waiting = active, dict[int, bytes]()
        self._old = self.path.with_name(self.path.name + ".old")
        try:
            lines = _scan(self.path, identify)
            kept = next((n for n, line in enumerate(lines) if line.identity not in identities[n : n + 1]), len(lines))
            if active:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            if active and any(line.identity for line in lines[kept:]):
                if self._old.exists():  # killed while copying rows: rows written since then go there too
                    _append(self._old, lines[kept:])
                else:
                    os.replace(self.path, self._old)
                    lines, kept = [], 0
            others = _scan(self._old, identify) + ([] if active else lines[kept:])
            self._found = {n: line for n, line in _match(identities, others).items() if n >= kept}
            self._next = kept
            if active:
                self._file = open(self.path, "ab")
                self._file.truncate(sum(line.length for line in lines[:kept]))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        self.todo = [number for number in range(kept, self.count) if number not in self._found]
        self._identify, self._identities = identify, identities
        self._write_due()

    @property
    def done(self) -> int:
        """Number of rows on file, from the first on."""
        return self._next

    def put(self, number: int, row: Row) -> None:
        """Accepts the result of an input; it is written and flushed once all earlier ones are."""
        if self._active:
            self._waiting[number] = _to_line(row)
            self._write_due()

    def close(self) -> None:
        """Closes the file. Once all rows are written, NAME.old is removed, or kept under a number if it has
        other rows.
        """
        if self._active:
            self._file.close()
            if self._next == self.count and self._old.exists():
                self._retire()

    def _retire(self) -> None:
        known = set(self._identities)
        others = sum(
            line.identity is not None and line.identity not in known for line in _scan(self._old, self._identify)
        )
        if not others:
            self._old.unlink()
            return
        places = (self._old.with_name(f"{self._old.name}-{number}") for number in itertools.count(1))
        place = next(place for place in places if not place.exists())
        os.replace(self._old, place)
        log.warning("%s: %d rows no longer belong to an input; they are in %s", self.path, others, place)

    def _write_due(self) -> None:
        if not self._active:
            return
        while self._next in self._waiting or self._next in self._found:
            line = self._waiting.pop(self._next, None)
            self._file.write(line if line is not None else _read(self._found[self._next]))
            self._next += 1
        self._file.flush()


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


def _to_line(row: Row) -> bytes:
    """The row as one line: Unicode line separators are escaped, and so are characters that UTF-8 cannot encode (half a
    surrogate pair).
    """
    text = json.dumps(row, ensure_ascii=False, default=str)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode() + b"\n"


def _scan(path: Path, identify: Identify) -> list[_Line]:
    """The lines of a file, each with the identity of the input that it completes."""
    if not path.exists():
        return []
    lines, offset = [], 0
    with open(path, "rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            whole = isinstance(row, dict) and line.endswith(b"\n")
            lines.append(_Line(path, offset, len(line), identify(row) if whole else None))
            offset += len(line)
    return lines
