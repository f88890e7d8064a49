"""The Qwen3 MoE family: attention of the dense Qwen3, and in most layers (all layers of the released models) experts
selected by softmax, without groups, bias or shared experts.

Left out: sliding-window attention, which the released files describe but switch off.

Source: Qwen3 (2505.09388); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from r1jax.models.dispatch import GROUPED, Dispatch
from r1jax.models.experts import Gate, MoE
from r1jax.models.families import dense
from r1jax.models.families.hf_config import Names, read_either
from r1jax.models.layers import FLOAT32, Dtypes, GatedMLP
from r1jax.models.transformer import Block, Transformer


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of a Qwen3 MoE model; defaults are a toy.

    Every `expert_interval`-th layer that is not in `dense_layers` has experts. normalize: the weights of a token's
    experts sum to 1.
    """

    head_dim: int = 32
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = False
    qk_norm: bool = True
    expert_size: int = 32
    num_experts: int = 8
    active_experts: int = 2
    normalize: bool = True
    dense_layers: tuple[int, ...] = ()
    expert_interval: int = 1

    def routes(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer not in self.dense_layers and (layer + 1) % self.expert_interval == 0


_QWEN3: dict[str, Any] = dict(rope_theta=1_000_000.0, max_positions=40_960, num_experts=128, active_experts=8)

VARIANTS: dict[str, Config] = {
    "tiny_qwen3_moe": Config(),
    "qwen3_30b_a3b": Config(151_936, 2048, 6144, 48, 32, 4, 128, expert_size=768, **_QWEN3),
    "qwen3_235b_a22b": Config(151_936, 4096, 12_288, 94, 64, 4, 128, expert_size=1536, **_QWEN3),
}

HF_NAMES: Names = {
    **dense.NAMES,
    **dense.NORM_NAMES,
    "layers.{}.mlp.router.kernel": ("model.layers.{}.mlp.gate.weight", 1),
    "layers.{}.mlp.experts.gate": ("model.layers.{}.mlp.experts.{}.gate_proj.weight", 1),
    "layers.{}.mlp.experts.up": ("model.layers.{}.mlp.experts.{}.up_proj.weight", 1),
    "layers.{}.mlp.experts.down": ("model.layers.{}.mlp.experts.{}.down_proj.weight", 1),
}

_FIXED = {"attention_bias": False, "hidden_act": "silu"}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    dense.refuse_windows(hf)
    return dense.read_config(
        Config,
        hf,
        _FIXED,
        expert_size=hf["moe_intermediate_size"],
        num_experts=read_either(hf, "num_experts", "num_local_experts"),
        active_experts=hf["num_experts_per_tok"],
        normalize=hf.get("norm_topk_prob", False),
        dense_layers=tuple(hf.get("mlp_only_layers") or ()),
        expert_interval=hf.get("decoder_sparse_step", 1),
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    named = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "use_sliding_window": False}
    experts = {
        "moe_intermediate_size": config.expert_size,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.active_experts,
        "norm_topk_prob": config.normalize,
        "mlp_only_layers": list(config.dense_layers),
        "decoder_sparse_step": config.expert_interval,
    }
    return dense.write_config(config, {**named, **experts, **_FIXED})


def build(
    config: Config,
    *,
    rngs: nnx.Rngs,
    dtypes: Dtypes = FLOAT32,
    dispatch: Dispatch = GROUPED,
    **options: Any,
) -> Transformer:
    """The model with fresh weights; `options`: scan_layers, remat."""
    gate = Gate("softmax", normalize=config.normalize)

    def make_block(rngs: nnx.Rngs, routes: bool) -> Block:
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        sizes = (config.hidden_size, config.expert_size, config.num_experts, config.active_experts)
        experts = lambda: MoE(*sizes, gate=gate, dispatch=dispatch, **shared)
        mlp = lambda: GatedMLP(config.hidden_size, config.intermediate_size, **shared)
        return dense.make_block(config, experts if routes else mlp, dtypes=dtypes, rngs=rngs)

    groups = dense.group_kinds([config.routes(layer) for layer in range(config.num_layers)], make_block)
    return Transformer(config, groups, rngs=rngs, dtypes=dtypes, **options)
