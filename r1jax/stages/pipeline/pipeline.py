"""Several stages as one run: each uses outputs of earlier ones, and every model is evaluated on the same problems.

    base -> GRPO -> R1-Zero -> rejection sampling -> SFT -> GRPO -> rejection sampling -> SFT -> GRPO -> R1 -> students

The stages are the same as those of the commands, run one after another in this process, each in its own folder with its
own checkpoints; they exchange workdirs and files. `pipeline.json` records the provenance (manifest.py). After an
interruption, finished stages are kept and the current one resumes; a stage whose inputs changed runs again, with the
reason in the log.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import logging
import os
import pathlib
import time
from typing import Any

import jax

from r1jax.core import console, distributed
from r1jax.core.buckets.staging import is_staged, locate, move_remote, push
from r1jax.core.errors import UserError
from r1jax.core.sections import to_values
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.core.structs import Program
from r1jax.eval.headline import format_value
from r1jax.eval.pipeline_report import tabulate, write_story
from r1jax.runs.abstract_model import ASSUMED, Prompts
from r1jax.runs.prologue import open_run
from r1jax.runs.workdir import find_earlier, write_config
from r1jax.stages.pipeline.evaluate_stage import measure_model, measure_sampling, measure_training
from r1jax.stages.pipeline.manifest import (
    Entry,
    Record,
    compare_inputs,
    find_missing,
    hash_inputs,
    hash_outputs,
    hash_values,
)
from r1jax.stages.pipeline.resolve import MeasureConfig, PipelineConfig, Planned, make_plan, trace_shapes
from r1jax.stages.pipeline.resolve import resolve as resolve
from r1jax.stages.registry import stage_of

log = logging.getLogger(__name__)

CONFIG = PipelineConfig

# Keys of a stage's config that do not affect its programs.
NOT_IN_PROGRAMS = set("data corpus seed steps rewards filters reply judge eval checkpoint log".split())
COMPILED = "compiled"  # folder of compiled programs shared by stages


def run(settings: PipelineConfig, workdir: pathlib.Path) -> None:
    """Runs the unfinished stages."""
    with open_run(settings):
        run_plan(settings, workdir)


def run_plan(settings: PipelineConfig, workdir: pathlib.Path) -> None:
    """Runs the unfinished stages in order, each in its own mesh."""
    plan, measure = make_plan(settings, workdir)
    record = Record(workdir, plan, settings.comparison)
    record.entries, record.redone = json.loads(distributed.text_from_first(json.dumps([record.entries, record.redone])))
    if distributed.is_writer():
        write_config(settings, workdir)
    _share_programs(workdir)
    for number, planned in enumerate(plan, 1):
        entry = record.entries[planned.name]
        if planned.skipped:
            entry["status"] = "skipped" if entry["status"] == "pending" else entry["status"]
            continue
        title = f"stage {number} of {len(plan)}, {planned.name}"
        asked = planned.name in settings.rerun and planned.name not in record.redone
        inputs, why = _decide(planned, record, asked)
        if entry["status"] == "done" and not why:
            log.info("%s: done already, kept", title)
            _measure(planned, entry, measure, settings.mesh)  # again if the evaluation settings changed
            continue
        log.info("%s: %s", title, _describe_start(entry, planned, why))
        if asked:
            record.redone.append(planned.name)
        run_stage(planned, entry, inputs, why, record)
        _measure(planned, entry, measure, settings.mesh)
        finish_stage(planned, entry, record)
        log.info("%s: done in %.0f s%s", title, entry["seconds"], _describe(entry["metrics"]))
    record.redone = []
    _write(record)
    if distributed.is_writer():
        console.show_table("after each stage", tabulate(list(record.entries.values())))
        log.info("report: %s", write_story(workdir))


def programs(settings: PipelineConfig, prompts: Prompts = ASSUMED) -> list[Program]:
    """Those of all stages, as STAGE.PROGRAM; of stages that differ in data, rewards, rates or temperature the first's.
    Left out: measuring the models between the stages.
    """
    plan, _ = make_plan(settings, pathlib.Path())
    seen, found = set[str](), []
    for planned in trace_shapes(plan):
        stage, key = stage_of(planned.settings), key_of_programs(planned.settings)
        if hasattr(stage, "programs") and key not in seen:
            seen.add(key)
            found += [p.rename(f"{planned.name}.{p.name}") for p in stage.programs(planned.settings, prompts)]
    return found


def key_of_programs(settings: Any) -> str:
    """Key identifying a stage's compiled programs."""
    values = to_values(settings)
    rates = ("learning_rate", "warmup_updates")
    kept = {name: value for name, value in values.items() if name not in NOT_IN_PROGRAMS}
    kept["optimizer"] = {key: value for key, value in values.get("optimizer", {}).items() if key not in rates}
    kept["rollout"] = {key: value for key, value in values.get("rollout", {}).items() if key != "temperature"}
    kept["length"] = [values.get(name, {}).get("length") for name in ("data", "corpus")]
    return json.dumps(kept, sort_keys=True, default=str)


