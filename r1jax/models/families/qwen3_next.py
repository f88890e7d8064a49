"""The Qwen3-Next family: Qwen3-Next and the text models of Qwen3.5, with and without experts. Three of four layers are
gated delta networks, the fourth is attention with normalized queries and keys, a part of each head turned, and a gate
on what its heads give; norms' scales are stored as the difference from 1. A prediction depth, where the files hold one,
is a layer with attention.

Left out: images.

Sources: Qwen3-Next's and Qwen3.5's model cards, gated delta networks (2412.06464); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.attention import Style
from r1jax.models.delta import DeltaSizes, GatedDelta
from r1jax.models.dispatch import GROUPED, Dispatch
from r1jax.models.experts import Gate
from r1jax.models.families import dense, routed
from r1jax.models.families.hf_config import Names, read_interval, read_rope, read_rotary_share
from r1jax.models.layers import FLOAT32, Dtypes, RMSNorm
from r1jax.models.mtp import MTPBlock
from r1jax.models.rope import Rope
from r1jax.models.transformer import Block, Transformer


@dataclasses.dataclass(frozen=True)
class Config(routed.RoutedConfig):
    """Sizes of a Qwen3-Next model. delta: of the gated delta networks; every `interval`-th layer is attention instead.
    rotary_dim: turned elements of a head. dense: no layer has experts.
    """

    num_layers: int = 4
    norm_epsilon: float = 1e-6
    qk_norm: bool = True
    norm_offset: float = 1.0
    shared_size: int = 32
    shared_gate: bool = True
    delta: DeltaSizes = DeltaSizes(2, 4, 16, 16)
    interval: int = 4
    rotary_dim: int = 4
    dense: bool = False

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotation of a part of each head."""
        return {"": Rope(self.rotary_dim, self.rope_theta, self.rope_scaling)}

    @property
    def attention_layers(self) -> int:
        """Number of layers that attend."""
        return self.num_layers // self.interval

    def style(self, layer: int) -> Style:
        """The options of attention, which are the same in all layers."""
        return Style(gated=True, norm_offset=self.norm_offset)

    def attends(self, layer: int) -> bool:
        """Whether a layer is attention."""
        return (layer + 1) % self.interval == 0


_LONG: dict[str, Any] = dict(rope_theta=1e7, max_positions=262_144, rotary_dim=64)
_EXPERTS: dict[str, Any] = _LONG | dict(expert_size=512, shared_size=512)
VARIANTS: dict[str, Config] = {
    "tiny_qwen3_next": Config(delta=DeltaSizes(2, 4, 16, 16, grouped=True)),
    "tiny_qwen3.5": Config(dense=True),
    "qwen3_next_80b_a3b": Config(
        151_936,
        2048,
        5120,
        48,
        16,
        2,
        256,
        num_experts=512,
        active_experts=10,
        delta=DeltaSizes(16, 32, 128, 128, grouped=True),
        **_EXPERTS,
    ),
    "qwen3.5_0.8b": Config(
        248_320,
        1024,
        3584,
        24,
        8,
        2,
        256,
        tie_embeddings=True,
        dense=True,
        delta=DeltaSizes(16, 16, 128, 128),
        **_LONG,
    ),
    "qwen3.5_35b_a3b": Config(
        248_320,
        2048,
        512,
        40,
        16,
        2,
        256,
        num_experts=256,
        active_experts=8,
        delta=DeltaSizes(16, 32, 128, 128),
        **_EXPERTS,
    ),
}

