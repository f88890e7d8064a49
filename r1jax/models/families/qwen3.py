"""The dense Qwen3 family: Llama with per-head normalization of queries and keys, and an independent head width.

Left out: sliding-window attention, which the released files describe but switch off.

Source: Qwen3 (2505.09388); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.models.families import dense
from r1jax.models.families.dense import build as build
from r1jax.models.families.hf_config import Names


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of a Qwen3 model; in the toy, heads are wider than hidden_size / num_heads."""

    head_dim: int = 32
    norm_epsilon: float = 1e-6
    qk_norm: bool = True


_QWEN3: dict[str, Any] = dict(rope_theta=1_000_000.0, max_positions=40_960)
_UNTIED: dict[str, Any] = dict(tie_embeddings=False, **_QWEN3)

VARIANTS: dict[str, Config] = {
    "tiny_qwen3": Config(),
    "qwen3_0.6b": Config(151_936, 1024, 3072, 28, 16, 8, 128, **_QWEN3),
    "qwen3_1.7b": Config(151_936, 2048, 6144, 28, 16, 8, 128, **_QWEN3),
    "qwen3_4b": Config(151_936, 2560, 9728, 36, 32, 8, 128, **_QWEN3),
    "qwen3_8b": Config(151_936, 4096, 12_288, 36, 32, 8, 128, **_UNTIED),
    "qwen3_14b": Config(151_936, 5120, 17_408, 40, 40, 8, 128, **_UNTIED),
    "qwen3_32b": Config(151_936, 5120, 25_600, 64, 64, 8, 128, **_UNTIED),
}

HF_NAMES: Names = {**dense.NAMES, **dense.NORM_NAMES}

_FIXED = {"attention_bias": False, "hidden_act": "silu"}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    dense.refuse_windows(hf)
    return dense.read_config(Config, {"head_dim": 128, **hf}, _FIXED)


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    named = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False}
    return dense.write_config(config, {**named, **_FIXED})
