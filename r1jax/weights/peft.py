"""Adapters in the files of the library `peft`: adapter_config.json and adapter_model.safetensors, LoRA in and out.

A folder of adapters is a MODEL: its tensors are those of the base that `base_model_name_or_path` names, with s B A
added to every adapted matrix; tensors that were trained whole (`modules_to_save`, biases) replace the base's. A run
that trained adapters (models/adapters/lora.py) is written as such a folder.

Left out, and refused by name: other methods than LoRA, DoRA, adapters of fused expert tensors, of an embedding that is
the head too, and initializations that change the base (PiSSA and its kin).
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.tensors.ranges import find_file
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.weights.lora_base import Adapted
from r1jax.weights.names import split_hub_name
from r1jax.weights.pieces import Source
from r1jax.weights.safetensors_writer import Spec, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PREFIX = "base_model.model."  # what peft puts before the names of the base
_PARTS = re.compile(r"(.*)\.lora_(embedding_)?([AB])(?:\.weight)?")
# Settings that would change what the adapters mean, with the values that leave it as it is.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "init_lora_weights": (None, True, False, "gaussian", "eva"),
}


def is_adapter_folder(path: pathlib.Path) -> bool:
    """Whether a folder holds adapters and no model of its own."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter_config(folder: pathlib.Path) -> dict[str, Any]:
    """Content of adapter_config.json. Raises UserError for a method that is not supported, and without a base."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG}: not JSON ({str(error)[:200]})") from None
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise UserError(f"{folder / CONFIG}: {key} = {config[key]!r} is not supported (supported: {plain[-1]!r})")
    if not config.get("base_model_name_or_path"):
        raise UserError(f"{folder / CONFIG}: base_model_name_or_path must name the model that the adapters belong to")
    return config


class PeftAdapted:
    """Tensors of `base` with the adapters of `folder` added; `config` is that of `read_adapter_config`.

    Raises UserError for adapters or whole tensors that do not fit the base.
    """

    def __init__(self, base: Source, folder: pathlib.Path, config: Mapping[str, Any]):
        self.path, self._base = folder, base
        if find_file(folder / WEIGHTS) is None:
            raise UserError(f"{folder}: {WEIGHTS} is missing (the older adapter_model.bin is not read)")
        self._saved = open_tensors(folder / WEIGHTS)
        self._config = config
        self._whole: dict[str, str] = {}
        self._pairs: dict[str, dict[str, str]] = {}
        self._embeddings: set[str] = set()
        for saved in self._saved.names:
            if not saved.startswith(_PREFIX):
                raise UserError(f"{self._saved.path}: unexpected tensor {saved!r}; names must begin with {_PREFIX}")
            match = _PARTS.fullmatch(saved.removeprefix(_PREFIX))
            name = f"{match[1]}.weight" if match else saved.removeprefix(_PREFIX).replace(".base_layer.", ".")
            if name not in base:
                raise UserError(f"{self._saved.path}: {saved!r} belongs to no tensor of the base {base.path}")
            if match is None:
                self._whole[name] = saved
                continue
            self._pairs.setdefault(name, {})[match[3]] = saved
            if match[2]:
                self._embeddings.add(name)
        if EMBEDDING in {*self._pairs, *self._whole} and HEAD not in base:
            raise UserError(f"{self._saved.path}: changes the embedding, which is also the head of {base.path}")
        for name in self._pairs:
            self._check_shapes(name)

    def _check_shapes(self, name: str) -> None:
        parts = self._pairs[name]
        if set(parts) != {"A", "B"}:
            raise UserError(f"{self._saved.path}: {name} has only one of lora_A and lora_B")
        (rank, inputs), (outputs, width) = (tuple(self._saved.shape(parts[part])) for part in "AB")
        shape = (inputs, outputs) if name in self._embeddings else (outputs, inputs)
        if rank != width or shape != tuple(self._base.shape(name)):
            raise UserError(
                f"{self._saved.path}: adapters of {name} make {shape} at ranks {rank} and {width}, "
                f"the base has {tuple(self._base.shape(name))}"
            )

    def _scale(self, name: str) -> float:
        """s: alpha / r, or alpha / sqrt(r), each as the config has them for this module."""
        module, config = name.removesuffix(".weight"), self._config
        rank = _find(config.get("rank_pattern"), module, config["r"])
        alpha = _find(config.get("alpha_pattern"), module, config["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The header of a base in a GGUF file, with its vocabulary."""
        return getattr(self._base, "metadata", {})

    def __contains__(self, name: str) -> bool:
        return name in self._base

    def shape(self, name: str) -> tuple[int, ...]:
        return self._saved.shape(self._whole[name]) if name in self._whole else self._base.shape(name)

    def dtype(self, name: str) -> np.dtype:
        return self._base.dtype(name)

    @property
    def is_remote(self) -> bool:
        """Whether base or adapters are read over the network."""
        return self._saved.is_remote or getattr(self._base, "is_remote", False)

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the tensor that `read` begins with."""
        if name in self._whole:
            return self._saved.count_bytes(self._whole[name], rows)
        return self._base.count_bytes(name, rows)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor or some of its rows, float32 if an adapter changes it."""
        tensor = self._saved.read(self._whole[name], rows) if name in self._whole else self._base.read(name, rows)
        if name not in self._pairs:
            return tensor
        down, up = (self._saved.read(self._pairs[name][part]).astype(np.float32) for part in "AB")
        product = up @ down
        product = (product.T if name in self._embeddings else product)[slice(*(rows or (None,)))]
        return tensor.astype(np.float32) + self._scale(name) * product


def _find(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as peft matches them; else the default."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def name_base(config: Mapping[str, Any]) -> str:
    """MODEL that the adapters of a config belong to."""
    name, revision = config["base_model_name_or_path"], config.get("revision")
    return f"{name}@{revision}" if revision and split_hub_name(name) and not pathlib.Path(name).exists() else name


def write_adapters(adapted: Adapted, folder: pathlib.Path | None) -> dict[str, Spec]:
    """Writes the adapters of a run as the files of `peft` into `folder` (None: nothing, in a process that does not
    write); returns the tensors' shapes.
    """
    rank, alpha = adapted.rank, adapted.alpha
    if part := next((name for name in adapted.adapted if "#" in name), None):
        raise UserError(f"{part}: the files hold this as a part of one tensor, to which peft's adapters belong whole")
    names = {name: f"{_PREFIX}{name.removesuffix('.weight')}.lora_{{}}.weight" for name in adapted.adapted}
    parts = {theirs.format(part): (name, part) for name, theirs in names.items() for part in "AB"}
    shapes = {name: adapted.shape(name) for name in names}
    pick = lambda name, part: (rank, shapes[name][1]) if part == "A" else (shapes[name][0], rank)
    specs = {theirs: Spec(pick(name, part), np.dtype(np.float32)) for theirs, (name, part) in parts.items()}

    def read(theirs: str) -> np.ndarray:
        name, part = parts[theirs]
        down, up = adapted.read_adapter(name)
        return down.T if part == "A" else up.T

    write_tensors(folder, specs, read, shard_bytes=1 << 62, stem="adapter_model")  # peft reads one file
    if folder is None:
        return specs
    hub = None if pathlib.Path(adapted.base_name).exists() else split_hub_name(adapted.base_name)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub[0] if hub else adapted.base_name,
        "revision": hub[1] if hub else None,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names}),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return specs
