"""Registry of model families: the module that reads each `model_type` of a config.json."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from r1jax.core.errors import UserError

# model_type -> module with VARIANTS, HF_NAMES, build, from_hf and to_hf, imported on first use.
FAMILIES = {
    "deepseek_v2": "r1jax.models.families.deepseek_v3",
    "deepseek_v3": "r1jax.models.families.deepseek_v3",
    "deepseek_v32": "r1jax.models.families.deepseek_v3",
    "gemma2": "r1jax.models.families.gemma",
    "gemma3_text": "r1jax.models.families.gemma",
    "gemma4_text": "r1jax.models.families.gemma4",
    "gemma4_unified_text": "r1jax.models.families.gemma4",
    "glm4_moe": "r1jax.models.families.glm4_moe",
    "glm4_moe_lite": "r1jax.models.families.deepseek_v3",
    "gpt_oss": "r1jax.models.families.gpt_oss",
    "kimi_k2": "r1jax.models.families.deepseek_v3",
    "llama": "r1jax.models.families.llama",
    "llama4_text": "r1jax.models.families.llama4",
    "minimax_m2": "r1jax.models.families.minimax_m2",
    "ministral": "r1jax.models.families.llama",
    "ministral3": "r1jax.models.families.llama",
    "mistral": "r1jax.models.families.llama",
    "olmo2": "r1jax.models.families.olmo",
    "olmo3": "r1jax.models.families.olmo",
    "phi3": "r1jax.models.families.phi3",
    "qwen2": "r1jax.models.families.qwen",
    "qwen3": "r1jax.models.families.qwen",
    "qwen3_5_moe_text": "r1jax.models.families.qwen3_next",
    "qwen3_5_text": "r1jax.models.families.qwen3_next",
    "qwen3_moe": "r1jax.models.families.qwen3_moe",
    "qwen3_next": "r1jax.models.families.qwen3_next",
    "smollm3": "r1jax.models.families.llama",
}

# model_type of a model with images -> keys of its text model's config.json that its files may lack.
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "gemma4": {"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"]},
    "gemma4_unified": {"model_type": "gemma4_unified_text", "architectures": ["Gemma4UnifiedForCausalLM"]},
    "llama4": {"model_type": "llama4_text", "architectures": ["Llama4ForCausalLM"]},
    "qwen3_5": {"model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"]},
    "qwen3_5_moe": {"model_type": "qwen3_5_moe_text", "architectures": ["Qwen3_5MoeForCausalLM"]},
    "kimi_k25": {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]},
    "mistral3": {},
}


def find_family(model_type: Any, path: Any) -> ModuleType:
    """Module of a `model_type`; `path` is the model's path, for the message.

    Raises UserError for a type that FAMILIES lacks.
    """
    kind = str(model_type or "").lower()
    if kind not in FAMILIES:
        raise UserError(f"{path}: unknown model_type {kind!r}; known: {', '.join(sorted(FAMILIES))}")
    return importlib.import_module(FAMILIES[kind])


def load_families() -> dict[str, ModuleType]:
    """Modules of all families by the last part of the module's name."""
    return {name.rpartition(".")[2]: importlib.import_module(name) for name in sorted(set(FAMILIES.values()))}
