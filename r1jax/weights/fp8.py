"""Weights stored as 8-bit floats with one scale per block (DeepSeek-V3, 2412.19437, section 3.3), read as plain
weights.

Each [out, in] matrix `NAME` has a companion `NAME_scale_inv` [ceil(out / rows), ceil(in / columns)]; a weight is its
8-bit value times the scale of its block. A tensor is stored this way if it has a companion; the block size is in
config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import TensorFile
from r1jax.weights.views.mxfp4 import Microscaled

SUFFIX = "_scale_inv"


class BlockScaled:
    """Tensors of a file by name, with block scales multiplied in (in float32) and the scale tensors hidden."""

    def __init__(self, file: TensorFile, block: tuple[int, int]):
        self.path, self._file, self._block = file.path, file, block
        self.is_remote = file.is_remote

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names except those of scales."""
        return tuple(name for name in self._file.names if name in self)

    def __contains__(self, name: str) -> bool:
        return name in self._file and not name.endswith(SUFFIX)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._file.shape(name)

    def dtype(self, name: str) -> np.dtype:
        """The dtype that `read` should be stored in: bfloat16 for scaled tensors, which loses nothing relevant."""
        return np.dtype(ml_dtypes.bfloat16) if self._is_scaled(name) else self._file.dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor, or its rows from the first to before the second of `rows`, with the scales of their blocks alone.

        Raises UserError if scales are missing or do not fit the tensor.
        """
        weight = self._file.read(name, rows)
        if not self._is_scaled(name):
            return weight
        scales, (height, width), shape = name + SUFFIX, self._block, self._file.shape(name)
        if scales not in self._file:
            raise UserError(f"{self.path}: no tensor {scales!r}, the scales of the 8-bit tensor {name!r}")
        want = tuple(-(-size // part) for size, part in zip(shape, self._block, strict=True))
        if self._file.shape(scales) != want:
            raise UserError(
                f"{self.path}: tensor {scales!r} has shape {self._file.shape(scales)}; {name!r} of shape "
                f"{shape} in blocks of {height} x {width} needs {want}"
            )
        start, stop = rows or (0, shape[0])
        blocks = self._find_blocks(rows)
        out = weight.astype(np.float32)
        for block, scale in enumerate(self._file.read(scales, blocks).astype(np.float32), start // height):
            part = slice(max(block * height, start) - start, min((block + 1) * height, stop) - start)
            out[part] *= np.repeat(scale, width)[: shape[1]]
        return out

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the file that `read` reads."""
        scales = name + SUFFIX
        size = self._file.count_bytes(name, rows)
        if self._is_scaled(name) and scales in self._file:
            size += self._file.count_bytes(scales, self._find_blocks(rows))
        return size

    def _find_blocks(self, rows: tuple[int, int] | None) -> tuple[int, int] | None:
        """The rows of the scales that belong to rows of a tensor."""
        return rows and (rows[0] // self._block[0], -(-rows[1] // self._block[0]))

    def _is_scaled(self, name: str) -> bool:
        return self._file.dtype(name).itemsize == 1 and len(self._file.shape(name)) == 2


def dequantize(file: TensorFile, hf: Mapping[str, Any]) -> TensorFile | BlockScaled | Microscaled:
    """The file with its tensors dequantized as its config.json describes. Raises UserError for an unknown method."""
    quantization = hf.get("quantization_config")
    if not quantization:
        return file
    method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
    if method == "mxfp4":
        return Microscaled(file)
    if method != "fp8" or not isinstance(block, (list, tuple)) or len(block) != 2:
        raise UserError(
            f"{file.path}: quantization_config.quant_method = {method!r} with weight_block_size = {block!r} is not "
            "supported; known: 'fp8' in blocks of rows and columns, 'mxfp4'"
        )
    return BlockScaled(file, (int(block[0]), int(block[1])))
