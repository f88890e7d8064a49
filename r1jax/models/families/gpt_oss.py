"""The gpt-oss family: gpt-oss-20b and 120b. A window in every second layer, a sink in every head, biases everywhere,
experts with a clamped gate; the files hold the experts in MXFP4 (weights/mxfp4.py), gate and up in turns as one tensor.

Source: gpt-oss model card (2508.10925); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.models.attention import Style
from r1jax.models.experts import Gate
from r1jax.models.families import dense, routed
from r1jax.models.families.hf_config import Fused, Names, read_interval, read_rope, write_kinds
from r1jax.models.families.routed import build as build
from r1jax.models.rope import YaRN


@dataclasses.dataclass(frozen=True)
class Config(routed.RoutedConfig):
    """Sizes of a gpt-oss model. window: keys that a layer sees, except every `interval`-th, which sees all."""

    intermediate_size: int = 32
    rope_theta: float = 150_000.0
    qkv_bias: bool = True
    gate: Gate = Gate("softmax", linear_bias=True)
    expert_biases: bool = True
    window: int = 16
    interval: int = 2

    def style(self, layer: int) -> Style:
        """The window of a layer."""
        return Style(window=0 if (layer + 1) % self.interval == 0 else self.window, sinks=True, out_bias=True)


_GPT: dict[str, Any] = dict(
    window=128,
    expert_size=2880,
    active_experts=4,
    rope_scaling=YaRN(32.0, 4096, 32.0, 1.0, truncate=False),
    max_positions=131_072,
)
VARIANTS: dict[str, Config] = {
    "tiny_gpt_oss": Config(),
    "gpt_oss_20b": Config(201_088, 2880, 2880, 24, 64, 8, 64, num_experts=32, **_GPT),
    "gpt_oss_120b": Config(201_088, 2880, 2880, 36, 64, 8, 64, num_experts=128, **_GPT),
}

_MLP = "model.layers.{}.mlp"
HF_NAMES: Names = {
    **{ours: names for ours, names in dense.NAMES.items() if ".mlp." not in ours},
    **dense.BIAS_NAMES,
    "layers.{}.attention.out.bias": ("model.layers.{}.self_attn.o_proj.bias", None),
    "layers.{}.attention.sinks": ("model.layers.{}.self_attn.sinks", None),
    "layers.{}.mlp.router.kernel": (f"{_MLP}.router.weight", 1),
    "layers.{}.mlp.router.bias": (f"{_MLP}.router.bias", None),
    "layers.{}.mlp.experts.gate": (f"{_MLP}.experts.gate_up_proj#gate", None),
    "layers.{}.mlp.experts.up": (f"{_MLP}.experts.gate_up_proj#up", None),
    "layers.{}.mlp.experts.down": (f"{_MLP}.experts.down_proj", None),
    "layers.{}.mlp.experts.gate_bias": (f"{_MLP}.experts.gate_up_proj_bias#gate", None),
    "layers.{}.mlp.experts.up_bias": (f"{_MLP}.experts.gate_up_proj_bias#up", None),
    "layers.{}.mlp.experts.down_bias": (f"{_MLP}.experts.down_proj_bias", None),
}
_FIXED = {"attention_bias": True, "hidden_act": "silu", "swiglu_limit": 7.0, "swiglu_alpha": 1.702}


def fused(config: Config) -> Mapping[str, Fused]:
    """Tensors of the files that are several of ours."""
    both = Fused({"gate": config.expert_size, "up": config.expert_size}, last=True, interleaved=True)
    return {f"{_MLP}.experts.gate_up_proj": both, f"{_MLP}.experts.gate_up_proj_bias": both}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    theta, scaling = read_rope(hf, theta=150_000.0)
    return dense.read_config(
        Config,
        hf,
        _FIXED,
        rope_theta=theta,
        rope_scaling=scaling,
        expert_size=hf["intermediate_size"],
        num_experts=hf["num_local_experts"],
        active_experts=hf["num_experts_per_tok"],
        window=hf["sliding_window"],
        interval=read_interval(hf, 2),
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    return dense.write_config(
        config,
        {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "intermediate_size": config.expert_size,
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.active_experts,
            "sliding_window": config.window,
            "layer_types": write_kinds(config.num_layers, config.interval),
            **{key: value for key, value in _FIXED.items() if key != "swiglu_alpha"},
        },
    )
