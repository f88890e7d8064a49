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


# fmt: off
_MINI = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
    2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555,
    7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283,
    20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7,
    32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on
VARIANTS: dict[str, Config] = {
    "tiny_phi3": Config(),
    "phi3_mini_4k": Config(32_064, 3072, 8192, 32, 32, 32, 96, rotary_dim=96, window=2047),
    "phi4_mini_3.8b": Config(
        200_064,
        3072,
        8192,
        32,
        24,
        8,
        128,
        tie_embeddings=True,
        rotary_dim=96,
        rope_scaling=LongRoPE((1.0,) * 48, _MINI),
        max_positions=131_072,
    ),
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
