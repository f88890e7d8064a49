"""A folder with images' parts: its text model alone is read, from either place where such folders keep it."""

import json
from pathlib import Path

import numpy as np
import pytest

from r1jax.weights.pretrained import open_model
from r1jax.weights.safetensors_writer import Spec, write_tensors
from tests.models import golden

GOLDEN = golden.DENSE.with_name("families") / "gemma3"


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_model_is_found(tmp_path: Path, prefix: str) -> None:
    tensors = golden.load_tensors(GOLDEN)
    nested = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
    nested["model.vision_tower.weight"] = np.zeros(3, np.float32)
    specs = {name: Spec(value.shape, value.dtype) for name, value in nested.items()}
    write_tensors(tmp_path, specs, nested.__getitem__)
    text = json.loads((GOLDEN / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 2]}
    (tmp_path / "config.json").write_text(json.dumps({**outer, "text_config": text, "vision_config": {}}))
    opened, alone = open_model(tmp_path), open_model(GOLDEN)
    assert opened.config == alone.config and opened.hf["model_type"] == "gemma3_text"
    assert set(opened.source.names) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(opened.source.read(name), value)
