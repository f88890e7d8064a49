"""The Gemma 4 family: config.json of either age, and what no other family's layers do."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.models.adapters.lora import LoRAConfig, attach_adapters, init_adapters, join_adapters
from r1jax.models.families import gemma4
from r1jax.models.families.hf_config import write_kinds
from r1jax.models.families.registry import WRAPPERS
from r1jax.models.presets import count_parameters
from r1jax.models.transformer import merge, split
from r1jax.weights import load_pretrained
from r1jax.weights.pretrained import open_model
from r1jax.weights.safetensors_writer import Spec, write_tensors
from r1jax.weights.views.nested import find_text_config
from tests.models import golden

FAMILIES = golden.DENSE.with_name("families")
ROPE = {
    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
    "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
}
TEXT: dict[str, Any] = {
    "attention_bias": False,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_parameters": ROPE,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "vocab_size": 262_144,
    "vocab_size_per_layer_input": 262_144,
    "use_bidirectional_attention": None,
}
# The text part of the released config.json.
HUB: dict[str, dict[str, Any]] = {
    "gemma4_e2b": {
        **TEXT,
        "model_type": "gemma4_text",
        "attention_k_eq_v": False,
        "hidden_size": 1536,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 6144,
        "layer_types": write_kinds(35, 5),
        "max_position_embeddings": 131_072,
        "num_attention_heads": 8,
        "num_global_key_value_heads": None,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "sliding_window": 512,
        "use_double_wide_mlp": True,
    },
    "gemma4_12b": {
        **TEXT,
        "model_type": "gemma4_unified_text",
        "attention_k_eq_v": True,
        "hidden_size": 3840,
        "intermediate_size": 15_360,
        "layer_types": write_kinds(48, 6),
        "max_position_embeddings": 262_144,
        "num_attention_heads": 16,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_kv_shared_layers": 0,
        "sliding_window": 1024,
        "use_bidirectional_attention": "vision",
        "use_double_wide_mlp": False,
    },
    "gemma4_26b_a4b": {
        **TEXT,
        "model_type": "gemma4_text",
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "hidden_size": 2816,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2112,
        "layer_types": write_kinds(30, 6),
        "max_position_embeddings": 262_144,
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "num_kv_shared_layers": 0,
        "sliding_window": 1024,
        "top_k_experts": 8,
    },
}


@pytest.mark.parametrize("name", HUB)
def test_released_files_have_the_shapes_of_the_presets(name: str) -> None:
    assert gemma4.from_hf(HUB[name]) == gemma4.VARIANTS[name]
    outer = {"model_type": HUB[name]["model_type"].removesuffix("_text"), "text_config": HUB[name]}
    inner = find_text_config(outer, WRAPPERS)
    assert gemma4.from_hf(inner) == gemma4.VARIANTS[name] and inner["architectures"][0].endswith("ForCausalLM")


def test_sizes_of_single_layers_are_read_where_the_newest_transformers_writes_them() -> None:
    hf = {key: value for key, value in HUB["gemma4_12b"].items() if "global" not in key}
    wide = {"head_dim": 512, "num_key_value_heads": 1}
    hf["per_layer_config"] = {str(layer): wide for layer in range(5, 48, 6)}
    assert gemma4.from_hf(hf) == gemma4.VARIANTS["gemma4_12b"]


# Billions of parameters of the text models: all, and those active per token, by the model card.
CARD = {"gemma4_12b": (11.9, 11.9), "gemma4_31b": (30.7, 30.7), "gemma4_26b_a4b": (25.2, 3.8)}


@pytest.mark.parametrize("name", CARD)
def test_presets_have_the_published_numbers_of_parameters(name: str) -> None:
    found = count_parameters(gemma4, gemma4.VARIANTS[name])
    assert (found.total / 1e9, found.active / 1e9) == pytest.approx(CARD[name], abs=0.06)


def test_the_last_layers_take_keys_of_the_last_own_ones_of_their_kind() -> None:
    styles = [gemma4.VARIANTS["gemma4_e2b"].style(layer) for layer in range(35)]
    assert {layer: style.keeps for layer, style in enumerate(styles) if style.keeps} == {13: "local", 14: "whole"}
    assert [bool(style.takes) for style in styles] == [layer >= 15 for layer in range(35)]
    assert all(style.takes == ("local" if style.window else "whole") for style in styles[15:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all' is not known"),
        ({"vocab_size_per_layer_input": 100}, r"vocab_size_per_layer_input must be vocab_size \(262144\), got 100"),
        ({"attention_bias": True}, "attention_bias = True is not known for this family"),
        ({"num_kv_shared_layers": 32}, "num_kv_shared_layers = 32 leaves no layer of each kind with keys of its own"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gemma4.from_hf({**HUB["gemma4_e2b"], **change})


def test_the_number_at_the_end_of_a_layer_counts_and_is_not_trained() -> None:
    model, _ = load_pretrained(FAMILIES / "gemma4")
    graph, params = split(model)
    tokens = jnp.arange(2, 10)[None]
    run = jax.jit(lambda params: merge(graph, params)(tokens))
    gradient = jax.jit(jax.grad(lambda params: jnp.square(merge(graph, params)(tokens)).sum()))(params)
    assert not np.any(gradient["layers"][0]["tail"]["factor"])
    assert np.any(gradient["layers"][0]["attention"]["key"]["kernel"])
    before = run(params)
    params["layers"][0]["tail"]["factor"] = params["layers"][0]["tail"]["factor"] + 0.5
    assert np.abs(run(params) - before).max() > 1e-3


def test_layers_without_keys_have_no_cache_and_no_adapters_for_them() -> None:
    model, _ = load_pretrained(FAMILIES / "gemma4_shared")
    cache = model.init_cache(2, 16)
    assert [len(layer) for layer in cache.layers] == [2, 2, 2] + [0] * 6
    config = LoRAConfig(rank=2, targets=("attention.*", "tail.*", "inputs.*"))
    adapters = init_adapters(model, config)
    assert set(adapters["layers"][0]["attention"]) == {"query", "key", "value", "out"}
    assert set(adapters["layers"][3]["attention"]) == {"query", "out"} and set(adapters["inputs"]) == {"projection"}
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    graph, tokens = attach_adapters(model, config), jnp.arange(2, 10)[None]
    changed = jax.jit(lambda params: merge(graph, params)(tokens))(join_adapters(split(model)[1], adapters))
    plain = jax.jit(lambda params: merge(split(model)[0], params)(tokens))(split(model)[1])
    assert np.isfinite(changed).all() and np.abs(changed - plain).max() > 1e-2


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_common_prefix_is_seen_by_layers_without_keys(scan_layers: bool) -> None:
    graph, params = split(load_pretrained(FAMILIES / "gemma4_shared", scan_layers=scan_layers)[0])
    tokens, before = np.arange(2, 26).reshape(2, 12), np.arange(40, 51)

    def run(params: dict) -> tuple[jax.Array, jax.Array]:
        model = merge(graph, params)
        positions = np.broadcast_to(11 + np.arange(12), tokens.shape)
        apart = model.hidden(tokens, positions=positions, prefix=model.prefix(jnp.asarray(before))).hidden
        return apart, model.hidden(np.concatenate([np.stack([before] * 2), tokens], axis=1)).hidden[:, 11:]

    apart, together = jax.jit(run)(params)
    np.testing.assert_allclose(apart, together, atol=1e-5 * np.abs(together).max())


def test_the_text_model_of_a_folder_with_images_is_read(tmp_path: Path) -> None:
    folder = FAMILIES / "gemma4_moe"
    tensors = golden.load_tensors(folder)
    nested = {"model.language_model." + name.removeprefix("model."): value for name, value in tensors.items()}
    nested["model.vision_tower.weight"] = np.zeros(3, np.float32)
    write_tensors(tmp_path, {name: Spec(x.shape, x.dtype) for name, x in nested.items()}, nested.__getitem__)
    text = json.loads((folder / "config.json").read_text())
    outer = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    opened, alone = open_model(tmp_path), open_model(folder)
    assert opened.config == alone.config and set(opened.source.names) == set(alone.source.names)
    name = "model.layers.1.experts.gate_up_proj"
    parts = [opened.source.read(f"{name}#3.{part}") for part in ("gate", "up")]
    np.testing.assert_array_equal(np.concatenate(parts), tensors[name][3])
    np.testing.assert_array_equal(opened.source.read(f"{name}#3.up", (2, 5)), tensors[name][3, 18:21])
    np.testing.assert_array_equal(
        opened.source.read("model.layers.1.experts.down_proj#7"), tensors["model.layers.1.experts.down_proj"][7]
    )
