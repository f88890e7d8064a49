"""8-bit weights with block scales load as what the formula gives."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import chex
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.models.transformer import split
from r1jax.weights import load_pretrained
from r1jax.weights.export import convert
from r1jax.weights.safetensors_writer import Spec, write_tensors

GOLDEN = Path(__file__).parents[1] / "goldens" / "deepseek" / "v3_latent"
ROWS, COLUMNS = 8, 12  # no size of the model is a multiple of both
SETTINGS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [ROWS, COLUMNS], "activation_scheme": "dynamic"}
KEPT = ("embed", "head", "norm", "mlp.gate.", "eh_proj")  # the released files keep these as they are
WEIGHT = "model.layers.1.mlp.experts.3.down_proj.weight"

Tensors = dict[str, np.ndarray]


def quantize(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """(8-bit tensors with their scales, and by the formula, number by number, what they stand for)."""
    stored, meant = {}, {}
    for name, value in tensors.items():
        if any(part in name for part in KEPT):
            stored[name] = meant[name] = value
            continue
        blocks = [-(-size // part) for size, part in zip(value.shape, (ROWS, COLUMNS), strict=True)]
        scales, low = np.zeros(blocks, np.float32), np.zeros(value.shape, ml_dtypes.float8_e4m3fn)
        out = np.zeros(value.shape, np.float32)
        for i, j in itertools.product(*map(range, blocks)):
            at = np.s_[i * ROWS : (i + 1) * ROWS, j * COLUMNS : (j + 1) * COLUMNS]
            scales[i, j] = np.abs(value[at].astype(np.float32)).max() / 448
            low[at] = (value[at].astype(np.float32) / scales[i, j]).astype(low.dtype)
        for i, j in itertools.product(*map(range, value.shape)):
            out[i, j] = np.float32(low[i, j]) * scales[i // ROWS, j // COLUMNS]
        stored[name], stored[f"{name}_scale_inv"], meant[name] = low, scales, out
    return stored, meant


@pytest.fixture(scope="module")
def tensors() -> tuple[Tensors, Tensors]:
    return quantize(load_file(GOLDEN / "model.safetensors"))


def write(folder: Path, tensors: Tensors, settings: Any = SETTINGS) -> Path:
    """A sharded folder of these tensors."""
    folder.mkdir()
    specs = {name: Spec(value.shape, value.dtype) for name, value in tensors.items()}
    write_tensors(folder, specs, tensors.__getitem__, shard_bytes=10_000)
    config = json.loads((GOLDEN / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


def test_a_sharded_folder_loads_as_the_formula_says(tmp_path: Path, tensors: tuple[Tensors, Tensors]) -> None:
    stored, meant = tensors
    folder = write(tmp_path / "fp8", stored)
    assert len(list(folder.glob("*.safetensors"))) > 3
    plain = tmp_path / "plain"
    shutil.copytree(GOLDEN, plain)
    save_file(meant, plain / "model.safetensors")
    model, _ = load_pretrained(folder)
    chex.assert_trees_all_equal(split(model)[1], split(load_pretrained(plain)[0])[1])
    assert model.mtp is not None
    original = load_file(GOLDEN / "model.safetensors")[WEIGHT].astype(np.float32)
    np.testing.assert_allclose(meant[WEIGHT], original, rtol=0.07, atol=0.07 * original.std())


def test_converted_it_is_bfloat16_and_bears_no_scales(tmp_path: Path, tensors: tuple[Tensors, Tensors]) -> None:
    stored, meant = tensors
    convert(write(tmp_path / "fp8", stored), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(meant)
    for name, value in meant.items():
        expected = value if value is stored[name] else value.astype(ml_dtypes.bfloat16)
        assert found[name].dtype == expected.dtype and found[name].tobytes() == expected.tobytes(), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            {f"{WEIGHT}_scale_inv": None},
            SETTINGS,
            f"no tensor '{WEIGHT}_scale_inv', the scales of the 8-bit tensor '{WEIGHT}'",
        ),
        (
            {f"{WEIGHT}_scale_inv": np.ones((5, 2), np.float32)},
            SETTINGS,
            rf"tensor '{WEIGHT}_scale_inv' has shape \(5, 2\); '{WEIGHT}' .* in blocks of 8 x 12 needs \(4, 2\)",
        ),
        (
            {},
            {"quant_method": "gptq", "bits": 4},
            "quantization_config.quant_method = 'gptq' with weight_block_size = None is",
        ),
        (
            {},
            {**SETTINGS, "weight_block_size": None},
            "quantization_config.quant_method = 'fp8' with weight_block_size = None",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, tensors: tuple[Tensors, Tensors], change: dict[str, Any], settings: Any, message: str
) -> None:
    stored = {name: value for name, value in {**tensors[0], **change}.items() if value is not None}
    folder = write(tmp_path / "fp8", stored, settings)
    assert open_tensors(folder).dtype(WEIGHT) == ml_dtypes.float8_e4m3fn
    with pytest.raises(UserError, match=f"^{re.escape(str(folder))}: {message}"):
        load_pretrained(folder)
