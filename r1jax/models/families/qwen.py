"""The dense Qwen families: Qwen2, Qwen2.5, Qwen2.5-Math and DeepSeek-R1's distillations into them, which are Llama with
biases on queries, keys and values; and Qwen3, which normalizes each head's queries and keys instead and has a head
width of its own.

Left out: sliding-window attention, which the released files describe but switch off.

Sources: Qwen2 (2407.10671), Qwen2.5 (2412.15115), Qwen2.5-Math (2409.12122), Qwen3 (2505.09388); names as in the
Hugging Face files.
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
    """Sizes of a Qwen model: Qwen3 with `qk_norm`, Qwen2 with `qkv_bias`."""

    norm_epsilon: float = 1e-6
    qkv_bias: bool = True


_SECOND: dict[str, Any] = dict(rope_theta=1_000_000.0, max_positions=32_768)
_LONG: dict[str, Any] = dict(rope_theta=1_000_000.0, max_positions=131_072)
_LARGE: dict[str, Any] = dict(tie_embeddings=False, **_LONG)
_MATH: dict[str, Any] = dict(rope_theta=10_000.0, max_positions=4096)
_NORMED: dict[str, Any] = dict(qkv_bias=False, qk_norm=True)
_THIRD: dict[str, Any] = dict(rope_theta=1_000_000.0, max_positions=40_960, **_NORMED)
_UNTIED: dict[str, Any] = dict(tie_embeddings=False, **_THIRD)

VARIANTS: dict[str, Config] = {
    "tiny_qwen2": Config(),
    "qwen2.5_0.5b": Config(151_936, 896, 4864, 24, 14, 2, 64, **_SECOND),
    "qwen2.5_1.5b": Config(151_936, 1536, 8960, 28, 12, 2, 128, **_LONG),
    "qwen2.5_3b": Config(151_936, 2048, 11_008, 36, 16, 2, 128, **_SECOND),
    "qwen2.5_7b": Config(152_064, 3584, 18_944, 28, 28, 4, 128, **_LARGE),
    "qwen2.5_14b": Config(152_064, 5120, 13_824, 48, 40, 8, 128, norm_epsilon=1e-5, **_LARGE),
    "qwen2.5_32b": Config(152_064, 5120, 27_648, 64, 40, 8, 128, norm_epsilon=1e-5, **_LARGE),
    "qwen2.5_math_1.5b": Config(151_936, 1536, 8960, 28, 12, 2, 128, **_MATH),
    "qwen2.5_math_7b": Config(152_064, 3584, 18_944, 28, 28, 4, 128, tie_embeddings=False, **_MATH),
    "tiny_qwen3": Config(head_dim=32, **_NORMED),
    "qwen3_0.6b": Config(151_936, 1024, 3072, 28, 16, 8, 128, **_THIRD),
    "qwen3_1.7b": Config(151_936, 2048, 6144, 28, 16, 8, 128, **_THIRD),
    "qwen3_4b": Config(151_936, 2560, 9728, 36, 32, 8, 128, **_THIRD),
    "qwen3_8b": Config(151_936, 4096, 12_288, 36, 32, 8, 128, **_UNTIED),
    "qwen3_14b": Config(151_936, 5120, 17_408, 40, 40, 8, 128, **_UNTIED),
    "qwen3_32b": Config(151_936, 5120, 25_600, 64, 64, 8, 128, **_UNTIED),
}

HF_NAMES: Names = {**dense.NAMES, **dense.BIAS_NAMES, **dense.NORM_NAMES}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    dense.refuse_windows(hf)
    if hf["model_type"] == "qwen2":
        return dense.read_config(Config, hf, {"hidden_act": "silu"})
    return dense.read_config(
        Config, {"head_dim": 128, **hf}, {"attention_bias": False, "hidden_act": "silu"}, **_NORMED
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    name, kind = ("Qwen3", "qwen3") if config.qk_norm else ("Qwen2", "qwen2")
    own: dict[str, Any] = {"attention_bias": False} if config.qk_norm else {}
    named = {"architectures": [f"{name}ForCausalLM"], "model_type": kind, "use_sliding_window": False}
    hf = dense.write_config(config, {**named, **own, "hidden_act": "silu"})
    if kind == "qwen2" and config.head_dim * config.num_heads == config.hidden_size:
        del hf["head_dim"]  # absent in the released files
    return hf
