"""Where the time of profiled steps went, as a table of the report page (runs/profile.py makes the file)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPLIT_FILE = "split.json"
FOLDER = "profile"
HOST = "host"  # time in which no program ran on any device
MOST_PARTS = 10  # rows of the table; smaller parts are one


def read_split(workdir: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The table: steps, the mean seconds of a step by part with shares of the sum, and the mean of `step_time` of the
    same steps in `rows`; None without a profile, or if its file is torn.
    """
    try:
        steps = json.loads((workdir / FOLDER / SPLIT_FILE).read_text("utf-8"))["steps"]
        sums: dict[str, float] = {}
        for step in steps:
            for name, seconds in step["parts"].items():
                sums[str(name)] = sums.get(str(name), 0.0) + float(seconds) / len(steps)
        numbers = [int(step["step"]) for step in steps]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not sums:
        return None
    total = sum(sums.values())
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    shown, rest = ordered[:MOST_PARTS], sum(seconds for _, seconds in ordered[MOST_PARTS:])
    parts = [*shown, ("other programs", rest)] if rest else shown
    timed = [float(row["step_time"]) for row in rows if row["step"] in numbers and row.get("step_time") is not None]
    return {
        "steps": f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0]),
        "parts": [{"name": name, "seconds": seconds, "share": seconds / total} for name, seconds in parts],
        "total": total,
        "step_time": sum(timed) / len(timed) if timed else None,
    }
