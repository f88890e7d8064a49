"""Parameters of a run's checkpoint, chunk by chunk: into the shards of another run, or into files.

Each chunk that is needed is read once, whatever the layers' layouts (stacked or one by one) and the meshes of the run
that wrote it and of the one that reads. Arrays that share chunks are loaded together: a stack goes into all of its
layers, or layers into their stack.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from r1jax.core.buckets.staging import is_address
from r1jax.core.checkpoint import SavedArrays, verify_share
from r1jax.core.errors import UserError
from r1jax.weights.parameters import Parameters, Path, Piece
from r1jax.weights.reading import Group, Read
from r1jax.weights.safetensors_writer import Spec
from r1jax.weights.targets import Box, Target, count

KEPT_BYTES = 4 << 30  # of arrays that are kept for reading by name, which needs parts of one again and again
PARAMS = "params"  # what the parameters are called in a training state

Wanted = Mapping[Path, tuple[jax.ShapeDtypeStruct, NamedSharding | None]]


class SavedModel(Parameters):
    """Parameters of a training state on disk, in either layout, as tensors by Hugging Face name."""

    def __init__(self, family: ModuleType, saved: SavedArrays):
        self.saved, self.is_remote = saved, is_address(saved.path)
        self._kept: dict[Path, np.ndarray] = {}
        paths = [path for path in saved.paths if path[0] == PARAMS]
        leaves = {path[1:]: Spec(saved.shape(path), saved.dtype(path)) for path in paths}
        super().__init__(family, leaves, self._read_place, path=saved.path)

    def verify(self) -> None:
        """Raises UserError if this process's share of the files is damaged."""
        verify_share(self.path)

    def chunks(self, path: Path) -> Iterator[tuple[Box, Callable[[], np.ndarray]]]:
        """The chunks of a parameter, each with what reads it."""
        for box in self.saved.chunks((PARAMS, *path)):
            place = tuple(slice(*pair) for pair in box)
            yield box, lambda place=place: self.saved.read((PARAMS, *path), place)  # type: ignore[misc]

    def fill(self, names: Iterable[str], open_tensor: Callable[[str], np.ndarray]) -> None:
        """Copies tensors into the writable arrays of `open_tensor`, in the layout of the files; cast to their
        dtypes.
        """
        members: dict[Path, list[str]] = collections.defaultdict(list)
        for name in names:
            members[self.pieces[name].path].append(name)
        for path, tensors in members.items():
            for box, read in self.chunks(path):
                chunk = read()
                for name in tensors:
                    piece = self.pieces[name]
                    lead = len(piece.place)
                    if all(start <= at < stop for at, (start, stop) in zip(piece.place, box[:lead], strict=True)):
                        inside = tuple(at - start for at, (start, _) in zip(piece.place, box[:lead], strict=True))
                        ours = _turn(open_tensor(name), piece)
                        ours[tuple(slice(*pair) for pair in box[lead:])] = chunk[inside]

    def _read_place(self, path: Path, place: tuple[int, ...]) -> np.ndarray:
        spec = self.leaves[path]
        if not place or spec.size > KEPT_BYTES:
            return self.saved.read((PARAMS, *path), place)
        if path not in self._kept:
            while self._kept and spec.size + sum(array.nbytes for array in self._kept.values()) > KEPT_BYTES:
                del self._kept[next(iter(self._kept))]
            self._kept[path] = self.saved.read((PARAMS, *path))
        return self._kept[path][place]


class _Link(NamedTuple):
    """A parameter that an array is a part of or has as a part: row `row` of its first axis (None: all of it) is row
    `saved_row` of the array (None: all of it).
    """

    path: Path
    row: int | None
    saved_row: int | None


