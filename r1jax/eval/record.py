"""Reader of a run's workdir: config, metrics row by row, a bounded selection of samples.

Lenient where a run may have been killed or is still running (a torn last line, no config yet, no samples), strict about
malformed files. The samples of a long run fit neither on a page nor in memory, so only the selected ones are kept.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.metrics import METRICS_FILE, SAMPLES_FILE, Row, iterate_rows, read_rows
from r1jax.eval.collected_set import STATISTICS_FILE
from r1jax.eval.saved_config import CONFIG_FILE, read_config_file

SAMPLE_LIMIT = 300  # samples on a page
TEXT_LIMIT = 20_000  # characters of one prompt or completion on a page


@dataclass(frozen=True)
class RecordedRun:
    """One run: name, workdir, config, metrics rows by ascending step, and the time of the last write."""

    name: str
    workdir: Path
    config: Mapping[str, Any]
    rows: Sequence[Row]
    written: datetime

    def names(self) -> list[str]:
        """Metrics that have a value at some step, in order of appearance."""
        found = dict.fromkeys(name for row in self.rows for name, value in row.items() if _is_number(value))
        return [name for name in found if name != "step"]

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) pairs of one metric, where it has a value."""
        return [(row["step"], row[name]) for row in self.rows if _is_number(row.get(name))]


@dataclass(frozen=True)
class Samples:
    """Samples of one run that a page shows, in order, with counts: all samples, all steps, steps shown."""

    rows: Sequence[Row]
    total: int
    steps: int
    steps_shown: int


def read_run(workdir: str | Path) -> RecordedRun:
    """Reads config and metrics of a run, named by its folder; one that has only collected a set has no metrics.

    Raises:
      UserError: if the folder does not exist or has neither, or a file is malformed (with file and line).
    """
    workdir = Path(workdir)
    path = workdir / METRICS_FILE
    if not path.exists() and (workdir / STATISTICS_FILE).exists():
        path = workdir / STATISTICS_FILE
    if not path.exists():
        lack = f"{workdir} has no {METRICS_FILE}" if workdir.is_dir() else f"no such folder: {workdir}"
        raise UserError(f"A report needs the workdir of a run: {lack}.")
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    rows = _merge(read_rows(path)) if path.name == METRICS_FILE else []
    return RecordedRun(workdir.resolve().name, workdir, _read_config(workdir / CONFIG_FILE), rows, written)


def choose_samples(workdir: str | Path, limit: int = SAMPLE_LIMIT, text_limit: int = TEXT_LIMIT) -> Samples:
    """All samples of a run, or at most `limit` from evenly spaced steps, the first and last included.

    Rows within a selected step are evenly spaced too. A text longer than `text_limit` characters is cut in the middle
    and says how many characters are left out.
    """
    path = Path(workdir) / SAMPLES_FILE
    places, offset = [], 0
    for line, row in iterate_rows(path):
        places.append((row["step"], offset))
        offset += len(line)
    chosen = _choose([step for step, _ in places], limit)
    rows: list[Row] = []
    if chosen:
        with open(path, "rb") as file:
            for number in chosen:
                file.seek(places[number][1])
                rows.append(_shorten(json.loads(file.readline()), text_limit))
    return Samples(rows, len(places), len({step for step, _ in places}), len({row["step"] for row in rows}))


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the positions 0 … count - 1, evenly spaced, both ends included when `limit` is above 1."""
    if count <= limit:
        return list(range(count))
    if limit <= 1:
        return [count - 1] * limit
    return sorted({round(number * (count - 1) / (limit - 1)) for number in range(limit)})


def _choose(steps: Sequence[int], limit: int) -> list[int]:
    """Positions to show, given the step of every sample."""
    if len(steps) <= limit:
        return list(range(len(steps)))
    members: dict[int, list[int]] = {}
    for position, step in enumerate(steps):
        members.setdefault(step, []).append(position)
    groups = [members[step] for step in sorted(members)]
    # Whole steps where they fit, but at least four steps: how a run changes matters more than all samples of one step.
    count = max(min(4, len(groups), limit), limit * len(groups) // len(steps))
    shown = [groups[number] for number in spread(len(groups), count)]
    return sorted(group[number] for group in shown for number in spread(len(group), limit // len(shown)))


def _shorten(value: Any, limit: int) -> Any:
    """The same row with every long text cut in the middle."""
    if isinstance(value, dict):
        return {key: _shorten(item, limit) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item, limit) for item in value]
    if isinstance(value, str) and len(value) > limit:
        half = limit // 2
        return f"{value[:half]}\n[… {len(value) - 2 * half:,} characters left out of this page …]\n{value[-half:]}"
    return value


def _merge(rows: Sequence[Row]) -> list[Row]:
    """One row per step, by ascending step; later values win where files were joined by hand."""
    merged: dict[int, Row] = {}
    for row in rows:
        merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_config_file(path).values
    except ValueError as error:
        raise UserError(f"{path}: a config must be JSON ({error}).") from error


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; NaN and infinity have no place on a curve."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
