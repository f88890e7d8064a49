"""The Llama family: Llama 2, 3, 3.1 (rope scaling "llama3"), SmolLM2, and SmolLM3, which encodes no positions in every
fourth layer (NoPE). Pre-norm, grouped-query attention, SwiGLU.

Sources: Touvron et al. 2023 (2307.09288), Llama 3 herd (2407.21783), SmolLM2 (2502.02737), SmolLM3's model card; names
as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.models.attention import LLAMA, Style
from r1jax.models.families import dense
from r1jax.models.families.dense import build as build
from r1jax.models.families.hf_config import Names
from r1jax.models.rope import RopeScaling


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of a Llama model. plain_interval: every so many-th layer encodes no positions (0: none, a Llama)."""

    plain_interval: int = 0

    def style(self, layer: int) -> Style:
        """Whether a layer encodes positions."""
        plain = self.plain_interval and (layer + 1) % self.plain_interval == 0
        return Style(rope=None) if plain else LLAMA


_LLAMA31: dict[str, Any] = dict(
    rope_theta=500_000.0, rope_scaling=RopeScaling(), tie_embeddings=False, max_positions=131_072
)

VARIANTS: dict[str, Config] = {
    "tiny_llama": Config(),
    "smollm2_135m": Config(
        49_152, 576, 1_536, 30, 9, 3, 64, rope_theta=100_000.0, initializer_std=1 / 24, max_positions=8192
    ),
    "tiny_smollm3": Config(num_layers=4, plain_interval=4),
    "smollm3_3b": Config(
        128_256, 2048, 11_008, 36, 16, 4, 128, rope_theta=5e6, norm_epsilon=1e-6, max_positions=65_536, plain_interval=4
    ),
    "llama2_7b": Config(32_000, 4096, 11_008, 32, 32, 32, 128, tie_embeddings=False),
    "llama3.1_8b": Config(128_256, 4096, 14_336, 32, 32, 8, 128, **_LLAMA31),
    "llama3.1_70b": Config(128_256, 8192, 28_672, 80, 64, 8, 128, **_LLAMA31),
}

HF_NAMES: Names = dense.NAMES

_FIXED = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    if hf.get("model_type") != "smollm3":
        return dense.read_config(Config, hf, _FIXED)
    dense.refuse_windows(hf)
    interval, turned = hf.get("no_rope_layer_interval", 4), hf.get("no_rope_layers")
    if turned and list(turned) != [int((layer + 1) % interval > 0) for layer in range(hf["num_hidden_layers"])]:
        raise UserError(
            f"no_rope_layers must be 0 at every {interval}th layer and 1 elsewhere, got {str(turned)[:200]}"
        )
    hf = {"tie_word_embeddings": True, "rope_theta": 2e6, **hf}
    return dense.read_config(Config, hf, _FIXED, plain_interval=interval)


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    named: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if config.plain_interval:
        named = {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "use_sliding_window": False}
        named["no_rope_layer_interval"] = config.plain_interval
    return dense.write_config(config, {**named, **_FIXED})
