"""Rows of a training set, written chunk by chunk: one file, or shards of so many rows, which a restart continues.

A file being written is NAME.part and gets its name once it is whole. The last file gets it last of all, after the
statistics (one file), or the statistics are written last (shards): who sees a finished set sees all of it.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from r1jax.core.atomic_file import replace_file

PART = ".part"


class Position(NamedTuple):
    """Place in a set where the next row goes: number of the shard, its rows and bytes so far."""

    shard: int = 0
    rows: int = 0
    size: int = 0


START = Position()


class SetWriter:
    """Writer of the set at `path` (`FOLDER/set.jsonl`); it begins with `resume`.

    rows_per_shard: rows of each of `set-00000.jsonl`, `set-00001.jsonl` and so on; 0 makes one file, `path` itself.
    """

    def __init__(self, path: pathlib.Path, rows_per_shard: int = 0):
        self._path, self._most = path, rows_per_shard
        self.position = Position()

    def holds(self, position: Position) -> bool:
        """Whether the files on disk reach to a position that an earlier writer was at."""
        files = [self._find(number) for number in range(position.shard)] + [self._find(position.shard)]
        if not all(file.exists() for file in files[:-1]):
            return False
        return position.size <= (files[-1].stat().st_size if files[-1].exists() else 0)

    def resume(self, position: Position = START) -> None:
        """Continues from a position that the files reach to; what lies behind it is deleted."""
        self.position = position
        self._path.parent.mkdir(parents=True, exist_ok=True)
        number = position.shard
        part = self._part(number)
        if not part.exists() and self._name(number).exists():  # it was whole, and the position lies within it
            os.replace(self._name(number), part)
        self._name(number).unlink(missing_ok=True)
        with open(part, "ab") as file:
            file.truncate(position.size)
        if self._most:
            stem = f"{self._path.stem}-"
            for later in self._path.parent.glob(f"{stem}*{self._path.suffix}*"):
                shard = later.name.removeprefix(stem).partition(".")[0]
                if shard.isdigit() and int(shard) > number:
                    later.unlink()

    def write(self, rows: Iterable[Mapping[str, Any]]) -> Position:
        """Appends rows; they are on disk when this returns the position behind them."""
        lines = [json.dumps(row).encode() + b"\n" for row in rows]
        while lines:
            room = self._most - self.position.rows if self._most else len(lines)
            self._append(lines[:room])
            lines = lines[room:]
            if self._most and self.position.rows == self._most:
                os.replace(self._part(self.position.shard), self._name(self.position.shard))
                self.position = Position(self.position.shard + 1)
        return self.position

    def finish(self, statistics: Mapping[str, Any]) -> None:
        """Gives the last file its name, and writes the statistics to NAME.stats.json."""
        shard, text = self.position.shard, json.dumps(statistics, indent=2) + "\n"
        if not self._most:
            replace_file(statistics_file(self._path), text)
        if self._part(shard).exists():
            if self.position.rows or not self._most:
                os.replace(self._part(shard), self._name(shard))
            else:
                self._part(shard).unlink()
        if self._most:
            replace_file(statistics_file(self._path), text)

    def _append(self, lines: list[bytes]) -> None:
        shard, rows, size = self.position
        with open(self._part(shard), "ab") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        self.position = Position(shard, rows + len(lines), size + sum(map(len, lines)))

    def _find(self, number: int) -> pathlib.Path:
        """The file of a shard, whole or not."""
        part = self._part(number)
        return part if part.exists() else self._name(number)

    def _part(self, number: int) -> pathlib.Path:
        name = self._name(number)
        return name.with_name(name.name + PART)

    def _name(self, number: int) -> pathlib.Path:
        name = f"{self._path.stem}-{number:05d}{self._path.suffix}"
        return self._path.with_name(name) if self._most else self._path


def is_finished(path: pathlib.Path, rows_per_shard: int = 0) -> bool:
    """Whether a `SetWriter` of these arguments has finished the set."""
    return statistics_file(path).exists() if rows_per_shard else path.exists()


def find_pattern(path: pathlib.Path, rows_per_shard: int = 0) -> pathlib.Path:
    """Path of the set for readers of data: a glob of its shards, if it has any."""
    return path.with_name(f"{path.stem}-*{path.suffix}") if rows_per_shard else path


def statistics_file(path: pathlib.Path) -> pathlib.Path:
    """Path NAME.stats.json for NAME.jsonl."""
    return path.with_suffix(".stats.json")
