"""What came of what: `pipeline.json`, the record of a pipeline, and the hashes it knows things by.

A stage is known by its inputs: its config as the pipeline's says it (without what does not change the outcome), the
outputs of the stages it takes from, and the files it names. Where they are the same and its outputs are what they were,
it is done; so a stage that was done again and came out the same leaves those after it alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from r1jax.core.atomic_file import replace_file
from r1jax.core.checkpoint import SavedArrays, newest_checkpoint
from r1jax.core.errors import UserError
from r1jax.core.sections import flatten, to_values
from r1jax.eval.pipeline_report import RECORD_FILE, SAMPLES
from r1jax.eval.saved_config import CONFIG_FILE, FORMAT, translate
from r1jax.runs.workdir import FREE_KEYS
from r1jax.stages.pipeline.resolve import Planned, find_files, resolve_stage

NO_INPUT = {*FREE_KEYS, "label"} - {"steps"}  # of a stage's config: what its outcome does not depend on
DATA = (".jsonl", ".model")  # what a stage without a model leaves for others
NO_OUTPUT = {"metrics.jsonl", "samples.jsonl", "traces.jsonl", SAMPLES}
LARGEST = 2**22  # numbers of one array that are hashed

Entry = dict[str, Any]


class Record:
    """pipeline.json: an entry a stage, in the plan's order, and what is under way.

    A record of format 1, without a number `format`, has hashes of what the config file said in place of hashes of
    resolved values; they are translated when it is read.

    An entry has `name, folder, stage, label, init, status` (pending, running, done, skipped), `inputs` and `outputs`
    (name -> hash), `metrics`, `seconds`, and `why` it was done again.
    """

    def __init__(self, workdir: pathlib.Path, plan: Iterable[Planned], comparison: Mapping[str, Any]):
        self.path = workdir / RECORD_FILE
        before = _read(self.path)
        known = {entry["name"]: entry for entry in before.get("stages", [])}
        if "format" not in before:
            _renew_hashes(known, workdir)
        self.comparison = {label: list(names) for label, names in comparison.items()}
        self.redone: list[str] = before.get("redone", [])  # of config.rerun, by the command that has not ended yet
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
        """In one move: a kill leaves the old record or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "format": FORMAT,
            "stages": list(self.entries.values()),
            "comparison": self.comparison,
            "redone": self.redone,
        }
        replace_file(self.path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def hash_inputs(planned: Planned, entries: Mapping[str, Entry]) -> dict[str, str]:
    """What a stage is made of, each with its hash."""
    hashes = {"config": hash_config(planned.raw_config)}
    folders = [planned.folder.parent.resolve() / entry["folder"] for entry in entries.values()]
    hashes |= {name: hash_values(entries[name].get("outputs")) for name in planned.takes}
    for path in find_files(to_values(planned.settings)):
        if not any(path.resolve().is_relative_to(folder) for folder in folders):
            hashes[str(path)] = _hash_path(path)
    return hashes


def hash_config(values: Mapping[str, Any]) -> str:
    """Of a stage's resolved values, without those that its outcome does not depend on."""
    free = tuple(f"{name}." for name in NO_INPUT)
    return hash_values({key: value for key, value in flatten(values).items() if not f"{key}.".startswith(free)})


def _renew_hashes(entries: Mapping[str, Entry], workdir: pathlib.Path) -> None:
    """Gives stages of format 1 the hash of their resolved values, so that they count as done.

    config.json of the same format holds what was hashed. A stage whose hash is not that of its section there was made
    by another config, and keeps a hash that no config has.
    """
    before = _read(workdir / CONFIG_FILE)
    if not before or "format" in before:
        return
    sections = translate(before).get("stages", {})
    for name, section in before.get("stages", {}).items():
        inputs = entries.get(name, {}).get("inputs", {})
        kept = {key: value for key, value in section.items() if key not in NO_INPUT}
        if inputs.get("config") == hash_values(kept):
            now = {key: value for key, value in sections[name].items() if key not in NO_INPUT}
            try:
                inputs["config"] = hash_config(resolve_stage(now, {})[0])
            except UserError:  # no config of today says this
                continue


def hash_outputs(folder: pathlib.Path) -> dict[str, str]:
    """What a stage leaves for others: its model, or the files it wrote."""
    newest = newest_checkpoint(folder)
    if newest is not None:
        return {"model": hash_model(newest)}
    files = [path for path in sorted(folder.glob("*")) if path.suffix in DATA and path.name not in NO_OUTPUT]
    return {path.name: _hash_path(path) for path in files}


def hash_model(checkpoint: pathlib.Path) -> str:
    """Of the parameters' names, shapes and numbers; of a large array of its first numbers, for training moves all."""
    saved, digest = SavedArrays(checkpoint), hashlib.sha256()
    for path in sorted((path for path in saved.paths if path[0] == "params"), key=str):
        shape = saved.shape(path)
        place: tuple[int, ...] = ()
        while math.prod(shape[len(place) :]) > LARGEST:
            place = (*place, 0)
        digest.update(f"{path} {shape} {saved.dtype(path)}".encode())
        digest.update(saved.read(path, place).tobytes())
    return digest.hexdigest()[:16]


def compare_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In words what differs; "" if nothing does."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    words = [f"{name} changed" for name in changed]
    words += [f"{name} is new" for name in now if name not in before]
    words += [f"{name} is gone" for name in before if name not in now]
    return ", ".join(words)


def hash_values(values: Any) -> str:
    """Of plain values and dataclasses' dicts of them."""
    return _hash_text(json.dumps(values, sort_keys=True, default=str))


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash_path(path: pathlib.Path) -> str:
    """Of a file's content; of a folder's names and sizes."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return _hash_text("\n".join(f"{file.relative_to(path)} {file.stat().st_size}" for file in files))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
