"""Published sizes of models with DeepSeek's architecture, as arguments of deepseek_v3.py's `Config`; their gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.models.experts import Gate, GateKind
from r1jax.models.mla import LatentSizes
from r1jax.models.rope import YaRN
from r1jax.models.sparse import IndexSizes

V2_GATE = Gate("softmax", normalize=False, scale=1.0, groups=1, active_groups=1, bias=False)

_V3: dict[str, Any] = dict(
    vocab_size=129_280,
    hidden_size=7168,
    intermediate_size=18_432,
    num_layers=61,
    num_heads=128,
    latents=LatentSizes(1536, 512, 128, 64, 128),
    expert_size=2048,
    num_experts=256,
    active_experts=8,
    gate=Gate("sigmoid", normalize=True, scale=2.5, groups=8, active_groups=4, bias=True),
    dense_layers=3,
    rope_scaling=YaRN(40.0, 4096, 32.0, 1.0, mscale=1.0, mscale_all_dim=1.0),
    max_positions=163_840,
)
_V2_LITE: dict[str, Any] = dict(
    vocab_size=102_400,
    hidden_size=2048,
    intermediate_size=10_944,
    num_layers=27,
    num_heads=16,
    latents=LatentSizes(0, 512, 128, 64, 128),
    expert_size=1408,
    num_experts=64,
    active_experts=6,
    shared_experts=2,
    gate=V2_GATE,
    mtp_depths=0,
    rope_scaling=YaRN(40.0, 4096, 32.0, 1.0, mscale=0.707, mscale_all_dim=0.707),
    max_positions=163_840,
)
_KIMI: dict[str, Any] = dict(
    vocab_size=163_840,
    num_heads=64,
    num_experts=384,
    gate=Gate("sigmoid", scale=2.827, bias=True),
    dense_layers=1,
    mtp_depths=0,
    rope_theta=50_000.0,
    rope_scaling=YaRN(32.0, 4096, 1.0, 1.0, mscale=1.0, mscale_all_dim=1.0),
    max_positions=131_072,
)
_MOONLIGHT: dict[str, Any] = dict(
    vocab_size=163_840,
    intermediate_size=11_264,
    gate=Gate("sigmoid", scale=2.446, bias=True),
    rope_theta=50_000.0,
    rope_scaling=None,
    max_positions=8192,
    norm_epsilon=1e-5,
)
_FLASH: dict[str, Any] = dict(
    vocab_size=154_880,
    hidden_size=2048,
    intermediate_size=10_240,
    num_layers=47,
    num_heads=20,
    latents=LatentSizes(768, 512, 192, 64, 256),
    expert_size=1536,
    num_experts=64,
    active_experts=4,
    gate=Gate("sigmoid", scale=1.8, bias=True),
    rope_theta=1e6,
    max_positions=202_752,
    norm_epsilon=1e-5,
)
_LONGER = YaRN(64.0, 4096, 32.0, 1.0, mscale=1.0, mscale_all_dim=1.0)
SIZES: dict[str, dict[str, Any]] = {
    "deepseek_v3_671b": _V3,
    "deepseek_v3.2_671b": _V3 | dict(index=IndexSizes(64, 128, 2048)),
    "deepseek_v2_lite_16b": _V2_LITE,
    "moonlight_16b_a3b": _V2_LITE | _MOONLIGHT,
    "kimi_k2_1t": _V3 | _KIMI,
    "kimi_k2.5_1t": _V3 | _KIMI | dict(rope_scaling=_LONGER, max_positions=262_144),
    "glm4.7_flash_30b": _FLASH,
}

FIXED = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}  # keys with their only supported value


def read_gate(hf: Mapping[str, Any]) -> Gate:
    """The gate of a config.json: V3 selects by sigmoid and correction bias, V2 by softmax; no other is published."""
    kind: GateKind = "softmax" if hf.get("model_type") == "deepseek_v2" else "sigmoid"
    method = "greedy" if kind == "softmax" else "noaux_tc"
    limited = kind == "softmax" and hf.get("topk_method") == "group_limited_greedy"
    known = {**FIXED, "scoring_func": kind, "topk_method": "group_limited_greedy" if limited else method}
    if kind == "softmax":
        known["norm_topk_prob"] = False
    for key, value in known.items():
        if hf.get(key, value) != value:
            raise UserError(f"{key} = {hf[key]!r} is not known for this family; known: {value!r}")
    grouped = kind == "sigmoid" or limited
    return Gate(
        kind,
        normalize=kind == "sigmoid" and hf.get("norm_topk_prob", True),
        scale=hf.get("routed_scaling_factor", 1.0),
        groups=(hf.get("n_group") or 1) if grouped else 1,
        active_groups=(hf.get("topk_group") or 1) if grouped else 1,
        bias=kind == "sigmoid",
    )
