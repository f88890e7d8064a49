"""Moments in the host's memory: where they lie, the same numbers as without, and runs that are stopped and go on."""

import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.aot.compiled import device_bytes
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import abstract_state, init_state
from r1jax.learner.step import Learner
from tests.stages.runs import CONFIG, read_params, train, untimed

AXES = {"kernel": ("embed", "mlp"), "scale": ("embed",)}


def loss_fn(params: Any, frozen: Any, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    return (jnp.tanh(batch * params["scale"] @ params["kernel"]) ** 2).sum(), {}


def run(dtype: str, offload: bool) -> Any:
    """The state after three updates."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, schedule="cosine", offload=offload), 3)
    random = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(random.normal(size=(8, 4)), dtype), "scale": jnp.ones(8, dtype)}
    shapes = abstract_state(params, AXES, optimizer)
    place = lambda x, shape: x if shape.sharding is None else jax.device_put(x, shape.sharding)
    state = init_state(jax.tree.map(place, params, shapes.params), AXES, optimizer)
    learner = Learner(loss_fn, optimizer)
    for _ in range(3):
        state, _, _ = learner.update(state, {}, [random.normal(size=(2, 8)).astype(np.float32) for _ in range(2)])
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
        assert kinds == {"pinned_host" if offload else "device"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} == {"device"}
    same = jax.tree.map(lambda x, s: s.sharding is None or x.sharding == s.sharding, state.opt_state, shapes.opt_state)
    assert jax.tree.all(same)
    return state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=1, fsdp=4, tensor=2)])
def test_the_numbers_are_those_of_moments_on_the_device(dtype: str, mesh: MeshConfig | None) -> None:
    with use_mesh(make_mesh(mesh)) if mesh else jax.default_device(None):
        found, expected = run(dtype, True), run(dtype, False)
    chex.assert_trees_all_equal(found, expected)


def test_they_do_not_count_as_memory_of_the_device() -> None:
    params = {"kernel": jax.ShapeDtypeStruct((8, 4), "float32"), "scale": jax.ShapeDtypeStruct((8,), "float32")}
    with use_mesh(make_mesh(MeshConfig(data=1, fsdp=8))):
        sizes = []
        for offload in (False, True):
            state = abstract_state(params, AXES, make_optimizer(OptimizerConfig(offload=offload), 1))
            scalars = [leaf for leaf in jax.tree.leaves(state.opt_state) if not leaf.ndim]
            assert scalars and not any(leaf.sharding.memory_kind == "pinned_host" for leaf in scalars)
            sizes.append(device_bytes(state.opt_state))
    assert sizes[0] > 2 * 4 * 4 and sizes[1] < 16  # counters only


def test_a_run_that_is_stopped_goes_on(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = CONFIG.with_name("tiny_sft.py")
    changes = {"config": config, "devices": 2, "checkpoint__every_steps": 1, "train__micro_batch_size": 2}
    plain = train(tmp_path / "plain", tiny_model, steps=4, **changes)
    train(tmp_path / "host", tiny_model, steps=2, optimizer__offload=True, **changes)
    rows = train(tmp_path / "host", tiny_model, steps=4, optimizer__offload=True, **changes)
    assert [row.get("loss") for row in rows] == [row.get("loss") for row in plain]
    assert untimed(rows)[-1] == untimed(plain)[-1]
    expected = read_params(tmp_path / "plain")
    for path, leaf in read_params(tmp_path / "host").items():
        np.testing.assert_array_equal(leaf, expected[path])
