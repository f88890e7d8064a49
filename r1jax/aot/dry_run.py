"""Dry run: the settings of a run and their origins, sizes, steps, the step to resume from, and missing files. Makes no
array and touches no accelerator.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from r1jax.core.checkpoint import newest_checkpoint
from r1jax.core.errors import UserError
from r1jax.core.resolution import Origin, Resolved
from r1jax.core.sinks.trackers import check_tracker
from r1jax.data.corpus import CorpusConfig
from r1jax.data.files import find_missing
from r1jax.data.filters import FilterConfig
from r1jax.data.tasks import FILES, TaskConfig, make_builder
from r1jax.eval.held_out import EvalConfig
from r1jax.models.families.registry import find_family
from r1jax.models.presets import count_parameters
from r1jax.rewards.base import read_rewards
from r1jax.runs.abstract_model import find_sizes
from r1jax.runs.model_setup import ModelConfig, check
from r1jax.runs.workdir import check_config
from r1jax.stages.pipeline.manifest import Record, hash_config
from r1jax.stages.pipeline.resolve import PipelineConfig, make_plan, trace_shapes
from r1jax.stages.registry import find_trackers
from r1jax.stages.vocabulary import VocabularyConfig
from r1jax.weights.names import describe_fetch, find_hub_name, find_local_hub
from r1jax.weights.pretrained import find_description

_CREDENTIALS = re.compile(r"://[^\s/@\"]{1,1000}@")


def describe_run(resolved: Resolved[Any], workdir: pathlib.Path) -> Iterator[str]:
    """The lines of a dry run. Raises UserError for the first mistake that a run would find before it loads anything."""
    yield from describe_values(resolved)
    yield ""
    settings = resolved.settings
    if isinstance(settings, PipelineConfig):
        yield from _describe_pipeline(settings, workdir)
    else:
        yield from _describe_stage(settings)
        yield _describe_resume(settings, workdir)
    yield from dict.fromkeys(f"missing: {line}" for line in _list_missing(settings, workdir))


def describe_values(resolved: Resolved[Any]) -> Iterator[str]:
    """Every key with its value, its origin, and the values that it replaced."""
    values = resolved.values
    for key, origin in sorted(resolved.origins.items()):
        found: Any = values
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not (isinstance(found, dict) and key == "stages"):
            yield f"config.{key} = {_show(found)}  ({_describe_origin(origin, found)})"


def _describe_origin(origin: Origin, value: Any) -> str:
    """The source of a value, and the other values that it replaced."""
    differing = [
        (source, _show(former)) for source, former in reversed(origin.overrides) if _show(former) != _show(value)
    ]
    replaced = ", ".join(f"{source} {former}" for source, former in differing)
    return f"{origin.source}; over {replaced}" if replaced else origin.source


def _show(value: Any) -> str:
    """JSON of a value; users and passwords in addresses are left out, which the checks refuse only later."""
    return _CREDENTIALS.sub("://…@", json.dumps(value, default=str, ensure_ascii=False))


# --- One stage ---


def _describe_stage(settings: Any) -> Iterator[str]:
    """Sizes, steps and work of a stage, after the checks that need no device and no file."""
    if rewards := getattr(settings, "rewards", None):
        read_rewards(rewards)
    for _, section in _find(settings, (EvalConfig, TaskConfig)):
        if isinstance(section, TaskConfig):
            make_builder(section)
        else:
            read_rewards({name: 1.0 for name in {*section.strict, section.lenient, section.format} - {""}})
    for key, model in _find(settings, (ModelConfig,)):
        yield from _describe_model(key, model, getattr(settings, "train", None))
    if hasattr(settings, "outline"):
        yield from settings.outline()


def _describe_model(key: str, config: ModelConfig, train: Any) -> Iterator[str]:
    name = config.preset or config.name
    try:
        family, sizes = _find_sizes(config)
    except UserError as error:
        if config.preset:
            raise
        yield f"{key}: {name}, size unknown until its files exist ({str(error).partition(';')[0]})"
        return
    if key == "model" and getattr(train, "replay_experts", False):
        check("train.replay_experts", True, hasattr(sizes, "num_experts"), "needs a model with experts")
    count = count_parameters(family, sizes)
    active = f", {_millions(count.active)} of them active for a token" if count.active != count.total else ""
    yield f"{key}: {name}, {_millions(count.total)} parameters{active}"


def _find_sizes(config: ModelConfig) -> tuple[Any, Any]:
    """Result of `find_sizes`; for a workdir the sizes of its model, and for a hub name those of the cached files."""
    path = pathlib.Path(config.name)
    found = None if config.preset else path if config.name and path.exists() else find_local_hub(config.name)
    if found is None or not (found.is_dir() and (find_description(found) / "config.json").is_file()):
        return find_sizes(config)
    hf = json.loads((find_description(found) / "config.json").read_text("utf-8"))
    family = find_family(hf.get("model_type"), found)
    sizes = family.from_hf(hf)
    return family, dataclasses.replace(sizes, num_layers=config.layers) if config.layers else sizes


def _millions(count: int) -> str:
    return f"{count / 1e9:,.1f} B" if count >= 1e9 else f"{count / 1e6:,.1f} M"


def _describe_resume(settings: Any, workdir: pathlib.Path) -> str:
    """The step from which a run in this workdir would start. Raises UserError if it belongs to another config."""
    newest = newest_checkpoint(workdir)
    if newest is None:
        kept = "it holds no checkpoint" if workdir.exists() else "it does not exist yet"
        return f"workdir: {workdir}; the run begins at its start, {kept}"
    check_config(settings, workdir)
    last = getattr(settings, "steps", 0)
    if last and int(newest.name) >= last:
        return f"workdir: {workdir}; the run is finished, it holds step {newest.name} of {last}"
    return f"workdir: {workdir}; the run resumes from step {newest.name}{f' of {last}' if last else ''}"


# --- A pipeline ---


def _describe_pipeline(settings: PipelineConfig, workdir: pathlib.Path) -> Iterator[str]:
    plan, _ = make_plan(settings, workdir)
    record = Record(workdir, plan, settings.comparison)
    shapes = {planned.name: planned.settings for planned in trace_shapes(plan)}
    for number, planned in enumerate(plan, 1):
        entry = record.entries[planned.name]
        status = "skipped" if planned.skipped else entry["status"]
        known = entry.get("inputs", {}).get("config")
        if known and known != hash_config(planned.raw_config):
            status += ", done again: config changed"
        yield f"stage {number} of {len(plan)}, {planned.name} ({planned.settings.stage}): {status}"
        yield from (f"  {line}" for line in _describe_stage(shapes[planned.name]))
    yield f"workdir: {workdir}{'' if workdir.exists() else '; it does not exist yet'}"


# --- Files ---


def _list_missing(settings: Any, workdir: pathlib.Path) -> Iterator[str]:
    """Missing packages, models and data sets, and how to get them; outputs of other stages are left out."""
    for key, name in find_trackers(settings).items():
        try:
            check_tracker(name, key)
        except UserError as error:
            yield str(error)
    if isinstance(settings, PipelineConfig):
        plan, measure = make_plan(settings, workdir)
        for planned in plan:
            yield from _list_missing_of(planned.settings, f"stages.{planned.name}.", workdir)
        yield from _list_missing_of(measure, "measure.", workdir)
        return
    yield from _list_missing_of(settings, "", workdir)


def _list_missing_of(settings: Any, prefix: str, workdir: pathlib.Path) -> Iterator[str]:
    own = lambda path: path and pathlib.Path(path).is_relative_to(workdir)
    for key, section in _find(settings, (ModelConfig, TaskConfig, CorpusConfig, FilterConfig, VocabularyConfig)):
        where = f"config.{prefix}{key}"
        if isinstance(section, ModelConfig):
            for name, fetch in {"name": section.fetch, "tokenizer": ""}.items():
                if (model := getattr(section, name)) and not own(model):
                    yield from _find_missing_model(f"{where}.{name}", model, fetch)
            continue
        for name, path in _list_paths(section):
            key = f"{where}.{name}" if key else f"config.{prefix}{name}"
            if path is None:
                yield f"{key}: no file is named; give one with --{key}=FILE"
            elif not own(path) and (why := find_missing(path)):
                yield f"{key} = {path}: {why}; name another with --{key}=FILE"


def _list_paths(section: Any) -> Iterator[tuple[str, str | None]]:
    """(key, path or None) of the files that a data section needs."""
    if isinstance(section, TaskConfig) and section.source in FILES:
        yield "path", section.path
        yield from (("eval_path", path) for path in (section.eval_path,) if path)
    elif isinstance(section, CorpusConfig):
        for name, source in section.sources.items():
            if source.path != "addition" and not source.path.startswith("reasoning_gym:"):
                yield f"sources.{name}.path", source.path
            if source.eval_path:
                yield f"sources.{name}.eval_path", source.eval_path
    elif isinstance(section, FilterConfig):
        yield from (("benchmarks", path) for path in section.benchmarks)
    elif isinstance(section, VocabularyConfig):
        yield "path", section.path


def _find_missing_model(where: str, name: str, fetch: str) -> Iterator[str]:
    if pathlib.Path(name).exists() or find_local_hub(name) is not None:
        return
    way = f"no such file or folder; name another with --{where}=MODEL"
    if fetch:
        way = describe_fetch(fetch)
    elif find_hub_name(name):
        way = f"no such folder here; the run fetches {name} from the hub at its start"
    yield f"{where} = {name}: {way}"


def _find(settings: Any, kinds: tuple[type, ...], key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, section) of the sections of some types."""
    if isinstance(settings, kinds):
        yield key, settings
        return
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _find(value, kinds, f"{key}.{field.name}".lstrip("."))
