"""Parts of Hugging Face files that all families read: the type of name tables, and the RoPE keys of config.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.models.rope import RopeScaling, YaRN

# Our dotted parameter path -> (their tensor name, leading input axes of their matrix); weights/hf.py explains both.
Names = Mapping[str, tuple[str, int | None]]

# Sizes of a config.json and the largest value believed: a model is built from them before its tensors are read.
_LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "max_position_embeddings": 2**40,
    "moe_intermediate_size": 2**22,
    "n_routed_experts": 2**14,
    "num_experts": 2**14,
    "num_local_experts": 2**14,
    "num_experts_per_tok": 2**14,
    "kv_lora_rank": 2**16,
    "q_lora_rank": 2**16,
    "qk_nope_head_dim": 2**14,
    "qk_rope_head_dim": 2**14,
    "v_head_dim": 2**14,
}
_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_FLAGS = ("tie_word_embeddings", "attention_bias", "use_sliding_window", "norm_topk_prob")
_SCALES = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_POSITIVE = ("rms_norm_eps", "rope_theta", "initializer_range")


def check_sizes(hf: Mapping[str, Any]) -> None:
    """Checks the numbers of a config.json before anything is built from them; null counts as absent.

    Raises KeyError for a missing key, UserError for a size that is no whole number or out of range.
    """
    for key in _NEEDED:
        if hf.get(key) is None:
            raise KeyError(key)
    for key, largest in _LARGEST.items():
        value = hf.get(key)
        if value is not None and (type(value) is not int or not 1 <= value <= largest):
            raise UserError(f"config.json: {key} must be a whole number from 1 to {largest}, got {str(value)[:60]!r}")
    for key in _FLAGS:
        if type(hf.get(key, False)) not in (bool, type(None)):
            raise UserError(f"config.json: {key} must be true or false, got {str(hf[key])[:60]!r}")
    for key in ("rope_scaling", "rope_parameters"):
        scaling = hf.get(key) or {}
        for name in _SCALES if isinstance(scaling, Mapping) else ():
            value = scaling.get(name)
            if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
                raise UserError(f"config.json: {key}.{name} must be a positive number, got {str(value)[:60]!r}")
    for key in _POSITIVE:
        value = hf.get(key)
        if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
            raise UserError(f"config.json: {key} must be a positive number, got {str(value)[:60]!r}")


def read_either(hf: Mapping[str, Any], name: str, newer: str) -> Any:
    """A value under the name of the released files, or under that of newer releases of transformers.

    Raises KeyError, of the former, if there is neither.
    """
    value = hf.get(name)
    value = hf.get(newer) if value is None else value
    if value is None:
        raise KeyError(name)
    return value


def read_rope(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | YaRN | None]:
    """RoPE theta and scaling from `rope_scaling` (hub files) or `rope_parameters` (newer files).

    Raises UserError for an unknown kind or a missing key.
    """
    parameters = hf.get("rope_parameters") or {}
    scaling = parameters if parameters else hf.get("rope_scaling") or {}
    theta = parameters.get("rope_theta", hf.get("rope_theta", 10_000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in _SCALINGS:
        raise UserError(f"rope scaling {kind!r} is not known; known: default, {', '.join(_SCALINGS)}")
    try:
        return theta, _SCALINGS[kind](scaling, hf)
    except KeyError as error:
        raise UserError(f"rope scaling {kind!r} lacks the key {error}") from None


def _read_llama3(scaling: Mapping[str, Any], hf: Mapping[str, Any]) -> RopeScaling:
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return RopeScaling("llama3", *(scaling[key] for key in keys))


def _read_yarn(scaling: Mapping[str, Any], hf: Mapping[str, Any]) -> YaRN:
    original = scaling["original_max_position_embeddings"]
    return YaRN(
        scaling.get("factor") or hf["max_position_embeddings"] / original,
        original,
        scaling.get("beta_fast") or 32,
        scaling.get("beta_slow") or 1,
        scaling.get("mscale") or 0.0,
        scaling.get("mscale_all_dim") or 0.0,
        scaling.get("attention_factor"),
        scaling.get("truncate", True),
    )


_SCALINGS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], RopeScaling | YaRN]] = {
    "linear": lambda scaling, _: RopeScaling("linear", scaling["factor"]),
    "llama3": _read_llama3,
    "yarn": _read_yarn,
}
