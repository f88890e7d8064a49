"""Meshes and placement on eight pretend devices, and every way the table can be asked for the impossible."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from r1jax.core.errors import UserError
from r1jax.core.sharding import (
    MESH_AXES,
    ONE_DEVICE,
    RULES,
    Layout,
    MeshConfig,
    batch_parts,
    constrain,
    current_layout,
    current_mesh,
    in_layout,
    make_mesh,
    partition,
    replicated,
    sharding,
    use_layout,
    use_mesh,
)
from tests.threads import run_in_thread


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 1, 1, 2)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 1, 1, 2)),
        (MeshConfig(data=2, fsdp=1, tensor=-1), (2, 1, 1, 1, 4)),
        (MeshConfig(data=1, expert=4, context=-1), (1, 1, 4, 2, 1)),
    ],
)
def test_mesh_takes_all_devices(config: MeshConfig, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert mesh.axis_names == MESH_AXES and mesh.devices.shape == shape
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


def test_mesh_of_some_devices_keeps_neighbours_on_the_last_axis() -> None:
    devices = jax.devices()[2:6]
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=2), devices)
    assert mesh.devices[:, 0, 0, 0].tolist() == [devices[:2], devices[2:]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MeshConfig(data=3),
            "{'data': 3, 'fsdp': 1, 'expert': 1, 'context': 1, 'tensor': 1} need 3 devices but there are 8",
        ),
        (MeshConfig(data=-1, fsdp=3), "need 6 devices but there are 8"),
        (MeshConfig(data=-1, fsdp=16), "need 16 devices but there are 8"),
        (MeshConfig(data=-1, fsdp=-1), "at most one may be -1"),
        (MeshConfig(data=0, fsdp=8), "must be positive"),
        (MeshConfig(data=-2), "must be positive"),
    ],
)
def test_sizes_that_do_not_make_the_devices_are_refused(config: MeshConfig, message: str) -> None:
    with pytest.raises(UserError, match=rf"^config\.mesh.*{re.escape(message)}"):
        make_mesh(config)


def test_partition_follows_the_table() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spec = lambda axes, shape: partition(axes, shape, mesh)
    assert spec(("embed", "heads", "head_dim"), (4, 4, 3)) == PartitionSpec("fsdp", "tensor", None)
    assert spec(("vocab", "embed"), (8, 4)) == PartitionSpec("tensor", "fsdp")
    assert spec(("batch", "sequence", None), (4, 5, 7)) == PartitionSpec(("data", "fsdp"), None, None)
    assert spec(("layers", "norm"), (3, 5)) == PartitionSpec(None, None)


def test_experts_and_sequences_have_axes_of_their_own() -> None:
    """Rows and plain parameters are spread over the devices of the experts too; an uneven sequence stays whole."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, context=2))
    spec = lambda axes, shape: partition(axes, shape, mesh)
    assert spec(("experts", "expert_embed", "mlp"), (4, 6, 5)) == PartitionSpec("expert", "fsdp", None)
    assert spec(("embed", "mlp"), (8, 5)) == PartitionSpec(("fsdp", "expert"), None)
    assert spec(("batch", "sequence", None), (4, 6, 7)) == PartitionSpec(("fsdp", "expert"), "context", None)
    assert spec(("batch", "sequence", None), (4, 5, 7)) == PartitionSpec(("fsdp", "expert"), None, None)


def test_axes_of_size_one_are_left_out() -> None:
    """A mesh axis that splits nothing forbids nothing; a dimension of 1 stays whole (one row, one kv head)."""
    mesh = make_mesh(MeshConfig(data=8))
    assert partition(("embed", "heads"), (7, 3), mesh) == PartitionSpec(None, None)
    assert partition(("batch", None), (8, 3), mesh) == PartitionSpec("data", None)
    assert partition(("batch", None), (1, 3), mesh) == PartitionSpec(None, None)


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (
            ("embed", "mlp"),
            (3, 4),
            "layers.0.gate: dimension 'embed' of size 3 must be divisible by the mesh axes fsdp",
        ),
        (("batch",), (6,), "must be divisible by the mesh axes dataxfsdp = 4; change config.mesh.data or config.mesh"),
        (("heads", "mlp"), (4, 4), "uses the mesh axis ['tensor'] twice; change config.mesh.rules for 'mlp'"),
        (("embed", "batch"), (4, 4), "uses the mesh axis ['fsdp'] twice"),
        (("embed", "width"), (4, 4), "no rule for the logical axis 'width'; add it to config.mesh.rules"),
        (("embed",), (4, 4), "1 axes ('embed',) for the shape (4, 4)"),
    ],
)
def test_impossible_placement_names_tensor_axis_and_key(axes: tuple, shape: tuple, message: str) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with pytest.raises(UserError, match="^layers.0.gate: ") as caught:
        partition(axes, shape, mesh, name="layers.0.gate")
    assert message in str(caught.value)


