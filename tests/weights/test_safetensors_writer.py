"""Written tensors are what the safetensors package reads."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.weights.safetensors_writer import Spec, write_tensors

TENSORS = {
    "a": np.arange(3, dtype=np.float16),
    "b": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
    "c": np.array(2.5, np.float32),
    "d": np.zeros((0, 4), np.float32),
    "é": np.ones((5, 1), ml_dtypes.bfloat16),
}
SPECS = {name: Spec(value.shape, value.dtype) for name, value in TENSORS.items()}


@pytest.mark.parametrize("shard_bytes", [1, 50, 10**9])
def test_the_package_reads_what_was_written(tmp_path: Path, shard_bytes: int) -> None:
    write_tensors(tmp_path, SPECS, TENSORS.__getitem__, shard_bytes=shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == {1: 5, 50: 3, 10**9: 1}[shard_bytes]
    found = {name: value for file in files for name, value in load_file(file).items()}
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
        np.testing.assert_array_equal(open_tensors(tmp_path).read(name), value)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1)
    if index.exists():
        assert json.loads(index.read_text())["metadata"]["total_size"] == sum(
            value.nbytes for value in TENSORS.values()
        )


def test_tensors_are_cast_and_begin_where_their_dtype_may(tmp_path: Path) -> None:
    specs = {
        name: Spec(spec.shape, np.dtype(np.float32) if name == "é" else spec.dtype) for name, spec in SPECS.items()
    }
    write_tensors(tmp_path, specs, TENSORS.__getitem__)
    file = open_tensors(tmp_path)
    assert file.dtype("é") == np.float32 and file.names[-1] == "a"
    raw = (tmp_path / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    assert size % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % specs[name].dtype.itemsize == 0


def test_without_a_folder_all_is_read_in_the_order_of_writing(tmp_path: Path) -> None:
    orders: dict[bool, list[str]] = {True: [], False: []}
    for writes, order in orders.items():
        read = lambda name, order=order: (order.append(name), TENSORS[name])[1]
        write_tensors(tmp_path if writes else None, SPECS, read, shard_bytes=50)
    assert orders[True] == orders[False] and sorted(orders[True]) == sorted(TENSORS)


def test_a_tensor_of_another_shape_is_no_tensor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a must have shape \(4,\), got \(3,\)"):
        write_tensors(tmp_path, {"a": Spec((4,), np.dtype(np.float16))}, TENSORS.__getitem__)