def _decide(planned: Planned, record: Record, asked: bool) -> tuple[dict[str, str], str]:
    """Hashes of a stage's inputs, and why it must run again ("": it need not); the first process decides.

    Raises UserError if a file that a started stage was made with is missing: that is no reason to do it again.
    """
    found: tuple[dict[str, str], str] = {}, ""
    if distributed.is_writer():
        inputs = hash_inputs(planned, record.entries)
        entry = record.entries[planned.name]
        if entry["status"] in ("done", "running") and (missing := find_missing(entry["inputs"], inputs)):
            raise UserError(
                f"stage {planned.name}: {missing[0]} is missing, which the stage was made with; bring it back, start "
                f"in the folder where the pipeline began, or name another file (config.stages.{planned.name})"
            )
        found = inputs, "config.rerun names it" if asked else find_reason(entry, inputs, planned.folder)
    inputs, why = json.loads(distributed.text_from_first(json.dumps(found)))
    return inputs, why


def find_reason(entry: Entry, inputs: dict[str, str], folder: pathlib.Path) -> str:
    """Why a started stage must run again; "" if it need not."""
    if entry["status"] not in ("done", "running"):
        return ""
    if changed := compare_inputs(entry["inputs"], inputs):
        return changed
    if entry["status"] == "done" and hash_outputs(folder) != entry["outputs"]:
        return f"its output in {folder} is missing or was changed"
    return ""


def run_stage(planned: Planned, entry: Entry, inputs: dict[str, str], why: str, record: Record) -> None:
    """Runs one stage to its end, from scratch if there is a reason `why`, and records its status."""
    spent = 0.0
    if why:
        if distributed.is_writer():
            set_aside_stage(planned.folder)
        distributed.wait(f"cleared {planned.name}")
    elif entry["status"] == "running":
        spent = entry["seconds"] + _find_duration(planned.folder, entry["started"])
        why = entry.get("why", "")
    for key in ("outputs", "metrics", "measured", "why"):
        entry.pop(key, None)
    entry |= {"status": "running", "inputs": inputs, "started": time.time(), "seconds": spent}
    entry |= {"why": why} if why else {}
    _write(record)
    stage_of(planned.settings).run(planned.settings, planned.folder)
    distributed.wait(f"ran {planned.name}")
    _forget()


def set_aside_stage(folder: pathlib.Path) -> None:
    """Moves the folder of a stage that is done again to FOLDER.earlier-N, and logs it."""
    place, home = find_earlier(folder), locate(folder)
    if folder.is_dir() and any(folder.iterdir()):
        folder.rename(place)
        log.warning("%s was moved to %s; delete it if it is not needed", home, locate(place))
    if is_staged(folder) and home.exists():
        move_remote(home, locate(place))


def finish_stage(planned: Planned, entry: Entry, record: Record) -> None:
    """Records the outputs of a stage."""
    entry |= {
        "status": "done",
        "outputs": hash_outputs(planned.folder),
        "seconds": entry["seconds"] + time.time() - entry["started"],
        "finished": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }
    _write(record)


def _measure(planned: Planned, entry: Entry, config: MeasureConfig, mesh: MeshConfig) -> None:
    """Evaluates a stage's model, unless the entry has its metrics."""
    values = dataclasses.asdict(config)
    way = hash_values(values) if planned.label else ""
    if values["generate"].pop("min_p") == 0 and entry.get("measured") == hash_values(values):
        entry["measured"] = way  # as records of format 1 have it, which knew no min_p
    if entry.get("measured") == way:
        return
    entry["metrics"] = measure_training(planned.folder) | measure_sampling(planned.folder, planned.settings)
    if planned.label:
        with use_mesh(make_mesh(mesh), mesh.rules):
            entry["metrics"] |= measure_model(planned.folder, config)
        _forget()
    entry["measured"] = way


def _forget() -> None:
    """Frees a stage's arrays, and its programs, which the next stage uses from disk only."""
    gc.collect()
    jax.clear_caches()


def _describe_start(entry: Entry, planned: Planned, why: str) -> str:
    if why:
        return f"done again, for {why}"
    return f"{'goes on' if entry['status'] == 'running' else 'begins'} in {planned.folder}"


def _describe(metrics: dict[str, Any]) -> str:
    if "accuracy" not in metrics:
        return ""
    accuracy = format_value(metrics["accuracy"], metrics["accuracy_stderr"], is_rate=True)
    return f"; accuracy {accuracy}, format {metrics['format_rate']:.1%}, language {metrics['language']:.1%}"


def _find_duration(folder: pathlib.Path, started: float) -> float:
    """Seconds that a killed attempt lasted, by the time of its last write."""
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()]
    return max(0.0, max(times, default=started) - started)


def _share_programs(workdir: pathlib.Path) -> None:
    """Shares compiled programs between stages through a cache on disk, unless the user has set one."""
    if not (os.environ.get("JAX_COMPILATION_CACHE_DIR") or getattr(jax.config, "jax_compilation_cache_dir", None)):
        jax.config.update("jax_compilation_cache_dir", str((workdir / COMPILED).resolve()))


def _write(record: Record) -> None:
    if distributed.is_writer():
        record.write()
        push(record.path.parent)
