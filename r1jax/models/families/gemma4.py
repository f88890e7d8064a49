"""The text models of the Gemma 4 family: E2B and E4B (small tables of embeddings for every layer, last layers that
attend to the keys and values of earlier ones), 12B and 31B (in layers without a window the keys are the values), and
26B-A4B (experts beside the MLP). Layers with a window have narrower heads and another rotation; norms before and after
attention and MLP, GeGLU, values normalized, scores not scaled, each layer's result multiplied by a fixed number.

Left out: images, sound.

Source: Gemma 4 model card; names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.attention import Style
from r1jax.models.dispatch import GROUPED, Dispatch
from r1jax.models.families import dense, gemma, routed
from r1jax.models.families.gemma4_layers import ExpertsBeside, LayerInputs, Tail
from r1jax.models.families.hf_config import Fused, Names, read_interval, read_rope, write_kinds, write_scaling
from r1jax.models.layers import FLOAT32, Dtypes, GatedMLP
from r1jax.models.rope import Rope, RopeScaling
from r1jax.models.transformer import Block, Transformer


@dataclasses.dataclass(frozen=True)
class Config(routed.RoutedConfig):
    """Sizes of a Gemma 4 model.

    window: keys that a layer sees, except every `interval`-th, which sees all, with heads of `whole_dim` and
    `whole_kv_heads` heads of keys, turned by rope_theta and rope_scaling; local_theta: of the layers with a window.
    keys_as_values: layers that see all have no map of values. shared_layers: last layers without keys and values of
    their own, with an MLP twice as wide if `double_width`. input_size: width of each layer's own embedding of a token
    (0: none). dense: no layer has experts.
    """

    num_layers: int = 6
    rope_theta: float = 1e6
    rope_scaling: Any = RopeScaling("proportional", 1.0, share=0.25)
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    qk_norm: bool = True
    whole_dim: int = 32
    whole_kv_heads: int = 2
    window: int = 16
    interval: int = 6
    local_theta: float = 10_000.0
    keys_as_values: bool = False
    shared_layers: int = 0
    double_width: bool = False
    input_size: int = 0
    logit_cap: float = 30.0
    dense: bool = True

    @property
    def embedding_scale(self) -> float:
        """Factor of the embeddings."""
        return self.hidden_size**0.5

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotations of layers that see all and of those with a window."""
        whole = Rope(self.whole_dim, self.rope_theta, self.rope_scaling)
        return {"": whole, "local": Rope(self.head_dim, self.local_theta)}

    @property
    def attention_layers(self) -> float:
        """Number of layers, one with wider heads counted as so many more."""
        whole = self.num_layers // self.interval
        return self.num_layers - whole + whole * self.whole_dim / self.head_dim

    def style(self, layer: int) -> Style:
        """The attention of a layer: its window, where its keys and values come from, and who takes them later."""
        sees_all = lambda layer: (layer + 1) % self.interval == 0
        whole, own = sees_all(layer), self.num_layers - self.shared_layers
        name, later = "whole" if whole else "local", (sees_all(other) for other in range(layer + 1, own))
        return Style(
            rope="" if whole else "local",
            window=0 if whole else self.window,
            scale=1.0,
            values="keys" if whole and self.keys_as_values else "normed",
            takes=name if layer >= own else "",
            keeps=name if self.shared_layers and layer < own and whole not in later else "",
        )


_GEMMA4: dict[str, Any] = dict(whole_dim=512, max_positions=131_072)
_SMALL: dict[str, Any] = _GEMMA4 | dict(window=512, input_size=256)
_E2B: dict[str, Any] = _SMALL | dict(whole_kv_heads=1, interval=5, shared_layers=20, double_width=True)
_LARGE: dict[str, Any] = _GEMMA4 | dict(window=1024, keys_as_values=True, max_positions=262_144)
_A4B: dict[str, Any] = _LARGE | dict(expert_size=704, num_experts=128, active_experts=8, dense=False)
VARIANTS: dict[str, Config] = {
    "tiny_gemma4": Config(),
    "gemma4_e2b": Config(262_144, 1536, 6144, 35, 8, 1, 256, **_E2B),
    "gemma4_e4b": Config(262_144, 2560, 10_240, 42, 8, 2, 256, shared_layers=18, **_SMALL),
    "gemma4_12b": Config(262_144, 3840, 15_360, 48, 16, 8, 256, whole_kv_heads=1, **_LARGE),
    "gemma4_31b": Config(262_144, 5376, 21_504, 60, 32, 16, 256, whole_kv_heads=4, **_LARGE),
    "gemma4_26b_a4b": Config(262_144, 2816, 2112, 30, 16, 8, 256, **_A4B),
}

