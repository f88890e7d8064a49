"""Provenance of pipeline outputs: `pipeline.json`, the record of a pipeline, and the hashes that identify its parts.

A stage is identified by its inputs: its config in the pipeline's (without keys that do not affect the result), the
outputs of its input stages, and the files that it names. If these are unchanged and its outputs are intact, the stage
is done; a stage that runs again with the same result therefore does not affect later ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from r1jax.core.atomic_file import replace_file
from r1jax.core.checkpoint import SavedArrays, newest_checkpoint
from r1jax.core.errors import UserError
from r1jax.core.sections import flatten, to_values
from r1jax.eval.pipeline_report import RECORD_FILE, SAMPLES
from r1jax.eval.saved_config import CONFIG_FILE, FORMAT, translate
from r1jax.runs.workdir import FREE_KEYS, MAKERS
from r1jax.stages.pipeline.resolve import Planned, find_files, resolve_stage

NO_INPUT = {*FREE_KEYS, "label", "filters.rows_per_shard"} - {
    "steps"
}  # keys of a stage's config that do not affect its result
DATA = (".jsonl", ".model")  # output files of a stage without a model
NO_OUTPUT = {"metrics.jsonl", "samples.jsonl", "traces.jsonl", "traces.scores.jsonl", SAMPLES}
LARGEST = 2**22  # numbers of one array that are hashed

Entry = dict[str, Any]


class Record:
    """The content of pipeline.json: an entry per stage, in the plan's order, and the stage in progress.

    A record of a former format has hashes of values in that format, which are renewed on reading: of the config file's
    values in format 1, without a number `format`, and of resolved values later.

    An entry has `name, folder, stage, label, init, status` (pending, running, done, skipped), `inputs` and `outputs`
    (name -> hash), `metrics`, `seconds`, and `why`, the reason of a rerun.
    """

    def __init__(self, workdir: pathlib.Path, plan: Iterable[Planned], comparison: Mapping[str, Any]):
        self.path = workdir / RECORD_FILE
        before = _read(self.path)
        known = {entry["name"]: entry for entry in before.get("stages", [])}
        if (number := before.get("format", 1)) < FORMAT:
            _renew_hashes(known, workdir, number)
        self.comparison = {label: list(names) for label, names in comparison.items()}
        self.redone: list[str] = before.get("redone", [])  # stages of config.rerun that this command has finished
        self.entries = {}
        for planned in plan:
            facts = {
                "name": planned.name,
                "folder": planned.folder.name,
                "stage": planned.settings.stage,
                "label": planned.label,
                "init": planned.raw_config.get("init", ""),
                "takes": list(planned.takes),
            }
            self.entries[planned.name] = {"status": "pending", **known.get(planned.name, {}), **facts}

    def write(self) -> None:
        """Writes the file atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "format": FORMAT,
            "stages": list(self.entries.values()),
            "comparison": self.comparison,
            "redone": self.redone,
        }
        replace_file(self.path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Content of pipeline.json; {} if there is none.

    Raises UserError for a record that is damaged or of a later format: without it finished stages would be done again.
    """
    cure = "move it away to begin all stages anew, or name another --workdir"
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); {cure}") from None
    stages = record.get("stages") if isinstance(record, dict) else None
    whole = isinstance(stages, list) and all(isinstance(entry, dict) and "name" in entry for entry in stages)
    number = record.get("format", 1) if whole else None
    if type(number) is not int or number > FORMAT:
        raise UserError(f"{path} is not a record of this release, which writes format {FORMAT}; {cure}")
    return record


def hash_inputs(planned: Planned, entries: Mapping[str, Entry]) -> dict[str, str]:
    """Hashes of a stage's inputs by name."""
    hashes = {"config": hash_config(planned.raw_config)}
    folders = [planned.folder.parent.resolve() / entry["folder"] for entry in entries.values()]
    hashes |= {name: hash_values(entries[name].get("outputs")) for name in planned.takes}
    for path in find_files(to_values(planned.settings)):
        if not any(path.resolve().is_relative_to(folder) for folder in folders):
            hashes[str(path)] = _hash_path(path)
    return hashes


def hash_config(values: Mapping[str, Any]) -> str:
    """Hash of a stage's resolved values, without those that do not affect its result."""
    return _hash_without(values, NO_INPUT)


def _hash_without(values: Mapping[str, Any], names: set[str]) -> str:
    free = tuple(f"{name}." for name in names)
    return hash_values({key: value for key, value in flatten(values).items() if not f"{key}.".startswith(free)})


def _renew_hashes(entries: Mapping[str, Entry], workdir: pathlib.Path, number: int) -> None:
    """Gives stages of a former format the hash of their resolved values of today, so that they count as done.

    config.json of the same format has the hashed values. A stage whose hash differs from that of its section there was
    made with another config, and keeps a hash that no config has.
    """
    before = _read_config(workdir / CONFIG_FILE)
    if not before or before.get("format", 1) != number:
        return
    sections = translate(before, number).get("stages", {})
    for name, section in before.get("stages", {}).items():
        inputs = entries.get(name, {}).get("inputs", {})
        if number == 1:
            former = hash_values({key: value for key, value in section.items() if key not in NO_INPUT})
        else:
            former = _hash_without(section, NO_INPUT - set(MAKERS))
        if inputs.get("config") == former:
            now = {key: value for key, value in sections[name].items() if key not in NO_INPUT}
            try:
                inputs["config"] = hash_config(resolve_stage(now, {})[0])
            except UserError:  # the section is not valid today
                continue


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def hash_outputs(folder: pathlib.Path) -> dict[str, str]:
    """Hashes of a stage's outputs: its model, or the files it wrote."""
    newest = newest_checkpoint(folder)
    if newest is not None:
        return {"model": hash_model(newest)}
    files = [path for path in sorted(folder.glob("*")) if path.suffix in DATA and path.name not in NO_OUTPUT]
    return {path.name: _hash_path(path) for path in files}


def hash_model(checkpoint: pathlib.Path) -> str:
    """Hash of names, shapes and values; large arrays use a prefix, since training changes every value."""
    saved, digest = SavedArrays(checkpoint), hashlib.sha256()
    for path in sorted((path for path in saved.paths if path[0] == "params"), key=str):
        shape = saved.shape(path)
        place: tuple[int, ...] = ()
        while math.prod(shape[len(place) :]) > LARGEST:
            place = (*place, 0)
        digest.update(f"{path} {shape} {saved.dtype(path)}".encode())
        digest.update(saved.read(path, place).tobytes())
    return digest.hexdigest()[:16]


def find_missing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Files and folders that a stage used and still names, as its config is the same, but that are away."""
    same = before.get("config") == now.get("config")
    return [name for name in before if name not in now and same and "/" in name and not os.path.exists(name)]


def compare_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Description of the differences; "" if there are none."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    words = [f"{name} changed" for name in changed]
    words += [f"{name} is new" for name in now if name not in before]
    words += [f"{name} is gone" for name in before if name not in now]
    return ", ".join(words)


def hash_values(values: Any) -> str:
    """Hash of plain values and of dicts from dataclasses."""
    return _hash_text(json.dumps(values, sort_keys=True, default=str))


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash_path(path: pathlib.Path) -> str:
    """Hash of a file's content, or of the names and sizes in a folder."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return _hash_text("\n".join(f"{file.relative_to(path)} {file.stat().st_size}" for file in files))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