def test_rules_of_a_run_replace_entries_of_the_table() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh, {"embed": None, "mlp": ("fsdp", "tensor")}):
        assert partition(("embed", "mlp"), (3, 8), mesh) == PartitionSpec(None, ("fsdp", "tensor"))
        assert partition(("vocab",), (8,), mesh) == PartitionSpec("tensor")
    assert partition(("embed", "mlp"), (4, 8), mesh) == PartitionSpec("fsdp", "tensor")
    with (
        use_mesh(mesh, {"embed": "fdsp"}),
        pytest.raises(UserError, match="config.mesh.rules sends 'embed' to 'fdsp'; mesh axes are data, fsdp, expert, "),
    ):
        partition(("embed",), (4,), mesh, name="table")
    assert set(MESH_AXES) >= {a for rule in RULES.values() if rule for a in ([rule] if isinstance(rule, str) else rule)}


def test_without_a_mesh_everything_is_whole() -> None:
    x = jnp.ones((3, 5))
    assert current_mesh() is None and sharding(("batch", "embed"), (3, 5)) is None and replicated() is None
    assert constrain(x, ("batch", "embed")) is x and batch_parts() == 1


def test_mesh_is_seen_inside_and_gone_after_an_error() -> None:
    outer, inner = make_mesh(MeshConfig(data=8)), make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    with use_mesh(outer):
        assert current_mesh() is outer and batch_parts() == 8
        with pytest.raises(RuntimeError), use_mesh(inner, {"batch": "data"}):
            assert current_mesh() is inner and batch_parts() == 1
            raise RuntimeError
        assert current_mesh() is outer and batch_parts() == 8
    assert current_mesh() is None


def test_arrays_lie_where_their_axes_say() -> None:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        x = jax.device_put(np.arange(64.0).reshape(8, 8), sharding(("embed", "mlp"), (8, 8)))
        assert {shard.data.shape for shard in x.addressable_shards} == {(4, 4)}
        y = jax.jit(lambda x: constrain(x * 2, ("batch", "mlp")))(x)
        assert {shard.data.shape for shard in y.addressable_shards} == {(2, 4)}
        np.testing.assert_array_equal(y, np.arange(64.0).reshape(8, 8) * 2)
        whole = jax.device_put(np.ones(3), replicated())
        assert {shard.data.shape for shard in whole.addressable_shards} == {(3,)} and len(whole.devices()) == 8


def test_activation_that_does_not_divide_is_named() -> None:
    with (
        use_mesh(make_mesh(MeshConfig(data=8))),
        pytest.raises(UserError, match="^logits: dimension 'batch' of size 6 must be divisible"),
    ):
        jax.jit(lambda x: constrain(x, ("batch", None), name="logits"))(jnp.ones((6, 2)))


@pytest.mark.parametrize(
    ("rule", "spec", "parts"),
    [(None, None, 1), ("data, fsdp", ("data", "fsdp"), 4), (("fsdp", "tensor"), ("fsdp", "tensor"), 4)],
)
def test_rules_name_no_axis_or_several(rule: str | tuple[str, ...] | None, spec: object, parts: int) -> None:
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), {"batch": rule}):
        placed = sharding(("batch", None), (8, 3))
        assert placed is not None and placed.spec == PartitionSpec(spec, None)
        assert batch_parts() == parts


# --- Layouts, and threads ---


