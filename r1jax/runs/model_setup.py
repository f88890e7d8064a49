"""Config sections shared by all training stages, as frozen dataclasses, and the model that they describe."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from types import ModuleType
from typing import Any, Literal

from flax import nnx

from r1jax.core.errors import UserError
from r1jax.core.sinks.trackers import TRACKERS
from r1jax.core.startup.voice import activity
from r1jax.models.dispatch import GROUPED, Dispatch
from r1jax.models.init import init_weights
from r1jax.models.layers import Dtypes
from r1jax.models.presets import find_preset, replace_sizes
from r1jax.models.transformer import Transformer
from r1jax.text.special_tokens import SpecialTokensInText
from r1jax.text.tokenizer import SPELT, Tokenizer
from r1jax.weights.export import describe, describe_shape
from r1jax.weights.layer_pruning import keep_layers
from r1jax.weights.names import find_model
from r1jax.weights.pretrained import (
    find_description,
    load_pretrained,
    open_model,
    require_tokenizer,
    write_revision,
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model by its weights, or a shape with fresh weights.

    Attributes:
      name: MODEL whose weights are loaded: a folder, a .gguf file, a workdir or checkpoint of a run, or a hub name
        (`org/name` or `org/name@revision`). It is used or an error; no other model takes its place.
      fetch: command that creates the model `name` of the config file, for messages; a flag for `name` removes it.
      preset: name of a shape with fresh weights instead of loaded ones (models/families/presets.py).
      tokenizer: MODEL, or workdir of the stage `vocabulary`, whose tokenizer a preset gets; empty is one of bytes.
      special_tokens_in_text: what a special token becomes that a user or a tool spells in a message: the characters
        ("text"), or the token itself ("control"). Raw text prompts and the words of system and assistant may hold
        control tokens either way.
      sizes: sizes of the preset that are replaced; those of `latents`, `gate` and `index` one by one. Of a loaded
        model, those that its weights leave open, such as `{"index": {"dense": True}}` while indexers learn.
      seed: seed of fresh weights.
      layers: number of layers that are kept of a loaded model, for a student of a larger one; 0 is all.
      layer_choice: layers that are kept: evenly spread, or the first.
      dtype: dtype of computation.
      param_dtype: dtype of parameters.
      scan_layers: whether equal layers are stacked and scanned, which compiles one of them instead of all.
      remat: activations that the backward pass recomputes: none, all of a layer, or all but matrix products.
      dispatch: method of dispatching tokens to experts (models/dispatch.py).
      buffer_factor: size of the experts' receive buffers over what arrives under equal load; 0 fits every load.
      dispatch_tokens: tokens of a device exchanged with experts at a time; 0 is all.
    """

    name: str = ""
    fetch: str = ""
    preset: str = ""
    tokenizer: str = ""
    special_tokens_in_text: SpecialTokensInText = "text"
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    layers: int = 0
    layer_choice: Literal["spread", "first"] = "spread"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    param_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    scan_layers: bool = False
    remat: Literal["none", "full", "dots"] = "none"
    dispatch: str = "grouped"
    buffer_factor: float = 0.0
    dispatch_tokens: int = 0

    def __post_init__(self) -> None:
        if self.preset and self.name:
            raise UserError(
                f"config.model.preset = {self.preset!r} has fresh weights and config.model.name = {self.name!r} names "
                "others: set one of them to an empty text (a preset's tokenizer is config.model.tokenizer)"
            )
        if self.tokenizer and not self.preset:
            raise UserError(
                f"config.model.tokenizer = {self.tokenizer!r} needs config.model.preset; a loaded model has its own"
            )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves, besides at its end.

    Attributes:
      every_steps: steps between checkpoints; 0 saves none by number.
      every_minutes: minutes after the last save when the next one is due; 0 saves none by time.
      keep: number of the newest checkpoints that are kept, at least 2, so that a damaged one does not end the run.
    """

    every_steps: int = 0
    every_minutes: float = 10.0
    keep: int = 2

    def __post_init__(self) -> None:
        check("checkpoint.keep", self.keep, self.keep >= 2, "must be at least 2, for the newest may be damaged")
        check("checkpoint.every_steps", self.every_steps, self.every_steps >= 0, "must be 0 (off) or more")
        check("checkpoint.every_minutes", self.every_minutes, self.every_minutes >= 0, "must be 0 (off) or more")
        check("checkpoint.every_minutes", self.every_minutes, self.every_minutes < math.inf, "must be finite; 0 is off")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Output of a run besides its metrics.

    Attributes:
      samples_per_step: rows of samples.jsonl per step; -1 is all.
      show_every_steps: steps between samples on the console; 0 shows none.
      tensorboard: whether TensorBoard events are written.
      wandb_project: Weights & Biases project for the metrics (the extra `wandb`); "" is none.
      trackio_project: Trackio project for the metrics (the extra `trackio`); "" is none.
      mlflow_project: MLflow experiment for the metrics (the extra `mlflow`); "" is none.
    """

    samples_per_step: int = -1
    show_every_steps: int = 10
    tensorboard: bool = True
    wandb_project: str = ""
    trackio_project: str = ""
    mlflow_project: str = ""

    def __post_init__(self) -> None:
        check("log.samples_per_step", self.samples_per_step, self.samples_per_step >= -1, "must be -1 (all) or more")
        check("log.show_every_steps", self.show_every_steps, self.show_every_steps >= 0, "must be 0 (none) or more")

    @property
    def trackers(self) -> dict[str, dict[str, str]]:
        """Options of each tracker that gets the metrics, by its package (core/metrics.py)."""
        projects = {name: getattr(self, f"{name}_project") for name in TRACKERS}
        return {name: {"project": project} for name, project in projects.items() if project}


