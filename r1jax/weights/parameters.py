"""Our parameters presented as tensors under Hugging Face names, for writing; hf.py is the inverse.

The same view serves parameters in memory, those of a checkpoint (saved.py), and those of a shape alone (names and
shapes only).
One tensor is made at a time.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from r1jax.core.distributed import fetch
from r1jax.models.transformer import Params, split
from r1jax.weights.pieces import find_pieces, matrix_shape
from r1jax.weights.safetensors_writer import Spec

Path = tuple[str | int, ...]


class Piece(NamedTuple):
    """Location of one tensor: a parameter of ours, an index on its first axes, and how it is transposed."""

    path: Path
    place: tuple[int, ...]
    shape: tuple[int, ...]  # our shape after the index
    inputs: int | None


class Parameters:
    """Tensors by Hugging Face name, in order of the layers; `read_part(path, place)` returns our array.

    With prediction depths, the copies of embedding and head that released files contain are included. `leaves`: shape
    and dtype of each parameter by path; `pieces`: where each tensor is.
    """

    def __init__(
        self,
        family: ModuleType,
        leaves: Mapping[Path, Spec],
        read_part: Callable[[Path, tuple[int, ...]], np.ndarray],
        *,
        path: Any = "",
    ):
        self.path, self.leaves, self._read_part = path, leaves, read_part
        pieces: dict[str, Piece] = {}
        counts = _count_layers(leaves)
        for ours, leaf in leaves.items():
            lead, found = find_pieces(ours, leaf.shape, family.HF_NAMES, counts)
            pieces |= {name: Piece(ours, place, leaf.shape[lead:], inputs) for place, name, inputs in found}
        self._copies: dict[str, str] = {}
        for depth in {int(ours[1]) for ours in leaves if ours[0] == "mtp"}:
            for name, ours in getattr(family, "HF_COPIES", {}).items():
                original = family.HF_NAMES[ours][0]
                if original in pieces:
                    self._copies[name.format(sum(counts) + depth)] = original
        pieces |= {name: pieces[original] for name, original in self._copies.items()}
        self.pieces = dict(sorted(pieces.items(), key=lambda item: order_of(item[0])))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.pieces)

    def __contains__(self, name: str) -> bool:
        return name in self.pieces

    def original(self, name: str) -> str:
        """The tensor that `name` is a copy of; `name` itself if it is not a copy."""
        return self._copies.get(name, name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor in the files, [out, in] for a matrix."""
        return matrix_shape(self.pieces[name].shape, self.pieces[name].inputs)

    def dtype(self, name: str) -> np.dtype:
        """The dtype of our parameter."""
        return self.leaves[self.pieces[name].path].dtype

    def keeps_dtype(self, name: str) -> bool:
        """Whether a tensor stays float32 in any model dtype: a router's correction bias, whose updates are small."""
        return self.pieces[name].path[-1] == "correction_bias"

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor in the layout of the files, or some of its rows (of the whole one, which is made first)."""
        ours, place, _, inputs = self.pieces[name]
        array, shape = self._read_part(ours, place), self.shape(name)
        tensor = array.reshape(shape[::-1]).T if inputs else array.reshape(shape)
        return tensor if rows is None else tensor[slice(*rows)]

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes that a tensor or some of its rows take."""
        shape = self.shape(name)
        return math.prod(shape if rows is None else (rows[1] - rows[0], *shape[1:])) * self.dtype(name).itemsize


def of_arrays(family: ModuleType, params: Params) -> Parameters:
    """Parameters in memory, in either layout and on any mesh."""
    arrays = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    leaves = {path: Spec(leaf.shape, np.dtype(leaf.dtype)) for path, leaf in arrays.items()}
    return Parameters(family, leaves, lambda path, place: np.asarray(fetch(arrays[path][place])))


def of_shape(family: ModuleType, config: Any) -> Parameters:
    """Parameters of a shape, without values to read."""

    def read_part(path: Path, place: tuple[int, ...]) -> np.ndarray:
        raise ValueError(f"{path}: a shape has no values")

    model = nnx.eval_shape(lambda: family.build(config, rngs=nnx.Rngs(0), scan_layers=True))
    leaves = jax.tree_util.tree_leaves_with_path(split(model)[1])
    return Parameters(family, {_keys(path): Spec(leaf.shape, np.dtype(leaf.dtype)) for path, leaf in leaves}, read_part)


def family_of(config: Any) -> ModuleType:
    """The module that defines a family's Config."""
    return importlib.import_module(type(config).__module__)


def _count_layers(leaves: Mapping[Path, Spec]) -> list[int]:
    """Number of layers in each group; one group in the unrolled layout."""
    groups: dict[Any, dict[Any, int]] = {}
    for path, leaf in leaves.items():
        if path[0] == "stacks":  # a block of a pattern that layers repeat has a number of its own
            groups.setdefault(path[1], {})[path[2] if isinstance(path[2], int) else ""] = leaf.shape[0]
    if groups:
        return [sum(groups[group].values()) for group in sorted(groups)]
    return [len({path[1] for path in leaves if path[0] == "layers"})]


def _keys(path: tuple) -> Path:
    return tuple(entry.key for entry in path)


def order_of(name: str) -> list[str]:
    """Sort key that compares the numbers in a name as numbers."""
    return [part.zfill(6) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
