"""Checkpoints come back bit for bit, onto whatever mesh asks for them; what does not fit is refused in one line."""

import dataclasses
import gc
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.checkpoint import Checkpoints, SavedArrays, newest_checkpoint
from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh, replicated, sharding, use_mesh

AXES = {"embed": ("vocab", "embed"), "layers": {0: ("embed", "mlp"), 1: ("embed", "mlp")}}
# When one tensor does not fit, orbax abandons the reads of the others: coroutines that complain when collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FACTS = {"loader": {"position": 12, "epoch": 1}, "num_tokens": 345}


@pytest.fixture(autouse=True)
def collect_abandoned_reads() -> Iterator[None]:
    """Collects them here, where that is expected, and not in some later test."""
    yield
    gc.collect()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    params: Any
    moments: Any
    updates: jax.Array


def make_state(seed: int = 0) -> State:
    """Nested dicts with whole numbers as keys, a tuple, two dtypes, counters; values that no rounding would keep."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    odd = jnp.asarray([1e-42, -0.0, np.nextafter(1, 2, dtype=np.float32)])
    params = {"embed": draw(16, 8).at[0, :3].set(odd), "layers": {i: draw(8, 4) for i in range(2)}}
    moments = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), jnp.int32(3))
    return State(params, moments, jnp.int32(7))


def place(state: State) -> State:
    """Each array on the current mesh; without one where it is."""
    if (everywhere := replicated()) is None:
        return state
    put = lambda x, axes: jax.device_put(x, sharding(axes, x.shape))
    params, copies = (jax.tree.map(put, tree, AXES) for tree in (state.params, state.moments[0]))
    return State(
        params, (copies, jax.device_put(state.moments[1], everywhere)), jax.device_put(state.updates, everywhere)
    )


def describe(state: State) -> Any:
    """Shapes, with places where the state lies on a mesh."""
    place = lambda x: x.sharding if isinstance(x.sharding, jax.sharding.NamedSharding) else None
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), state)


def assert_same_bits(found: Any, expected: Any) -> None:
    same = lambda a, b: a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert jax.tree.all(jax.tree.map(same, found, expected))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with a checkpoint of step 4, saved without a mesh."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest is None
    checkpoints.save(4, make_state(), FACTS)
    checkpoints.close()
    return workdir


def restore(workdir: Path, state: State, step: int = 4) -> tuple[Any, dict[str, Any]]:
    """What a new process would do: `state` says only what is asked for."""
    checkpoints = Checkpoints(workdir)
    try:
        assert checkpoints.latest == 4
        return checkpoints.restore(step, describe(state))
    finally:
        checkpoints.close()


def test_state_and_facts_come_back_bit_for_bit(saved: Path) -> None:
    state, facts = restore(saved, make_state(1))
    assert isinstance(state, State) and facts == FACTS
    assert_same_bits(state, make_state())


@pytest.mark.parametrize("config", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_a_checkpoint_of_one_device_is_restored_onto_a_mesh(saved: Path, config: MeshConfig) -> None:
    with use_mesh(make_mesh(config)):
        wanted = place(make_state(1))
        state, _ = restore(saved, wanted)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, state, wanted))
    assert_same_bits(state, make_state())


def test_a_checkpoint_of_one_mesh_is_restored_onto_another(tmp_path: Path) -> None:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(4, place(make_state()), FACTS)
        checkpoints.close()
    with use_mesh(make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])):
        state, _ = restore(tmp_path, place(make_state(1)))
    assert {shard.data.shape for shard in state.params["embed"].addressable_shards} == {(16, 2)}
    assert_same_bits(state, make_state())


def test_arrays_may_be_given_up_once_saved(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path), make_state()
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints.save(4, state, FACTS)
    for _ in range(3):
        state = overwrite(state)
    checkpoints.close()
    assert_same_bits(restore(tmp_path, make_state(1))[0], make_state())


def test_saves_beside_other_work_leave_no_threads(tmp_path: Path):
    state, checkpoints = make_state(), Checkpoints(tmp_path)

    def save(step: int) -> int:
        checkpoints.save(step, state, FACTS, kept=True)
        checkpoints.finish()
        return threading.active_count()

    before = [save(step) for step in range(3)][-1]
    assert [save(step) for step in range(3, 9)][-1] <= before
    checkpoints.close()


def test_the_newest_are_kept_and_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 4):
        checkpoints.save(step, make_state(step), {"step": step})
    checkpoints.close()
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]
    shutil.copytree(folder / "4", folder / "5.orbax-checkpoint-tmp")  # as a run that was killed while saving leaves it
    state, facts = restore(tmp_path, make_state())
    assert facts == {"step": 4}
    assert_same_bits(state, make_state(4))


def wider(state: State) -> State:
    return dataclasses.replace(state, params={**state.params, "embed": jnp.zeros((16, 12))})


def deeper(state: State) -> State:
    layers = {**state.params["layers"], 2: state.params["layers"][0]}
    return dataclasses.replace(state, params={**state.params, "layers": layers})


def shallower(state: State) -> State:
    return dataclasses.replace(state, params={**state.params, "layers": {0: state.params["layers"][0]}})


@pytest.mark.parametrize("change", [wider, deeper, shallower])
def test_a_checkpoint_of_another_model_is_refused(saved: Path, change: Any) -> None:
    with pytest.raises(
        UserError, match=r"^the checkpoint of step 4 in \S+ does not fit this run .*--workdir$"
    ) as caught:
        restore(saved, change(make_state()))
    assert "\n" not in str(caught.value)


def test_a_step_that_is_not_there_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match="^the checkpoint of step 3 in"):
        restore(saved, make_state(), step=3)


@pytest.mark.parametrize("part", ["state", "facts"])
def test_a_checkpoint_with_a_part_lost_is_refused(saved: Path, tmp_path: Path, part: str) -> None:
    workdir = shutil.copytree(saved, tmp_path / "copy")
    shutil.rmtree(workdir / "checkpoints" / "4" / part)
    with pytest.raises(UserError, match="^the checkpoint of step 4 in"):
        restore(workdir, make_state())


def test_another_dtype_is_refused_and_not_cast(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(), FACTS)
    checkpoints.close()
    shapes = jax.eval_shape(make_state)
    moments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes.moments[0])
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"moments\.0\.embed was saved as bfloat16, this run has float32"):
        checkpoints.restore(1, dataclasses.replace(shapes, moments=(moments, shapes.moments[1])))
    checkpoints.restore(1, shapes)
    checkpoints.close()


def test_arrays_of_a_checkpoint_are_read_without_its_run(tmp_path: Path) -> None:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        state = place(make_state())
        checkpoints = Checkpoints(tmp_path)
        for step in (9, 10):
            checkpoints.save(step, state, FACTS)
        checkpoints.close()
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoints" / "10"
    saved = SavedArrays(newest)
    layers = [("params", "layers", layer) for layer in range(2)]
    assert {("params", "embed"), *layers, ("moments", 0, "embed"), ("updates",)} <= set(saved.paths)
    for path, expected in (
        (layers[1], state.params["layers"][1]),
        (("moments", 0, "embed"), state.moments[0]["embed"]),
    ):
        assert saved.shape(path) == expected.shape and saved.dtype(path) == expected.dtype
        np.testing.assert_array_equal(saved.read(path), expected)
        np.testing.assert_array_equal(saved.read(path, (3, 1)), expected[3, 1])
    saved = SavedArrays(newest)
    for file in filter(Path.is_file, (newest / "state").rglob("d/*")):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="checkpoints/10: array 'params.embed' cannot be read"):
        saved.read(("params", "embed"))
    with pytest.raises(UserError, match="checkpoints/10: not a whole checkpoint of a run"):
        SavedArrays(newest)
    assert newest_checkpoint(tmp_path / "none") is None
    with pytest.raises(UserError, match="none: not a whole checkpoint of a run"):
        SavedArrays(tmp_path / "none")
