"""The DeepSeek family: V3, V3.1 and R1 (latent attention, sigmoid gate without auxiliary loss, multi-token prediction),
V3.2 (sparse attention by an indexer), V2 and V2-Lite (softmax gate, expert groups ranked by their best expert, queries
with or without a latent), and models of this architecture: Moonlight, Kimi-K2 and the text model of K2.5,
GLM-4.7-Flash.

Sources: DeepSeek-V3 (2412.19437), DeepSeek-V2 (2405.04434), DeepSeek-R1 (2501.12948), Moonlight (2502.16982), Kimi-K2
(2507.20534), GLM-4.5 (2508.06471); names as in the Hugging Face files, where prediction depths are layers after the
last one, with copies of embedding and head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.dispatch import GROUPED, Dispatch
from r1jax.models.experts import Gate, MoE
from r1jax.models.families import dense, routed
from r1jax.models.families.deepseek_sizes import FIXED, SIZES, V2_GATE, read_gate
from r1jax.models.families.hf_config import Names, read_rope
from r1jax.models.layers import FLOAT32, Dtypes, GatedMLP, RMSNorm
from r1jax.models.mla import Form, LatentAttention, LatentSizes
from r1jax.models.mtp import MTPBlock
from r1jax.models.rope import Scaling, score_factor
from r1jax.models.sparse import IndexSizes, SparseLatentAttention
from r1jax.models.transformer import Block, Transformer


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a DeepSeek model; defaults are a toy for tests.

    The first `dense_layers` layers, and all others except every `expert_interval`-th, have a plain MLP. The shared
    experts are one MLP, `shared_experts` times as wide as an expert. mtp_depths: number of prediction depths after the
    model. index: sizes of the indexer of sparse attention (None: no indexer).
    """

    vocab_size: int = 256
    hidden_size: int = 64
    intermediate_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    latents: LatentSizes = LatentSizes(24, 32, 16, 8, 12)
    expert_size: int = 32
    num_experts: int = 8
    active_experts: int = 2
    shared_experts: int = 1
    gate: Gate = Gate("sigmoid", normalize=True, scale=2.5, groups=4, active_groups=2, bias=True)
    dense_layers: int = 1
    expert_interval: int = 1
    mtp_depths: int = 1
    rope_theta: float = 10_000.0
    rope_scaling: Scaling = None
    rope_interleaved: bool = True
    max_positions: int = 4096
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = False
    initializer_std: float = 0.02
    index: IndexSizes | None = None

    @property
    def head_dim(self) -> int:
        """Width of the rotated part of a head."""
        return self.latents.rotary_dim

    def routes(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer >= self.dense_layers and layer % self.expert_interval == 0


VARIANTS: dict[str, Config] = {
    "tiny_deepseek_v3": Config(),
    "tiny_deepseek_v32": Config(index=IndexSizes(2, 16, 16)),
    "tiny_deepseek_v2_lite": Config(
        latents=LatentSizes(0, 32, 16, 8, 16), shared_experts=2, gate=V2_GATE, mtp_depths=0
    ),
    **{name: Config(**sizes) for name, sizes in SIZES.items()},
}

_BLOCK: Names = {
    **{name: value for name, value in dense.NAMES.items() if ".attention." not in name},
    **routed.name_experts("model.layers.{}.mlp", "gate", bias="gate.e_score_correction_bias", shared="shared_experts"),
    **{
        f"layers.{{}}.attention.{ours}": (f"model.layers.{{}}.self_attn.{theirs}.weight", axes)
        for ours, theirs, axes in (
            ("query.kernel", "q_proj", 1),
            ("query_down.kernel", "q_a_proj", 1),
            ("query_norm.scale", "q_a_layernorm", None),
            ("query_up.kernel", "q_b_proj", 1),
            ("kv_down.kernel", "kv_a_proj_with_mqa", 1),
            ("kv_norm.scale", "kv_a_layernorm", None),
            ("kv_up.kernel", "kv_b_proj", 1),
            ("out.kernel", "o_proj", 2),
            ("indexer.query.kernel", "indexer.wq_b", 1),
            ("indexer.key.kernel", "indexer.wk", 1),
            ("indexer.key_norm.scale", "indexer.k_norm", None),
            ("indexer.weights.kernel", "indexer.weights_proj", 1),
        )
    },
    "layers.{}.attention.indexer.key_norm.bias": ("model.layers.{}.self_attn.indexer.k_norm.bias", None),
}
HF_NAMES: Names = {**_BLOCK, **routed.name_depths(_BLOCK)}
HF_COPIES = routed.DEPTH_COPIES

_INDEX = ("index_n_heads", "index_head_dim", "index_topk")
_LATENTS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    theta, scaling = read_rope(hf)
    return Config(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        latents=LatentSizes(hf.get("q_lora_rank") or 0, *(hf[key] for key in _LATENTS)),
        expert_size=hf["moe_intermediate_size"],
        num_experts=hf["n_routed_experts"],
        active_experts=hf["num_experts_per_tok"],
        shared_experts=hf.get("n_shared_experts") or 0,
        gate=read_gate(hf),
        dense_layers=_count_dense(hf),
        expert_interval=hf.get("moe_layer_freq", 1),
        mtp_depths=hf.get("num_nextn_predict_layers") or 0,
        rope_theta=theta,
        rope_scaling=scaling,
        rope_interleaved=hf.get("rope_interleave", True),
        max_positions=hf.get("max_position_embeddings", 4096),
        norm_epsilon=hf.get("rms_norm_eps", 1e-6),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        initializer_std=hf.get("initializer_range", 0.02),
        index=IndexSizes(*(hf[key] for key in _INDEX)) if hf.get("model_type") == "deepseek_v32" else None,
    )


def _count_dense(hf: Mapping[str, Any]) -> int:
    """The number of first layers without experts, in files of either age."""
    kinds = hf.get("mlp_layer_types")
    if not kinds:
        return hf.get("first_k_dense_replace", 0)
    count = list(kinds).count("dense")
    if list(kinds) != ["dense"] * count + ["sparse"] * (len(kinds) - count):
        raise UserError(f"mlp_layer_types must be dense layers, then sparse ones, got {str(kinds)[:200]}")
    return count


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    sigmoid, gate, sizes = config.gate.kind == "sigmoid", config.gate, config.latents
    number = "V2" if not sigmoid else "V3" if config.index is None else "V32"
    index = () if config.index is None else (config.index.heads, config.index.head_dim, config.index.count)
    method = "noaux_tc" if sigmoid else "group_limited_greedy" if gate.groups > 1 else "greedy"
    own = {"rope_interleave": config.rope_interleaved, "num_nextn_predict_layers": config.mtp_depths}
    return {
        "architectures": [f"Deepseek{number}ForCausalLM"],
        "model_type": f"deepseek_{number.lower()}",
        **dense.write_common(config),
        "num_key_value_heads": config.num_heads,
        "q_lora_rank": sizes.query_latent or None,
        "kv_lora_rank": sizes.latent,
        "qk_nope_head_dim": sizes.plain_dim,
        "qk_rope_head_dim": sizes.rotary_dim,
        "v_head_dim": sizes.value_dim,
        "moe_intermediate_size": config.expert_size,
        "n_routed_experts": config.num_experts,
        "num_experts_per_tok": config.active_experts,
        "n_shared_experts": config.shared_experts,
        "first_k_dense_replace": config.dense_layers,
        "moe_layer_freq": config.expert_interval,
        "n_group": gate.groups,
        "topk_group": gate.active_groups,
        "topk_method": method,
        "scoring_func": gate.kind,
        "norm_topk_prob": gate.normalize,
        "routed_scaling_factor": gate.scale,
        **FIXED,
        **(own if sigmoid else {}),
        **dict(zip(_INDEX, index, strict=False)),
    }


def build(
    config: Config,
    *,
    rngs: nnx.Rngs,
    dtypes: Dtypes = FLOAT32,
    dispatch: Dispatch = GROUPED,
    attention_form: Form = "auto",
    **options: Any,
) -> Transformer:
    """The model with fresh weights; `options`: scan_layers, remat."""
    width, std = config.hidden_size, config.initializer_std
    head = config.latents.plain_dim + config.latents.rotary_dim
    scale = head**-0.5 * score_factor(config.rope_scaling)
    attend: Any = LatentAttention if config.index is None else partial(SparseLatentAttention, index=config.index)

    def make_block(rngs: nnx.Rngs, routes: bool) -> Block:
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=std)
        norm: dict[str, Any] = dict(epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs)
        attention = attend(
            width,
            config.num_heads,
            config.latents,
            scale=scale,
            interleaved=config.rope_interleaved,
            form=attention_form,
            **shared,
        )
        mlp: Any = (
            GatedMLP(width, config.intermediate_size, **shared)
            if not routes
            else MoE(
                width,
                config.expert_size,
                config.num_experts,
                config.active_experts,
                shared_hidden=config.shared_experts * config.expert_size,
                gate=config.gate,
                dispatch=dispatch,
                **shared,
            )
        )
        return Block(attention, mlp, RMSNorm(width, **norm), RMSNorm(width, **norm))

    def make_depth(rngs: nnx.Rngs) -> MTPBlock:
        routing = lambda rngs: make_block(rngs, True)
        return MTPBlock(width, routing, epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs, std=std)

    groups = dense.group_kinds([config.routes(layer) for layer in range(config.num_layers)], make_block)
    return Transformer(config, groups, rngs=rngs, dtypes=dtypes, extra=[make_depth] * config.mtp_depths, **options)
