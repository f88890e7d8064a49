"""Tensors of a base model with a run's LoRA adapters added (W + s A B), one at a time.

A checkpoint of adapters stores A [in..., r] and B [r, out...] under the paths of the kernels that they change; all
other tensors come from the model that the run started from.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
from flax import nnx

from r1jax.core.checkpoint import SavedArrays
from r1jax.weights.parameters import order_of
from r1jax.weights.pieces import Source, find_pieces

Path = tuple[str | int, ...]


class Adapted:
    """Tensors of `base` with the adapters of `saved` added, scaled by s = alpha / rank, and those that were trained
    whole beside them (a reward model's score); both have the shape `config`.

    base_name: MODEL that `base` is of.
    """

    def __init__(
        self,
        base: Source,
        saved: SavedArrays,
        family: ModuleType,
        config: Any,
        *,
        rank: int,
        alpha: float,
        base_name: str = "",
    ):
        self.path, self._base, self._saved = saved.path, base, saved
        self.rank, self.alpha, self.base_name = rank, alpha, base_name
        counts = nnx.eval_shape(lambda: family.build(config, rngs=nnx.Rngs(0), scan_layers=True)).counts
        self.is_remote = getattr(base, "is_remote", False)
        self._read_whole = functools.cache(saved.read)  # adapters are small, and their chunks hold all layers
        self._whole: dict[str, Path] = {
            family.HF_NAMES[".".join(map(str, path[1:]))][0]: path
            for path in saved.paths
            if path[0] == "params" and path[-1] not in ("a", "b")
        }
        self._places: dict[str, tuple[Path, tuple[int, ...]]] = {}
        for path in _find_adapters(saved):
            _, pieces = find_pieces((*path[1:], "kernel"), saved.shape((*path, "a")), family.HF_NAMES, counts)
            self._places |= {name: (path, place) for place, name, _ in pieces}

    @property
    def adapted(self) -> tuple[str, ...]:
        """Names of the tensors that an adapter changes, in the order of the layers."""
        return tuple(sorted(self._places, key=order_of))

    def __contains__(self, name: str) -> bool:
        return name in self._whole or name in self._base

    def shape(self, name: str) -> tuple[int, ...]:
        return self._saved.shape(self._whole[name])[::-1] if name in self._whole else self._base.shape(name)

    def dtype(self, name: str) -> np.dtype:
        return self._saved.dtype(self._whole[name]) if name in self._whole else self._base.dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """One tensor or some of its rows, float32 if an adapter changes it."""
        if name in self._whole:
            return self._read_whole(self._whole[name]).T[slice(*(rows or (None,)))]
        tensor = self._base.read(name, rows)
        if name not in self._places:
            return tensor
        down, up = self.read_adapter(name)
        return tensor.astype(np.float32) + self.alpha / self.rank * (down @ up).T[slice(*(rows or (None,)))]

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        """Bytes of the base that `read` reads."""
        if name in self._whole:
            return self.read(name, rows).nbytes
        return self._base.count_bytes(name, rows)

    def read_adapter(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A [in, r] and B [r, out] of an adapted tensor [out, in], float32."""
        path, place = self._places[name]
        down, up = (self._read_whole((*path, part))[place].astype(np.float32) for part in ("a", "b"))
        return down.reshape(-1, down.shape[-1]), up.reshape(down.shape[-1], -1)


def holds_adapters(saved: SavedArrays) -> bool:
    """Whether a checkpoint holds adapters only."""
    return bool(_find_adapters(saved))


def _find_adapters(saved: SavedArrays) -> list[Path]:
    return [path[:-1] for path in saved.paths if path[0] == "params" and path[-1] == "a"]