_OURS, _THEIRS = "layers.{}", "model.layers.{}"
_EXPERTS = f"{_THEIRS}.experts"
HF_NAMES: Names = {
    **gemma.HF_NAMES,
    "inputs.table": ("model.embed_tokens_per_layer.weight", None),
    "inputs.projection.kernel": ("model.per_layer_model_projection.weight", 1),
    "inputs.norm.scale": ("model.per_layer_projection_norm.weight", None),
    f"{_OURS}.tail.gate.kernel": (f"{_THEIRS}.per_layer_input_gate.weight", 1),
    f"{_OURS}.tail.out.kernel": (f"{_THEIRS}.per_layer_projection.weight", 1),
    f"{_OURS}.tail.norm.scale": (f"{_THEIRS}.post_per_layer_input_norm.weight", None),
    f"{_OURS}.tail.factor": (f"{_THEIRS}.layer_scalar", None),
    **{f"{_OURS}.mlp.beside.{p}.kernel": (f"{_THEIRS}.mlp.{p}_proj.weight", 1) for p in ("gate", "up", "down")},
    f"{_OURS}.mlp.beside_norm.scale": (f"{_THEIRS}.pre_feedforward_layernorm.weight", None),
    f"{_OURS}.mlp.beside_post_norm.scale": (f"{_THEIRS}.post_feedforward_layernorm_1.weight", None),
    f"{_OURS}.mlp.experts_norm.scale": (f"{_THEIRS}.pre_feedforward_layernorm_2.weight", None),
    f"{_OURS}.mlp.experts_post_norm.scale": (f"{_THEIRS}.post_feedforward_layernorm_2.weight", None),
    f"{_OURS}.mlp.router.kernel": (f"{_THEIRS}.router.proj.weight", 1),
    f"{_OURS}.mlp.router.scale": (f"{_THEIRS}.router.scale", None),
    f"{_OURS}.mlp.router.expert_scale": (f"{_THEIRS}.router.per_expert_scale", None),
    f"{_OURS}.mlp.experts.gate": (f"{_EXPERTS}.gate_up_proj#{{}}.gate", 1),
    f"{_OURS}.mlp.experts.up": (f"{_EXPERTS}.gate_up_proj#{{}}.up", 1),
    f"{_OURS}.mlp.experts.down": (f"{_EXPERTS}.down_proj#{{}}", 1),
}
_FIXED = {"attention_bias": False, "hidden_activation": "gelu_pytorch_tanh"}


