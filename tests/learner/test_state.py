"""Parameters, moments and counters lie where the axes of their parameter say, in arrays and in shapes alike."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import abstract_state, init_state
from r1jax.models.families import llama
from r1jax.models.transformer import logical_axes, split
from tests.models import toy

OPTIMIZER = make_optimizer(OptimizerConfig(schedule="cosine", weight_decay=0.1), 10)


def make(**options: Any) -> tuple[Any, Any]:
    """(axes, parameters) of the toy."""
    config = toy.change(tie_embeddings=False)
    axes = logical_axes(nnx.eval_shape(lambda: llama.build(config, rngs=nnx.Rngs(0), **options)))
    return axes, split(llama.build(config, rngs=nnx.Rngs(0), **options))[1]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_moments_lie_where_their_parameter_lies(scan_layers: bool) -> None:
    axes, params = make(scan_layers=scan_layers)
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        shapes = abstract_state(params, axes, OPTIMIZER)
        params = jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), params, shapes.params)
        state = init_state(params, axes, OPTIMIZER)
    means, squares = (optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
    for moments in (means, squares):
        assert jax.tree.all(
            jax.tree.map(lambda moment, param: moment.sharding == param.sharding, moments, state.params)
        )
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(moments))
    layer = means["stacks"][0] if scan_layers else means["layers"][0]
    lead = (2,) if scan_layers else ()
    shard = lambda array: {shard.data.shape for shard in array.addressable_shards}
    assert shard(layer["attention"]["query"]["kernel"]) == {(*lead, 16, 2, 8)}
    assert shard(layer["attention_norm"]["scale"]) == {(*lead, 32)}
    assert shard(means["head"]["kernel"]) == {(16, 32)}
    assert state.updates.sharding.is_fully_replicated and len(state.updates.devices()) == 8


def test_shapes_alone_say_the_same_as_the_arrays() -> None:
    axes, params = make()
    for mesh in (None, make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))):
        with use_mesh(mesh) if mesh else jax.default_device(None):
            shapes = abstract_state(params, axes, OPTIMIZER)
            state = init_state(params, axes, OPTIMIZER)
        for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
            assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
            assert (shape.sharding is None) == (mesh is None)
        if mesh:
            same = jax.tree.map(lambda s, x: s.sharding == x.sharding, shapes.opt_state, state.opt_state)
            assert jax.tree.all(same)
