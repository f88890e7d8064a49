"""A GGUF file presented as Hugging Face files: its config, and its tensors under Hugging Face names.

Covers llama.cpp's files of Llama, Qwen2 and Qwen3: the names `blk.N.attn_q`, ...; Llama's permuted rows of query and
key matrices, which are permuted back (the converter leaves Qwen's unchanged); and Llama 3.1's rope scaling, stored as
one factor per frequency. Quantized tensors are read as float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import TensorFile, unpermute_rope
from r1jax.models.rope import RopeScaling, rope_frequencies, write_scaling

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
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_PERMUTED = ("llama",)
_ROPE_FACTORS = "rope_freqs.weight"


class GGUFModel:
    """Tensors of a GGUF file by Hugging Face name, in Hugging Face layout."""

    def __init__(self, file: TensorFile):
        self.path, self.metadata, self._file = file.path, file.metadata, file
        self._names = {_hf_name(name): name for name in file.names}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [out, in] for a matrix."""
        return self._file.shape(self._names[name])

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors that a Hugging Face folder would have."""
        return tuple(name for name in self._names if name != _ROPE_FACTORS)

    def dtype(self, name: str) -> np.dtype:
        """The dtype that `read` returns."""
        return self._file.dtype(self._names[name])

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor, or some of its rows."""
        part = None if any(kind in name for kind in (".q_proj.", ".k_proj.")) else rows  # permuted as a whole
        array = self._permute(name, self._file.read(self._names[name], part))
        return array if part == rows else array[slice(*rows)]  # type: ignore[misc]

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the file that a tensor or some of its rows take."""
        return self._file.count_bytes(self._names[name], rows)

    def _permute(self, name: str, array: np.ndarray) -> np.ndarray:
        metadata = self._file.metadata
        architecture = metadata["general.architecture"]
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

        if get("rope.scaling.type", "none") != "none":
            raise UserError(
                f"{self.path}: {architecture}.rope.scaling is not supported; use the model's Hugging Face folder"
            )
        heads = get("attention.head_count")
        head_dim, theta = get("attention.key_length", get("embedding_length") // heads), get("rope.freq_base", 10_000.0)
        return {
            "model_type": architecture,
            "vocab_size": self._file.shape("token_embd.weight")[0],
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": theta,
            "rope_scaling": self._read_scaling(head_dim, theta),
            "max_position_embeddings": get("context_length", 4096),
            "tie_word_embeddings": "output.weight" not in self._file,
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


def _hf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{_LAYER.get(part, part)}.{kind}"
    return name
