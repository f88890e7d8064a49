"""The text models of the Llama 4 family: Scout and Maverick. Three of four layers turn queries and keys, normalize them
after that, and see the tokens of their own chunk; the fourth encodes no positions and sees all, with queries that grow
with their position. One expert a token, whose input its score multiplies, beside a shared one.

Left out: images.

Source: Llama 4 model card; names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.models.attention import Style
from r1jax.models.experts import Gate
from r1jax.models.families import dense, routed
from r1jax.models.families.hf_config import Fused, Names, read_rope
from r1jax.models.families.routed import build as build
from r1jax.models.rope import RopeScaling


@dataclasses.dataclass(frozen=True)
class Config(routed.RoutedConfig):
    """Sizes of a Llama 4 model.

    chunk: tokens that see each other in layers with positions; every `plain_interval`-th layer encodes none. Every
    `expert_interval`-th layer has experts. stretch: growth of queries in layers without positions, every
    `stretch_length` tokens (0: none).
    """

    num_layers: int = 4
    rope_theta: float = 500_000.0
    active_experts: int = 1
    gate: Gate = Gate("sigmoid", normalize=False, on_input=True)
    shared_size: int = 32
    qk_norm: bool = True
    chunk: int = 16
    plain_interval: int = 4
    expert_interval: int = 1
    stretch: float = 0.1
    stretch_length: int = 8192

    def style(self, layer: int) -> Style:
        """The rotation, chunk and growth of queries of a layer."""
        if (layer + 1) % self.plain_interval:
            return Style(interleaved=True, window=-self.chunk, norm="after")
        stretch = (self.stretch, float(self.stretch_length), 1) if self.stretch else None
        return Style(rope=None, norm="after", stretch=stretch)

    def routes(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return (layer + 1) % self.expert_interval == 0


_LLAMA4: dict[str, Any] = dict(chunk=8192, expert_size=8192, shared_size=8192)
VARIANTS: dict[str, Config] = {
    "tiny_llama4": Config(),
    "llama4_scout_109b": Config(
        202_048,
        5120,
        16_384,
        48,
        40,
        8,
        128,
        num_experts=16,
        rope_scaling=RopeScaling("llama3", 16.0, 1.0, 1.0, 8192),
        max_positions=10_485_760,
        **_LLAMA4,
    ),
    "llama4_maverick_400b": Config(
        202_048,
        5120,
        16_384,
        48,
        40,
        8,
        128,
        num_experts=128,
        expert_interval=2,
        qk_norm=False,
        max_positions=1_048_576,
        **_LLAMA4,
    ),
}

_MLP = "model.layers.{}.feed_forward"
HF_NAMES: Names = {
    ours: (theirs.replace(".mlp.", ".feed_forward."), axes) for ours, (theirs, axes) in dense.NAMES.items()
} | {
    "layers.{}.mlp.router.kernel": (f"{_MLP}.router.weight", 1),
    "layers.{}.mlp.experts.gate": (f"{_MLP}.experts.gate_up_proj#gate", None),
    "layers.{}.mlp.experts.up": (f"{_MLP}.experts.gate_up_proj#up", None),
    "layers.{}.mlp.experts.down": (f"{_MLP}.experts.down_proj", None),
    **{
        f"layers.{{}}.mlp.shared.{p}.kernel": (f"{_MLP}.shared_expert.{p}_proj.weight", 1)
        for p in ("gate", "up", "down")
    },
}
_FIXED = {"attention_bias": False, "hidden_act": "silu", "num_experts_per_tok": 1}


def fused(config: Config) -> Mapping[str, Fused]:
    """Tensors of the files that are several of ours."""
    return {f"{_MLP}.experts.gate_up_proj": Fused({"gate": config.expert_size, "up": config.expert_size}, last=True)}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    layers, theta_scaling = range(hf["num_hidden_layers"]), read_rope(hf, theta=500_000.0)
    interval, step = hf.get("no_rope_layer_interval") or 4, hf.get("interleave_moe_layer_step") or 1
    turned = hf.get("no_rope_layers") or []
    if turned and list(turned) != [int((layer + 1) % interval > 0) for layer in layers]:
        raise UserError(
            f"no_rope_layers must be 0 at every {interval}th layer and 1 elsewhere, got {str(turned)[:200]}"
        )
    routed_layers = hf.get("moe_layers")
    if routed_layers is not None and list(routed_layers) != list(layers[step - 1 :: step]):
        raise UserError(f"moe_layers must be every {step}th layer, got {str(routed_layers)[:200]}")
    return dense.read_config(
        Config,
        hf,
        _FIXED,
        rope_theta=theta_scaling[0],
        rope_scaling=theta_scaling[1],
        intermediate_size=hf["intermediate_size_mlp"],
        expert_size=hf["intermediate_size"],
        shared_size=hf["intermediate_size"],
        num_experts=hf["num_local_experts"],
        qk_norm=hf.get("use_qk_norm", True),
        chunk=hf["attention_chunk_size"],
        plain_interval=interval,
        expert_interval=step,
        stretch=hf.get("attn_scale", 0.1) if hf.get("attn_temperature_tuning", True) else 0.0,
        stretch_length=hf.get("floor_scale", 8192),
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    return dense.write_config(
        config,
        {
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "intermediate_size": config.expert_size,
            "intermediate_size_mlp": config.intermediate_size,
            "num_local_experts": config.num_experts,
            "use_qk_norm": config.qk_norm,
            "attention_chunk_size": config.chunk,
            "no_rope_layer_interval": config.plain_interval,
            "interleave_moe_layer_step": config.expert_interval,
            "attn_temperature_tuning": bool(config.stretch),
            "attn_scale": config.stretch,
            "floor_scale": config.stretch_length,
            **_FIXED,
        },
    )