_DELTA, _OURS = "model.layers.{}.linear_attn", "layers.{}.attention"
_ATTENDING: Names = {
    **dense.NAMES,
    **dense.NORM_NAMES,
    **routed.name_experts("model.layers.{}.mlp", "gate", shared="shared_expert"),
    "layers.{}.mlp.shared_gate.kernel": ("model.layers.{}.mlp.shared_expert_gate.weight", 1),
}
HF_NAMES: Names = {
    **_ATTENDING,
    **{
        f"mtp.{{}}.block.{ours[10:]}": (theirs.replace("model.layers", "mtp.layers"), inputs)
        for ours, (theirs, inputs) in _ATTENDING.items()
        if ours.startswith("layers.{}.")
    },
    "mtp.{}.embedding_norm.scale": ("mtp.pre_fc_norm_embedding.weight", None),
    "mtp.{}.hidden_norm.scale": ("mtp.pre_fc_norm_hidden.weight", None),
    "mtp.{}.projection.kernel": ("mtp.fc.weight", 1),
    "mtp.{}.norm.scale": ("mtp.norm.weight", None),
    f"{_OURS}.convolution": (f"{_DELTA}.conv1d.weight", None),
    f"{_OURS}.log_rate": (f"{_DELTA}.A_log", None),
    f"{_OURS}.rate_bias": (f"{_DELTA}.dt_bias", None),
    f"{_OURS}.norm.scale": (f"{_DELTA}.norm.weight", None),
    f"{_OURS}.merge.kernel": (f"{_DELTA}.out_proj.weight", 2),
    f"{_OURS}.grouped.kernel": (f"{_DELTA}.in_proj_qkvz.weight", 1),
    f"{_OURS}.rates.kernel": (f"{_DELTA}.in_proj_ba.weight", 1),
    f"{_OURS}.mixed.kernel": (f"{_DELTA}.in_proj_qkv.weight", 1),
    f"{_OURS}.gate.kernel": (f"{_DELTA}.in_proj_z.weight", 1),
    f"{_OURS}.write.kernel": (f"{_DELTA}.in_proj_b.weight", 1),
    f"{_OURS}.forget.kernel": (f"{_DELTA}.in_proj_a.weight", 1),
}
_FIXED = {"attention_bias": False, "hidden_act": "silu", "decoder_sparse_step": 1, "attn_output_gate": True}
_DEPTHS = "mtp_num_hidden_layers"


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    kind, head = hf["model_type"], hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    theta, scaling = read_rope(hf)
    depths = hf.get(_DEPTHS, 1 if kind == "qwen3_next" else 0) or 0  # Qwen3-Next's files hold one that no key names
    if depths > 1 or hf.get("mtp_use_dedicated_embeddings"):
        raise UserError(f"{_DEPTHS} must be 0 or 1, without embeddings of its own, got {depths}")
    without = kind == "qwen3_5_text"
    given = {
        "intermediate_size": hf.get("moe_intermediate_size"),
        **hf,
        "mlp_only_layers": hf.get("mlp_only_layers") or [],
    }
    sizes: dict[str, Any] = {"dense": True}
    if not without:
        sizes = dict(
            expert_size=hf["moe_intermediate_size"],
            num_experts=hf["num_experts"],
            active_experts=hf["num_experts_per_tok"],
            shared_size=hf["shared_expert_intermediate_size"],
            gate=Gate("softmax", normalize=hf.get("norm_topk_prob", True)),
        )
    kinds = hf.get("layer_types") or []
    renamed = ["full_attention" if each == "full_attention" else "sliding_attention" for each in kinds]
    return dense.read_config(
        Config,
        given,
        {**_FIXED, "mlp_only_layers": []},
        rope_theta=theta,
        rope_scaling=scaling,
        rotary_dim=int(head * read_rotary_share(hf, 0.25)),
        interval=read_interval({**hf, "layer_types": renamed}, hf.get("full_attention_interval") or 4),
        delta=DeltaSizes(
            hf["linear_num_key_heads"],
            hf["linear_num_value_heads"],
            hf["linear_key_head_dim"],
            hf["linear_value_head_dim"],
            hf["linear_conv_kernel_dim"],
            grouped=kind == "qwen3_next",
        ),
        mtp_depths=depths,
        **sizes,
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    kind, name = ("qwen3_next", "Qwen3Next") if config.delta.grouped else ("qwen3_5_moe_text", "Qwen3_5Moe")
    kind, name = ("qwen3_5_text", "Qwen3_5") if config.dense else (kind, name)
    delta = config.delta
    experts = {
        "moe_intermediate_size": config.expert_size,
        "shared_expert_intermediate_size": config.shared_size,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.active_experts,
        "norm_topk_prob": config.gate.normalize,
    }
    named = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "linear_num_key_heads": delta.key_heads,
        "linear_num_value_heads": delta.value_heads,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
        "linear_conv_kernel_dim": delta.taps,
        "full_attention_interval": config.interval,
        _DEPTHS: config.mtp_depths,
        "partial_rotary_factor": config.rotary_dim / config.head_dim,
        "attention_bias": False,
        "hidden_act": "silu",
    }
    return dense.write_config(config, {**named, **({} if config.dense else experts)})


def build(
    config: Config, *, rngs: nnx.Rngs, dtypes: Dtypes = FLOAT32, dispatch: Dispatch = GROUPED, **options: Any
) -> Transformer:
    """The model with fresh weights; `options`: scan_layers, remat."""

    def make(rngs: nnx.Rngs, attends: bool) -> Block:
        shared: dict[str, Any] = dict(dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        mlp = lambda: routed.make_mlp(config, not config.dense, dispatch, **shared)
        if attends:
            return dense.make_block(config, mlp, style=config.style(0), dtypes=dtypes, rngs=rngs)
        norm: dict[str, Any] = dict(epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs, offset=config.norm_offset)
        delta = GatedDelta(config.hidden_size, config.delta, epsilon=config.norm_epsilon, **shared)
        return Block(delta, mlp(), RMSNorm(config.hidden_size, **norm), RMSNorm(config.hidden_size, **norm))

    def make_depth(rngs: nnx.Rngs) -> MTPBlock:
        told: dict[str, Any] = dict(epsilon=config.norm_epsilon, dtypes=dtypes, rngs=rngs, std=config.initializer_std)
        return MTPBlock(config.hidden_size, lambda rngs: make(rngs, True), offset=config.norm_offset, **told)

    kinds: list[Hashable] = [config.attends(layer) for layer in range(config.num_layers)]
    extra = [make_depth] * config.mtp_depths
    return Transformer(config, dense.group_kinds(kinds, make), rngs=rngs, dtypes=dtypes, extra=extra, **options)
