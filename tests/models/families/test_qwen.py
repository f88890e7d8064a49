"""The dense Qwen families: what transformers computes, and what of config.json is refused."""

import pytest

from r1jax.core.errors import UserError
from r1jax.models.families import qwen
from tests.models import golden

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": 32_768,
    "max_window_layers": 21,
    "hidden_act": "silu",
    "initializer_range": 0.02,
}


def test_qwen25_as_the_hub_writes_it() -> None:
    assert qwen.from_hf(QWEN2) == qwen.VARIANTS["qwen2.5_0.5b"]


@pytest.mark.parametrize(
    "change",
    [{"use_sliding_window": True, "max_window_layers": 24}, {"use_sliding_window": True, "sliding_window": None}],
)
def test_a_window_that_no_layer_has_is_none(change: dict) -> None:
    assert qwen.from_hf({**QWEN2, **change}) == qwen.VARIANTS["qwen2.5_0.5b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "layers of full_attention, sliding_attention are not known for this family"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention are not known"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not known for this family; known: 'silu'"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_for_qwen2(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        qwen.from_hf({**QWEN2, **change})


@pytest.mark.parametrize(("name", "scan_layers"), [("qwen2_tied", False), ("qwen2_yarn", True)])
def test_logits_are_those_of_transformers_for_qwen2(name: str, scan_layers: bool) -> None:
    golden.check_logits(golden.DENSE / name, scan_layers=scan_layers)


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen2_yarn"])
def test_greedy_tokens_are_those_of_transformers_for_qwen2(name: str) -> None:
    golden.check_greedy(golden.DENSE / name)


def test_the_gradient_is_that_of_torch_for_qwen2() -> None:
    golden.check_gradient(golden.DENSE / "qwen2_yarn")


QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "hidden_act": "silu",
    "initializer_range": 0.02,
}


def test_qwen3_as_the_hub_writes_it() -> None:
    assert qwen.from_hf(QWEN3) == qwen.VARIANTS["qwen3_4b"]


def test_heads_are_128_wide_where_a_file_leaves_it_out() -> None:
    assert qwen.from_hf({key: value for key, value in QWEN3.items() if key != "head_dim"}).head_dim == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True is not known for this family; known: False"),
        ({"layer_types": ["sliding_attention"] * 36}, "sliding_attention are not known for this family"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_for_qwen3(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        qwen.from_hf({**QWEN3, **change})


@pytest.mark.parametrize(("name", "scan_layers"), [("qwen3_tied", True), ("qwen3_narrow", False)])
def test_logits_are_those_of_transformers_for_qwen3(name: str, scan_layers: bool) -> None:
    golden.check_logits(golden.DENSE / name, scan_layers=scan_layers)


@pytest.mark.parametrize("name", ["qwen3_tied", "qwen3_narrow"])
def test_greedy_tokens_are_those_of_transformers_for_qwen3(name: str) -> None:
    golden.check_greedy(golden.DENSE / name)
