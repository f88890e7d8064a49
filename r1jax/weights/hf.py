"""Loading of Hugging Face tensors into parameters, straight into their shards.

Bounds come before bytes: of each tensor only those rows are read, and of 8-bit blocks those are multiplied out, that
devices of this process hold or that it passes on to others (exchange.py). They are transposed, cast and copied into
the shards a piece at a time, and host memory is bounded (reading.py). A checkpoint of ours is read chunk by chunk
(saved.py).
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from r1jax.core.sharding import sharding
from r1jax.models.families.hf_config import Names
from r1jax.models.transformer import Params, logical_axes, merge, split
from r1jax.weights.pieces import Piece, Source, check_tensor, find_pieces, matrix_shape
from r1jax.weights.reading import Group, Read, read_groups
from r1jax.weights.row_exchange import Exchange, Owner, find_exchange, find_process
from r1jax.weights.saved import SavedModel, plan_chunks
from r1jax.weights.targets import Box, Target, find_boxes

READ_BYTES = 32 << 20  # of a tensor that is read at a time, as float32
BLOCK = 128  # rows of the common blocks with a scale; a part of a tensor ends between them


class Wanted(NamedTuple):
    """A parameter to load: shape and dtype, sharding (None: one device), number of leading axes that index tensors,
    and the tensors.
    """

    leaf: jax.ShapeDtypeStruct
    placed: NamedSharding | None
    lead: int
    pieces: list[Piece]

    @property
    def row(self) -> int:
        """The axis whose parts are rows of a tensor."""
        return self.lead + (self.pieces[0][2] or 0)

    def count_rows(self, shape: Sequence[int]) -> int:
        """Rows of a tensor in one index of that axis, in the parameter's shape or with the axes of rows joined."""
        return 1 if self.pieces[0][2] is None else math.prod(shape[self.row + 1 :])


def load_weights(make: Callable[[], nnx.Module], names: Names, source: Source) -> Any:
    """The model that `make` builds (traced only, never run with arrays), with weights read from `source` straight into
    their shards. In a run of several processes every one of a mesh must call this.

    Raises UserError, naming file and tensor, for a missing tensor or a wrong shape.
    """
    model: Any = nnx.eval_shape(make)
    graph, shapes = split(model)
    wanted = find_wanted(shapes, logical_axes(model), names, model.counts)
    for want in wanted.values():
        for _, name, inputs in want.pieces:
            check_tensor(source, name, matrix_shape(want.leaf.shape[want.lead :], inputs))
    if isinstance(source, SavedModel):
        source.verify()
        groups = plan_chunks({path: (want.leaf, want.placed) for path, want in wanted.items()}, source)
    else:
        groups = [plan_tensors(path, want, source) for path, want in wanted.items()]
    arrays = read_groups(groups, is_remote=getattr(source, "is_remote", False))
    return merge(graph, jax.tree_util.tree_map_with_path(lambda path, _: arrays[_keys(path)], shapes))


def find_wanted(shapes: Params, axes: Params, names: Names, counts: Sequence[int]) -> dict[tuple, Wanted]:
    """All parameters of a model by path, as the current layout places them."""
    wanted = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        keys = _keys(path)
        placed = sharding(_get(axes, keys), leaf.shape, name=".".join(map(str, keys)))
        wanted[keys] = Wanted(leaf, placed, *find_pieces(keys, leaf.shape, names, counts))
    return wanted


def plan_exchange(want: Wanted, owner: Owner = find_process) -> Exchange | None:
    """The exchange by which a parameter is loaded; None if each process reads its own part."""
    if want.placed is None:
        return None
    leaf, joined = want.leaf, want.pieces[0][2] is not None
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    return find_exchange(leaf.shape, size, want.placed, lead=want.lead, row=want.row, joined=joined, owner=owner)


def count_bytes(want: Wanted, source: Source, devices: Sequence[jax.Device], owner: Owner) -> int:
    """Bytes of `source` that the process with these devices reads for a parameter: its plan, without reading."""
    plan = plan_exchange(want, owner)
    shape, sharding = (want.leaf.shape, want.placed) if plan is None else (plan.shape, plan.between)
    each = want.count_rows(shape)
    return sum(
        source.count_bytes(name, (start * each, stop * each))
        for _, name, _, parts in find_rows(want, shape, find_boxes(shape, sharding, devices))
        for start, stop in parts
    )


def plan_tensors(path: tuple, want: Wanted, source: Source) -> Group:
    """The reads of one parameter from its tensors in files."""
    target = Target(want.leaf, want.placed, plan_exchange(want))
    each, row = want.count_rows(target.shape), want.row
    tail = tuple((0, size) for size in target.shape[want.lead :])

    def make(place: tuple[int, ...], name: str, inputs: int | None, start: int, stop: int) -> Read:
        box = list((*((index, index + 1) for index in place), *tail))
        box[row] = (start, stop)
        shape = tuple(b - a for a, b in box)
        rows = (start * each, stop * each)

        def run() -> None:
            array = source.read(name, rows)
            target.put(tuple(box), (array if inputs is None else array.T).reshape(shape))

        return Read(source.count_bytes(name, rows), 2 * math.prod(shape) * 4, run)

    reads = [
        make(place, name, inputs, start, stop)
        for place, name, inputs, parts in find_rows(want, target.shape, target.boxes)
        for start, stop in parts
    ]
    return Group({path: target}, reads)


def find_rows(
    want: Wanted, shape: Sequence[int], boxes: Sequence[Box]
) -> Iterator[tuple[*Piece, list[tuple[int, int]]]]:
    """For each tensor of a parameter that the parts `boxes` of its `shape` need: its piece, and the intervals on the
    axis `want.row` to read, each of at most READ_BYTES.
    """
    needed: dict[tuple[int, ...], set[tuple[int, int]]] = collections.defaultdict(set)
    for box in boxes:
        for place in itertools.product(*(range(*pair) for pair in box[: want.lead])):
            needed[place].add(box[want.row])
    step = max(1, READ_BYTES // max(1, 4 * math.prod(shape[want.lead :]) // max(1, shape[want.row])))
    step = step // BLOCK * BLOCK or step
    for place, name, inputs in want.pieces:
        if place in needed:
            joined = _join(needed[place])
            parts = [(at, min(at + step, stop)) for start, stop in joined for at in range(start, stop, step)]
            yield place, name, inputs, parts


def _join(intervals: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intervals in order, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def _keys(path: tuple) -> tuple:
    return tuple(entry.key for entry in path)


def _get(tree: Params, keys: Sequence[Any]) -> Any:
    for key in keys:
        tree = tree[key]
    return tree
