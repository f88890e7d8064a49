"""The prediction depth of Qwen3-Next and Qwen3.5, which transformers leaves out."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.models.families import qwen3_next
from r1jax.models.mtp import predict_ahead
from r1jax.models.transformer import merge, split
from r1jax.weights import load_pretrained
from r1jax.weights.pretrained import open_model
from r1jax.weights.safetensors_writer import Spec, write_tensors
from tests.models import golden

FOLDERS = sorted(golden.DENSE.with_name("depths").iterdir())
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@each
def test_the_prediction_depth_is_that_of_the_layers_of_transformers(folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    graph, params = split(load_pretrained(folder, scan_layers=True)[0])

    def run(params: dict) -> tuple[jax.Array, jax.Array]:
        model, tokens = merge(graph, params), expected["tokens"]
        hidden = model.hidden(tokens).hidden
        (ahead,), _ = predict_ahead(model, hidden, tokens)
        return model.unembed(hidden), model.unembed(ahead)

    logits, ahead = jax.jit(run)(params)
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=golden.LOGIT_TOLERANCE)
    np.testing.assert_allclose(ahead[:, :-1], expected["mtp_logits"], rtol=0, atol=golden.LOGIT_TOLERANCE)


@each
def test_its_tensors_come_back_unchanged(folder: Path, tmp_path: Path) -> None:
    golden.check_files(folder, tmp_path)


def test_it_is_found_beside_the_text_model_of_a_folder_with_images(tmp_path: Path) -> None:
    folder = golden.DENSE.with_name("depths") / "qwen3_5"
    place = lambda name: f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name
    nested = {place(name): value for name, value in golden.load_tensors(folder).items()}
    write_tensors(tmp_path, {name: Spec(x.shape, x.dtype) for name, x in nested.items()}, nested.__getitem__)
    text = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "text_config": text}))
    opened, alone = open_model(tmp_path), open_model(folder)
    assert opened.config == alone.config and opened.config.mtp_depths == 1
    assert set(opened.source.names) == set(alone.source.names)


def test_files_without_it_have_none(tmp_path: Path) -> None:
    assert load_pretrained(golden.DENSE.with_name("families") / "qwen3_next")[0].mtp is None
    shutil.copytree(golden.DENSE.with_name("families") / "qwen3_5", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mtp_num_hidden_layers": 1}))
    model, _ = load_pretrained(tmp_path)
    assert model.mtp is None and model.config.mtp_depths == 0


@pytest.mark.parametrize("change", [{"mtp_num_hidden_layers": 2}, {"mtp_use_dedicated_embeddings": True}])
def test_other_depths_are_refused(change: dict) -> None:
    hf = json.loads((FOLDERS[0] / "config.json").read_text())
    with pytest.raises(UserError, match=r"mtp_num_hidden_layers must be 0 or 1, without embeddings of its own, got \d"):
        qwen3_next.from_hf({**hf, **change})
