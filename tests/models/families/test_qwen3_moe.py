"""Qwen3 with experts: what transformers computes, and what of config.json is refused."""

import jax
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.families import qwen3_moe
from r1jax.models.presets import count_parameters, find_preset
from r1jax.models.transformer import split
from tests.models import golden

GOLDENS = golden.DENSE.with_name("qwen3_moe")
HUB = {  # what matters of Qwen3-30B-A3B's config.json
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_the_released_shape_as_the_hub_writes_it() -> None:
    assert qwen3_moe.from_hf(HUB) == qwen3_moe.VARIANTS["qwen3_30b_a3b"]


def test_the_released_shape_as_newer_transformers_write_it() -> None:
    newer = {
        **HUB,
        "num_local_experts": HUB["num_experts"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    del newer["num_experts"], newer["rope_theta"]
    assert qwen3_moe.from_hf(newer) == qwen3_moe.VARIANTS["qwen3_30b_a3b"]
    with pytest.raises(KeyError, match="num_experts"):
        qwen3_moe.from_hf({key: value for key, value in HUB.items() if key != "num_experts"})


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("qwen3_30b_a3b", 30_532_122_624, 3.35e9), ("qwen3_235b_a22b", 235_093_634_560, 22.2e9)],
)
def test_shapes_have_the_published_size(name: str, total: int, active: float) -> None:
    found = count_parameters(*find_preset(name))
    assert found.total == total and found.active == pytest.approx(active, rel=0.02) and found.ahead == 0


def test_layers_without_experts_are_where_the_file_says() -> None:
    config = qwen3_moe.from_hf({**HUB, "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    shapes = split(nnx.eval_shape(lambda: qwen3_moe.build(config, rngs=nnx.Rngs(0))))[1]
    assert ["experts" in shapes["layers"][layer]["mlp"] for layer in range(6)] == [
        *(False, True, False),
        *(False, False, True),
    ]
    paths = [[entry.key for entry in path] for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    names = {".".join("{}" if isinstance(key, int) else key for key in path) for path in paths}
    assert names == set(qwen3_moe.HF_NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True is not known for this family; known: False"),
        ({"layer_types": ["sliding_attention"] * 48}, "sliding_attention are not known for this family"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        qwen3_moe.from_hf({**HUB, **change})


@pytest.mark.parametrize(("name", "scan_layers"), [("tied", True), ("mixed", False)])
def test_logits_are_those_of_transformers(name: str, scan_layers: bool) -> None:
    golden.check_logits(GOLDENS / name, scan_layers=scan_layers)


@pytest.mark.parametrize("name", ["tied", "mixed"])
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    golden.check_greedy(GOLDENS / name)


def test_gradient_is_that_of_autograd() -> None:
    golden.check_gradient(GOLDENS / "tied")