def fused(config: Config) -> Mapping[str, Fused]:
    """Tensors of the files that are several of ours: those of all experts."""
    if config.dense:
        return {}
    experts, sizes = range(config.num_experts), {"gate": config.expert_size, "up": config.expert_size}
    both = Fused({f"{expert}.{part}": size for expert in experts for part, size in sizes.items()}, stacks=len(experts))
    down = Fused({str(expert): config.hidden_size for expert in experts}, stacks=len(experts))
    return {f"{_EXPERTS}.gate_up_proj": both, f"{_EXPERTS}.down_proj": down}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    given = {"tie_word_embeddings": True, "head_dim": 256, **{key: hf[key] for key in hf if hf[key] is not None}}
    if given.get("use_bidirectional_attention") == "all":
        raise UserError("use_bidirectional_attention = 'all' is not known for this family; known: null, 'vision'")
    interval, (theta, scaling) = read_interval(given, 6), read_rope(hf, "full_attention", theta=1e6)
    each = given.get("per_layer_config") or {}  # newer files name the sizes of layers that differ, by their numbers
    whole = each.get(str(interval - 1), {})
    kv_heads = given.get("num_global_key_value_heads") if given.get("attention_k_eq_v") else None
    inputs = 0 if hf["model_type"] == "gemma4_unified_text" else given.get("hidden_size_per_layer_input", 256)
    if inputs and given.get("vocab_size_per_layer_input", 262_144) != hf["vocab_size"]:
        given_size = given["vocab_size_per_layer_input"]
        raise UserError(f"vocab_size_per_layer_input must be vocab_size ({hf['vocab_size']}), got {given_size}")
    shared = given.get("num_kv_shared_layers", 0)
    if shared and hf["num_hidden_layers"] - shared < interval:
        raise UserError(f"num_kv_shared_layers = {shared} leaves no layer of each kind with keys of its own")
    sizes: dict[str, Any] = {}
    if given.get("enable_moe_block"):
        names = {
            "expert_size": "moe_intermediate_size",
            "num_experts": "num_experts",
            "active_experts": "top_k_experts",
        }
        sizes = {"dense": False, **{ours: given[theirs] for ours, theirs in names.items()}}
    return dense.read_config(
        Config,
        given,
        _FIXED,
        rope_theta=theta,
        rope_scaling=scaling,
        whole_dim=whole.get("head_dim") or given.get("global_head_dim", 512),
        whole_kv_heads=whole.get("num_key_value_heads") or kv_heads or hf["num_key_value_heads"],
        window=given.get("sliding_window", 512),
        interval=interval,
        local_theta=read_rope(hf, "sliding_attention")[0],
        keys_as_values=given.get("attention_k_eq_v", False),
        shared_layers=shared,
        double_width=given.get("use_double_wide_mlp", False),
        input_size=inputs,
        logit_cap=given.get("final_logit_softcapping", 0.0),
        **sizes,
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    whole = write_scaling(config.rope_scaling) or {"rope_type": "default"}
    experts = {
        "moe_intermediate_size": config.expert_size,
        "num_experts": config.num_experts,
        "top_k_experts": config.active_experts,
    }
    hf = dense.write_config(
        config,
        {
            "architectures": ["Gemma4ForCausalLM"],
            "model_type": "gemma4_text",
            "global_head_dim": config.whole_dim,
            "num_global_key_value_heads": config.whole_kv_heads if config.keys_as_values else None,
            "attention_k_eq_v": config.keys_as_values,
            "num_kv_shared_layers": config.shared_layers,
            "use_double_wide_mlp": config.double_width,
            "hidden_size_per_layer_input": config.input_size,
            "vocab_size_per_layer_input": config.vocab_size,
            "enable_moe_block": not config.dense,
            **({} if config.dense else experts),
            "sliding_window": config.window,
            "layer_types": write_kinds(config.num_layers, config.interval),
            "final_logit_softcapping": config.logit_cap or None,
            "rope_parameters": {
                "full_attention": whole | {"rope_theta": config.rope_theta},
                "sliding_attention": {"rope_type": "default", "rope_theta": config.local_theta},
            },
            **_FIXED,
        },
    )
    return {key: value for key, value in hf.items() if key not in ("rope_theta", "rope_scaling")}


def build(
    config: Config, *, rngs: nnx.Rngs, dtypes: Dtypes = FLOAT32, dispatch: Dispatch = GROUPED, **options: Any
) -> Transformer:
    """The model with fresh weights; `options`: scan_layers, remat."""
    shared: dict[str, Any] = dict(dtypes=dtypes, std=config.initializer_std)
    whole = dataclasses.replace(config, head_dim=config.whole_dim, num_kv_heads=config.whole_kv_heads)

    def make(rngs: nnx.Rngs, style: Style) -> Block:
        own = {**shared, "rngs": rngs}
        hidden = config.intermediate_size * (2 if style.takes and config.double_width else 1)
        plain = lambda: GatedMLP(config.hidden_size, hidden, activation="gelu", **own)
        mlp = plain if config.dense else lambda: ExpertsBeside(config, plain(), dispatch=dispatch, **own)
        sizes = config if style.window else whole
        block = dense.make_block(
            sizes, mlp, style=style, norms="both", dtypes=dtypes, rngs=rngs, tail=Tail(config, **own)
        )
        block.mlp_norm = block.mlp_norm if config.dense else None  # the MLP and the experts have one each
        return block

    kinds: list[Hashable] = [config.style(layer) for layer in range(config.num_layers)]
    inputs = (lambda rngs: LayerInputs(config, rngs=rngs, **shared)) if config.input_size else None
    return Transformer(config, dense.group_kinds(kinds, make), rngs=rngs, dtypes=dtypes, inputs=inputs, **options)
