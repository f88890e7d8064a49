"""The Llama family: Llama 2, 3, 3.1 (rope scaling "llama3"), SmolLM2. Pre-norm, grouped-query attention, SwiGLU.

Sources: Touvron et al. 2023 (2307.09288), Llama 3 herd (2407.21783), SmolLM2 (2502.02737); names as in the Hugging
Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.attention import Attention
from r1jax.models.hf import Names, read_rope
from r1jax.models.layers import FLOAT32, Dtypes, GatedMLP, RMSNorm
from r1jax.models.rope import RopeScaling, YaRN
from r1jax.models.transformer import Block, Transformer


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a Llama; defaults are a toy for tests."""

    vocab_size: int = 256
    hidden_size: int = 64
    intermediate_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | YaRN | None = None
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    initializer_std: float = 0.02


VARIANTS: dict[str, Config] = {
    "tiny_llama": Config(),
    "smollm2_135m": Config(49_152, 576, 1_536, 30, 9, 3, 64, rope_theta=100_000.0, initializer_std=1 / 24),
}

# ours -> (theirs, axes that their [out, in] matrix has on its input side in ours; None: no transposition)
HF_NAMES: Names = {
    "embed.embedding": ("model.embed_tokens.weight", None),
    "layers.{}.attention_norm.scale": ("model.layers.{}.input_layernorm.weight", None),
    "layers.{}.attention.query.kernel": ("model.layers.{}.self_attn.q_proj.weight", 1),
    "layers.{}.attention.key.kernel": ("model.layers.{}.self_attn.k_proj.weight", 1),
    "layers.{}.attention.value.kernel": ("model.layers.{}.self_attn.v_proj.weight", 1),
    "layers.{}.attention.out.kernel": ("model.layers.{}.self_attn.o_proj.weight", 2),
    "layers.{}.mlp_norm.scale": ("model.layers.{}.post_attention_layernorm.weight", None),
    "layers.{}.mlp.gate.kernel": ("model.layers.{}.mlp.gate_proj.weight", 1),
    "layers.{}.mlp.up.kernel": ("model.layers.{}.mlp.up_proj.weight", 1),
    "layers.{}.mlp.down.kernel": ("model.layers.{}.mlp.down_proj.weight", 1),
    "norm.scale": ("model.norm.weight", None),
    "head.kernel": ("lm_head.weight", 1),
}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Our sizes from a Hugging Face config.json.

    Raises KeyError for a key that must be there, UserError for one that asks for what this family has not.
    """
    for key, known in {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}.items():
        if hf.get(key, known) != known:
            raise UserError(f"{key} = {hf[key]!r} is not known for this family; known: {known!r}")
    theta, scaling = read_rope(hf)
    return Config(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        num_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=hf.get("rms_norm_eps", 1e-6),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        initializer_std=hf.get("initializer_range", 0.02),
    )


def build(config: Config, *, rngs: nnx.Rngs, dtypes: Dtypes = FLOAT32, **options: Any) -> Transformer:
    """The model with fresh weights. `options`: scan_layers, remat."""

    def make_block(rngs: nnx.Rngs) -> Block:
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        norm: dict[str, Any] = dict(epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs)
        return Block(
            Attention(config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim, **shared),
            GatedMLP(config.hidden_size, config.intermediate_size, **shared),
            RMSNorm(config.hidden_size, **norm),
            RMSNorm(config.hidden_size, **norm),
        )

    return Transformer(config, [(config.num_layers, make_block)], rngs=rngs, dtypes=dtypes, **options)