def test_layouts_are_values() -> None:
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    layout = Layout(mesh, {"batch": "data, fsdp"})
    assert layout == Layout(make_mesh(MeshConfig(data=4, tensor=2)), {"batch": ("data", "fsdp")})
    assert hash(layout) == hash(Layout(mesh, {"batch": ["data", "fsdp"]}))
    assert layout != Layout(mesh) and layout != Layout(make_mesh(MeshConfig(data=8)), {"batch": "data, fsdp"})
    assert layout.rules["vocab"] == ("tensor",) and layout.devices == 8
    assert Layout() == ONE_DEVICE and ONE_DEVICE.devices == 1
    with pytest.raises(TypeError):
        layout.rules["batch"] = ()  # type: ignore[index]


ASKED = {
    "constrain": lambda: constrain(jnp.ones((8, 2)), ("batch", None)),
    "traced": lambda: jax.jit(lambda x: constrain(x, ("batch", None)))(jnp.ones((8, 2))),
    "sharding": lambda: sharding(("batch",), (8,)),
    "replicated": replicated,
    "batch_parts": batch_parts,
    "current_mesh": current_mesh,
    "current_layout": current_layout,
    "partition": lambda: partition(("batch",), (8,), make_mesh(MeshConfig())),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_thread_that_entered_no_layout_is_told_so(ask: Callable[[], Any]) -> None:
    """While a mesh is in use, not before and not after; and one that says that it wants one device gets that."""

    def ask_for_one_device() -> Any:
        with use_layout(ONE_DEVICE):
            return ask()

    run_in_thread(ask)
    with use_mesh(make_mesh(MeshConfig())):
        ask()
        with pytest.raises(RuntimeError, match="has entered no layout, while another thread uses a mesh of 8 devices"):
            run_in_thread(ask)
        run_in_thread(ask_for_one_device)
    run_in_thread(ask)


def test_a_mesh_of_one_device_concerns_no_other_thread() -> None:
    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert run_in_thread(current_layout) == ONE_DEVICE != current_layout()


def test_a_mesh_in_a_thread_is_not_the_callers() -> None:
    """The mesh that a thread has entered is unseen by others, which may have entered another."""
    both = threading.Barrier(2, timeout=60)

    def count() -> int:
        with use_mesh(make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4]), {"batch": None}):
            both.wait()
            parts = batch_parts()
            both.wait()
            return parts

    with use_mesh(make_mesh(MeshConfig())), ThreadPoolExecutor(1) as pool:
        other = pool.submit(count)
        both.wait()
        assert batch_parts() == 8
        both.wait()
        assert other.result() == 1


class Doubler:
    """What keeps the layout that it was built in."""

    def __init__(self) -> None:
        self.layout = current_layout()
        self.double = jax.jit(lambda x: constrain(x * 2, ("batch", "mlp")))

    @in_layout
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.double(x)


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_what_was_built_in_a_layout_computes_in_it_from_anywhere(mesh: MeshConfig | None) -> None:
    with use_mesh(make_mesh(mesh), {"batch": "data"}) if mesh else use_layout(ONE_DEVICE):
        x, double = np.ones((8, 8), np.float32), Doubler()
        expected = double(x)
    other = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    with use_mesh(other):
        found = [double(x), run_in_thread(lambda: double(x))]
        assert current_mesh() is other
    found += [double(x), run_in_thread(lambda: double(x))]
    for array in found:
        np.testing.assert_array_equal(array, expected)
        assert array.sharding == expected.sharding
    if mesh:
        assert double.double._cache_size() == 1


def test_one_function_is_another_program_under_each_layout() -> None:
    """jax keeps programs by function and shapes: meshes and rules must be part of what it looks for."""
    double = jax.jit(lambda x: constrain(x * 2, ("batch", None)))
    share = lambda: {shard.data.shape for shard in double(np.ones((8, 8))).addressable_shards}
    eight, four = make_mesh(MeshConfig()), make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    layouts = [(Layout(eight), 1), (Layout(four), 2), (Layout(four, {"batch": "data"}), 4), (Layout(four), 2)]
    layouts += [(Layout(eight, {"batch": None}), 8), (ONE_DEVICE, 8), (Layout(eight), 1)]
    for layout, rows in layouts:
        with use_layout(layout):
            assert share() == {(rows, 8)}, layout
