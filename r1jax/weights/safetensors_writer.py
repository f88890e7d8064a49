"""Writes named tensors as safetensors, in one file or several with an index, one tensor in memory at a time.

Names, shapes and dtypes are known in advance, so the header is written first and tensors follow as they are read, or
parts of them are filled in, in any order, in the mapped files.
Within a file the widest dtypes come first, so that every tensor is aligned to its item size.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from r1jax.core.tensors.tensor_reader import SAFETENSORS_DTYPES

SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class Spec(NamedTuple):
    """Shape and dtype of a tensor to write."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: pathlib.Path | None,
    specs: Mapping[str, Spec],
    read: Callable[[str], np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Writes `stem`.safetensors, or shards of at most `shard_bytes` (at least one tensor each) with
    `stem`.safetensors.index.json.

    `read(name)` returns a tensor of its spec's shape, in any dtype; it is cast. folder None: everything is read in the
    same order and nothing is written, for a process that only takes part in gathering.
    """
    for file, part in _cut(specs, shard_bytes, stem).items():
        if folder is None:
            collections.deque(map(read, part), maxlen=0)
        else:
            _write_file(folder / file, part, read)
    if folder is not None:
        _write_index(folder, specs, shard_bytes, stem)


def fill_tensors(
    folder: pathlib.Path,
    specs: Mapping[str, Spec],
    fill: Callable[[Callable[[str], np.ndarray]], None],
    *,
    shard_bytes: int = SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Writes the files of `write_tensors` by `fill(open_tensor)`, which copies values into the writable array of each
    tensor, in any order and in parts.
    """
    arrays: dict[str, np.ndarray] = {}
    for file, part in _cut(specs, shard_bytes, stem).items():
        raw, end = _make_header(part), sum(spec.size for spec in part.values())
        with (folder / file).open("wb") as stream:
            stream.write(raw)
            stream.truncate(len(raw) + end)
        mapped = np.memmap(folder / file, mode="r+", dtype=np.uint8)
        at = len(raw)
        for name, spec in part.items():
            arrays[name] = mapped[at : at + spec.size].view(spec.dtype).reshape(spec.shape)
            at += spec.size
    fill(arrays.__getitem__)
    _write_index(folder, specs, shard_bytes, stem)


def _cut(specs: Mapping[str, Spec], shard_bytes: int, stem: str) -> dict[str, dict[str, Spec]]:
    """The tensors of each file, in its order."""
    shards: list[list[str]] = [[]]
    for name, spec in specs.items():
        if shards[-1] and sum(specs[held].size for held in shards[-1]) + spec.size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    files = {}
    for number, names in enumerate(shards, start=1):
        names.sort(key=lambda name: -specs[name].dtype.itemsize)
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        files[f"{stem}{part}.safetensors"] = {name: specs[name] for name in names}
    return files


def _write_index(folder: pathlib.Path, specs: Mapping[str, Spec], shard_bytes: int, stem: str) -> None:
    """Writes the index of several files; nothing for one."""
    files = _cut(specs, shard_bytes, stem)
    if len(files) > 1:
        weight_map = {name: file for file, part in files.items() for name in part}
        index = {"metadata": {"total_size": sum(spec.size for spec in specs.values())}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _make_header(specs: Mapping[str, Spec]) -> bytes:
    """The head of a file with these tensors, one after another."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.size
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _write_file(path: pathlib.Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray]) -> None:
    with path.open("wb") as stream:
        stream.write(_make_header(specs))
        for name, spec in specs.items():
            array = np.asarray(read(name), spec.dtype, order="C")
            if array.shape != spec.shape:
                raise ValueError(f"{name} must have shape {spec.shape}, got {array.shape}")
            stream.write(array.reshape(-1).view(np.uint8).data)
