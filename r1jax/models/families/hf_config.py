"""Parts of Hugging Face files that all families read: the type of name tables, and the RoPE keys of config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.models.rope import LongRoPE, RopeScaling, Scaling, YaRN

# Our dotted parameter path -> (their tensor name, leading input axes of their matrix); weights/hf.py explains both.
Names = Mapping[str, tuple[str, int | None]]


@dataclasses.dataclass(frozen=True)
class Fused:
    """A tensor of the files that holds several of ours, whose names in a table end with `#part`.

    sizes: of each part along the axis, in order; last: along the last axis, not the first; interleaved: their elements
    take turns; stacks: matrices that the tensor stacks along a first axis of its own, in whose rows the parts lie.
    """

    sizes: Mapping[str, int]
    last: bool = False
    interleaved: bool = False
    stacks: int = 0

    @property
    def total(self) -> int:
        """Size of the whole along the axis."""
        return sum(self.sizes.values())

    def place(self, part: str) -> slice:
        """Where a part lies along the axis."""
        parts = list(self.sizes)
        if self.interleaved:
            return slice(parts.index(part), None, len(parts))
        start = sum(self.sizes[other] for other in parts[: parts.index(part)])
        return slice(start, start + self.sizes[part])


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


def read_rotary_share(hf: Mapping[str, Any], default: float) -> float:
    """The share of a head's elements that are turned, in files of either age."""
    parameters = hf.get("rope_parameters") or {}
    return parameters.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or default


def read_interval(hf: Mapping[str, Any], default: int) -> int:
    """The interval of layers that see all keys among those with a window, from `layer_types`: every so many-th, counted
    from 1; 0: none does. default: where the file does not say.

    Raises UserError for another order of layers.
    """
    kinds, layers = hf.get("layer_types"), hf["num_hidden_layers"]
    if not kinds:
        return default
    interval = kinds.index("full_attention") + 1 if "full_attention" in kinds else 0
    if list(kinds) not in (write_kinds(layers, interval), write_kinds(layers, default)):
        raise UserError(f"layer_types must be full_attention at every so many-th layer, got {str(kinds)[:200]}")
    return default if list(kinds) == write_kinds(layers, default) else interval


def write_kinds(layers: int, interval: int) -> list[str]:
    """`layer_types` of a config.json, with all keys seen by every `interval`-th layer."""
    full = [bool(interval) and (layer + 1) % interval == 0 for layer in range(layers)]
    return ["full_attention" if whole else "sliding_attention" for whole in full]


def read_rope(hf: Mapping[str, Any], kind: str = "", *, theta: float = 10_000.0) -> tuple[float, Scaling]:
    """RoPE theta and scaling from `rope_scaling` (hub files) or `rope_parameters` (newer files).

    kind: of layers ("full_attention"), where the newer files have parameters for each. theta: where the file names
    none. Raises UserError for an unknown kind of scaling or a missing key.
    """
    parameters = hf.get("rope_parameters") or {}
    parameters = parameters.get(kind) or {} if kind and kind in parameters else parameters
    scaling = parameters if parameters else hf.get("rope_scaling") or {}
    theta = parameters.get("rope_theta", hf.get("rope_theta") or theta)
    name = scaling.get("rope_type", scaling.get("type", "default"))
    if name == "default":
        return theta, None
    if name not in _SCALINGS:
        raise UserError(f"rope scaling {name!r} is not known; known: default, {', '.join(_SCALINGS)}")
    try:
        return theta, _SCALINGS[name](scaling, hf)
    except KeyError as error:
        raise UserError(f"rope scaling {name!r} lacks the key {error}") from None


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


def _read_longrope(scaling: Mapping[str, Any], hf: Mapping[str, Any]) -> LongRoPE:
    original = scaling.get("original_max_position_embeddings") or hf["original_max_position_embeddings"]
    return LongRoPE(
        tuple(map(float, scaling["short_factor"])),
        tuple(map(float, scaling["long_factor"])),
        original,
        scaling.get("factor") or hf["max_position_embeddings"] / original,
        scaling.get("attention_factor"),
    )


def _read_base(kind: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], RopeScaling]:
    def read(scaling: Mapping[str, Any], hf: Mapping[str, Any]) -> RopeScaling:
        return RopeScaling(kind, scaling["factor"], original_positions=hf["max_position_embeddings"])

    return read


_SCALINGS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = {
    "linear": lambda scaling, _: RopeScaling("linear", scaling["factor"]),
    "proportional": lambda scaling, _: RopeScaling(
        "proportional", scaling.get("factor") or 1.0, share=scaling.get("partial_rotary_factor") or 1.0
    ),
    "ntk": _read_base("ntk"),
    "dynamic": _read_base("dynamic"),
    "longrope": _read_longrope,
    "su": _read_longrope,
    "llama3": _read_llama3,
    "yarn": _read_yarn,
}


def write_scaling(scaling: Scaling) -> dict[str, Any] | None:
    """A scaling as `rope_scaling` of a Hugging Face config.json, the inverse of `read_rope`."""
    if scaling is None:
        return None
    if isinstance(scaling, LongRoPE):
        factor = {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}
        return {
            "rope_type": "longrope",
            "factor": scaling.factor,
            "short_factor": list(scaling.short),
            "long_factor": list(scaling.long),
            "original_max_position_embeddings": scaling.original_positions,
            **factor,
        }
    if isinstance(scaling, YaRN):
        named = {
            "mscale": scaling.mscale or None,
            "mscale_all_dim": scaling.mscale_all_dim or None,
            "attention_factor": scaling.attention_factor,
            "truncate": None if scaling.truncate else False,
        }
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_positions,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            **{key: value for key, value in named.items() if value is not None},
        }
    if scaling.kind in ("linear", "ntk", "dynamic"):
        return {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "proportional":
        return {"rope_type": scaling.kind, "partial_rotary_factor": scaling.share, "factor": scaling.factor}
    return {
        "rope_type": scaling.kind,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }
