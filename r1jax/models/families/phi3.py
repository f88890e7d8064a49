"""The Phi-3 family: Phi-3-mini and medium, Phi-4, Phi-4-mini. Llama with LongRoPE, in Phi-4-mini of three quarters of
each head, and with queries, keys and values, and gate and up, as one tensor each in the files.

Sources: Phi-3 (2404.14219), Phi-4 (2412.08905), Phi-4-mini (2503.01743); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.models.attention import Style
from r1jax.models.families import dense
from r1jax.models.families.dense import build as build
from r1jax.models.families.hf_config import Fused, Names, read_rope, read_rotary_share
from r1jax.models.rope import LongRoPE, Rope


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of a Phi-3 model. rotary_dim: turned elements of a head; window: keys that every layer sees (0: all)."""

    tie_embeddings: bool = False
    rotary_dim: int = 16
    window: int = 0

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotation of a part of each head."""
        return {"": Rope(self.rotary_dim, self.rope_theta, self.rope_scaling)}

    def style(self, layer: int) -> Style:
        """The window of a layer."""
        return Style(window=self.window)


VARIANTS: dict[str, Config] = {
    "tiny_phi3": Config(),
    "phi3_mini_4k": Config(32_064, 3072, 8192, 32, 32, 32, 96, rotary_dim=96, window=2047),
    "phi4_14b": Config(
        100_352, 5120, 17_920, 40, 40, 10, 128, rope_theta=250_000.0, rotary_dim=128, max_positions=16_384
    ),
}

_SELF, _MLP = "model.layers.{}.self_attn.qkv_proj.weight", "model.layers.{}.mlp.gate_up_proj.weight"
HF_NAMES: Names = {
    **dense.NAMES,
    **{f"layers.{{}}.attention.{part}.kernel": (f"{_SELF}#{part}", 1) for part in ("query", "key", "value")},
    **{f"layers.{{}}.mlp.{part}.kernel": (f"{_MLP}#{part}", 1) for part in ("gate", "up")},
}
_FIXED = {"attention_bias": False, "hidden_act": "silu"}


def fused(config: Config) -> Mapping[str, Fused]:
    """Tensors of the files that are several of ours."""
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner = config.intermediate_size
    return {
        _SELF: Fused({"query": query, "key": key, "value": key}),
        _MLP: Fused({"gate": inner, "up": inner}),
    }


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    head = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    theta, scaling = read_rope(hf)
    return dense.read_config(
        Config,
        hf,
        _FIXED,
        rope_theta=theta,
        rope_scaling=scaling,
        rotary_dim=int(head * read_rotary_share(hf, 1.0)),
        window=hf.get("sliding_window") or 0,
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    scaling = config.rope_scaling
    original = scaling.original_positions if isinstance(scaling, LongRoPE) else config.max_positions
    hf = dense.write_config(
        config,
        {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "sliding_window": config.window or None,
            "original_max_position_embeddings": original,
            "partial_rotary_factor": config.rotary_dim / config.head_dim,
            **_FIXED,
        },
    )
    del hf["head_dim"]
    return hf
