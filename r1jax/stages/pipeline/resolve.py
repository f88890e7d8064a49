"""Plan of a pipeline: its stages in order, each with its folder, its config, and its input stages.

A stage of a pipeline is a full config of an existing stage plus the keys that only the pipeline reads:

    init    the initial model: the name of an earlier stage, or any MODEL; "" keeps the config's own model
    label   the name of its model in tables (R1-Zero, Dev1, ...); "" if the model is not evaluated

A text `@NAME` or `@NAME/FILE` anywhere in a stage's config refers to the folder of an earlier stage, or to a file in
it. A skipped stage passes on its own initial model.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from r1jax.core.errors import UserError
from r1jax.core.resolution import Origin, Resolved, list_keys
from r1jax.core.resolution import resolve as resolve_dataclass
from r1jax.core.sections import flatten, suggest, to_values, unpack
from r1jax.core.sharding import MeshConfig
from r1jax.data.tasks import TaskConfig
from r1jax.stages.collection import TeacherSampling
from r1jax.stages.registry import resolve_values

MODELS = ("student", "model")  # sections that `init` can set: the trained model's, if the stage has both
REFERENCE = "@"


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """The measurement of every model of a pipeline.

    Attributes:
      data: held-out problems: the rows of data.path.
      generate: sampling of answers.
      language: code of the language that replies should be in.
      format: reward that measures the form of a reply.
    """

    data: TaskConfig
    generate: TeacherSampling = TeacherSampling(temperature=0.6, top_p=0.95)
    language: str = "en"
    format: str = "r1_format_reward"


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Settings of a pipeline.

    Attributes:
      order: names of the stages, first to last.
      stages: config of each stage by its name, with the keys `init` and `label` beside those of its own stage.
      measure: measurement of every model.
      comparison: label -> the stages whose work on one model it stands for, the last of which holds the model.
      rerun: stages that are done again.
      skip: stages that are left out.
      stage: name of the stage.
      seed: seed that the config file gives to the stages.
      mesh: devices of the measurements.
    """

    order: tuple[str, ...]
    stages: dict[str, Any]
    measure: MeasureConfig
    comparison: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    rerun: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    stage: str = "pipeline"
    seed: int = 0
    mesh: MeshConfig = MeshConfig()

    def check(self) -> None:
        """Raises UserError, naming the stage, for any fault of the plan or of a stage."""
        make_plan(self, pathlib.Path())


@dataclasses.dataclass(frozen=True)
class Links:
    """The keys of a stage that only the pipeline reads.

    Attributes:
      init: model that it starts from: an earlier stage or any MODEL; "" keeps the config's own.
      label: name of its model in tables; "" for a stage whose model is not measured.
    """

    init: str = ""
    label: str = ""


OWN_KEYS = tuple(field.name for field in dataclasses.fields(Links))


@dataclasses.dataclass(frozen=True)
class Planned:
    """One stage: `raw_config` has its config values as in the pipeline's, `settings` those of its run, with paths in
    place of references. takes: the earlier stages whose outputs it reads.
    """

    name: str
    folder: pathlib.Path
    raw_config: Mapping[str, Any]
    settings: Any
    takes: tuple[str, ...]
    skipped: bool = False

    @property
    def label(self) -> str:
        """Name of its model; "" if it is not evaluated."""
        return self.raw_config.get("label", "")


def resolve(config: Mapping[str, Any] | ConfigDict, flags: Mapping[str, str]) -> Resolved[PipelineConfig]:
    """Settings of a pipeline: every stage's section has all values of its own stage, and `Links`.

    Raises UserError, naming the stage, for errors of its section.
    """
    own, nested = dict[str, str](), dict[str, dict[str, str]]()
    for key, text in flags.items():
        first, _, rest = key.partition(".")
        name, _, inner = rest.partition(".")
        if first == "stages" and inner:
            nested.setdefault(name, {})[inner] = text
        else:
            own[key] = text
    whole = resolve_dataclass(PipelineConfig, config, own)
    if strange := sorted(set(nested) - set(whole.settings.stages)):
        known = list_keys(PipelineConfig, whole.values)
        key = f"stages.{strange[0]}.{next(iter(nested[strange[0]]))}"
        raise UserError(f"config has no key {key}{suggest(key, known)}")
    stages, origins = dict[str, Any](), dict[str, Origin](whole.origins)
    for name, section in whole.settings.stages.items():
        try:
            stages[name], found = resolve_stage(section, nested.get(name, {}))
        except UserError as error:
            raise UserError(f"stage {name} (config.stages.{name}): {error}") from None
        origins |= {f"stages.{name}.{key}": origin for key, origin in found.items()}
    return Resolved(dataclasses.replace(whole.settings, stages=stages), origins)


def resolve_stage(section: Any, flags: Mapping[str, str]) -> tuple[dict[str, Any], Mapping[str, Origin]]:
    """All values of one stage's section, and their origins."""
    if not isinstance(section, Mapping):
        raise UserError(f"must be a section, got {section!r}")
    pick = lambda values, own: {key: value for key, value in values.items() if (key in OWN_KEYS) == own}
    stage = resolve_values(pick(section, False), pick(flags, False))
    if stage.settings.stage == PipelineConfig.stage:
        raise UserError(f"config.stage={stage.settings.stage} cannot be a stage of a pipeline")
    links = resolve_dataclass(Links, pick(section, True), pick(flags, True))
    return {**stage.values, **links.values}, {**stage.origins, **links.origins}


