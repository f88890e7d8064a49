"""Models from disk: Hugging Face folders whole and sharded, the hub's cache, and one clear line for what is wrong."""

import json
import re
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import init_state
from r1jax.learner.step import Learner, LossFn
from r1jax.models.dispatch import Dispatch
from r1jax.models.families import llama
from r1jax.models.families.registry import FAMILIES, find_family
from r1jax.models.layers import Dtypes
from r1jax.models.transformer import logical_axes, merge, split, stack, unstack
from r1jax.weights import load_pretrained
from tests.models import naive, toy
from tests.tiny_model import CONFIG, write_tiny_model

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
FETCH = "python fetch.py"
TOKENS = toy.tokens(2, 9)


def logits(model: Any) -> np.ndarray:
    graph, params = split(model)
    return np.asarray(jax.jit(lambda params: merge(graph, params)(TOKENS))(params))


def read_naively(folder: Path) -> dict[str, Any]:
    """Our parameters from the file as the safetensors package reads it, turned by hand."""
    tensors = load_file(folder / "model.safetensors")
    D, N, K, H = (CONFIG[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"))

    def layer(i: int) -> dict[str, Any]:
        get = lambda name: tensors[f"model.layers.{i}.{name}.weight"]
        attention = {"query": get("self_attn.q_proj").T.reshape(D, N, H), "out": get("self_attn.o_proj").T}
        attention |= {"key": get("self_attn.k_proj").T.reshape(D, K, H)}
        attention |= {"value": get("self_attn.v_proj").T.reshape(D, K, H), "out": attention["out"].reshape(N, H, D)}
        mlp = {name: get(f"mlp.{name}_proj").T for name in ("gate", "up", "down")}
        return {
            "attention": {name: {"kernel": value} for name, value in attention.items()},
            "mlp": {name: {"kernel": value} for name, value in mlp.items()},
            "attention_norm": {"scale": get("input_layernorm")},
            "mlp_norm": {"scale": get("post_attention_layernorm")},
        }

    params = {"embed": {"embedding": tensors["model.embed_tokens.weight"]}, "layers": {i: layer(i) for i in range(2)}}
    if "lm_head.weight" in tensors:
        params["head"] = {"kernel": tensors["lm_head.weight"].T}
    return params | {"norm": {"scale": tensors["model.norm.weight"]}}


def shard(folder: Path, count: int = 3) -> dict[str, str]:
    """Cuts the folder's one file into shards with an index. Returns tensor name -> file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in where if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    """Replaces tensors of the folder's one file; None leaves one out."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


# --- What is there ---


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("rope", [{}, {"rope_scaling": {**LLAMA3, "rope_type": "llama3"}}])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_computes_what_its_files_say(tmp_path: Path, tied: bool, rope: dict, sharded: bool) -> None:
    folder = write_tiny_model(tmp_path, tie_word_embeddings=tied, **rope)
    params = read_naively(folder)
    if sharded:
        shard(folder)
    model, tokenizer = load_pretrained(folder)
    assert model.config == llama.from_hf({**CONFIG, "tie_word_embeddings": tied, **rope})
    assert model.config.rope_scaling is None or model.config.rope_scaling.original_positions == 16
    chex.assert_trees_all_equal(split(model)[1], params)
    toy.assert_close(logits(model), np.stack([naive.forward(params, model.config, row) for row in TOKENS]))
    assert tokenizer is not None and tokenizer.eos_ids == (2, 3)


def test_rope_parameters_are_read_like_rope_scaling(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, rope_scaling={**LLAMA3, "rope_type": "llama3"}, rope_theta=500.0)
    before, _ = load_pretrained(folder)
    newer = {**LLAMA3, "rope_type": "llama3", "rope_theta": 500.0}
    edit_config(folder, rope_scaling=..., rope_theta=..., rope_parameters=newer)
    assert load_pretrained(folder)[0].config == before.config


def test_dtypes_and_the_scan_switch_are_options(tiny_model: Path) -> None:
    plain, _ = load_pretrained(tiny_model)
    scanned, _ = load_pretrained(tiny_model, scan_layers=True, remat="full")
    chex.assert_trees_all_equal(unstack(split(scanned)[1]), split(plain)[1])
    toy.assert_close(logits(scanned), logits(plain), 1e-6)
    low, _ = load_pretrained(tiny_model, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(split(low)[1])} == {jnp.dtype("bfloat16")}
    assert low.dtypes == Dtypes("bfloat16", "bfloat16")
    mixed, _ = load_pretrained(tiny_model, dtypes=Dtypes("float32", "bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(split(mixed)[1])} == {jnp.dtype("float32")}
    toy.assert_close(logits(low), logits(plain), 0.1)


def test_bfloat16_files_load_exactly(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    low = {name: value.astype(jnp.bfloat16) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(low, folder / "model.safetensors")
    params = split(load_pretrained(folder)[0])[1]
    found = np.asarray(params["embed"]["embedding"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, low["model.embed_tokens.weight"].astype(np.float32))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_weights_go_straight_to_their_shards(tiny_model: Path, scan_layers: bool) -> None:
    plain, _ = load_pretrained(tiny_model)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model, _ = load_pretrained(tiny_model, mesh=mesh, scan_layers=scan_layers)
    params = split(model)[1]
    query = params["stacks"][0]["attention"]["query"]["kernel"] if scan_layers else None
    query = params["layers"][0]["attention"]["query"]["kernel"] if query is None else query
    lead = (2,) if scan_layers else ()
    assert query.shape == (*lead, 64, 16, 8)
    assert {shard.data.shape for shard in query.addressable_shards} == {(*lead, 32, 8, 8)}
    assert {shard.data.shape for shard in params["embed"]["embedding"].addressable_shards} == {(152, 32)}
    wanted = stack(split(plain)[1]) if scan_layers else split(plain)[1]
    chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(wanted))


def test_a_size_that_the_mesh_does_not_divide_is_named(tiny_model: Path) -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=3), jax.devices()[:3])
    with pytest.raises(UserError, match=r"embed\.embedding: dimension 'vocab' of size 304 .* config\.mesh\.tensor"):
        load_pretrained(tiny_model, mesh=mesh)


def test_training_leaves_the_files_alone(tmp_path: Path) -> None:
    """Loaded arrays may share memory with the mapped file; an update that donates them must not write there."""
    folder = write_tiny_model(tmp_path)
    before = (folder / "model.safetensors").read_bytes()
    model, _ = load_pretrained(folder)
    graph, params = split(model)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1), 1)
    state = init_state(params, logical_axes(model), optimizer)
    loss: LossFn = lambda params, frozen, tokens: (jax.nn.logsumexp(merge(graph, params)(tokens), axis=-1).mean(), {})
    state, _, _ = Learner(loss, optimizer).update(state, {}, [TOKENS])
    assert int(state.updates) == 1 and (folder / "model.safetensors").read_bytes() == before


def test_a_folder_without_tokenizer_gives_none(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "tokenizer.json").unlink()
    assert load_pretrained(folder)[1] is None


# --- What is not ---


def drop_tensor(folder: Path) -> None:
    rewrite(folder, **{"model.layers.1.mlp.up_proj.weight": None})


def drop_head(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)


def turn_tensor(folder: Path) -> None:
    tensor = load_file(folder / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    rewrite(folder, **{"model.layers.0.self_attn.k_proj.weight": np.ascontiguousarray(tensor[:32])})


def drop_shard(folder: Path) -> None:
    (folder / shard(folder)["model.norm.weight"]).unlink()


def cut_shard(folder: Path) -> None:
    file = folder / shard(folder)["model.norm.weight"]
    file.write_bytes(file.read_bytes()[:-100])


def cut_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_tensor, r"DIR: no tensor 'model\.layers\.1\.mlp\.up_proj\.weight', which the model needs"),
        (drop_head, r"DIR: no tensor 'lm_head\.weight', which the model needs"),
        (turn_tensor, r"DIR: tensor '\S+k_proj\.weight' has shape \(32, 64\), the model needs \(64, 64\)"),
        (drop_shard, r"DIR/model-\d+-of-00003\.safetensors: missing, though model\.safetensors\.index\.json names it"),
        (cut_shard, r"DIR/model-\d+-of-00003\.safetensors: cut off: tensor '\S+' ends at byte"),
        (cut_file, r"DIR/model\.safetensors: cut off: tensor '\S+' ends at byte"),
        (lambda folder: (folder / "model.safetensors").unlink(), "DIR: contains neither model.safetensors nor"),
        (lambda folder: (folder / "config.json").unlink(), "DIR: not a model folder, config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{,"), "DIR/config.json: not JSON"),
        (
            lambda folder: edit_config(folder, model_type="mamba"),
            "DIR: unknown model_type 'mamba'; known: .*llama",
        ),
        (lambda folder: edit_config(folder, model_type="pretrained"), "DIR: unknown model_type 'pretrained'"),
        (lambda folder: edit_config(folder, model_type=...), "DIR: unknown model_type ''"),
        (lambda folder: edit_config(folder, hidden_size=...), "DIR: config.json lacks the key 'hidden_size'"),
        (lambda folder: edit_config(folder, hidden_size=32), "DIR: tensor 'model.embed_tokens.weight' has shape"),
        (lambda folder: edit_config(folder, attention_bias=True), "DIR: attention_bias = True is not known"),
        (
            lambda folder: edit_config(folder, rope_scaling={"type": "other"}),
            "DIR: rope scaling 'other' is not known; known: ",
        ),
        (
            lambda folder: edit_config(folder, rope_scaling={"type": "yarn"}),
            "DIR: rope scaling 'yarn' lacks the key 'original_max_position_embeddings'",
        ),
    ],
)
def test_a_broken_folder_gets_one_line_that_names_file_and_tensor(tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(write_tiny_model(tmp_path))
    with pytest.raises(UserError, match=f"^{message.replace('DIR', re.escape(str(tmp_path)))}") as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_known_families_are_models_only(tmp_path: Path) -> None:
    edit_config(write_tiny_model(tmp_path), model_type="mamba")
    with pytest.raises(UserError, match="known: ") as caught:
        load_pretrained(tmp_path)
    kinds = str(caught.value).split("known: ")[1].split(", ")
    assert kinds == sorted(FAMILIES) and {"llama", "deepseek_v2", "deepseek_v3"} <= set(kinds)
    assert all(find_family(kind, tmp_path).VARIANTS for kind in kinds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "config.json: must be a JSON object, got list"),
        ("7", "config.json: must be a JSON object, got int"),
        ("[" * 100_000, "config.json: not JSON"),
        ({"hidden_size": -64}, "hidden_size must be a whole number from 1 to 1048576, got '-64'"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": None}, "config.json lacks the key 'num_hidden_layers'"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers must be a whole number from 1 to 4096, got '2.5'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 4096, got '1000000000'"),
        ({"num_hidden_layers": 4096}, "says num_hidden_layers=4096, but the files hold no tensor of the last layer"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, got 'nan'"),
        ({"rope_theta": "big"}, "rope_theta must be a positive number"),
        ({"rope_scaling": [1]}, "config.json is broken (AttributeError"),
        ({"model_type": ["llama"]}, "unknown model_type"),
        ({"max_position_embeddings": 10**30}, "max_position_embeddings must be a whole number"),
    ],
)
def test_a_hostile_config_is_one_clear_line(tmp_path: Path, content: Any, message: str) -> None:
    file = write_tiny_model(tmp_path) / "config.json"
    text = content if isinstance(content, str) else json.dumps({**json.loads(file.read_text()), **content})
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_dispatch_is_for_models_with_experts(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="a model without experts has no dispatch, got 'dense'"):
        load_pretrained(tiny_model, dispatch=Dispatch("dense"))


def test_a_single_safetensors_file_is_no_model_folder(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="model.safetensors: not a model folder, config.json is missing"):
        load_pretrained(tiny_model / "model.safetensors")
