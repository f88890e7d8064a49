"""Writes named tensors as safetensors, in one file or several with an index, one tensor in memory at a time.

Names, shapes and dtypes are known in advance, so the header is written first and tensors follow as they are read.
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

from r1jax.core.tensor_reader import SAFETENSORS_DTYPES

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
    shards: list[list[str]] = [[]]
    for name, spec in specs.items():
        if shards[-1] and sum(specs[held].size for held in shards[-1]) + spec.size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        names.sort(key=lambda name: -specs[name].dtype.itemsize)
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"{stem}{part}.safetensors"
        if folder is None:
            collections.deque(map(read, names), maxlen=0)
        else:
            _write_file(folder / file, {name: specs[name] for name in names}, read)
        weight_map |= dict.fromkeys(names, file)
    if folder is None or len(shards) == 1:
        return
    index = {"metadata": {"total_size": sum(spec.size for spec in specs.values())}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _write_file(path: pathlib.Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.size
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        for name, spec in specs.items():
            array = np.asarray(read(name), spec.dtype, order="C")
            if array.shape != spec.shape:
                raise ValueError(f"{name} must have shape {spec.shape}, got {array.shape}")
            stream.write(array.reshape(-1).view(np.uint8).data)
