"""The Llama family's reading of config.json, and its table of names."""

from pathlib import Path

import jax
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.models.families import llama
from r1jax.models.rope import RopeScaling
from r1jax.models.transformer import split
from r1jax.weights.gguf import GGUFModel
from tests.models import golden

HUB = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "initializer_range": 0.02,
}


def test_llama_31_as_the_hub_writes_it() -> None:
    expected = llama.Config(128_256, 4096, 14_336, 32, 32, 8, 128, 500_000.0, RopeScaling(), 1e-5, False, 0.02)
    assert llama.from_hf(HUB) == expected


def test_rope_parameters_of_newer_files_say_the_same() -> None:
    newer = {key: value for key, value in HUB.items() if key not in ("rope_theta", "rope_scaling")}
    scaling: dict = HUB["rope_scaling"]  # type: ignore[assignment]
    assert llama.from_hf({**newer, "rope_parameters": {**scaling, "rope_theta": 500_000.0}}) == llama.from_hf(HUB)
    plain = {**newer, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}
    assert (llama.from_hf(plain).rope_theta, llama.from_hf(plain).rope_scaling) == (7.0, None)
    linear = {**HUB, "rope_scaling": {"type": "linear", "factor": 4.0}}  # the old key of the kind
    assert llama.from_hf(linear).rope_scaling == RopeScaling("linear", 4.0)


def test_what_a_file_leaves_out_is_as_transformers_has_it() -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = llama.from_hf({key: HUB[key] for key in sizes} | {"head_dim": None, "rope_scaling": None})
    assert (config.num_kv_heads, config.head_dim) == (32, 128)
    assert (config.rope_theta, config.rope_scaling, config.norm_epsilon) == (10_000.0, None, 1e-6)
    assert not config.tie_embeddings
    with pytest.raises(KeyError, match="hidden_size"):
        llama.from_hf({"vocab_size": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "other", "factor": 4.0}}, "rope scaling 'other' is not known"),
        ({"attention_bias": True}, "attention_bias = True is not known for this family"),
        ({"mlp_bias": True}, "mlp_bias = True is not known"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not known for this family; known: 'silu'"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        llama.from_hf({**HUB, **change})


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_a_name_in_the_files(tied: bool) -> None:
    shapes = split(nnx.eval_shape(lambda: llama.build(llama.Config(tie_embeddings=tied), rngs=nnx.Rngs(0))))[1]
    paths = [[entry.key for entry in path] for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    names = {".".join("{}" if isinstance(key, int) else key for key in path) for path in paths}
    assert names == set(llama.HF_NAMES) - ({"head.kernel"} if tied else set())


def test_the_named_variant_is_the_demo_model(demo_model: Path) -> None:
    config = llama.from_hf(GGUFModel(open_tensors(demo_model)).config())
    named = llama.VARIANTS["smollm2_135m"]
    assert config.norm_epsilon == pytest.approx(named.norm_epsilon)
    assert {**vars(config), "norm_epsilon": 0, "initializer_std": 0} == {
        **vars(named),
        "norm_epsilon": 0,
        "initializer_std": 0,
    }


@pytest.mark.parametrize(("name", "scan_layers"), [("llama_scaled", True), ("llama_tied", False)])
def test_logits_are_those_of_transformers(name: str, scan_layers: bool) -> None:
    golden.check_logits(golden.DENSE / name, scan_layers=scan_layers)


@pytest.mark.parametrize("name", ["llama_scaled", "llama_tied"])
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    golden.check_greedy(golden.DENSE / name)
