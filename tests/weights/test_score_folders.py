"""Reward models of transformers (tests/goldens/make_scores.py): the same scores here, and the same folder back."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from r1jax.weights.export import convert
from r1jax.weights.pretrained import load_pretrained

SCORES = pathlib.Path(__file__).parents[1] / "goldens" / "scores"
FAMILIES = sorted(folder.name for folder in SCORES.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_scores_as_it_does_there(family: str) -> None:
    model, _ = load_pretrained(SCORES / family)
    golden = json.loads((SCORES / family / "scores.json").read_text())
    found = [float(model.rate(model.hidden(np.array([row])).hidden)[0, -1]) for row in golden["rows"]]
    np.testing.assert_allclose(found, golden["scores"], atol=1e-4)
    assert np.ptp(golden["scores"]) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_again_it_is_the_same_folder(family: str, tmp_path: pathlib.Path) -> None:
    convert(SCORES / family, tmp_path / "folder")
    before, after = (load_file(folder / "model.safetensors") for folder in (SCORES / family, tmp_path / "folder"))
    assert before.keys() == after.keys() and "score.weight" in after
    assert all(np.array_equal(before[name], after[name]) for name in before)
    described = [json.loads((folder / "config.json").read_text()) for folder in (SCORES / family, tmp_path / "folder")]
    for key in ("architectures", "model_type", "pad_token_id", "id2label", "hidden_size"):
        assert described[0][key] == described[1][key], key
