"""The trained part of a model: all parameters, or adapters beside a frozen base (models/adapters/lora.py).

A score in place of the output head (models/scores.py) is new, and trained whole beside adapters.

Learner, optimizer and checkpoints see only `params`; code that runs the model (the engine, log-probs) calls `whole` for
the parameters of `graph`. A frozen base has no moments, no gradient and is in no checkpoint.
"""

from __future__ import annotations

import jax

from r1jax.core.sharding import abstract_array, current_mesh, is_abstract
from r1jax.learner.step import Frozen, LossFn
from r1jax.models.adapters.lora import LoRAConfig, adapter_axes, attach_adapters, init_adapters, join_adapters
from r1jax.models.flops import Work, count_work
from r1jax.models.transformer import Params, Transformer, logical_axes, split

WHOLE = ("score",)  # parts of a model that adapters do not stand for


class Trainable:
    """params: the trained parameters, with their logical `axes`; base: the frozen ones (None: nothing). sizes, routing:
    those of the model. All arrays are shapes if the model is abstract (runs/abstract_model.py).
    """

    def __init__(self, model: Transformer, config: LoRAConfig, *, seed: int = 0):
        self.graph, self.params = split(model)
        self.axes, self.base = logical_axes(model), None
        self.sizes, self.routing = model.config, model.routing
        if config.rank:
            whole = {key: self.axes[key] for key in WHOLE if key in self.axes}
            fresh = {key: self.params[key] for key in whole}
            self.base = {key: value for key, value in self.params.items() if key not in whole}
            self.axes = adapter_axes(model, config)
            self.graph = attach_adapters(model, config)

            def make() -> Params:
                return init_adapters(model, config, seed=seed)

            place = lambda leaf, axes: abstract_array(leaf.shape, leaf.dtype, axes, name="config.lora")
            shapes = jax.tree.map(place, jax.eval_shape(make), self.axes)
            places = None if current_mesh() is None else jax.tree.map(lambda leaf: leaf.sharding, shapes)
            self.params = shapes if is_abstract(self.base) else jax.jit(make, out_shardings=places)()
            self.params, self.axes = {**self.params, **fresh}, {**self.axes, **whole}

    def whole(self, params: Params) -> Params:
        """The parameters of `graph` for trained `params`: themselves, or the base with these adapters beside it."""
        return params if self.base is None else join_adapters(self.base, params)

    def count_parameters(self) -> int:
        """All parameters of the model, without adapters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.base or self.params))

    def count_work(self) -> Work:
        """Useful FLOPs of the model, and of training it."""
        adapters = None if self.base is None else self.params
        return count_work(self.base or self.params, self.sizes, adapters)

    def wrap(self, loss_fn: LossFn) -> LossFn:
        """A loss of the model's parameters as a loss of the trained ones; it reads the base from `frozen`."""
        if self.base is None:
            return loss_fn
        return lambda params, frozen, batch: loss_fn(join_adapters(frozen["base"], params), frozen, batch)

    @property
    def frozen(self) -> Frozen:
        """The base by its name in a loss's `frozen`; {} without adapters."""
        return {} if self.base is None else {"base": self.base}