def plan_chunks(wanted: Wanted, source: SavedModel) -> list[Group]:
    """The reads of all parameters from the chunks of a checkpoint."""
    links = _link(wanted, source)
    targets = {path: Target(leaf, placed) for path, (leaf, placed) in wanted.items()}
    by_target: dict[Path, list[Path]] = collections.defaultdict(list)
    for saved, members in links.items():
        for link in members:
            by_target[link.path].append(saved)
    groups, seen = [], set[Path]()
    for first in wanted:
        together, arrays, waiting = list[Path](), dict[Path, None](), [first]
        while waiting:
            path = waiting.pop()
            if path not in seen:
                seen.add(path)
                together.append(path)
                arrays |= dict.fromkeys(by_target[path])
                waiting += [link.path for saved in by_target[path] for link in links[saved]]
        if together:
            reads = [read for saved in arrays for read in _plan_array(saved, links[saved], targets, source)]
            groups.append(Group({path: targets[path] for path in together}, reads))
    return groups


def _plan_array(saved: Path, links: list[_Link], targets: Mapping[Path, Target], source: SavedModel) -> Iterator[Read]:
    for box, read in source.chunks(saved):
        if any(targets[link.path].needs(inside) for link in links if (inside := _shift(box, link)) is not None):

            def run(box: Box = box, read: Callable[[], np.ndarray] = read) -> None:
                chunk = read()
                for link in links:
                    if (inside := _shift(box, link)) is not None:
                        values = chunk if link.saved_row is None else chunk[link.saved_row - box[0][0]]
                        targets[link.path].put(inside, values if link.row is None else values[None])

            size = count(box) * source.leaves[saved].dtype.itemsize
            yield Read(size, size, run)


def _shift(box: Box, link: _Link) -> Box | None:
    """The place of a chunk in a linked parameter; None if it is not in the part that is linked."""
    if link.saved_row is not None:
        start, stop = box[0]
        if not start <= link.saved_row < stop:
            return None
        box = box[1:]
    return box if link.row is None else ((link.row, link.row + 1), *box)


def _link(wanted: Wanted, source: SavedModel) -> dict[Path, list[_Link]]:
    """For each saved array, what it is linked to. Raises UserError where shapes differ."""
    places = {layer: (path, row) for path in source.leaves for layer, row in _list_layers(path, _shapes(source.leaves))}
    links: dict[Path, list[_Link]] = collections.defaultdict(list)
    shapes = {path: tuple(leaf.shape) for path, (leaf, _) in wanted.items()}
    for path in wanted:
        for layer, row in _list_layers(path, shapes):
            saved, saved_row = places.get(layer, (path, None))
            spec = source.leaves.get(saved)
            have = None if spec is None else spec.shape[saved_row is not None :]
            if have != shapes[path][row is not None :]:
                name = ".".join(map(str, path))
                raise UserError(f"{source.path}: {name} has shape {have}, the model needs {shapes[path]}")
            if saved == path and spec is not None and spec.shape == shapes[path]:
                links[saved] = [_Link(path, None, None)]  # one array is the other
            else:
                links[saved].append(_Link(path, row, saved_row))
    return links


def _list_layers(path: Path, shapes: Mapping[Path, tuple[int, ...]]) -> list[tuple[Path, int | None]]:
    """The paths of a stack's layers with their rows; of any other parameter its own."""
    if path[0] != "stacks":
        return [(path, None)]
    counts: dict[Any, dict[Any, int]] = {}
    for other, shape in shapes.items():
        if other[0] == "stacks":
            counts.setdefault(int(other[1]), {})[other[2] if isinstance(other[2], int) else ""] = shape[0]
    first = sum(sum(members.values()) for group, members in counts.items() if group < int(path[1]))
    rows = range(shapes[path][0])
    if isinstance(path[2], int):  # a block of a pattern that layers repeat
        period = len(counts[int(path[1])])
        return [(("layers", first + row * period + path[2], *path[3:]), row) for row in rows]
    return [(("layers", first + row, *path[2:]), row) for row in rows]


def _shapes(leaves: Mapping[Path, Spec]) -> dict[Path, tuple[int, ...]]:
    return {path: spec.shape for path, spec in leaves.items()}


def _turn(array: np.ndarray, piece: Piece) -> np.ndarray:
    """A tensor of the files as a view in our shape."""
    ours = (array.T if piece.inputs else array).reshape(piece.shape)
    if math.prod(piece.shape) and not np.shares_memory(ours, array):
        raise ValueError(f"{piece}: a copy in place of a view")
    return ours
