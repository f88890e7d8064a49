"""The MiniMax-M2 family: grouped-query attention whose queries and keys are normalized over all heads at once, a part
of each head turned; experts in every layer, selected by sigmoid with a correction.

Left out: prediction depths, which the released files do not hold.

Source: MiniMax-M2's config.json and model card; names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.models.attention import Style
from r1jax.models.experts import Gate
from r1jax.models.families import dense, routed
from r1jax.models.families.hf_config import Names, read_rope, read_rotary_share
from r1jax.models.families.routed import build as build
from r1jax.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class Config(routed.RoutedConfig):
    """Sizes of a MiniMax-M2 model. rotary_dim: turned elements of a head."""

    intermediate_size: int = 32
    norm_epsilon: float = 1e-6
    qk_norm: bool = True
    gate: Gate = Gate("sigmoid", bias=True)
    rotary_dim: int = 8

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotation of a part of each head."""
        return {"": Rope(self.rotary_dim, self.rope_theta, self.rope_scaling)}

    def style(self, layer: int) -> Style:
        """Norms over all heads."""
        return Style(norm="width")


_M2: dict[str, Any] = dict(
    rope_theta=5e6,
    max_positions=196_608,
    rotary_dim=64,
    expert_size=1536,
    num_experts=256,
    active_experts=8,
)
VARIANTS: dict[str, Config] = {
    "tiny_minimax_m2": Config(),
    "minimax_m2_230b": Config(200_064, 3072, 1536, 62, 48, 8, 128, **_M2),
}

_STEM = "model.layers.{}.block_sparse_moe"
HF_NAMES: Names = {
    **{ours: names for ours, names in dense.NAMES.items() if ".mlp." not in ours},
    **dense.NORM_NAMES,
    "layers.{}.mlp.router.kernel": (f"{_STEM}.gate.weight", 1),
    "layers.{}.mlp.router.correction_bias": (f"{_STEM}.e_score_correction_bias", None),
    "layers.{}.mlp.experts.gate": (f"{_STEM}.experts.{{}}.w1.weight", 1),
    "layers.{}.mlp.experts.up": (f"{_STEM}.experts.{{}}.w3.weight", 1),
    "layers.{}.mlp.experts.down": (f"{_STEM}.experts.{{}}.w2.weight", 1),
}
_FIXED = {"hidden_act": "silu"}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    head = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    theta, scaling = read_rope(hf, theta=5e6)
    known = {**_FIXED, "scoring_func": "sigmoid", "use_routing_bias": True, "qk_norm_type": "per_layer"}
    return dense.read_config(
        Config,
        hf,
        known,
        rope_theta=theta,
        rope_scaling=scaling,
        rotary_dim=hf.get("rotary_dim") or int(head * read_rotary_share(hf, 1.0)),
        expert_size=hf["intermediate_size"],
        num_experts=hf["num_local_experts"],
        active_experts=hf["num_experts_per_tok"],
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    return dense.write_config(
        config,
        {
            "architectures": ["MiniMaxM2ForCausalLM"],
            "model_type": "minimax_m2",
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.active_experts,
            "rotary_dim": config.rotary_dim,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "use_qk_norm": True,
            "qk_norm_type": "per_layer",
            **_FIXED,
        },
    )
