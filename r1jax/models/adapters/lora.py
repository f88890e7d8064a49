"""Low-rank adapters (LoRA, Hu et al. 2021, 2106.09685): a frozen kernel W plus a trained product s A B of rank r.

Adapters are a small parameter tree under the paths of the kernels that they change: {"a": [in..., r], "b": [r,
out...]}; B is initially zero, so a fresh adapter changes nothing. A linear map with adapters computes x W + s (x A) B,
s = alpha / r (`Linear` in models/layers.py), in training and in sampling: W + s A B is built by an export alone
(weights/lora_base.py), and W gets no gradient. `attach_adapters` makes the structure of such a model and
`join_adapters` its parameters. Several adapters at once are a bank (adapter_bank.py). Left out: adapters of expert
weights and of the embedding, dropout.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.core.sharding import Axes
from r1jax.models.layers import Linear
from r1jax.models.transformer import Params, Transformer, merge, split


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters beside frozen linear maps.

    Attributes:
      rank: rank of the adapters; 0 trains all parameters instead.
      alpha: scale of the adapters: their product is multiplied by alpha / rank.
      targets: patterns (`*` for anything) of the dotted names of linear maps without the number of the layer:
        "attention.*", "*.query", "mlp.down".
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention.*", "mlp.*")

    @property
    def scale(self) -> float:
        """s, the factor of A B."""
        return self.alpha / max(self.rank, 1)


def init_adapters(model: Transformer, config: LoRAConfig, *, seed: int = 0) -> Params:
    """Fresh float32 adapters for the linear maps of `model` that match the targets.

    A is initialized like `nn.Linear` (uniform within 1 / sqrt(in)), B is zero. Raises UserError for a target without a
    match.
    """
    adapters: Params = {}
    for number, (path, linear) in enumerate(find_targets(model, config)):
        put(adapters, path, init_pair(linear, config.rank, jax.random.fold_in(jax.random.key(seed), number)))
    return adapters


def adapter_axes(model: Transformer, config: LoRAConfig) -> Params:
    """Logical axes of the arrays of `init_adapters`."""
    axes: Params = {}
    for path, linear in find_targets(model, config):
        put(axes, path, pair_axes(linear))
    return axes


def attach_adapters(model: Transformer, config: LoRAConfig) -> nnx.GraphDef:
    """The structure of `model` with adapters beside the linear maps that match the targets; its parameters are those of
    `join_adapters`.
    """
    graph, params = split(model)
    adapted = merge(graph, params)  # another module of the same arrays
    for _, linear in find_targets(adapted, config):
        shapes, axes = (
            jax.eval_shape(lambda linear=linear: init_pair(linear, config.rank, jax.random.key(0))),
            pair_axes(linear),
        )
        linear.scale = config.scale
        linear.a, linear.b = (nnx.Param(shapes[part], axes=axes[part]) for part in "ab")
    return split(adapted)[0]


def join_adapters(params: Params, adapters: Params) -> Params:
    """The parameters with adapters beside the kernels that they belong to, and with what is trained whole and stands in
    `adapters` alone; nothing is computed or copied.
    """
    if set(adapters) == {"a", "b"}:
        return {**params, **adapters}
    joined = {key: join_adapters(value, adapters[key]) if key in adapters else value for key, value in params.items()}
    return joined | {key: value for key, value in adapters.items() if key not in params}


def find_targets(model: Transformer, config: LoRAConfig) -> list[tuple[tuple, Linear]]:
    """Linear maps that match the targets, with their paths, sorted."""
    found = [(path, linear) for path, linear in nnx.iter_graph(model) if isinstance(linear, Linear)]
    matches = lambda path, target: fnmatch.fnmatchcase(".".join(_name(path)), target)
    for target in config.targets:
        if not any(matches(path, target) for path, _ in found):
            known = ", ".join(sorted({".".join(_name(path)) for path, _ in found}))
            raise UserError(f'config.lora.targets: no linear map matches "{target}"; known: {known}')
    chosen = [pair for pair in found if any(matches(pair[0], target) for target in config.targets)]
    return sorted(chosen, key=lambda pair: str(pair[0]))


def init_pair(linear: Linear, rank: int, key: jax.Array) -> Params:
    """A fresh {"a", "b"} for a linear map."""
    lead = linear.kernel.shape[: linear.kernel.ndim - len(linear.inputs) - len(linear.outputs)]
    bound = 1 / math.sqrt(math.prod(linear.inputs))
    a = jax.random.uniform(key, (*lead, *linear.inputs, rank), jnp.float32, -bound, bound)
    return {"a": a, "b": jnp.zeros((*lead, rank, *linear.outputs), jnp.float32)}


def pair_axes(linear: Linear) -> dict[str, Axes]:
    """Logical axes of the arrays of `init_pair`."""
    axes: Axes = linear.kernel.get_metadata("axes")
    lead = len(axes) - len(linear.inputs) - len(linear.outputs)
    border = lead + len(linear.inputs)
    return {"a": (*axes[:border], None), "b": (*axes[:lead], None, *axes[border:])}


def _name(path: tuple) -> list[str]:
    """Parts of a path without its list ("layers", "stacks", "mtp") and its numbers."""
    words = [str(part) for part in path]
    first = next((at for at, word in enumerate(words[1:], 1) if not word.isdigit()), 1)
    return words[first:] if first > 1 else words


def put(tree: Params, path: tuple, value: Any) -> None:
    """Puts a value at a path of a nested dict."""
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value
