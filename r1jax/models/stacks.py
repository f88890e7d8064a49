"""One layer inside the stack of all layers of a scan, read and written where it lies.

Cutting a layer out of its stack, as a scan does by itself, copies it on a TPU where a kernel reads it next, and writing
it back copies it once more. XLA:CPU, on the other hand, copies whole stacks that are written column by column.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from r1jax.models.ops.splash import runs_here


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class StackedLayer:
    """The array of one layer [...] inside the stack [L, ...] of a scan over layers; `len` and `shape` are those of the
    layer.
    """

    stack: jax.Array
    index: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layer's array."""
        return self.stack.shape[1:]

    def __len__(self) -> int:
        return self.stack.shape[1]


def are_read_in_place() -> bool:
    """Whether a scan gives its layers as parts of their stacks: on TPUs."""
    return runs_here()


def read(array: jax.Array | StackedLayer) -> jax.Array:
    """The array of a layer."""
    if isinstance(array, StackedLayer):
        return jax.lax.dynamic_index_in_dim(array.stack, array.index, keepdims=False)
    return array


def write(array: jax.Array | StackedLayer, new: jax.Array) -> jax.Array | StackedLayer:
    """The array of a layer with new values, in its stack if it has one."""
    if isinstance(array, StackedLayer):
        return StackedLayer(jax.lax.dynamic_update_index_in_dim(array.stack, new, array.index, 0), array.index)
    return new


def stack_layer(tree: Any, index: jax.Array) -> Any:
    """The layer at `index` of a tree of stacks."""
    return jax.tree.map(lambda stack: StackedLayer(stack, index), tree)


def unstack_layer(tree: Any) -> Any:
    """The stacks of a tree of layers."""
    return jax.tree.map(lambda layer: layer.stack, tree, is_leaf=lambda x: isinstance(x, StackedLayer))
