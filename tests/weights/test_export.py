"""Folders written for other programs: the tensors that came in go out bit for bit, or nothing is written at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1jax import convert as command
from r1jax.core.checkpoint import Checkpoints
from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import init_state
from r1jax.models.transformer import logical_axes, split
from r1jax.weights import load_pretrained
from r1jax.weights.export import convert, describe, export_model
from r1jax.weights.pretrained import open_model
from tests.tiny_model import CONFIG, STOP_IDS, write_tiny_model
from tests.weights.test_gguf import write_gguf

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = ["dense/llama_scaled", "dense/qwen2_tied", "dense/qwen3_narrow", "deepseek/v2_grouped", "deepseek/v3_latent"]
DEPTH = "deepseek/v3_latent"
CORRECTION = "model.layers.1.mlp.gate.e_score_correction_bias"


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder as the safetensors package reads them."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def assert_same(found: Path, expected: Path, dtype: Any = None) -> None:
    """Same names, and the same bits once those of `expected` are of `dtype` (None: their own)."""
    tensors, wanted = read_tensors(found), read_tensors(expected)
    assert set(tensors) == set(wanted)
    for name, value in wanted.items():
        want = value if dtype is None or name.endswith("correction_bias") else value.astype(dtype)
        assert tensors[name].dtype == want.dtype and tensors[name].tobytes() == want.tobytes(), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_is_loaded_goes_out_bit_for_bit(tmp_path: Path, name: str, scan_layers: bool) -> None:
    model, _ = load_pretrained(GOLDENS / name, dtype="bfloat16", scan_layers=scan_layers)
    export_model(model.config, split(model)[1], None, tmp_path / "out", shard_bytes=20_000)
    assert_same(tmp_path / "out", GOLDENS / name)
    again, _ = load_pretrained(tmp_path / "out", dtype="bfloat16", scan_layers=scan_layers)
    assert again.config == model.config
    chex.assert_trees_all_equal(split(again)[1], split(model)[1])
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = {file: file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")}
    assert len(shards) > 1 and {file.name for file in shards} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in read_tensors(tmp_path / "out").values())


def test_a_mesh_and_another_dtype_change_no_name(tmp_path: Path) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model, _ = load_pretrained(GOLDENS / DEPTH, mesh=mesh, scan_layers=True)
    export_model(model.config, split(model)[1], None, tmp_path / "out", dtype="float16")
    assert_same(tmp_path / "out", GOLDENS / DEPTH, np.float16)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_depths_that_the_files_lack_are_neither_written_nor_announced(tmp_path: Path) -> None:
    source = GOLDENS / "deepseek" / "v3_direct"
    model, _ = load_pretrained(source, dtype="bfloat16")
    export_model(model.config, split(model)[1], None, tmp_path / "exported")
    convert(source, tmp_path / "converted")
    for folder in (tmp_path / "exported", tmp_path / "converted"):
        assert_same(folder, source)
        assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_tokenizer_and_stop_ids_go_along(tmp_path: Path, tiny_model: Path) -> None:
    model, tokenizer = load_pretrained(tiny_model)
    assert tokenizer is not None
    export_model(model.config, split(model)[1], tokenizer, tmp_path / "exported")
    convert(tiny_model, tmp_path / "converted")
    for folder in (tmp_path / "exported", tmp_path / "converted"):
        assert_same(folder, tiny_model)
        again = load_pretrained(folder)[1]
        assert again is not None and again.chat_template == tokenizer.chat_template
        assert again.encode("ab") == tokenizer.encode("ab") and again.eos_ids == tokenizer.eos_ids == STOP_IDS
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == list(STOP_IDS)
    converted = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert converted == CONFIG  # what we do not know of a config stays in it


# --- convert ---


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_tensors_keep_their_dtype_or_get_the_one_asked_for(tmp_path: Path, dtype: str | None) -> None:
    convert(GOLDENS / DEPTH, tmp_path / "out", dtype=dtype)
    assert_same(tmp_path / "out", GOLDENS / DEPTH, dtype and np.dtype(dtype))
    tensors = read_tensors(tmp_path / "out")
    assert tensors[CORRECTION].dtype == np.float32


def test_copies_that_a_file_leaves_out_are_written(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / DEPTH, tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "layers.3.embed" not in name and "head.head" not in name}
    assert len(kept) == len(tensors) - 2
    save_file(
        {**kept, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)}, tmp_path / "in" / "model.safetensors"
    )
    convert(tmp_path / "in", tmp_path / "out")
    assert_same(tmp_path / "out", GOLDENS / DEPTH)


def test_gguf_becomes_the_folder_it_was_made_of(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "in", tie_word_embeddings=False)
    convert(write_gguf(folder), tmp_path / "out")
    assert_same(tmp_path / "out", folder)
    model, tokenizer = load_pretrained(tmp_path / "out")
    assert tokenizer is not None and tokenizer.encode("abb") == [260, 69] and tokenizer.eos_ids == (2,)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [2]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_run_is_a_model(tmp_path: Path, scan_layers: bool) -> None:
    """A workdir and a checkpoint load and convert without the model that they began from."""
    shutil.copytree(GOLDENS / DEPTH, tmp_path / "in")
    model, _ = load_pretrained(tmp_path / "in", scan_layers=scan_layers)
    workdir, params = tmp_path / "run", split(model)[1]
    trained = jax.tree.map(lambda x: x + 1, params)
    checkpoints = Checkpoints(workdir)
    optimizer = make_optimizer(OptimizerConfig(), 1)
    for step, values in ((3, params), (12, trained)):
        checkpoints.save(step, init_state(values, logical_axes(model), optimizer), {})
    checkpoints.close()
    describe(open_model(tmp_path / "in"), workdir / "model")
    shutil.rmtree(tmp_path / "in")
    for path, expected in ((workdir, trained), (workdir / "checkpoints" / "3", params)):
        loaded, _ = load_pretrained(path, scan_layers=scan_layers)
        assert loaded.config == model.config
        chex.assert_trees_all_equal(split(loaded)[1], expected)
    convert(workdir / "checkpoints" / "3", tmp_path / "out", dtype="bfloat16")
    assert_same(tmp_path / "out", GOLDENS / DEPTH)


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="this run has not saved a checkpoint yet"):
        load_pretrained(tmp_path)
    step = tmp_path / "checkpoints" / "7"
    step.mkdir()
    with pytest.raises(UserError, match="checkpoints: none of the 1 checkpoints is whole"):
        load_pretrained(tmp_path)
    with pytest.raises(UserError, match="model: not a model folder, config.json is missing"):
        load_pretrained(step)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match="checkpoints/7: not a whole checkpoint of a run"):
        load_pretrained(step)


# --- All or nothing ---


def test_nothing_stays_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Any, name: str) -> np.ndarray:
        if "layers.1" in name:
            raise UserError(f"{name}: the disk is gone")
        return np.zeros(self.shape(name))

    monkeypatch.setattr("r1jax.core.tensors.tensor_reader.TensorFile.read", read)
    with pytest.raises(UserError, match="the disk is gone"):
        convert(write_tiny_model(tmp_path / "in"), tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "new"] == ["in"]
    assert not list((tmp_path / "new").iterdir())


def test_what_a_killed_export_left_is_replaced(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").touch()
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    convert(tiny_model, tmp_path / "out")
    assert_same(tmp_path / "out", tiny_model)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def fill_target(folder: Path) -> None:
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "mine").touch()


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (drop_tensor, [], "DIR/in: no tensor 'model.layers.1.mlp.up_proj.weight', which the model needs"),
        (fill_target, [], "DIR/out exists already; name a new folder"),
        (None, ["--dtype=int8"], "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (None, ["more"], "two arguments are needed, SRC and DST, got 3 (see --help)"),
        (shutil.rmtree, [], "no model DIR/in: there is no file or folder DIR/in"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, spoil: Any, arguments: list[str], message: str
) -> None:
    folder = write_tiny_model(tmp_path / "in")
    if spoil is not None:
        spoil(folder)
    assert command.main(["convert", str(folder), str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message.replace('DIR', str(tmp_path))}\n"
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_command_writes_the_folder(tmp_path: Path, tiny_model: Path) -> None:
    assert command.main(["convert", str(tiny_model), str(tmp_path / "out"), "--dtype=bfloat16"]) == 0
    assert_same(tmp_path / "out", tiny_model, ml_dtypes.bfloat16)
