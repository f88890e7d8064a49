"""A GGUF file seen as Hugging Face files: its config, and its tensors under their names there.

Covers what llama.cpp writes for Llama-like models: the names `blk.N.attn_q`, ..., and query and key rows in its own
rotary order, which are turned back. Quantized tensors arrive as float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.tensorfiles import TensorFile, unpermute_rope

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PERMUTED = ("llama",)


class GGUFModel:
    """Tensors of a GGUF file by Hugging Face name, in Hugging Face's layout."""

    def __init__(self, file: TensorFile):
        self.path, self._file = file.path, file
        self._names = {_hf_name(name): name for name in file.names}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [out, in] for a matrix."""
        return self._file.shape(self._names[name])

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32."""
        array = self._file.read(self._names[name])
        metadata = self._file.metadata
        architecture = metadata["general.architecture"]
        if architecture in _PERMUTED:
            if ".q_proj." in name:
                return unpermute_rope(array, metadata[f"{architecture}.attention.head_count"])
            if ".k_proj." in name:
                return unpermute_rope(array, self.config()["num_key_value_heads"])
        return array

    def config(self) -> dict[str, Any]:
        """What config.json would say. Raises UserError if a size is missing or positions are scaled."""
        metadata = self._file.metadata
        architecture = metadata.get("general.architecture")

        def get(key: str, *default: Any) -> Any:
            value = metadata.get(f"{architecture}.{key}", *default)
            if value is None and not default:
                raise UserError(f"{self.path}: the header lacks {architecture}.{key}")
            return value

        if "rope_freqs.weight" in self._file or get("rope.scaling.type", "none") != "none":
            raise UserError(f"{self.path}: rope scaling is not read from GGUF; use the model's Hugging Face folder")
        heads = get("attention.head_count")
        return {
            "model_type": architecture,
            "vocab_size": self._file.shape("token_embd.weight")[0],
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "head_dim": get("attention.key_length", get("embedding_length") // heads),
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": get("rope.freq_base", 10_000.0),
            "max_position_embeddings": get("context_length", 4096),
            "tie_word_embeddings": "output.weight" not in self._file,
        }


def _hf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{_LAYER.get(part, part)}.{kind}"
    return name
