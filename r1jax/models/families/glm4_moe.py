"""The GLM-4.5 family: GLM-4.5, 4.6 and their Air models. Grouped-query attention with biases, in the larger ones with
normalized queries and keys, the first half of each head turned; experts as DeepSeek-V3's; one prediction depth.

GLM-4.7-Flash has DeepSeek-V3's attention and is read by deepseek_v3.py.

Source: GLM-4.5 (2508.06471); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.models.experts import Gate
from r1jax.models.families import dense, routed
from r1jax.models.families.hf_config import Names, read_rope, read_rotary_share
from r1jax.models.families.routed import build as build
from r1jax.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class Config(routed.RoutedConfig):
    """Sizes of a GLM-4.5 model. dense_layers: number of first layers without experts; rotary_dim: turned elements of a
    head.
    """

    num_layers: int = 3
    qkv_bias: bool = True
    gate: Gate = Gate("sigmoid", bias=True)
    shared_size: int = 32
    mtp_depths: int = 1
    dense_layers: int = 1
    rotary_dim: int = 8

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotation of a part of each head."""
        return {"": Rope(self.rotary_dim, self.rope_theta, self.rope_scaling)}

    def routes(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer >= self.dense_layers


_GLM: dict[str, Any] = dict(rope_theta=1e6, max_positions=131_072, rotary_dim=64, active_experts=8)
_LARGE: dict[str, Any] = _GLM | dict(
    qk_norm=True,
    expert_size=1536,
    shared_size=1536,
    num_experts=160,
    dense_layers=3,
    gate=Gate("sigmoid", scale=2.5, bias=True),
)
_AIR: dict[str, Any] = _GLM | dict(expert_size=1408, shared_size=1408, num_experts=128, dense_layers=1)

VARIANTS: dict[str, Config] = {
    "tiny_glm4_moe": Config(),
    "glm4.5_355b": Config(151_552, 5120, 12_288, 92, 96, 8, 128, **_LARGE),
    "glm4.6_355b": Config(151_552, 5120, 12_288, 92, 96, 8, 128, **_LARGE | dict(max_positions=202_752)),
    "glm4.5_air_106b": Config(151_552, 4096, 10_944, 46, 96, 8, 128, **_AIR),
}

_BLOCK: Names = {
    **dense.NAMES,
    **dense.BIAS_NAMES,
    **dense.NORM_NAMES,
    **routed.name_experts("model.layers.{}.mlp", "gate", bias="gate.e_score_correction_bias", shared="shared_experts"),
}
HF_NAMES: Names = {**_BLOCK, **routed.name_depths(_BLOCK)}
HF_COPIES = routed.DEPTH_COPIES
_FIXED = {"hidden_act": "silu"}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    head = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    theta, scaling = read_rope(hf)
    if (hf.get("n_group") or 1) > hf["n_routed_experts"]:
        raise UserError(f"n_group must be at most the {hf['n_routed_experts']} experts, got {hf['n_group']}")
    return dense.read_config(
        Config,
        hf,
        _FIXED,
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=hf.get("attention_bias", False),
        qk_norm=hf.get("use_qk_norm", False),
        rotary_dim=int(head * read_rotary_share(hf, 0.5)),
        expert_size=hf["moe_intermediate_size"],
        num_experts=hf["n_routed_experts"],
        active_experts=hf["num_experts_per_tok"],
        shared_size=(hf.get("n_shared_experts") or 0) * hf["moe_intermediate_size"],
        dense_layers=hf.get("first_k_dense_replace", 0),
        gate=Gate(
            "sigmoid",
            normalize=hf.get("norm_topk_prob", True),
            scale=hf.get("routed_scaling_factor", 1.0),
            groups=hf.get("n_group") or 1,
            active_groups=hf.get("topk_group") or 1,
            bias=True,
        ),
        mtp_depths=hf.get("num_nextn_predict_layers") or 0,
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    return dense.write_config(
        config,
        {
            "architectures": ["Glm4MoeForCausalLM"],
            "model_type": "glm4_moe",
            "attention_bias": config.qkv_bias,
            "use_qk_norm": config.qk_norm,
            "partial_rotary_factor": config.rotary_dim / config.head_dim,
            "moe_intermediate_size": config.expert_size,
            "n_routed_experts": config.num_experts,
            "num_experts_per_tok": config.active_experts,
            "n_shared_experts": config.shared_size // config.expert_size,
            "first_k_dense_replace": config.dense_layers,
            "norm_topk_prob": config.gate.normalize,
            "routed_scaling_factor": config.gate.scale,
            "n_group": config.gate.groups,
            "topk_group": config.gate.active_groups,
            "num_nextn_predict_layers": config.mtp_depths,
            **_FIXED,
        },
    )
