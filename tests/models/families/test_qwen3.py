"""The dense Qwen3 family: what transformers computes, and what of config.json is refused."""

import pytest

from r1jax.core.errors import UserError
from r1jax.models.families import qwen3
from tests.models import golden

HUB = {
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
    assert qwen3.from_hf(HUB) == qwen3.VARIANTS["qwen3_4b"]


def test_heads_are_128_wide_where_a_file_leaves_it_out() -> None:
    assert qwen3.from_hf({key: value for key, value in HUB.items() if key != "head_dim"}).head_dim == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True is not known for this family; known: False"),
        ({"layer_types": ["sliding_attention"] * 36}, "sliding_attention are not known for this family"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        qwen3.from_hf({**HUB, **change})


@pytest.mark.parametrize(("name", "scan_layers"), [("qwen3_tied", True), ("qwen3_narrow", False)])
def test_logits_are_those_of_transformers(name: str, scan_layers: bool) -> None:
    golden.check_logits(golden.DENSE / name, scan_layers=scan_layers)


@pytest.mark.parametrize("name", ["qwen3_tied", "qwen3_narrow"])
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    golden.check_greedy(golden.DENSE / name)
