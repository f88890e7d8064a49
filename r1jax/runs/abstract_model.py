"""A model without weights, from its config alone, to list the programs of a run that has not loaded anything."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any, NamedTuple

from flax import nnx

from r1jax.core.buckets.staging import is_address
from r1jax.core.errors import UserError
from r1jax.core.sharding import abstract_tree
from r1jax.models.families.registry import find_family, load_families
from r1jax.models.layers import Dtypes
from r1jax.models.presets import find_preset, replace_sizes
from r1jax.models.scores import is_scored, score_family
from r1jax.models.transformer import Transformer, logical_axes, merge, split
from r1jax.runs.model_setup import ModelConfig, expert_options
from r1jax.weights.names import find_model
from r1jax.weights.pretrained import find_description, open_model


class Prompts(NamedTuple):
    """Assumed prompts where only the data would determine them. prefix: ids that all of them begin with; tokens: of the
    longest one after it.
    """

    prefix: tuple[int, ...] = ()
    tokens: int = 128


ASSUMED = Prompts()

# Words of hub names that tell how weights were trained and leave the shape as it is; dates (0905, 2507) are others.
TRAINING = {"instruct", "base", "chat", "it", "pt", "hf", "think", "thinking", "zero", "terminus"}
SAME_SHAPE = {  # hub names, in plain letters, that tell neither a preset nor its size
    "deepseekr1": "deepseek_v3_671b",
    "deepseekv3.1": "deepseek_v3_671b",
    "llama4scout17b16e": "llama4_scout_109b",
    "llama4maverick17b128e": "llama4_maverick_400b",
    "deepseekr1distillqwen1.5b": "qwen2.5_math_1.5b",
    "deepseekr1distillqwen7b": "qwen2.5_math_7b",
    "deepseekr1distillqwen14b": "qwen2.5_14b",
    "deepseekr1distillqwen32b": "qwen2.5_32b",
    "deepseekr1distillllama8b": "llama3.1_8b",
    "deepseekr1distillllama70b": "llama3.1_70b",
}


def abstract_model(config: ModelConfig, key: str = "model") -> Transformer:
    """The model of a config section, with shapes and shardings in place of its parameters.

    Raises UserError, naming config.{key}, if its sizes are unknown without its files.
    """
    family, sizes = find_sizes(config, key)
    options = {"scan_layers": config.scan_layers, "remat": config.remat, **expert_options(config)}
    dtypes = Dtypes(config.param_dtype, config.dtype)
    model = nnx.eval_shape(lambda: family.build(sizes, rngs=nnx.Rngs(0), dtypes=dtypes, **options))
    graph, params = split(model)
    return merge(graph, abstract_tree(params, logical_axes(model)))


def find_sizes(config: ModelConfig, key: str = "model") -> tuple[Any, Any]:
    """Family and sizes of a config's model: the named preset, those of a local MODEL, or the preset of the name;
    with the sizes that the config replaces. key: the section of the config, for errors.
    """
    family, sizes = _find_sizes(config, key)
    kept = {"num_layers": config.layers} if config.layers else {}
    return family, replace_sizes(sizes, {**kept, **config.sizes})


def _find_sizes(config: ModelConfig, key: str) -> tuple[Any, Any]:
    if config.preset:
        return find_preset(config.preset)
    if config.name and (is_address(config.name) or pathlib.Path(config.name).exists()):
        path = find_model(config.name)
        file = find_description(path) / "config.json"
        if not file.is_file():  # a .gguf file, or no model
            opened = open_model(path)
            return opened.family, opened.config
        hf = json.loads(file.read_text(encoding="utf-8"))
        family = find_family(hf.get("model_type"), config.name)
        family = score_family(family) if is_scored(hf) else family
        return family, family.from_hf(hf)
    stem = re.sub(r"(\.[\w-]+)?\.gguf$|@[\w./-]+$", "", config.name)  # without quantization or revision
    presets = {_plain(name): name for family in load_families().values() for name in family.VARIANTS}
    # Some hub names do not tell the size: "DeepSeek-V3-Base" is the one preset that is called so before its size.
    unsized = [_plain(re.sub(r"_[0-9.]+[bt]$", "", name)) for name in presets.values()]
    presets |= {key: name for key, name in zip(unsized, presets.values(), strict=True) if unsized.count(key) == 1}
    presets |= SAME_SHAPE
    if (found := presets.get(_plain(stem))) is not None:
        return find_preset(found)
    raise UserError(
        f"the sizes of {config.name} are not known without its files; set config.{key}.preset to one of "
        f"{', '.join(sorted(set(presets.values())))}, and config.{key}.name to an empty text"
    )


def _plain(name: str) -> str:
    """The letters of a hub's or preset's name that tell the shape: `google/gemma-3-1b-it` is `gemma31b`."""
    words = re.split(r"[-_]", name.rpartition("/")[2].lower())
    return "".join(word for word in words if word not in TRAINING and not re.fullmatch(r"[0-9]{4}", word))
