"""The Gemma family: Gemma 2 (soft caps, every second layer with a window) and the text models of Gemma 3 (normalized
queries and keys, five layers with a window to one without, two rotations). Norms before and after attention and MLP,
whose scales the files hold as the difference from 1; GeGLU; embeddings times sqrt(width), tied to the head.

Left out: images; Gemma 3n's and 4's further parts.

Sources: Gemma 2 (2408.00118), Gemma 3 (2503.19786); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from r1jax.models.attention import Style
from r1jax.models.families import dense
from r1jax.models.families.hf_config import Names, read_interval, read_rope, write_kinds
from r1jax.models.rope import Rope, RopeScaling


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of a Gemma model.

    window: keys that a layer sees, except every `interval`-th, which sees all. local_theta: of the rotation in layers
    with a window (0: they have the other one). query_scalar: scores are divided by its root. score_cap, logit_cap:
    soft bounds (0: none).
    """

    head_dim: int = 32
    norm_epsilon: float = 1e-6
    qk_norm: bool = True
    window: int = 16
    interval: int = 2
    local_theta: float = 10_000.0
    query_scalar: float = 32.0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    norm_offset: float = 1.0

    @property
    def embedding_scale(self) -> float:
        """Factor of the embeddings."""
        return self.hidden_size**0.5

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotation of layers with a window."""
        return {"local": Rope(self.head_dim, self.local_theta)} if self.local_theta else {}

    def style(self, layer: int) -> Style:
        """The window and the caps of a layer."""
        shared: dict[str, Any] = dict(
            scale=None if self.query_scalar == self.head_dim else self.query_scalar**-0.5,
            cap=self.score_cap,
            norm_offset=self.norm_offset,
        )
        if (layer + 1) % self.interval == 0:
            return Style(**shared)
        return Style(rope="local" if self.local_theta else "", window=self.window, **shared)


_GEMMA2: dict[str, Any] = dict(
    qk_norm=False,
    window=4096,
    local_theta=0.0,
    query_scalar=256,
    score_cap=50.0,
    logit_cap=30.0,
    max_positions=8192,
)
_GEMMA3: dict[str, Any] = dict(rope_theta=1e6, window=1024, interval=6, query_scalar=256, max_positions=131_072)
_SMALL: dict[str, Any] = _GEMMA3 | dict(window=512, max_positions=32_768)
_LONG: dict[str, Any] = _GEMMA3 | dict(rope_scaling=RopeScaling("linear", 8.0))

VARIANTS: dict[str, Config] = {
    "tiny_gemma2": Config(qk_norm=False, local_theta=0.0, score_cap=5.0, logit_cap=3.0, query_scalar=20.0),
    "tiny_gemma3": Config(num_layers=4),
    "gemma2_2b": Config(256_000, 2304, 9216, 26, 8, 4, 256, **_GEMMA2),
    "gemma2_9b": Config(256_000, 3584, 14_336, 42, 16, 8, 256, **_GEMMA2),
    "gemma2_27b": Config(256_000, 4608, 36_864, 46, 32, 16, 128, **_GEMMA2 | dict(query_scalar=144)),
    "gemma3_270m": Config(262_144, 640, 2048, 18, 4, 1, 256, **_SMALL),
    "gemma3_1b": Config(262_144, 1152, 6912, 26, 4, 1, 256, **_SMALL),
    "gemma3_4b": Config(262_208, 2560, 10_240, 34, 8, 4, 256, **_LONG),
    "gemma3_12b": Config(262_208, 3840, 15_360, 48, 16, 8, 256, **_LONG),
    "gemma3_27b": Config(262_208, 5376, 21_504, 62, 32, 16, 128, **_LONG | dict(query_scalar=168)),
}

HF_NAMES: Names = {
    **dense.NAMES,
    **dense.NORM_NAMES,
    "layers.{}.attention_post_norm.scale": ("model.layers.{}.post_attention_layernorm.weight", None),
    "layers.{}.mlp_norm.scale": ("model.layers.{}.pre_feedforward_layernorm.weight", None),
    "layers.{}.mlp_post_norm.scale": ("model.layers.{}.post_feedforward_layernorm.weight", None),
}

_FIXED = {"attention_bias": False, "hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False}
build = functools.partial(dense.build, norms="both", activation="gelu")


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    third = hf["model_type"] != "gemma2"
    theta, scaling = read_rope(hf, "full_attention", theta=1e6 if third else 10_000.0)
    local = {"rope_theta": hf.get("rope_local_base_freq", 10_000.0), "rope_parameters": hf.get("rope_parameters")}
    return dense.read_config(
        Config,
        {"tie_word_embeddings": True, "head_dim": 256, **{key: hf[key] for key in hf if hf[key] is not None}},
        _FIXED,
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=third,
        window=hf["sliding_window"],
        interval=read_interval(hf, hf.get("sliding_window_pattern") or (6 if third else 2)),
        local_theta=read_rope(local, "sliding_attention")[0] if third else 0.0,
        query_scalar=hf.get("query_pre_attn_scalar", 256),
        score_cap=hf.get("attn_logit_softcapping") or 0.0,
        logit_cap=hf.get("final_logit_softcapping") or 0.0,
    )


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    third = config.qk_norm
    kind, name = ("gemma3_text", "Gemma3") if third else ("gemma2", "Gemma2")
    own = {"rope_local_base_freq": config.local_theta} if third else {}
    return dense.write_config(
        config,
        {
            "architectures": [f"{name}ForCausalLM"],
            "model_type": kind,
            "sliding_window": config.window,
            "layer_types": write_kinds(config.num_layers, config.interval),
            "query_pre_attn_scalar": config.query_scalar,
            "attn_logit_softcapping": config.score_cap or None,
            "final_logit_softcapping": config.logit_cap or None,
            **own,
            **{key: value for key, value in _FIXED.items() if third or key != "use_bidirectional_attention"},
        },
    )
