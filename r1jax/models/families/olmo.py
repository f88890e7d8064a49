"""The OLMo family: OLMo 2 (norms after attention and MLP, queries and keys normalized over all heads at once) and OLMo
3 (the same with a window in three of four layers, whose rotation is not scaled).

Sources: OLMo 2 (2501.00656), OLMo 3 (2512.13961); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from r1jax.models.attention import Style
from r1jax.models.families import dense
from r1jax.models.families.hf_config import Names, read_interval, read_rope, write_kinds, write_scaling
from r1jax.models.rope import Rope, YaRN


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of an OLMo model. window: keys that a layer sees, except every `interval`-th, which sees all (0: all)."""

    norm_epsilon: float = 1e-6
    tie_embeddings: bool = False
    qk_norm: bool = True
    window: int = 0
    interval: int = 4

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotation of layers with a window."""
        return {"local": Rope(self.head_dim, self.rope_theta)} if self.window else {}

    def style(self, layer: int) -> Style:
        """The window of a layer."""
        if not self.window or (layer + 1) % self.interval == 0:
            return Style(norm="width")
        return Style(norm="width", rope="local", window=self.window)


_OLMO2: dict[str, Any] = dict(rope_theta=500_000.0, max_positions=4096)
_OLMO3: dict[str, Any] = dict(
    rope_theta=500_000.0,
    max_positions=65_536,
    window=4096,
    rope_scaling=YaRN(8.0, 8192, 32.0, 1.0, attention_factor=1.2079441541679836),
)
VARIANTS: dict[str, Config] = {
    "tiny_olmo2": Config(),
    "tiny_olmo3": Config(num_layers=4, window=16),
    "olmo2_1b": Config(100_352, 2048, 8192, 16, 16, 16, 128, **_OLMO2),
    "olmo2_7b": Config(100_352, 4096, 11_008, 32, 32, 32, 128, **_OLMO2),
    "olmo2_13b": Config(100_352, 5120, 13_824, 40, 40, 40, 128, **_OLMO2),
    "olmo2_32b": Config(100_352, 5120, 27_648, 64, 40, 8, 128, **_OLMO2),
    "olmo3_7b": Config(100_278, 4096, 11_008, 32, 32, 32, 128, **_OLMO3),
    "olmo3_32b": Config(100_278, 5120, 27_648, 64, 40, 8, 128, **_OLMO3),
}

HF_NAMES: Names = {
    **{
        ours: names
        for ours, names in dense.NAMES.items()
        if not ours.endswith(("attention_norm.scale", "mlp_norm.scale"))
    },
    **dense.NORM_NAMES,
    "layers.{}.attention_post_norm.scale": ("model.layers.{}.post_attention_layernorm.weight", None),
    "layers.{}.mlp_post_norm.scale": ("model.layers.{}.post_feedforward_layernorm.weight", None),
}
_FIXED = {"attention_bias": False, "hidden_act": "silu"}
build = functools.partial(dense.build, norms="post")


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    theta, scaling = read_rope(hf, "full_attention", theta=500_000.0)
    windows = hf["model_type"] == "olmo3"
    return dense.read_config(
        Config,
        hf,
        _FIXED,
        rope_theta=theta,
        rope_scaling=scaling,
        window=hf["sliding_window"] if windows else 0,
        interval=read_interval(hf, 4) if windows else 4,
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    number = 3 if config.window else 2
    named = {"architectures": [f"Olmo{number}ForCausalLM"], "model_type": f"olmo{number}"}
    theta = {"rope_theta": config.rope_theta}
    kinds = {
        "sliding_window": config.window,
        "layer_types": write_kinds(config.num_layers, config.interval),
        "rope_parameters": {  # else transformers turns layers with a window by its default base
            "full_attention": {"rope_type": "default"} | (write_scaling(config.rope_scaling) or {}) | theta,
            "sliding_attention": {"rope_type": "default"} | theta,
        },
    }
    return dense.write_config(config, {**named, **(kinds if config.window else {}), **_FIXED})
