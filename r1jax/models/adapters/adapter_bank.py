"""A bank of low-rank adapters: those of many clients side by side in one pair of arrays, chosen by row of a batch.

Place n of a bank holds the columns n R .. (n + 1) R of A [in..., places R] and the same rows of B; each row of a batch
has a gate [places R], which is the adapter's scale at the columns of its place and 0 elsewhere. A linear map computes
x W + (x A * gate) B (`Linear`): one program for every mixture of clients, whose gradient is each client's own. An
adapter of rank r < R has zeros in its other columns, which stay zero, as do both parts of maps that it leaves out.

Adapters may also stand beside the output head ("unembed"; a tied table is changed as the head alone). Left out:
adapters of routed experts and of prediction depths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.adapters.lora import LoRAConfig, find_targets, pair_axes, put
from r1jax.models.transformer import Params, Transformer, merge, split

ALPHA = 32.0  # scale of an adapter: ALPHA / rank
KINDS = {"attention": "attention.*", "mlp": "mlp.*"}  # and "unembed", the head
HEAD = "unembed"


@dataclasses.dataclass(frozen=True)
class _Place:
    """A map beside which adapters stand: its kind, leading axes of layers, and widths."""

    kind: str
    lead: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class AdapterBank:
    """The structure of a model with a bank of adapters. graph: its parameters are those of `join`.

    places: adapters at once; rank: R, the largest of them. kinds: maps that an adapter may change.
    """

    def __init__(self, model: Transformer, *, places: int, rank: int):
        self.places, self.rank, self.columns = places, rank, places * rank
        self._maps: dict[tuple, _Place] = {}
        graph, params = split(model)
        adapted = merge(graph, params)
        config = LoRAConfig(rank=1, targets=("*",))
        kind_of: dict[tuple, str] = {}
        for kind, pattern in KINDS.items():
            try:
                found = find_targets(adapted, dataclasses.replace(config, targets=(pattern,)))
            except UserError:  # a model without such maps
                continue
            kind_of |= {path: kind for path, _ in found if path[0] != "mtp"}
        for path, linear in find_targets(adapted, config):
            if path not in kind_of:
                continue
            lead = linear.kernel.shape[: linear.kernel.ndim - len(linear.inputs) - len(linear.outputs)]
            self._maps[path] = _Place(kind_of[path], lead, linear.inputs, linear.outputs)
            axes = pair_axes(linear)
            self._attach(linear, path, axes["a"], axes["b"])
        head = adapted.embed if adapted.head is None else adapted.head
        vocabulary, width = model.config.vocab_size, model.config.hidden_size
        path = ("embed",) if adapted.head is None else ("head",)
        self._maps[path] = _Place(HEAD, (), (width,), (vocabulary,))
        self._attach(head, path, ("embed", None), (None, "vocab"))
        self.graph = split(adapted)[0]
        self.kinds = tuple(dict.fromkeys(place.kind for place in self._maps.values()))
        self.has_router = bool(model.routing[0])

    def _attach(self, module: Any, path: tuple, axes_a: tuple, axes_b: tuple) -> None:
        a, b = self._shapes(self._maps[path], self.columns)
        lead = self._maps[path].lead
        module.a, module.b = nnx.Param(_abstract(a), axes=axes_a), nnx.Param(_abstract(b), axes=axes_b)
        gate = _abstract((*lead, 1, self.columns))
        module.gate = nnx.Param(gate, axes=("layers",) * len(lead) + ("batch", None))

    def _shapes(self, place: _Place, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (*place.lead, *place.inputs, rank), (*place.lead, rank, *place.outputs)

    def empty(self) -> Params:
        """A bank without adapters."""
        tree: Params = {}
        for path, place in self._maps.items():
            a, b = self._shapes(place, self.columns)
            put(tree, path, {"a": jnp.zeros(a, jnp.float32), "b": jnp.zeros(b, jnp.float32)})
        return tree

    def init_adapter(self, *, rank: int, seed: int, kinds: Sequence[str]) -> Params:
        """A fresh adapter of `rank` columns beside the maps of `kinds`: A uniform within 1 / sqrt(in), B zero."""
        tree: Params = {}
        for number, (path, place) in enumerate(self._maps.items()):
            key, bound = jax.random.fold_in(jax.random.key(seed), number), 1 / math.sqrt(math.prod(place.inputs))
            a, b = self._shapes(place, self.rank)
            columns = jnp.arange(self.rank) < (rank if place.kind in kinds else 0)
            put(tree, path, {"a": jax.random.uniform(key, a, jnp.float32, -bound, bound) * columns, "b": jnp.zeros(b)})
        return tree

    def gates(self, rows: Sequence[tuple[int, int] | None]) -> np.ndarray:
        """Gates [B, places R] of rows, each with the (place, rank) of its adapter, or None for the bare model."""
        gates = np.zeros((len(rows), self.columns), np.float32)
        for row, chosen in enumerate(rows):
            if chosen is not None:
                place, rank = chosen
                gates[row, place * self.rank : place * self.rank + rank] = ALPHA / rank
        return gates

    def join(self, params: Params, bank: Params, gate: jax.Array | np.ndarray) -> Params:
        """The parameters of `graph`: the model's, with the bank and the gates [B, places R] beside its maps."""
        joined = params
        for path, place in self._maps.items():
            spread = jnp.broadcast_to(gate, (*place.lead, *gate.shape)) if place.lead else gate
            joined = _update(joined, path, {**_get(bank, path), "gate": spread})
        return joined

    def write(self, bank: Params, adapter: Params, place: jax.Array) -> Params:
        """The bank with an adapter at a place."""

        def set_part(path: tuple, part: str) -> jax.Array:
            axis, old, new = self._axis(path, part), _get(bank, path)[part], _get(adapter, path)[part]
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), place * self.rank, axis)

        return self._map(set_part)

    def read(self, bank: Params, place: jax.Array) -> Params:
        """The adapter at a place of a bank (or of its gradient)."""
        cut = lambda path, part: jax.lax.dynamic_slice_in_dim(
            _get(bank, path)[part], place * self.rank, self.rank, self._axis(path, part)
        )
        return self._map(cut)

    def restore(self, read: Callable[[tuple[str, ...]], np.ndarray]) -> Params:
        """An adapter of arrays of any rank, by their paths as texts."""
        name = lambda path, part: (*map(str, path), part)
        return self._map(lambda path, part: jnp.asarray(self.resize(n := name(path, part), read(n), self.rank)))

    def resize(self, name: tuple[str, ...], array: np.ndarray, rank: int) -> np.ndarray:
        """An array of an adapter, or of its moments, cut or filled with zeros to `rank` columns. name: its path as
        texts, which ends in that of the parameter.
        """
        for path in self._maps:
            for part in "ab":
                if name[-len(path) - 1 :] == (*map(str, path), part):
                    axis = self._axis(path, part)
                    array = np.take(array, np.arange(min(rank, array.shape[axis])), axis)
                    missing = [(0, rank - size if at == axis else 0) for at, size in enumerate(array.shape)]
                    return np.pad(array, missing)
        return array

    def _axis(self, path: tuple, part: str) -> int:
        place = self._maps[path]
        return len(place.lead) + (len(place.inputs) if part == "a" else 0)

    def _map(self, function: Any) -> Params:
        tree: Params = {}
        for path in self._maps:
            put(tree, path, {part: function(path, part) for part in "ab"})
        return tree


def _abstract(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _get(tree: Mapping, path: tuple) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _update(tree: Params, path: tuple, more: Params) -> Params:
    """The tree with entries added to the dict at a path; nothing is copied but the dicts on the way."""
    if not path:
        return {**tree, **more}
    return {**tree, path[0]: _update(tree[path[0]], path[1:], more)}
