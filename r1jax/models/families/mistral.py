"""The Mistral family: Mistral 7B (version 0.1 with a window in all layers), Nemo, Small, Ministral 8B (a window in
three of four layers, where its file says so) and Ministral 3, whose queries grow with their position. Llama's layers
else.

Sources: Mistral 7B (2310.06825), Ministral 3 (2601.08584); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.models.attention import Style
from r1jax.models.families import dense
from r1jax.models.families.dense import build as build
from r1jax.models.families.hf_config import Names, read_interval, write_kinds
from r1jax.models.rope import YaRN


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of a Mistral model.

    window: keys that a layer sees, except every `interval`-th, which sees all (window 0: all do; interval 0: none
    does). stretch: queries grow by 1 + stretch * log(1 + floor(position / original positions)).
    """

    window: int = 0
    interval: int = 0
    stretch: float = 0.0

    def style(self, layer: int) -> Style:
        """The window and the growth of queries of a layer."""
        whole = not self.window or self.interval and (layer + 1) % self.interval == 0
        positions = self.rope_scaling.original_positions if isinstance(self.rope_scaling, YaRN) else 1
        stretch = (self.stretch, float(positions), 0) if self.stretch else None
        return Style(window=0 if whole else self.window, stretch=stretch)


_LARGE: dict[str, Any] = dict(rope_theta=1e6, tie_embeddings=False, max_positions=32_768)
_THIRD: dict[str, Any] = dict(
    rope_theta=1e6,
    rope_scaling=YaRN(16.0, 16_384, 32.0, 1.0, mscale=1.0, mscale_all_dim=1.0),
    stretch=0.1,
    max_positions=262_144,
)
VARIANTS: dict[str, Config] = {
    "tiny_mistral": Config(),
    "mistral_7b_v0.1": Config(
        32_000, 4096, 14_336, 32, 32, 8, 128, tie_embeddings=False, max_positions=32_768, window=4096
    ),
    "mistral_7b_v0.3": Config(32_768, 4096, 14_336, 32, 32, 8, 128, **_LARGE),
    "mistral_nemo_12b": Config(131_072, 5120, 14_336, 40, 32, 8, 128, **_LARGE | dict(max_positions=131_072)),
    "mistral_small_24b": Config(131_072, 5120, 32_768, 40, 32, 8, 128, **_LARGE | dict(rope_theta=1e8)),
    "ministral3_3b": Config(131_072, 3072, 9216, 26, 32, 8, 128, **_THIRD),
    "ministral3_8b": Config(131_072, 4096, 14_336, 34, 32, 8, 128, tie_embeddings=False, **_THIRD),
    "ministral3_14b": Config(
        131_072, 5120, 16_384, 40, 32, 8, 128, tie_embeddings=False, **_THIRD | dict(rope_theta=1e9)
    ),
}
HF_NAMES: Names = dense.NAMES
_FIXED = {"hidden_act": "silu"}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    alternating = hf["model_type"] == "ministral"
    interval = read_interval(hf, 0) if alternating else 0
    return dense.read_config(
        Config,
        hf,
        _FIXED,
        window=0 if interval == 1 else hf.get("sliding_window") or 0,
        interval=interval,
        stretch=(rope.get("llama_4_scaling_beta") or 0.0) if hf["model_type"] == "ministral3" else 0.0,
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    name, kind = ("Ministral3", "ministral3") if config.stretch else ("Mistral", "mistral")
    kinds: dict[str, Any] = {}
    if config.interval:
        name, kind, kinds = "Ministral", "ministral", {"layer_types": write_kinds(config.num_layers, config.interval)}
    named = {"architectures": [f"{name}ForCausalLM"], "model_type": kind, "sliding_window": config.window or None}
    hf = dense.write_config(config, {**named, **kinds, **_FIXED})
    if config.stretch:  # one table, which older releases do not know
        scaling = hf.pop("rope_scaling") | {"rope_theta": hf.pop("rope_theta")}
        hf["rope_parameters"] = scaling | {"llama_4_scaling_beta": config.stretch}
    return hf
