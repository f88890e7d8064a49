"""What a run left in its workdir, read back: config, metrics row by row, a bounded choice of samples.

Reading is lenient where a run may have been killed or still goes on (a torn last line, no config yet, no samples) and
strict where a file is broken. The samples of a long run fit neither on a page nor in memory, so only the chosen ones
are kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.metrics import METRICS_FILE, SAMPLES_FILE, Row, iterate_rows, read_rows

CONFIG_FILE = "config.json"
SAMPLE_LIMIT = 300  # samples on a page
TEXT_LIMIT = 20_000  # characters of one prompt or completion on a page


@dataclass(frozen=True)
class Run:
    """One run: its name, where it lies, its config, its metrics by ascending step, when they were last written."""

    name: str
    workdir: Path
    config: Mapping[str, Any]
    rows: Sequence[Row]
    written: datetime

    def names(self) -> list[str]:
        """The metrics that have a value at some step, in order of appearance."""
        found = dict.fromkeys(name for row in self.rows for name, value in row.items() if _is_number(value))
        return [name for name in found if name != "step"]

    def series(self, name: str) -> list[tuple[int, float]]:
        """The (step, value) pairs of one metric, where it has a value."""
        return [(row["step"], row[name]) for row in self.rows if _is_number(row.get(name))]


@dataclass(frozen=True)
class Samples:
    """The samples that a page shows of one run, in order, and how many it has: samples, steps, steps shown."""

    rows: Sequence[Row]
    total: int
    steps: int
    steps_shown: int


def read_run(workdir: str | Path) -> Run:
    """Reads config and metrics of a run. The name is the folder's.

    Raises:
      UserError: if there is no folder or no metrics in it, or a file is malformed (file and line named).
    """
    workdir = Path(workdir)
    path = workdir / METRICS_FILE
    if not path.exists():
        lack = f"{workdir} holds no {METRICS_FILE}" if workdir.is_dir() else f"there is no folder {workdir}"
        raise UserError(f"A report needs the workdir of a run: {lack}.")
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return Run(workdir.resolve().name, workdir, _read_config(workdir / CONFIG_FILE), _merge(read_rows(path)), written)


def choose_samples(workdir: str | Path, limit: int = SAMPLE_LIMIT, text_limit: int = TEXT_LIMIT) -> Samples:
    """All samples of a run, or at most `limit` of evenly spaced steps, the first and the last among them.

    Within a chosen step rows are evenly spaced too. A text above `text_limit` characters keeps its two ends and says
    how many were left out.
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
    """At most `limit` of the positions 0 … count - 1, evenly spaced, both ends among them when `limit` is above 1."""
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
    # Whole steps where they fit, but never fewer than four of them: how a run changes matters more than one step's all.
    count = max(min(4, len(groups), limit), limit * len(groups) // len(steps))
    shown = [groups[number] for number in spread(len(groups), count)]
    return sorted(group[number] for group in shown for number in spread(len(group), limit // len(shown)))


def _shorten(value: Any, limit: int) -> Any:
    """The same row with every long text in it cut in the middle."""
    if isinstance(value, dict):
        return {key: _shorten(item, limit) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item, limit) for item in value]
    if isinstance(value, str) and len(value) > limit:
        half = limit // 2
        return f"{value[:half]}\n[… {len(value) - 2 * half:,} characters left out of this page …]\n{value[-half:]}"
    return value


def _merge(rows: Sequence[Row]) -> list[Row]:
    """One row a step, by ascending step; where files were joined by hand a later value wins."""
    merged: dict[int, Row] = {}
    for row in rows:
        merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: a config must be JSON ({error}).") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: a config must be a JSON object, got {type(config).__name__}.")
    return config


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
