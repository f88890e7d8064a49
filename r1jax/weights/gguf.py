"""A GGUF file presented as Hugging Face files: its config, and its tensors under Hugging Face names.

Covers llama.cpp's files of Llama, Qwen2, Qwen3, Gemma 2 and Gemma 3: the names `blk.N.attn_q`, ...; Llama's permuted
rows of query and key matrices, which are permuted back (the converter leaves the others unchanged); Llama 3.1's rope
scaling, stored as one factor per frequency; Gemma's norms, stored with the 1 that is added to them. Quantized tensors
are read as float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import TensorFile, unpermute_rope
from r1jax.models.families.hf_config import write_scaling
from r1jax.models.rope import RopeScaling, rope_frequencies

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OLMO_LAYER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_ROUTED_LAYER = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_OWN_LAYER = {"gemma2": _GEMMA_LAYER, "gemma3": _GEMMA_LAYER, "olmo2": _OLMO_LAYER, "qwen3moe": _ROUTED_LAYER}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Name in a header -> model_type of a config.json.
_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "olmo2": "olmo2",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
_GEMMA = ("gemma2", "gemma3")
_WIDE = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose scores are scaled by the width of a head's share
_PERMUTED = ("llama",)
_ROPE_FACTORS = "rope_freqs.weight"


class GGUFModel:
    """Tensors of a GGUF file by Hugging Face name, in Hugging Face layout."""

    def __init__(self, file: TensorFile):
        self.path, self.metadata, self._file = file.path, file.metadata, file
        architecture = self.metadata.get("general.architecture")
        parts = _LAYER | _OWN_LAYER.get(str(architecture), {})
        names = {_hf_name(name, parts): name for name in file.names}
        # of what one tensor holds for all experts, each one's matrix: its tensor and its place there
        self._experts = {
            name.format(expert): (stack, expert)
            for name, stack in names.items()
            if "{}" in name
            for expert in range(file.shape(stack)[0])
        }
        self._names = {name: stack for name, stack in names.items() if "{}" not in name}
        self._names |= {name: stack for name, (stack, _) in self._experts.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [out, in] for a matrix."""
        shape = self._file.shape(self._names[name])
        return shape[1:] if name in self._experts else shape

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors that a Hugging Face folder would have."""
        return tuple(name for name in self._names if name != _ROPE_FACTORS)

    def dtype(self, name: str) -> np.dtype:
        """The dtype that `read` returns."""
        return self._file.dtype(self._names[name])

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor, or some of its rows."""
        if name in self._experts:
            stack, expert = self._experts[name]
            return self._file.read(stack, (expert, expert + 1))[0][slice(*(rows or (None,)))]
        part = None if any(kind in name for kind in (".q_proj.", ".k_proj.")) else rows  # permuted as a whole
        array = self._restore(name, self._file.read(self._names[name], part))
        return array if part == rows else array[slice(*rows)]  # type: ignore[misc]

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the file that a tensor or some of its rows take."""
        return self._file.count_bytes(self._names[name], (0, 1) if name in self._experts else rows)

    def _restore(self, name: str, array: np.ndarray) -> np.ndarray:
        """A tensor as the hub's files hold it."""
        metadata = self._file.metadata
        architecture = metadata["general.architecture"]
        if architecture in _GEMMA and name.endswith("norm.weight"):
            return array - 1
        if architecture in _PERMUTED:
            if ".q_proj." in name:
                return unpermute_rope(array, metadata[f"{architecture}.attention.head_count"])
            if ".k_proj." in name:
                return unpermute_rope(array, self.config()["num_key_value_heads"])
        return array

    def config(self) -> dict[str, Any]:
        """The equivalent config.json. Raises UserError if a size is missing, or for a rope scaling that the header does
        not describe completely.
        """
        metadata = self._file.metadata
        architecture = metadata.get("general.architecture")
        if architecture not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise UserError(f"{self.path}: unknown model_type {architecture!r}; known in this format: {known}")

        def get(key: str, *default: Any) -> Any:
            value = metadata.get(f"{architecture}.{key}", *default)
            if value is None and not default:
                raise UserError(f"{self.path}: the header lacks {architecture}.{key}")
            return value

        kind = get("rope.scaling.type", "none")
        if kind != "none" and (kind, architecture) != ("linear", "gemma3"):
            raise UserError(
                f"{self.path}: {architecture}.rope.scaling is not supported; use the model's Hugging Face folder"
            )
        heads = get("attention.head_count")
        head_dim, theta = get("attention.key_length", get("embedding_length") // heads), get("rope.freq_base", 10_000.0)
        own: dict[str, Any] = {"rope_scaling": self._read_scaling(head_dim, theta)}
        if kind == "linear":
            own = {"rope_scaling": {"rope_type": kind, "factor": get("rope.scaling.factor")}}
        if architecture == "olmo2" and get("attention.sliding_window", None):
            raise UserError(f"{self.path}: OLMo 3 is not supported in this format; use the model's Hugging Face folder")
        if architecture == "qwen3moe":
            own["num_experts"], own["num_experts_per_tok"] = get("expert_count"), get("expert_used_count")
            own |= {"moe_intermediate_size": get("expert_feed_forward_length"), "norm_topk_prob": True}
        if architecture in _GEMMA:
            is_wide = get("block_count") == _WIDE[architecture]
            own["sliding_window"] = get("attention.sliding_window")
            own["query_pre_attn_scalar"] = get("embedding_length") // heads if is_wide else head_dim
            own["attn_logit_softcapping"] = get("attn_logit_softcapping", None)
            own["final_logit_softcapping"] = get("final_logit_softcapping", None)
        return {
            "model_type": _ARCHITECTURES[architecture],
            "vocab_size": self._file.shape("token_embd.weight")[0],
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": theta,
            "max_position_embeddings": get("context_length", 4096),
            "tie_word_embeddings": "output.weight" not in self._file,
            **own,
        }

    def _read_scaling(self, head_dim: int, theta: float) -> dict[str, Any] | None:
        """Llama 3.1's rope scaling, from the divisor of each frequency; only `factor` differs between released
        models.
        """
        if _ROPE_FACTORS not in self._file:
            return None
        factors = self._file.read(_ROPE_FACTORS)
        scaling = RopeScaling("llama3", factor=float(factors.max()))
        plain, scaled = (rope_frequencies(head_dim, theta, kind) for kind in (None, scaling))
        if factors.shape != plain.shape or not np.allclose(factors, np.asarray(plain / scaled), rtol=1e-4):
            raise UserError(
                f"{self.path}: {_ROPE_FACTORS} is not Llama 3.1's rope scaling; use the model's Hugging Face folder"
            )
        return write_scaling(scaling)


def _hf_name(name: str, parts: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{parts.get(part, part)}.{kind}"
    return name
