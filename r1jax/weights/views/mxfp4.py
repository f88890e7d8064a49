"""Weights stored as 4-bit floats with one scale for 32 of them (MXFP4, OCP Microscaling Formats 1.0), read as bfloat16,
which loses nothing: gpt-oss's experts.

A tensor `NAME` [E, in, out] is stored as `NAME_blocks` [E, out, in / 32, 16], two numbers a byte, the first in the
lower half, and `NAME_scales` [E, out, in / 32], powers of two.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.tensors.tensor_reader import TensorFile

BLOCKS, SCALES = "_blocks", "_scales"
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_POSITIVE, *(-value for value in _POSITIVE)], np.float32)
_BIAS = 127  # of the scales' exponents


class Microscaled:
    """Tensors of a file by name, with those of 4-bit floats multiplied out and their parts hidden."""

    def __init__(self, file: TensorFile):
        self.path, self._file, self.is_remote = file.path, file, file.is_remote

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, of 4-bit tensors without their suffix."""
        found = (name for name in self._file.names if not name.endswith(SCALES))
        return tuple(name.removesuffix(BLOCKS) for name in found)

    def __contains__(self, name: str) -> bool:
        return name in self._file or name + BLOCKS in self._file

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        if not self._is_packed(name):
            return self._file.shape(name)
        *lead, out, groups, half = self._file.shape(name + BLOCKS)
        return (*lead, groups * half * 2, out)

    def dtype(self, name: str) -> np.dtype:
        """The dtype of what `read` gives."""
        return np.dtype(ml_dtypes.bfloat16) if self._is_packed(name) else self._file.dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor, or its rows from the first to before the second of `rows`.

        Raises UserError if scales are missing or do not fit the tensor.
        """
        if not self._is_packed(name):
            return self._file.read(name, rows)
        if name + SCALES not in self._file:
            raise UserError(f"{self.path}: no tensor {name + SCALES!r}, the scales of {name + BLOCKS!r}")
        shape, found = self._file.shape(name + BLOCKS), self._file.shape(name + SCALES)
        if found != shape[:-1]:
            raise UserError(f"{self.path}: tensor {name + SCALES!r} has shape {found}; its blocks need {shape[:-1]}")
        blocks, scales = self._file.read(name + BLOCKS, rows), self._file.read(name + SCALES, rows)
        pairs = np.stack([_VALUES[blocks & 15], _VALUES[blocks >> 4]], axis=-1)
        values = np.ldexp(pairs.reshape(*pairs.shape[:-2], -1), scales.astype(np.int32)[..., None] - _BIAS)
        return values.reshape(*values.shape[:-2], -1).swapaxes(-1, -2).astype(ml_dtypes.bfloat16)

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the file that `read` reads."""
        parts = [name + BLOCKS, name + SCALES] if self._is_packed(name) else [name]
        return sum(self._file.count_bytes(part, rows) for part in parts)

    def _is_packed(self, name: str) -> bool:
        return name + BLOCKS in self._file
