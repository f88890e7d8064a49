"""Parameters of ours, wherever they lie, seen as tensors under the hub's names: the way out, as hf.py is the way in.

The same view serves parameters in memory, those of a checkpoint, and those of a shape alone (names and shapes that a
model needs, nothing to read). One tensor is made at a time.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from r1jax.core.checkpoint import SavedArrays
from r1jax.core.distributed import fetch
from r1jax.models.transformer import Params, split
from r1jax.weights.hf import find_pieces, matrix_shape
from r1jax.weights.safetensors_writer import Spec

Path = tuple[str | int, ...]


class Piece(NamedTuple):
    """Where one tensor lies: a parameter of ours, a place on its first axes, and how it is turned."""

    path: Path
    place: tuple[int, ...]
    shape: tuple[int, ...]  # ours, behind the place
    inputs: int | None


class Parameters:
    """Tensors by the hub's names, in the order of the layers; `read_part(path, place)` gives ours.

    With prediction depths come the copies that the released files hold with them.
    """

    def __init__(
        self,
        family: ModuleType,
        leaves: Mapping[Path, Spec],
        read_part: Callable[[Path, tuple[int, ...]], np.ndarray],
        *,
        path: Any = "",
    ):
        self.path, self._leaves, self._read_part = path, leaves, read_part
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
        self._pieces = dict(sorted(pieces.items(), key=lambda item: _order(item[0])))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._pieces)

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def original(self, name: str) -> str:
        """The tensor that `name` is a copy of; itself if it is none."""
        return self._copies.get(name, name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor in the files, [out, in] for a matrix."""
        return matrix_shape(self._pieces[name].shape, self._pieces[name].inputs)

    def dtype(self, name: str) -> np.dtype:
        """The dtype of our parameter."""
        return self._leaves[self._pieces[name].path].dtype

    def keeps_dtype(self, name: str) -> bool:
        """Whether a tensor is float32 whatever the model is: a router's correction bias, which small steps move."""
        return self._pieces[name].path[-1] == "correction_bias"

    def read(self, name: str) -> np.ndarray:
        """One tensor as the files have it."""
        ours, place, _, inputs = self._pieces[name]
        array, shape = self._read_part(ours, place), self.shape(name)
        return array.reshape(shape[::-1]).T if inputs else array.reshape(shape)


def of_arrays(family: ModuleType, params: Params) -> Parameters:
    """Parameters in memory, in either layout and on any mesh."""
    arrays = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    leaves = {path: Spec(leaf.shape, np.dtype(leaf.dtype)) for path, leaf in arrays.items()}
    return Parameters(family, leaves, lambda path, place: np.asarray(fetch(arrays[path][place])))


def of_checkpoint(family: ModuleType, saved: SavedArrays) -> Parameters:
    """The parameters of a training state on disk, in either layout."""
    paths = [path for path in saved.paths if path[0] == "params"]
    leaves = {path[1:]: Spec(saved.shape(path), saved.dtype(path)) for path in paths}
    return Parameters(family, leaves, lambda path, place: saved.read(("params", *path), place), path=saved.path)


def of_shape(family: ModuleType, config: Any) -> Parameters:
    """What a model of this shape needs; nothing to read."""

    def read_part(path: Path, place: tuple[int, ...]) -> np.ndarray:
        raise ValueError(f"{path}: a shape has no numbers")

    model = nnx.eval_shape(lambda: family.build(config, rngs=nnx.Rngs(0), scan_layers=True))
    leaves = jax.tree_util.tree_leaves_with_path(split(model)[1])
    return Parameters(family, {_keys(path): Spec(leaf.shape, np.dtype(leaf.dtype)) for path, leaf in leaves}, read_part)


def family_of(config: Any) -> ModuleType:
    """The module that a family's Config belongs to."""
    return importlib.import_module(type(config).__module__)


def _count_layers(leaves: Mapping[Path, Spec]) -> list[int]:
    """Layers of each group; those of the unrolled layout are one."""
    groups = {path[1]: leaf.shape[0] for path, leaf in leaves.items() if path[0] == "stacks"}
    if groups:
        return [groups[group] for group in sorted(groups)]
    return [len({path[1] for path in leaves if path[0] == "layers"})]


def _keys(path: tuple) -> Path:
    return tuple(entry.key for entry in path)


def _order(name: str) -> list[str]:
    """Layers by their number: each number is compared as one."""
    return [part.zfill(6) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
