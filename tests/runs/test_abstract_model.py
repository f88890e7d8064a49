"""Models of a config as shapes: sizes by preset, by hub name and from files; parameters with their places."""

import pathlib

import jax
import pytest

from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.models.families import llama
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


def test_an_abstract_model_is_the_loaded_one_in_shapes_and_places(tiny_model: pathlib.Path) -> None:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        abstract, (loaded, _) = abstract_model(config := ModelConfig(str(tiny_model))), load_model(config)
    (graph, shapes), (expected, arrays) = split(abstract), split(loaded)
    assert graph == expected and abstract.config == loaded.config
    describe = lambda x: (x.shape, x.dtype, x.sharding)
    assert jax.tree.map(describe, shapes) == jax.tree.map(describe, arrays)