def expert_options(config: ModelConfig) -> dict[str, Any]:
    """Dispatch options of experts (models/dispatch.py), if the config sets any."""
    dispatch = Dispatch(config.dispatch, config.buffer_factor, config.dispatch_tokens)
    return {"dispatch": dispatch} if dispatch != GROUPED else {}


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The tokenizer of a config's `model` section, without its weights. Raises UserError if there is none."""
    if config.preset:
        return _ask(config, _find_shape(config)[2])
    check("model.name", config.name, bool(config.name), "must name a model, or config.model.preset a shape")
    found = open_model(config.name, fetch=config.fetch).read_tokenizer()
    return _ask(config, require_tokenizer(found, config.name))


def _ask(config: ModelConfig, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, which reads special tokens in texts as the config says."""
    return dataclasses.replace(tokenizer, special_tokens_in_text=config.special_tokens_in_text)


def load_model(config: ModelConfig, **options: Any) -> tuple[Transformer, Tokenizer | None]:
    """The model of a config's `model` section, and its tokenizer (None if it has none)."""
    dtypes = Dtypes(config.param_dtype, config.dtype)
    shared: dict[str, Any] = dict(dtypes=dtypes, scan_layers=config.scan_layers, remat=config.remat, **options)
    shared |= expert_options(config)
    if not config.preset:
        check(
            "model.name",
            config.name,
            bool(config.name),
            "must name a model, or config.model.preset a shape",
        )
        with activity(f"loading {config.name}"):
            model, tokenizer = load_pretrained(config.name, fetch=config.fetch, sizes=config.sizes, **shared)
        model = keep_layers(model, config.layers, config.layer_choice) if config.layers else model
    else:
        family, sizes, tokenizer = _find_shape(config)
        model = init_weights(lambda: family.build(sizes, rngs=nnx.Rngs(config.seed), **shared))
    return model, None if tokenizer is None else _ask(config, tokenizer)


def describe_model(config: ModelConfig, folder: pathlib.Path) -> None:
    """Writes config.json and tokenizer files of a config's `model` section, for readers of the run's checkpoints."""
    if config.preset:
        _, sizes, tokenizer = _find_shape(config)
        describe_shape(sizes, _ask(config, tokenizer), folder)
        return
    opened = open_model(config.name, fetch=config.fetch)
    if config.layers:
        hf = {key: value for key, value in opened.hf.items() if key != "layer_types"}
        opened = dataclasses.replace(
            opened,
            config=dataclasses.replace(opened.config, num_layers=config.layers),
            hf={**hf, "num_hidden_layers": config.layers},
        )
    describe(opened, folder)
    _note_spelling(config, folder)
    write_revision(config.name, folder)


def _note_spelling(config: ModelConfig, folder: pathlib.Path) -> None:
    """Says in tokenizer_config.json how this run reads special tokens in texts, for whoever asks its model."""
    file = folder / "tokenizer_config.json"
    if config.special_tokens_in_text == "control" or file.exists():
        values = json.loads(file.read_text("utf-8")) if file.exists() else {}
        if values.get(SPELT, "text") != config.special_tokens_in_text:
            file.write_text(json.dumps({**values, SPELT: config.special_tokens_in_text}, indent=2) + "\n", "utf-8")


def _find_shape(config: ModelConfig) -> tuple[ModuleType, Any, Tokenizer]:
    """Family, sizes and tokenizer of a model with fresh weights."""
    if config.layers:
        raise UserError("config.model.layers needs a model with weights; with config.model.preset set sizes.num_layers")
    tokenizer = Tokenizer.of_bytes()
    if config.tokenizer:
        found = Tokenizer.from_path(find_description(find_model(config.tokenizer)))
        tokenizer = require_tokenizer(found, config.tokenizer)
    family, sizes = find_preset(config.preset)
    sizes = replace_sizes(sizes, config.sizes)
    if expert_options(config) and not hasattr(sizes, "num_experts"):
        raise UserError(f"config.model.dispatch: {config.preset} has no experts, got {config.dispatch!r}")
    if sizes.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"config.model.sizes.vocab_size must be at least the tokenizer's {tokenizer.vocab_size} tokens, "
            f"got {sizes.vocab_size} for {config.preset}"
        )
    return family, sizes, tokenizer


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps (0: never) and at the end happens at this step."""
    return step == last or (every > 0 and step % every == 0)


def check(key: str, value: Any, is_right: bool, rule: str) -> None:
    """Raises UserError `config.{key} {rule}, got {value}` unless `is_right`."""
    if not is_right:
        raise UserError(f"config.{key} {rule}, got {value!r}")


def check_run(settings: Any) -> None:
    """Raises UserError for values that no run can have: of `seed`, `watchdog_minutes`, and of `eval` and `data`."""
    check("seed", settings.seed, 0 <= settings.seed < 2**32, "must be from 0 to 2**32 - 1")
    minutes = settings.watchdog_minutes
    check("watchdog_minutes", minutes, 0 <= minutes < math.inf, "must be 0 (never) or more, and finite")
    for section in ("data", "corpus"):
        seed = getattr(getattr(settings, section, None), "seed", 0)
        check(f"{section}.seed", seed, 0 <= seed < 2**32, "must be from 0 to 2**32 - 1")
    every = getattr(getattr(settings, "eval", None), "every_steps", 0)
    check("eval.every_steps", every, every >= 0, "must be 0 (before and after the run only) or more")


def check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    """Raises UserError unless `part` (of config.{part_name}) divides `whole`."""
    if whole % part:
        raise UserError(f"config.{part_name} = {part} must divide config.{whole_name} = {whole}")
