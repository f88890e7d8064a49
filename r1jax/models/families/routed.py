"""Shared parts of the families with grouped-query attention and experts: sizes, names, block.

A family's file sets the gate, the keys of its config.json, and its published sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

from flax import nnx

from r1jax.models.dispatch import GROUPED, Dispatch
from r1jax.models.exchange import ClampedKernels, Kernels
from r1jax.models.experts import Gate, MoE
from r1jax.models.families import dense
from r1jax.models.families.hf_config import Names
from r1jax.models.layers import FLOAT32, Dtypes, GatedMLP
from r1jax.models.mtp import MTPBlock
from r1jax.models.transformer import Block, Transformer


@dataclasses.dataclass(frozen=True)
class RoutedConfig(dense.DenseConfig):
    """Sizes of a model with experts; defaults are a toy.

    gate: selection and weighting of experts. shared_size: width of the MLP that every token passes beside its experts
    (0: none); shared_gate: a sigmoid of one linear map weights it. expert_biases: the experts have biases and a clamped
    gate. mtp_depths: prediction depths after the model.
    """

    tie_embeddings: bool = False
    expert_size: int = 32
    num_experts: int = 8
    active_experts: int = 2
    gate: Gate = Gate()
    shared_size: int = 0
    shared_gate: bool = False
    expert_biases: bool = False
    mtp_depths: int = 0

    def routes(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return True


def name_experts(stem: str, router: str, bias: str = "", shared: str = "") -> Names:
    """Names of the tensors of an MLP with experts, one tensor an expert. stem: of the MLP in the files."""
    ours = "layers.{}.mlp"
    names: dict[str, tuple[str, int | None]] = {f"{ours}.router.kernel": (f"{stem}.{router}.weight", 1)}
    for part in ("gate", "up", "down"):
        names[f"{ours}.experts.{part}"] = (f"{stem}.experts.{{}}.{part}_proj.weight", 1)
        if shared:
            names[f"{ours}.shared.{part}.kernel"] = (f"{stem}.{shared}.{part}_proj.weight", 1)
    if bias:
        names[f"{ours}.router.correction_bias"] = (f"{stem}.{bias}", None)
    return names


def name_depths(block: Names) -> Names:
    """Names of prediction depths with this block, as layers after the last one."""
    layer, ours = "model.layers.{}", "mtp.{}"
    own = {
        f"{ours}.embedding_norm.scale": (f"{layer}.enorm.weight", None),
        f"{ours}.hidden_norm.scale": (f"{layer}.hnorm.weight", None),
        f"{ours}.projection.kernel": (f"{layer}.eh_proj.weight", 1),
        f"{ours}.norm.scale": (f"{layer}.shared_head.norm.weight", None),
    }
    inner = {f"{ours}.block.{name[10:]}": theirs for name, theirs in block.items() if name.startswith("layers.{}.")}
    return {**own, **inner}


# Tensors that the files repeat in each prediction depth: their name -> the parameter that they copy.
DEPTH_COPIES: Mapping[str, str] = {
    "model.layers.{}.embed_tokens.weight": "embed.embedding",
    "model.layers.{}.shared_head.head.weight": "head.kernel",
}


def make_mlp(config: RoutedConfig, routes: bool, dispatch: Dispatch, **shared: Any) -> GatedMLP | MoE:
    """The MLP of a layer with or without experts."""
    if not routes:
        return GatedMLP(config.hidden_size, config.intermediate_size, **shared)
    return MoE(
        config.hidden_size,
        config.expert_size,
        config.num_experts,
        config.active_experts,
        shared_hidden=config.shared_size,
        shared_gate=config.shared_gate,
        form=ClampedKernels if config.expert_biases else Kernels,
        gate=config.gate,
        dispatch=dispatch,
        **shared,
    )


def build(
    config: RoutedConfig,
    *,
    rngs: nnx.Rngs,
    dtypes: Dtypes = FLOAT32,
    dispatch: Dispatch = GROUPED,
    **options: Any,
) -> Transformer:
    """The model with fresh weights; `options`: scan_layers, remat."""

    def make(rngs: nnx.Rngs, kind: tuple[Any, bool]) -> Block:
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        mlp = lambda: make_mlp(config, kind[1], dispatch, **shared)
        return dense.make_block(config, mlp, style=kind[0], dtypes=dtypes, rngs=rngs)

    def make_depth(rngs: nnx.Rngs) -> MTPBlock:
        last = lambda rngs: make(rngs, (config.style(config.num_layers - 1), True))
        told: dict[str, Any] = dict(epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        return MTPBlock(config.hidden_size, last, **told)

    kinds: list[Hashable] = [(config.style(layer), config.routes(layer)) for layer in range(config.num_layers)]
    extra = [make_depth] * config.mtp_depths
    return Transformer(config, dense.group_kinds(kinds, make), rngs=rngs, dtypes=dtypes, extra=extra, **options)