def make_plan(settings: PipelineConfig, workdir: pathlib.Path) -> tuple[list[Planned], MeasureConfig]:
    """The stages in order, and the evaluation settings of their models.

    Raises UserError, naming the stage, for a reference to no earlier stage and for an invalid config.
    """
    known = set(settings.stages)
    if len(set(settings.order)) < len(settings.order) or set(settings.order) != known:
        raise UserError(
            f"config.order must name every stage of config.stages once ({', '.join(sorted(known))}), got "
            f"{', '.join(settings.order)}"
        )
    for key in ("rerun", "skip"):
        if strange := set(getattr(settings, key)) - known:
            raise UserError(f"config.{key} must name stages ({', '.join(settings.order)}), got {min(strange)!r}")
    width = max(2, len(str(len(settings.order))))
    folders = {name: workdir / f"{n:0{width}}_{name}" for n, name in enumerate(settings.order, 1)}
    plan: list[Planned] = []
    for name in settings.order:
        try:
            plan.append(_plan_stage(name, settings, folders, [planned.name for planned in plan]))
        except UserError as error:
            raise UserError(f"stage {name} (config.stages.{name}): {error}") from None
    for label, names in settings.comparison.items():
        if not names or set(names) - known:
            raise UserError(f"config.comparison.{label!r} must name stages, got {', '.join(names)}")
    data = _replace(to_values(settings.measure.data), _Places(settings, folders, list(settings.order)))
    return plan, dataclasses.replace(settings.measure, data=unpack(TaskConfig, data, "measure.data"))


class _Places:
    """Resolves references; `taken` collects the stages that they refer to."""

    def __init__(self, settings: PipelineConfig, folders: Mapping[str, pathlib.Path], earlier: list[str]):
        self.settings, self.folders, self.earlier = settings, folders, earlier
        self.taken: list[str] = []

    def __call__(self, text: str) -> str:
        """The path of `@NAME` or `@NAME/FILE`. Raises UserError if NAME is not an earlier stage."""
        name, _, file = text.removeprefix(REFERENCE).partition("/")
        if name not in self.earlier:
            raise UserError(f"{text} must name an earlier stage ({', '.join(self.earlier) or 'there is none'})")
        if not file and name in self.settings.skip:
            init = self.settings.stages[name].get("init", "")
            if not init:
                raise UserError(f"{text} is skipped (config.skip) and starts from no other model")
            return self(REFERENCE + init) if init in self.settings.stages else init
        self.taken.append(name)
        return str(self.folders[name] / file)


def _plan_stage(
    name: str, settings: PipelineConfig, folders: Mapping[str, pathlib.Path], earlier: list[str]
) -> Planned:
    raw_config, places = settings.stages[name], _Places(settings, folders, earlier)
    values = copy.deepcopy({key: value for key, value in raw_config.items() if key not in OWN_KEYS})
    if init := raw_config.get("init", ""):
        section = next((values[key] for key in MODELS if key in values), None)
        if section is None:
            raise UserError(f"init = {init!r}, but a stage of kind {raw_config.get('stage')!r} starts from no model")
        path = places(REFERENCE + init) if init in settings.stages else init
        if path != section.get("name"):  # settings of another model do not apply to this one
            section.update(fetch="", preset="", tokenizer="", sizes={}, layers=0, name=path)
    stage = resolve_values(_replace(values, places)).settings
    skipped = name in settings.skip
    if not skipped:
        stage.check()
    return Planned(name, folders[name], raw_config, stage, tuple(dict.fromkeys(places.taken)), skipped)


def trace_shapes(plan: Sequence[Planned]) -> Iterator[Planned]:
    """The stages with `init` traced back to an existing model, for a pipeline whose workdirs do not exist yet."""
    shapes: dict[str, dict[str, Any]] = {}
    for planned in plan:
        changed = {}
        section = next((key for key in MODELS if key in planned.raw_config), None)
        if section is not None:
            model = getattr(planned.settings, section)
            own = {key: getattr(model, key) for key in ("name", "preset", "tokenizer", "sizes", "layers")}
            shapes[planned.name] = shapes.get(planned.raw_config.get("init", ""), own)
            changed[section] = dataclasses.replace(model, **shapes[planned.name])
        teacher = str((planned.raw_config.get("teacher") or {}).get("name", "")).removeprefix(REFERENCE)
        if teacher in shapes:
            changed["teacher"] = dataclasses.replace(planned.settings.teacher, **shapes[teacher])
        yield dataclasses.replace(planned, settings=dataclasses.replace(planned.settings, **changed))


def _replace(value: Any, find: Callable[[str], str]) -> Any:
    """The value with every reference replaced by a path."""
    if isinstance(value, Mapping):
        return {key: _replace(item, find) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_replace(item, find) for item in value)
    return find(value) if isinstance(value, str) and value.startswith(REFERENCE) else value


def find_files(values: Mapping[str, Any]) -> Iterator[pathlib.Path]:
    """Existing files and folders named in a stage's values."""
    for value in flatten(values).values():
        for text in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(text, str) and "/" in text and os.path.exists(text):  # False for a text too long for a path
                yield pathlib.Path(text)
