"""Models of a config as shapes: sizes by preset, by hub name and from files; parameters with their places."""

import pathlib

import jax
import pytest

from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.models.families import llama
from r1jax.models.presets import find_preset
from r1jax.models.transformer import split
from r1jax.runs.abstract_model import abstract_model, find_sizes
from r1jax.runs.model_setup import ModelConfig, load_model


def test_sizes_by_preset_and_by_hub_name() -> None:
    smollm2 = (llama, llama.VARIANTS["smollm2_135m"])
    assert find_sizes(ModelConfig("HuggingFaceTB/SmolLM2-135M-Instruct")) == smollm2
    assert find_sizes(ModelConfig("HuggingFaceTB/SmolLM2-135M-Instruct@main")) == smollm2
    assert find_sizes(ModelConfig("absent/SmolLM2-135M-Instruct.Q4_1.gguf")) == smollm2
    assert find_sizes(ModelConfig("Qwen/Qwen2.5-1.5B"))[1].num_layers == 28
    assert find_sizes(ModelConfig("deepseek-ai/DeepSeek-V3-Base"))[1].num_layers == 61
    assert find_sizes(ModelConfig("", preset="tiny_llama", sizes={"num_layers": 5}))[1].num_layers == 5
    with pytest.raises(UserError, match=r"the sizes of org/odd are not known .* set config.model.preset"):
        find_sizes(ModelConfig("org/odd"))
    with pytest.raises(UserError, match=r"set config.teacher.preset"):
        abstract_model(ModelConfig("org/odd"), "teacher")


@pytest.mark.parametrize(
    "name, preset",
    {
        "google/gemma-3-1b-it": "gemma3_1b",
        "google/gemma-4-E2B-it": "gemma4_e2b",
        "google/gemma-4-26B-A4B-it": "gemma4_26b_a4b",
        "openai/gpt-oss-20b": "gpt_oss_20b",
        "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3_30b_a3b",
        "moonshotai/Kimi-K2-Instruct-0905": "kimi_k2_1t",
        "mistralai/Mistral-7B-Instruct-v0.3": "mistral_7b_v0.3",
        "microsoft/Phi-4-mini-instruct": "phi4_mini_3.8b",
        "allenai/OLMo-2-0425-1B": "olmo2_1b",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama4_scout_109b",
        "deepseek-ai/DeepSeek-R1-0528": "deepseek_v3_671b",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "qwen2.5_math_1.5b",
    }.items(),
)
def test_hub_names_tell_shapes_whatever_the_training(name: str, preset: str) -> None:
    assert find_sizes(ModelConfig(name)) == find_preset(preset)


def test_an_abstract_model_is_the_loaded_one_in_shapes_and_places(tiny_model: pathlib.Path) -> None:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        abstract, (loaded, _) = abstract_model(config := ModelConfig(str(tiny_model))), load_model(config)
    (graph, shapes), (expected, arrays) = split(abstract), split(loaded)
    assert graph == expected and abstract.config == loaded.config
    describe = lambda x: (x.shape, x.dtype, x.sharding)
    assert jax.tree.map(describe, shapes) == jax.tree.map(describe, arrays)
