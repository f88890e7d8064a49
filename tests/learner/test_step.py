"""An update: gradients of micro-batches added, applied once, the norm before clipping reported."""

import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.sharding import MeshConfig, constrain, make_mesh, sharding, use_mesh
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import TrainState, init_state, state_places
from r1jax.learner.step import Learner
from r1jax.learner.update_guard import GuardsConfig, UpdateGuard
from tests.threads import run_in_thread

CONFIG = OptimizerConfig(learning_rate=0.1, clip_norm=0.5)
AXES = {"kernel": ("embed", "mlp")}
ROWS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def loss_fn(params: Any, frozen: Any, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A share of one sum over all rows."""
    return (jnp.tanh(batch @ params["kernel"]) ** 2).sum(), {"rows": jnp.asarray(len(batch))}


def start() -> tuple[Learner, TrainState]:
    optimizer = make_optimizer(CONFIG, 3)
    kernel = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    return Learner(loss_fn, optimizer), init_state({"kernel": jnp.asarray(kernel)}, AXES, optimizer)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_update_does_not_depend_on_its_cut(size: int) -> None:
    learner, state = start()
    expected, whole, _ = learner.update(state, {}, [ROWS])
    learner, state = start()
    state, outcome, sums = learner.update(state, {}, (ROWS[at : at + size] for at in range(0, 8, size)))
    assert [int(part["rows"]) for part in sums] == [size] * (8 // size)
    assert float(outcome["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)
    assert float(outcome["grad_norm"]) == pytest.approx(float(whole["grad_norm"]), rel=1e-6)
    np.testing.assert_allclose(state.params["kernel"], expected.params["kernel"], rtol=1e-5)


def test_norm_is_of_the_whole_gradient_before_clipping() -> None:
    learner, state = start()
    (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, {}, ROWS)
    state, outcome, _ = learner.update(state, {}, [ROWS[:3], ROWS[3:]])
    assert float(outcome["loss"]) == pytest.approx(float(loss), rel=1e-6)
    norm = float(np.linalg.norm(gradient["kernel"]))
    assert norm > CONFIG.clip_norm and float(outcome["grad_norm"]) == pytest.approx(norm, rel=1e-6)
    assert int(state.updates) == 1


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_not_made(spoilt: float, tmp_path: pathlib.Path) -> None:
    """Its batches are on file; a loss that is not finite shows which was at fault (that of infinity is finite)."""
    learner, state = start()
    learner.guard = UpdateGuard(GuardsConfig(max_skipped=2), tmp_path / "skipped")
    state, *_ = learner.update(state, {}, [ROWS])
    before = jax.device_get(state)
    rows = ROWS.copy()
    rows[0, 0] = spoilt
    state, outcome, sums = learner.update(state, {}, [ROWS[:4], rows])
    chex.assert_trees_all_equal(jax.device_get(state), before)
    assert not np.isfinite(float(outcome["grad_norm"])) and len(sums) == 2
    assert learner.guard.take_metrics() == {"guards/skipped_updates": 1.0}
    with np.load(tmp_path / "skipped" / "update-2.npz") as kept:
        assert np.isfinite(kept["losses"]).tolist() == [True, not np.isnan(spoilt)]
        np.testing.assert_array_equal(kept["0"], ROWS[:4])
        np.testing.assert_array_equal(kept["1"], rows)
    state, *_ = learner.update(state, {}, [ROWS])
    assert int(state.updates) == 2 and len(list((tmp_path / "skipped").iterdir())) == 1


def test_a_loss_that_is_not_finite_is_skipped_with_a_finite_gradient() -> None:
    def constant(params: Any, frozen: Any, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return params["kernel"].sum() + jax.lax.stop_gradient(batch.sum()), {}

    optimizer = make_optimizer(CONFIG, 3)
    learner = Learner(constant, optimizer, guard=UpdateGuard(GuardsConfig()))
    state = init_state({"kernel": jnp.ones((2, 2))}, AXES, optimizer)
    state, outcome, _ = learner.update(state, {}, [np.ones(3, np.float32), np.full(3, np.nan, np.float32)])
    assert np.isfinite(float(outcome["grad_norm"])) and np.isnan(float(outcome["loss"])) and int(state.updates) == 0


def test_an_update_without_rows_leaves_the_state_alone() -> None:
    learner, state = start()
    after, outcome, sums = learner.update(state, {}, [])
    assert after is state and outcome == {"loss": 0.0, "grad_norm": 0.0} and sums == []


def test_the_old_state_is_given_up() -> None:
    learner, state = start()
    old = state.params["kernel"]
    learner.update(state, {}, [ROWS])
    assert old.is_deleted()


def test_gradients_of_narrow_parameters_are_summed_in_float32() -> None:
    """A thousand small gradients behind a large one: a bfloat16 sum would stand still."""

    def linear(params: Any, frozen: Any, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return (params["kernel"].astype(jnp.float32) * batch).sum(), {}

    optimizer = make_optimizer(CONFIG, 3)
    learner = Learner(linear, optimizer)
    state = init_state({"kernel": jnp.ones((1, 1), jnp.bfloat16)}, AXES, optimizer)
    batches = [np.full((1, 1), value, np.float32) for value in (1.0, *[2.0**-10] * 1000)]
    _, outcome, _ = learner.update(state, {}, batches)
    assert float(outcome["grad_norm"]) == pytest.approx(1 + 1000 / 1024, rel=1e-6)


def test_a_thread_updates_by_the_same_programs_to_the_bit() -> None:
    """Three updates on a mesh, the middle one from a thread that has entered none; each program is traced once."""
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def pinned(params: Any, frozen: Any, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden = constrain(jnp.tanh(batch @ params["kernel"]), ("batch", "mlp"))
        return (hidden**2).sum(), {"rows": jnp.asarray(len(batch))}

    def run(*threads: bool) -> tuple[Any, list[Any]]:
        state, outcomes = init_state(place(), AXES, optimizer), []
        for in_thread in threads:
            call = lambda state=state: learner.update(state, {}, [ROWS, ROWS])
            state, outcome, _ = run_in_thread(call) if in_thread else call()
            outcomes.append(jax.device_get(outcome))
        return jax.device_get(state), outcomes

    kernel = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    place = lambda: {"kernel": jax.device_put(kernel, sharding(AXES["kernel"], kernel.shape))}
    optimizer = make_optimizer(CONFIG, 3)
    with use_mesh(make_mesh(MeshConfig(data=4, tensor=2))):
        learner = Learner(pinned, optimizer, places=state_places(place(), AXES, optimizer))
        chex.assert_trees_all_equal(run(False, True, False), run(False, False, False))
        assert learner.accumulate._cache_size() == learner.apply._cache_size() == 1


def test_what_is_frozen_is_an_argument_without_gradient_and_is_kept() -> None:
    """The loss of a student beside its teacher: the teacher is no constant of the program and comes out as it went
    in, and a changed teacher needs no new program.
    """

    def distil(params: Any, frozen: Any, batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        gap = batch @ params["kernel"] - batch @ frozen["teacher"]["kernel"]
        return (gap**2).sum(), {}

    optimizer = make_optimizer(CONFIG, 3)
    learner = Learner(distil, optimizer)
    state = init_state({"kernel": jnp.ones((4, 4))}, {"kernel": ("embed", "mlp")}, optimizer)
    batch = np.ones((2, 4), np.float32)
    teachers = [{"kernel": jnp.full((4, 4), value)} for value in (2.0, 1.0)]
    gradients = jax.tree.map(jnp.zeros_like, state.params)
    traced = learner.accumulate.trace(state.params, gradients, {"teacher": teachers[0]}, batch)
    assert not traced.jaxpr.consts
    for teacher, expected in zip(teachers, (2 * 4**2, 0.0), strict=True):
        gradients = jax.tree.map(jnp.zeros_like, state.params)
        _, loss, _ = learner.accumulate(state.params, gradients, {"teacher": teacher}, batch)
        assert float(loss) == expected * 4 and not teacher["kernel"].is_deleted()
    assert learner.accumulate._cache_size() == 1
