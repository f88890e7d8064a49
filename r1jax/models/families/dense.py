"""Shared parts of the families with grouped-query attention: sizes, table of names, and block (by default pre-norm,
SwiGLU).

A family's file sets its options (`qkv_bias`, `qk_norm`, the style of each layer's attention), the keys of its
config.json, and its published sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.attention import LLAMA, Attention, Style
from r1jax.models.families.hf_config import Names, read_rope, write_scaling
from r1jax.models.layers import FLOAT32, Activation, Dtypes, GatedMLP, RMSNorm
from r1jax.models.rope import Scaling
from r1jax.models.transformer import Block, Group, Transformer


@dataclasses.dataclass(frozen=True)
class DenseConfig:
    """Sizes of a dense model; defaults are a toy for tests.

    qkv_bias: queries, keys and values have biases. qk_norm: queries and keys are normalized per head.
    """

    vocab_size: int = 256
    hidden_size: int = 64
    intermediate_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    rope_theta: float = 10_000.0
    rope_scaling: Scaling = None
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    initializer_std: float = 0.02
    max_positions: int = 4096
    qkv_bias: bool = False
    qk_norm: bool = False

    def style(self, layer: int) -> Style:
        """The options in which the attention of a layer differs from Llama's."""
        return LLAMA


C = TypeVar("C", bound=DenseConfig)

# our name -> (their name, number of our axes on the input side of their [out, in] matrix; None: not transposed)
NAMES: Names = {
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
BIAS_NAMES: Names = {
    "layers.{}.attention.query.bias": ("model.layers.{}.self_attn.q_proj.bias", 0),
    "layers.{}.attention.key.bias": ("model.layers.{}.self_attn.k_proj.bias", 0),
    "layers.{}.attention.value.bias": ("model.layers.{}.self_attn.v_proj.bias", 0),
}
NORM_NAMES: Names = {
    "layers.{}.attention.query_norm.scale": ("model.layers.{}.self_attn.q_norm.weight", None),
    "layers.{}.attention.key_norm.scale": ("model.layers.{}.self_attn.k_norm.weight", None),
}


def read_config(make: type[C], hf: Mapping[str, Any], fixed: Mapping[str, Any], **options: Any) -> C:
    """Sizes of class `make` from a Hugging Face config.json. `fixed`: keys with their only supported value, which may
    be absent.

    Raises KeyError for a missing key, UserError for a value that the family does not support.
    """
    for key, known in fixed.items():
        if hf.get(key, known) != known:
            raise UserError(f"{key} = {hf[key]!r} is not known for this family; known: {known!r}")
    theta, scaling = read_rope(hf)
    sizes = dict(
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
        max_positions=hf.get("max_position_embeddings", 4096),
    )
    return make(**{**sizes, **options})


def refuse_windows(hf: Mapping[str, Any]) -> None:
    """Raises UserError if a layer uses sliding-window attention, which Qwen's files express in two ways."""
    kinds = set(hf.get("layer_types") or ["full_attention"])
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    if not hf.get("layer_types") and window is not None and hf["num_hidden_layers"] > hf.get("max_window_layers", 28):
        kinds.add("sliding_attention")
    if kinds != {"full_attention"}:
        raise UserError(f"layers of {', '.join(sorted(kinds))} are not known for this family; known: full_attention")


def write_config(config: DenseConfig, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of these sizes, plus `fixed`, the family's own keys."""
    heads = {"num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim}
    return {**write_common(config), **heads, **fixed}


def write_common(config: Any) -> dict[str, Any]:
    """The keys of a config.json that all families have."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "rope_theta": config.rope_theta,
        "rope_scaling": write_scaling(config.rope_scaling),
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_std,
    }


def make_block(
    config: DenseConfig,
    make_mlp: Callable[[], Any],
    *,
    style: Style = LLAMA,
    norms: str = "pre",
    dtypes: Dtypes,
    rngs: nnx.Rngs,
    **parts: Any,
) -> Block:
    """One layer around the MLP that `make_mlp` returns. norms: before attention and MLP ("pre"), after them ("post"),
    or both. parts: further ones of `Block`.
    """
    norm: dict[str, Any] = dict(epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs, offset=style.norm_offset)
    attention = Attention(
        config.hidden_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        qkv_bias=config.qkv_bias,
        norm_epsilon=config.norm_epsilon if config.qk_norm else None,
        style=style,
        dtypes=dtypes,
        rngs=rngs,
        std=config.initializer_std,
    )
    make = lambda *kinds: RMSNorm(config.hidden_size, **norm) if norms in kinds else None
    before = make("pre", "both"), make("pre", "both")
    return Block(attention, make_mlp(), *before, make("post", "both"), make("post", "both"), **parts)


def build(
    config: DenseConfig,
    *,
    rngs: nnx.Rngs,
    dtypes: Dtypes = FLOAT32,
    norms: str = "pre",
    activation: Activation = "silu",
    **options: Any,
) -> Transformer:
    """The model with fresh weights; `options`: scan_layers, remat."""

    def make(rngs: nnx.Rngs, style: Style) -> Block:
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=config.initializer_std, activation=activation)
        mlp = lambda: GatedMLP(config.hidden_size, config.intermediate_size, **shared)
        return make_block(config, mlp, style=style, norms=norms, dtypes=dtypes, rngs=rngs)

    groups = group_kinds([config.style(layer) for layer in range(config.num_layers)], make)
    return Transformer(config, groups, rngs=rngs, dtypes=dtypes, **options)


def group_kinds(kinds: Sequence[Hashable], make_block: Callable[[Any, Any], Block]) -> list[Group]:
    """A Transformer's groups of layers of these kinds: runs of one kind, or patterns of up to 8 that repeat.
    `make_block(rngs, kind)` makes a layer.
    """
    groups: list[Group] = []
    maker = lambda kind: lambda rngs: make_block(rngs, kind)
    while kinds:
        repeats = {period: _count_repeats(kinds, period) for period in range(1, min(8, len(kinds)) + 1)}
        lengths = {period: count * period if count > 1 or period == 1 else 0 for period, count in repeats.items()}
        period = max(lengths, key=lambda period: (lengths[period], -period))
        pattern, kinds, count = kinds[:period], kinds[lengths[period] :], lengths[period]
        groups.append((count, maker(pattern[0]) if period == 1 else [maker(kind) for kind in pattern]))
    return groups


def _count_repeats(kinds: Sequence[Hashable], period: int) -> int:
    """How many times the first `period` kinds stand one after the other."""
    starts = range(0, len(kinds) - period + 1, period)
    return len(list(itertools.takewhile(lambda at: kinds[at : at + period] == kinds[:period], starts)))
