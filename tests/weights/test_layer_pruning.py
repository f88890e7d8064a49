"""Fewer layers of a model, unrolled and scanned."""

import pathlib

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.models.transformer import split
from r1jax.weights import load_pretrained
from r1jax.weights.layer_pruning import keep_layers
from tests.tiny_model import write_tiny_model

TOKENS = np.arange(4, 20).reshape(2, 8)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_tiny_model(tmp_path_factory.mktemp("deep"), num_hidden_layers=6, hidden_size=16, head_dim=2)


@pytest.mark.parametrize(("choice", "chosen"), [("spread", [0, 2, 5]), ("first", [0, 1, 2])])
def test_the_chosen_layers_stay_as_they_are(deep: pathlib.Path, choice: str, chosen: list[int]):
    whole, _ = load_pretrained(deep)
    model = keep_layers(load_pretrained(deep)[0], 3, choice)  # type: ignore[arg-type]
    assert model.config.num_layers == 3 and len(model.layers) == 3
    for ours, number in zip(model.layers, chosen, strict=True):
        theirs = whole.layers[number]
        np.testing.assert_array_equal(ours.attention.query.kernel[...], theirs.attention.query.kernel[...])
    scanned = keep_layers(load_pretrained(deep, scan_layers=True)[0], 3, choice)  # type: ignore[arg-type]
    np.testing.assert_allclose(scanned(TOKENS), model(TOKENS), atol=1e-5)
    assert split(scanned)[1].keys() == split(load_pretrained(deep, scan_layers=True)[0])[1].keys()


def test_all_layers_are_the_model(deep: pathlib.Path):
    whole, _ = load_pretrained(deep)
    np.testing.assert_array_equal(keep_layers(load_pretrained(deep)[0], 6)(TOKENS), whole(TOKENS))


def test_more_than_there_are(deep: pathlib.Path):
    with pytest.raises(
        UserError, match=r"config.model.layers must be from 1 to the model's 6 layers \(0: all\), got 7"
    ):
        keep_layers(load_pretrained(deep)[0], 7)
