"""4-bit floats with shared scales, multiplied out as the format says, and a model that is stored so."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.weights import load_pretrained
from r1jax.weights.export import convert
from r1jax.weights.safetensors_writer import Spec, write_tensors
from r1jax.weights.views.mxfp4 import Microscaled
from tests.models import golden

GOLDEN = golden.DENSE.with_name("families") / "gpt_oss"
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    write_tensors(folder, {name: Spec(x.shape, x.dtype) for name, x in arrays.items()}, arrays.__getitem__)


def pack(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales of the nearest values [E, in, out], with `in` a multiple of 32."""
    turned = values.swapaxes(1, 2).astype(np.float64)
    groups = turned.reshape(*turned.shape[:2], -1, 32)
    scales = np.ceil(np.log2(np.maximum(np.abs(groups).max(-1), 1e-30) / 6)).astype(int)
    table = np.array([*VALUES, *(-v for v in VALUES)])
    codes = np.abs(groups[..., None] / 2.0 ** scales[..., None, None] - table).argmin(-1).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, (scales + 127).astype(np.uint8)


def test_numbers_by_the_format(tmp_path: Path) -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(1, 1, 2, 32) % 16
    blocks, scales = codes[..., ::2] | codes[..., 1::2] << 4, np.array([[[127, 120]]], np.uint8)
    write(tmp_path / "m", {"w_blocks": blocks, "w_scales": scales, "other": np.ones(3, np.float32)})
    view = Microscaled(open_tensors(tmp_path / "m"))
    assert set(view.names) == {"w", "other"} and "w" in view and view.shape("w") == (1, 64, 1)
    signed = np.array([*VALUES, *(-v for v in VALUES)])
    expected = np.concatenate([np.tile(signed, 2), np.tile(signed, 2) * 2.0**-7])
    found = view.read("w")
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found[0, :, 0].astype(np.float64), expected)
    np.testing.assert_array_equal(view.read("w", (0, 1)), found)


def test_missing_scales_are_named(tmp_path: Path) -> None:
    write(tmp_path / "m", {"w_blocks": np.zeros((1, 1, 1, 16), np.uint8)})
    with pytest.raises(UserError, match="no tensor 'w_scales'"):
        Microscaled(open_tensors(tmp_path / "m")).read("w")


def test_a_model_stored_so_becomes_bfloat16(tmp_path: Path) -> None:
    tensors = golden.load_tensors(GOLDEN)
    packed: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if name.endswith("gate_up_proj"):
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = pack(value.astype(np.float32))
        else:
            packed[name] = value
    folder = tmp_path / "packed"
    write(folder, packed)
    config = json.loads((GOLDEN / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    convert(folder, tmp_path / "plain")
    again = golden.load_tensors(tmp_path / "plain")
    assert set(again) == set(tensors)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    np.testing.assert_array_equal(again[name], Microscaled(open_tensors(folder)).read(name))
    error = np.abs(again[name].astype(np.float32) - tensors[name].astype(np.float32)).max()
    assert 0 < error < 0.3 * np.abs(tensors[name].astype(np.float32)).max()
    model, _ = load_pretrained(folder)
    gate = np.asarray(model.layers[0].mlp.experts.gate[...])
    np.testing.assert_array_equal(gate, again[name][..., ::2].astype(np.float32))
    shutil.rmtree(tmp_path / "plain")
