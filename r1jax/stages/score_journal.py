"""Rewards of a teacher's samples, and what the filters made of them, on file: one row a prompt, in the order of
traces.jsonl, which a restarted collection continues.

A chunk of prompts is written once its rows of the set are on disk, and the last of its rows says where the set then
ends: a restart takes over the chunks that are whole in all files, and judges the rest again. A row has `prompt`, the
identity of the prompt, and `trace`, the digest of the line of samples, so that it stands for these samples alone; per
sample `rewards`, `lengths`, `dropped` (the filter; "" for a kept one), `digests` and `signatures` (data/filters.py).
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from r1jax.core.atomic_file import replace_file
from r1jax.core.metrics import Row
from r1jax.data.filters import Finding, Selection, Trace
from r1jax.data.training_set import Position
from r1jax.runs.journal import find_free_name

log = logging.getLogger(__name__)


class ScoreJournal:
    """The file at `path`; it begins with `restore`. settings: of rewards and filters, beside it; rows made by others
    are set aside.

    Attributes:
      done: number of prompts whose rows were taken over or written.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]):
        self._path, self.done = path, 0
        self._beside = path.with_name(path.name + ".settings.json")
        self._settings = json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n"

    def read_known(self) -> dict[str, str]:
        """Identities of prompts by the digest of their line in traces.jsonl."""
        return {row["trace"]: row["prompt"] for row, _ in self._iterate()}

    def restore(self, lines: Sequence[str], selection: Selection, holds: Callable[[Position], bool]) -> Position:
        """Takes over the first chunks that are whole, deletes the others, and returns the end of the set.

        lines: digests of the lines of traces.jsonl. selection: gets the samples. holds: whether the set reaches to a
        position.
        """
        if self._path.exists() and not self._is_own():
            aside = find_free_name(self._path.with_name(self._path.name + ".old"))
            os.replace(self._path, aside)
            log.warning("%s was made by other rewards or filters and is now %s", self._path, aside)
        replace_file(self._beside, self._settings)
        size, position = 0, Position()
        chunk: list[Row] = []
        for row, place in self._iterate():
            number = self.done + len(chunk)
            if number >= len(lines) or row["trace"] != lines[number]:
                break
            chunk.append(row)
            if "set" not in row:
                continue
            if not holds(Position(*row["set"])):
                break
            for one in chunk:
                findings = [Finding("", *facts) for facts in zip(one["digests"], one["signatures"], strict=True)]
                selection.restore(one["rewards"], one["lengths"], findings, one["dropped"])
            position, size, self.done, chunk = Position(*row["set"]), place, self.done + len(chunk), []
        with open(self._path, "ab") as file:
            file.truncate(size)
        return position

    def append(
        self,
        prompts: Sequence[tuple[str, str]],
        traces: Sequence[Trace],
        findings: Sequence[Finding],
        dropped: Sequence[str],
        position: Position,
    ) -> None:
        """Writes a chunk, on disk when this returns: identity and digest of each prompt, its samples, the set's end."""
        count = len(traces) // len(prompts)
        rows: list[Row] = []
        for number, (prompt, trace) in enumerate(prompts):
            own = slice(number * count, (number + 1) * count)
            rows.append(
                {
                    "prompt": prompt,
                    "trace": trace,
                    "rewards": [sample.reward for sample in traces[own]],
                    "lengths": [sample.length for sample in traces[own]],
                    "dropped": list(dropped[own]),
                    "digests": [finding.digest for finding in findings[own]],
                    "signatures": [finding.signature for finding in findings[own]],
                }
            )
        rows[-1]["set"] = list(position)
        with open(self._path, "ab") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        self.done += len(prompts)

    def _is_own(self) -> bool:
        files = self._path.exists() and self._beside.exists()
        return files and self._beside.read_text("utf-8") == self._settings

    def _iterate(self) -> Iterator[tuple[Row, int]]:
        """Rows up to the first torn one, each with the place where it ends."""
        if not self._is_own():
            return
        end = 0
        with open(self._path, "rb") as file:
            for line in file:
                end += len(line)
                try:
                    row = json.loads(line)
                except ValueError:
                    return
                if not line.endswith(b"\n"):
                    return
                yield row, end
