"""The Llama family: Llama 2, 3, 3.1 (rope scaling "llama3"), SmolLM2; SmolLM3, which encodes no positions in every
fourth layer (NoPE); and Mistral 7B (version 0.1 with a window in all layers), Nemo, Small, Ministral 8B (a window in
three of four layers, where its file says so) and Ministral 3, whose queries grow with their position. Pre-norm,
grouped-query attention, SwiGLU.

Sources: Touvron et al. 2023 (2307.09288), Llama 3 herd (2407.21783), SmolLM2 (2502.02737), SmolLM3's model card,
Mistral 7B (2310.06825), Ministral 3 (2601.08584); names as in the Hugging Face files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.models.attention import Style
from r1jax.models.families import dense
from r1jax.models.families.dense import build as build
from r1jax.models.families.hf_config import Names, read_interval, write_kinds
from r1jax.models.rope import RopeScaling, YaRN


@dataclasses.dataclass(frozen=True)
class Config(dense.DenseConfig):
    """Sizes of a Llama or Mistral model.

    plain_interval: every so many-th layer encodes no positions (0: none). window: keys that a layer sees, except every
    `interval`-th, which sees all (window 0: all do; interval 0: none does). stretch: queries grow by 1 + stretch *
    log(1 + floor(position / original positions)). kind: the `model_type` of its files.
    """

    plain_interval: int = 0
    window: int = 0
    interval: int = 0
    stretch: float = 0.0
    kind: str = "llama"

    def style(self, layer: int) -> Style:
        """The positions, window and growth of queries of a layer."""
        plain = self.plain_interval and (layer + 1) % self.plain_interval == 0
        whole = not self.window or self.interval and (layer + 1) % self.interval == 0
        positions = self.rope_scaling.original_positions if isinstance(self.rope_scaling, YaRN) else 1
        stretch = (self.stretch, float(positions), 0) if self.stretch else None
        return Style(rope=None if plain else "", window=0 if whole else self.window, stretch=stretch)


_LLAMA31: dict[str, Any] = dict(
    rope_theta=500_000.0, rope_scaling=RopeScaling(), tie_embeddings=False, max_positions=131_072
)

_PLAIN: dict[str, Any] = dict(plain_interval=4, kind="smollm3")
_LARGE: dict[str, Any] = dict(kind="mistral", rope_theta=1e6, tie_embeddings=False, max_positions=32_768)
_THIRD: dict[str, Any] = dict(
    kind="ministral3",
    rope_theta=1e6,
    rope_scaling=YaRN(16.0, 16_384, 32.0, 1.0, mscale=1.0, mscale_all_dim=1.0),
    stretch=0.1,
    max_positions=262_144,
)

VARIANTS: dict[str, Config] = {
    "tiny_llama": Config(),
    "smollm2_135m": Config(
        49_152, 576, 1_536, 30, 9, 3, 64, rope_theta=100_000.0, initializer_std=1 / 24, max_positions=8192
    ),
    "tiny_smollm3": Config(num_layers=4, **_PLAIN),
    "smollm3_3b": Config(
        128_256, 2048, 11_008, 36, 16, 4, 128, rope_theta=5e6, norm_epsilon=1e-6, max_positions=65_536, **_PLAIN
    ),
    "llama2_7b": Config(32_000, 4096, 11_008, 32, 32, 32, 128, tie_embeddings=False),
    "llama3.1_8b": Config(128_256, 4096, 14_336, 32, 32, 8, 128, **_LLAMA31),
    "llama3.1_70b": Config(128_256, 8192, 28_672, 80, 64, 8, 128, **_LLAMA31),
    "tiny_mistral": Config(kind="mistral"),
    "mistral_7b_v0.1": Config(32_000, 4096, 14_336, 32, 32, 8, 128, **_LARGE | dict(rope_theta=10_000.0, window=4096)),
    "mistral_7b_v0.3": Config(32_768, 4096, 14_336, 32, 32, 8, 128, **_LARGE),
    "mistral_nemo_12b": Config(131_072, 5120, 14_336, 40, 32, 8, 128, **_LARGE | dict(max_positions=131_072)),
    "mistral_small_24b": Config(131_072, 5120, 32_768, 40, 32, 8, 128, **_LARGE | dict(rope_theta=1e8)),
    "ministral3_3b": Config(131_072, 3072, 9216, 26, 32, 8, 128, **_THIRD),
    "ministral3_8b": Config(131_072, 4096, 14_336, 34, 32, 8, 128, tie_embeddings=False, **_THIRD),
    "ministral3_14b": Config(
        131_072, 5120, 16_384, 40, 32, 8, 128, tie_embeddings=False, **_THIRD | dict(rope_theta=1e9)
    ),
}

HF_NAMES: Names = dense.NAMES

_CLASSES = {
    "llama": "Llama",
    "smollm3": "SmolLM3",
    "mistral": "Mistral",
    "ministral": "Ministral",
    "ministral3": "Ministral3",
}
_FIXED = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}


def from_hf(hf: Mapping[str, Any]) -> Config:
    """Sizes from a Hugging Face config.json.

    Raises KeyError for a missing key, UserError for a value that this family does not support.
    """
    kind = hf.get("model_type")
    if kind in ("mistral", "ministral", "ministral3"):
        rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        interval = read_interval(hf, 0) if kind == "ministral" else 0
        return dense.read_config(
            Config,
            hf,
            {"hidden_act": "silu"},
            window=0 if interval == 1 else hf.get("sliding_window") or 0,
            interval=interval,
            stretch=(rope.get("llama_4_scaling_beta") or 0.0) if kind == "ministral3" else 0.0,
            kind=kind,
        )
    if kind != "smollm3":
        return dense.read_config(Config, hf, _FIXED)
    dense.refuse_windows(hf)
    interval, turned = hf.get("no_rope_layer_interval", 4), hf.get("no_rope_layers")
    if turned and list(turned) != [int((layer + 1) % interval > 0) for layer in range(hf["num_hidden_layers"])]:
        raise UserError(
            f"no_rope_layers must be 0 at every {interval}th layer and 1 elsewhere, got {str(turned)[:200]}"
        )
    hf = {"tie_word_embeddings": True, "rope_theta": 2e6, **hf}
    return dense.read_config(Config, hf, _FIXED, plain_interval=interval, kind=kind)


def to_hf(config: Config) -> dict[str, Any]:
    """The config.json of these sizes, with the keys of the released files."""
    own: dict[str, Any] = {"hidden_act": "silu", "sliding_window": config.window or None}
    if config.kind in ("llama", "smollm3"):
        own = dict(_FIXED)
    if config.kind == "smollm3":
        own |= {"use_sliding_window": False, "no_rope_layer_interval": config.plain_interval}
    if config.kind == "ministral":
        own["layer_types"] = write_kinds(config.num_layers, config.interval)
    named = {"architectures": [f"{_CLASSES[config.kind]}ForCausalLM"], "model_type": config.kind}
    hf = dense.write_config(config, {**named, **own})
    if config.kind == "ministral3":  # one table, which older releases do not know
        scaling = (hf.pop("rope_scaling") or {}) | {"rope_theta": hf.pop("rope_theta")}
        hf["rope_parameters"] = scaling | {"llama_4_scaling_beta": config.stretch}
    return hf
