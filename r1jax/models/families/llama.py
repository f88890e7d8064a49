"""The Llama family: Llama 2, 3, 3.1 (rope scaling "llama3"), SmolLM2. Pre-norm, grouped-query attention, SwiGLU.

Sources: Touvron et al. 2023 (2307.09288), Llama 3 herd (2407.21783), SmolLM2 (2502.02737); names as in the Hugging
Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.models.families import dense
from r1jax.models.families.dense import build as build
from r1jax.models.families.hf_config import Names
from r1jax.models.rope import RopeScaling


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of a Llama model."""


_LLAMA31: dict[str, Any] = dict(
    rope_theta=500_000.0, rope_scaling=RopeScaling(), tie_embeddings=False, max_positions=131_072
)

VARIANTS: dict[str, Config] = {
    "tiny_llama": Config(),
    "smollm2_135m": Config(
        49_152, 576, 1_536, 30, 9, 3, 64, rope_theta=100_000.0, initializer_std=1 / 24, max_positions=8192
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
    return dense.read_config(Config, hf, _FIXED)


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    named = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    return dense.write_config(config, {**named, **_FIXED})
