"""A run's folder beside metrics and checkpoints: its config, and the before-and-after table read from its rows."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from r1jax.core.config import to_json
from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.eval.headline import format_value

# A resumed run may change these: they do not change what the steps before it were.
FREE_KEYS = ("steps", "eval", "checkpoint", "log")


def write_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes config.json, the resolved config."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(config) + "\n", encoding="utf-8")


def check_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raises UserError if the workdir was written by a config that differs in more than `FREE_KEYS`."""
    file = workdir / "config.json"
    if not file.exists():
        return
    before, now = _flatten(json.loads(file.read_text("utf-8"))), _flatten(json.loads(to_json(config)))
    for key in sorted({*before, *now}):
        if key.split(".")[0] not in FREE_KEYS and before.get(key) != now.get(key):
            raise UserError(
                f"{workdir} holds a run with config.{key} = {before.get(key)!r}, this one has {now.get(key)!r}; "
                "resume with the same config or name another --workdir"
            )


def describe_change(workdir: pathlib.Path, benchmark: str) -> list[dict[str, Any]]:
    """First and last evaluation as table rows: one a score, in percent with its standard error."""
    prefix = f"eval/{benchmark}/"
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if f"{prefix}pass@1" in row]
    if not rows:
        return []
    labels = {
        "pass@1": "strict pass@1, sampled",
        "greedy": "strict, greedy",
        "lenient": "lenient (last number), sampled",
        "greedy_lenient": "lenient, greedy",
        "format_rate": "format, sampled",
        "greedy_format_rate": "format, greedy",
    }
    table = []
    for name, label in labels.items():
        key = prefix + name
        if key in rows[0]:
            line = {f"{rows[0][prefix + 'problems']} held-out problems": label}
            for when, row in (("before", rows[0]), ("after", rows[-1])):
                line[f"{when} (step {row['step']})"] = format_value(row[key], row[f"{key}_stderr"], is_rate=True)
            line["change"] = f"{100 * (rows[-1][key] - rows[0][key]):+.1f}"
            table.append(line)
    return table


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat
