"""Tensors of Hugging Face files that form a parameter of ours, by a family's table of names.

A table maps each of our parameters (a dotted path, `{}` for an index) to the tensor's name in the Hugging Face files
and to the number of our leading axes that form the input side of their [out, in] matrix (0: theirs is a vector; None:
both arrays are equal). Where their name has more indices than our path, ours is a stack whose first axis is their extra
index (experts). Prediction depth i is their layer num_layers + i, or, apart from the layers, their depth i.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from r1jax.core.errors import UserError
from r1jax.models.families.hf_config import Names


class Source(Protocol):
    """Tensors by their Hugging Face names."""

    path: Any

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype: ...

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor, or its rows from the first to before the second of `rows`."""
        ...

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the files that `read` reads."""
        ...


Piece = tuple[tuple[int, ...], str, int | None]


def find_pieces(
    keys: Sequence[Any], shape: Sequence[int], names: Names, counts: Sequence[int]
) -> tuple[int, list[Piece]]:
    """Number of leading axes of a parameter that index tensors, and for each tensor its index on those axes, its name
    in the files, and its `inputs` of the table.

    keys, shape: of the parameter in either layout; counts: number of layers in each group of the model. The key of a
    block of a pattern that layers repeat follows that of its group.
    """
    numbers, rest = [[key] for key in keys if isinstance(key, int)], list(keys)
    stacked = keys[0] == "stacks"
    if stacked:
        first, rest = sum(counts[: keys[1]]), ["layers", *keys[1:]]
        if in_pattern := isinstance(keys[2], int):
            first, rest = first + keys[2], ["layers", *keys[2:]]
            del numbers[1]
        period = counts[keys[1]] // shape[0] if in_pattern else 1
        numbers[0] = list(range(first, first + shape[0] * period, period))
    theirs, inputs = names[".".join("{}" if isinstance(key, int) else key for key in rest)]
    if keys[0] == "mtp" and theirs.startswith("model."):
        numbers[0] = [sum(counts) + keys[1]]
    lead = int(stacked)
    while theirs.count("{}") > len(numbers):
        numbers.append(list(range(shape[lead])))
        lead += 1
    places = itertools.product(*(range(size) for size in shape[:lead]))
    filled = [theirs.format(*chosen) for chosen in itertools.product(*numbers)]
    return lead, [(place, name, inputs) for place, name in zip(places, filled, strict=True)]


def matrix_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    """Shape in the files of a tensor of ours."""
    if inputs is None:
        return shape
    sides = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    return sides if inputs else sides[:1]


def check_tensor(source: Source, name: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless the source has this tensor with this shape."""
    if name not in source:
        raise UserError(f"{source.path}: no tensor {name!r}, which the model needs")
    if tuple(source.shape(name)) != tuple(shape):
        raise UserError(f"{source.path}: tensor {name!r} has shape {source.shape(name)}, the model needs {shape}")
