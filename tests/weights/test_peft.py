"""Adapters of the library peft load with its logits, and a run's adapters become a folder that it reads."""

import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1jax import convert as command
from r1jax.core.checkpoint import Checkpoints
from r1jax.core.errors import UserError
from r1jax.learner.state import TrainState
from r1jax.models.adapters.lora import LoRAConfig, init_adapters
from r1jax.models.transformer import split
from r1jax.weights import load_pretrained
from r1jax.weights.export import convert, describe
from r1jax.weights.pretrained import open_model
from tests.tiny_model import STOP_IDS, write_tiny_model

ROOT = pathlib.Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
RANK, ALPHA = 3, 12.0


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The goldens name their base by a path from there."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", ["plain", "patterns", "embedding"])
def test_adapters_of_peft_have_its_logits(name: str) -> None:
    expected = np.load(GOLDENS / "peft" / name / "logits.npy")
    model, _ = load_pretrained(GOLDENS / "peft" / name)
    tokens = np.random.default_rng(0).integers(0, expected.shape[-1], expected.shape[:2])
    logits = jax.jit(lambda tokens: model(tokens))(tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def make_run(folder: pathlib.Path, base: pathlib.Path, *, scan_layers: bool) -> dict:
    """A workdir with a checkpoint of random adapters; returns the parameters of base and adapters merged."""
    model, _ = load_pretrained(base, scan_layers=scan_layers)
    random = np.random.default_rng(1)
    adapters = init_adapters(model, LoRAConfig(RANK, ALPHA))
    adapters = jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), adapters)
    checkpoints = Checkpoints(folder)
    checkpoints.save(2, TrainState(jax.tree.map(jax.numpy.asarray, adapters), {}, jax.numpy.int32(2)), {})
    checkpoints.close()
    describe(open_model(base), folder / "model")
    run = {
        "format": 3,
        "stage": "sft",
        "steps": 2,
        "model": {"name": str(base)},
        "lora": {"rank": RANK, "alpha": ALPHA},
    }
    (folder / "config.json").write_text(json.dumps(run))
    return split(load_pretrained(folder, scan_layers=scan_layers)[0])[1]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_run_with_adapters_goes_out_and_comes_back(
    tmp_path: pathlib.Path, scan_layers: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny_model(tmp_path / "base")
    merged = make_run(tmp_path / "run", base, scan_layers=scan_layers)
    assert command.main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--adapter"]) == 0
    out = tmp_path / "out"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{out}: 6,720 float32 parameters in 28 tensors"
    assert {line.split()[0] for line in printed[1:]} == {file.name for file in out.iterdir()}
    assert "README.md" in {line.split()[0] for line in printed[1:]}
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == RANK and config["lora_alpha"] == ALPHA and config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj".split()
    tensors = load_file(out / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2
    prefix = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{prefix}.lora_A.weight"].shape == (RANK, 96)
    assert tensors[f"{prefix}.lora_B.weight"].shape == (64, RANK)
    again, tokenizer = load_pretrained(out, scan_layers=scan_layers)
    chex.assert_trees_all_close(split(again)[1], merged, rtol=1e-6, atol=1e-6)
    assert tokenizer is not None and tokenizer.eos_ids == STOP_IDS and tokenizer.chat_template
    convert(out, tmp_path / "merged")
    whole, _ = load_pretrained(tmp_path / "merged", scan_layers=scan_layers)
    chex.assert_trees_all_equal(split(whole)[1], split(again)[1])


def test_a_run_without_adapters_cannot_be_written_as_some(
    tmp_path: pathlib.Path, tiny_model: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["convert", str(tiny_model), str(tmp_path / "out"), "--adapter"]) == 2
    assert "--adapter needs the workdir of a run that trained adapters (config.lora.rank)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


CHANGES = [
    ({"peft_type": "IA3"}, r"peft_type = 'IA3' is not supported \(supported: 'LORA'\)"),
    ({"use_dora": True}, "use_dora = True is not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported"),
    ({"base_model_name_or_path": None}, "must name the model that the adapters belong to"),
    (
        {"base_model_name_or_path": "no/such/folder"},
        "adapter_config.json: base_model_name_or_path: no model no/such/folder",
    ),
    ({"base_model_name_or_path": "tests/goldens/dense/llama_scaled"}, "adapters of .* make .* the base has"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES, ids=[str(change[0]) for change in CHANGES])
def test_what_does_not_fit_is_refused(tmp_path: pathlib.Path, changes: dict, message: str) -> None:
    folder = shutil.copytree(GOLDENS / "peft" / "plain", tmp_path / "adapters")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message):
        open_model(folder)


def test_tensors_that_do_not_fit_are_named(tmp_path: pathlib.Path) -> None:
    folder = shutil.copytree(GOLDENS / "peft" / "plain", tmp_path / "adapters")
    tensors = load_file(folder / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_A" in name)
    for changed, message in (
        ({**tensors, "base_model.model.model.layers.9.x.lora_A.weight": tensors[first]}, "belongs to no tensor"),
        ({**tensors, "other.weight": tensors[first]}, "unexpected tensor 'other.weight'"),
        ({name: value for name, value in tensors.items() if name != first}, "only one of lora_A and lora_B"),
        (
            {**tensors, "base_model.model.model.embed_tokens.weight": tensors[first]},
            "changes the embedding, which is also the head",
        ),
    ):
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(UserError, match=message):
            open_model(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors is missing"):
        open_model(folder)
