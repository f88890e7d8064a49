"""A JSONL file with one row for each input, in the order of the inputs, that a killed program takes up again.

Results come in any order and wait in memory for their turn, so line n of the file always belongs to input n and a kill
loses only what was not yet due. Opened again, the file keeps every line that `answers` its input and says what is still
to do. A torn last line is cut off. Where a line in the middle no longer answers its input (the input was edited), the
lines behind it are kept too: the old file stands beside the new one, as NAME.old, until the new one has caught up.

Left out: several writers. One process writes; the others ask what is to do and put nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.core.errors import UserError

Row = dict[str, Any]

_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


class _Line(NamedTuple):
    offset: int
    length: int
    answers: bool


class Journal:
    """Opens `path` for the results of `count` inputs.

    answers: whether a row on file is the whole result of the input of that number. active: whether this process writes.
    """

    def __init__(self, path: str | Path, count: int, answers: Callable[[int, Row], bool], *, active: bool = True):
        self.path, self.count = Path(path), count
        self._active, self._waiting = active, dict[int, bytes]()
        self._old = self.path.with_name(self.path.name + ".old")
        try:
            lines = _scan(self.path, count, answers)
            kept = next((number for number, line in enumerate(lines) if not line.answers), len(lines))
            if active:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            if active and not self._old.exists() and any(line.answers for line in lines[kept:]):
                os.replace(self.path, self._old)
                lines, kept = [], 0
            self._from_old = {
                number: line
                for number, line in enumerate(_scan(self._old, count, answers))
                if line.answers and number >= kept
            }
            self._next = kept
            if active:
                self._file = open(self.path, "ab")
                self._file.truncate(sum(line.length for line in lines[:kept]))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        self.todo = [number for number in range(kept, count) if number not in self._from_old]
        self._write_due()

    @property
    def done(self) -> int:
        """How many rows, from the first on, are on file."""
        return self._next

    def put(self, number: int, row: Row) -> None:
        """Takes the result of an input; it is written, and flushed, when all before it are."""
        if self._active:
            self._waiting[number] = _to_line(row)
            self._write_due()

    def close(self) -> None:
        """Closes the file. The old one goes when all of its rows are in the new one."""
        if self._active:
            self._file.close()
            if self._next == self.count:
                self._old.unlink(missing_ok=True)

    def _write_due(self) -> None:
        if not self._active:
            return
        while self._next in self._waiting or self._next in self._from_old:
            line = self._waiting.pop(self._next, None)
            if line is None:
                place = self._from_old[self._next]
                with open(self._old, "rb") as old:
                    old.seek(place.offset)
                    line = old.read(place.length)
            self._file.write(line)
            self._next += 1
        self._file.flush()


def _to_line(row: Row) -> bytes:
    """One line, whoever splits the text: what Unicode counts as a line's end stands escaped, as does what UTF-8 cannot
    say (half a surrogate pair).
    """
    text = json.dumps(row, ensure_ascii=False, default=str)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode() + b"\n"


def _scan(path: Path, count: int, answers: Callable[[int, Row], bool]) -> list[_Line]:
    """Where the first `count` whole lines of a file stand, and which of them answer their input."""
    if not path.exists():
        return []
    lines, offset = [], 0
    with open(path, "rb") as file:
        for number, line in zip(range(count), file, strict=False):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            whole = isinstance(row, dict) and line.endswith(b"\n")
            lines.append(_Line(offset, len(line), whole and answers(number, row)))
            offset += len(line)
    return lines
