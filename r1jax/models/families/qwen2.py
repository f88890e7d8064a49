"""The Qwen2 family: Qwen2, Qwen2.5, Qwen2.5-Math, and DeepSeek-R1's distillations into them. Llama with biases on
queries, keys and values.

Left out: sliding-window attention, which the released files describe but switch off.

Sources: Qwen2 (2407.10671), Qwen2.5 (2412.15115), Qwen2.5-Math (2409.12122); names as in the Hugging Face files.
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
    """Sizes of a Qwen2 model."""

    norm_epsilon: float = 1e-6
    qkv_bias: bool = True


_SMALL: dict[str, Any] = dict(rope_theta=1_000_000.0, max_positions=32_768)
_LONG: dict[str, Any] = dict(rope_theta=1_000_000.0, max_positions=131_072)
_UNTIED: dict[str, Any] = dict(tie_embeddings=False, **_LONG)
_MATH: dict[str, Any] = dict(rope_theta=10_000.0, max_positions=4096)

VARIANTS: dict[str, Config] = {
    "tiny_qwen2": Config(),
    "qwen2.5_0.5b": Config(151_936, 896, 4864, 24, 14, 2, 64, **_SMALL),
    "qwen2.5_1.5b": Config(151_936, 1536, 8960, 28, 12, 2, 128, **_LONG),
    "qwen2.5_3b": Config(151_936, 2048, 11_008, 36, 16, 2, 128, **_SMALL),
    "qwen2.5_7b": Config(152_064, 3584, 18_944, 28, 28, 4, 128, **_UNTIED),
    "qwen2.5_14b": Config(152_064, 5120, 13_824, 48, 40, 8, 128, norm_epsilon=1e-5, **_UNTIED),
    "qwen2.5_32b": Config(152_064, 5120, 27_648, 64, 40, 8, 128, norm_epsilon=1e-5, **_UNTIED),
    "qwen2.5_math_1.5b": Config(151_936, 1536, 8960, 28, 12, 2, 128, **_MATH),
    "qwen2.5_math_7b": Config(152_064, 3584, 18_944, 28, 28, 4, 128, tie_embeddings=False, **_MATH),
}

HF_NAMES: Names = {**dense.NAMES, **dense.BIAS_NAMES}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    dense.refuse_windows(hf)
    return dense.read_config(Config, hf, {"hidden_act": "silu"})


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    named = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    hf = dense.write_config(config, {**named, "hidden_act": "silu", "use_sliding_window": False})
    if config.head_dim * config.num_heads == config.hidden_size:
        del hf["head_dim"]  # absent in the released files
    return hf
