"""The trained part of a model: all parameters, or adapters beside a frozen base (models/lora.py).

Learner, optimizer and checkpoints see only `params`; code that needs the model's own parameters (the engine, an export)
calls `whole`. A frozen base has no moments and is in no checkpoint.
"""

from __future__ import annotations

import jax

from r1jax.core.sharding import current_layout, current_mesh, in_layout, sharding
from r1jax.learner.step import Frozen, LossFn
from r1jax.models.lora import LoRAConfig, adapter_axes, init_adapters, merge_adapters
from r1jax.models.transformer import Params, Transformer, logical_axes, split


class Trainable:
    """params: the trained parameters, with their logical `axes`; base: the frozen ones (None: nothing). All are shapes
    if the model is abstract.
    """

    def __init__(self, model: Transformer, config: LoRAConfig, *, seed: int = 0):
        self.layout = current_layout()
        self.graph, self.params = split(model)
        self.axes, self.base, self.scale = logical_axes(model), None, config.scale
        if config.rank:
            self.base, self.axes = self.params, adapter_axes(model, config)
            make = lambda: init_adapters(model, config, seed=seed)
            shapes = jax.eval_shape(make)
            place = lambda leaf, axes: sharding(axes, leaf.shape, name="config.lora")
            places = None if current_mesh() is None else jax.tree.map(place, shapes, self.axes)
            is_abstract = isinstance(jax.tree.leaves(self.base)[0], jax.ShapeDtypeStruct)
            self.params = shapes if is_abstract else jax.jit(make, out_shardings=places)()
        self._merge = jax.jit(lambda base, adapters: merge_adapters(base, adapters, self.scale))

    @in_layout
    def whole(self, params: Params) -> Params:
        """The model's parameters for trained `params`: themselves, or merged with the base."""
        return params if self.base is None else self._merge(self.base, params)

    def wrap(self, loss_fn: LossFn) -> LossFn:
        """A loss of the model's parameters as a loss of the trained ones; it reads the base from `frozen`."""
        if self.base is None:
            return loss_fn
        return lambda params, frozen, batch: loss_fn(merge_adapters(frozen["base"], params, self.scale), frozen, batch)

    @property
    def frozen(self) -> Frozen:
        """The base by its name in a loss's `frozen`; {} without adapters."""
        return {} if self.base is None else {"base": self.base}
