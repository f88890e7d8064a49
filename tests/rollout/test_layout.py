"""The rule for the layout of rollouts: what it chooses for which weights and memory, and what it refuses."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.core.sharding import ONE_DEVICE, Layout, MeshConfig, make_mesh
from r1jax.models.families import deepseek_v3, llama
from r1jax.models.presets import find_preset
from r1jax.models.transformer import logical_axes, split
from r1jax.rollout.handover import find_weights
from r1jax.rollout.layout import Weights, choose_layout

GiB = 2**30
DENSE = llama.Config(vocab_size=64, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=8, num_kv_heads=4)


def weights_of(family: Any, sizes: Any) -> Weights:
    model = nnx.eval_shape(lambda: family.build(sizes, rngs=nnx.Rngs(0), scan_layers=True))
    return find_weights(split(model)[1], logical_axes(model), "bfloat16")


def choose(
    weights: Weights,
    *,
    free: float,
    mesh: str = "auto",
    rules: Mapping[str, Any] | None = None,
    rows: int = 8,
    training: Mapping[str, int] | None = None,
) -> Layout:
    sizes: dict[str, Any] = {"data": 1, "fsdp": -1, **(training or {})}
    layout = Layout(make_mesh(MeshConfig(**sizes)))
    return choose_layout(layout, mesh, rules or {}, weights, free=int(free), rows=(rows, 8))


def sizes_of(layout: Layout) -> dict[str, int]:
    assert layout.mesh is not None
    return {axis: size for axis, size in layout.mesh.shape.items() if size > 1}


def test_weights_lie_whole_where_they_fit_and_else_over_neighbours() -> None:
    weights = weights_of(llama, DENSE)
    whole = weights.bytes_in(choose(weights, free=GiB))
    assert sizes_of(choose(weights, free=whole / 0.4 + 3)) == {"data": 8}
    split = choose(weights, free=whole / 0.4 - 3)  # over 4 neighbours, as 4 kv heads do not divide by 8
    assert sizes_of(split) == {"data": 2, "tensor": 4}
    assert whole / 4 < weights.bytes_in(split) < whole / 3.9
    assert split.rules["group_batch"] != split.rules["batch"]
    assert sizes_of(choose(weights, free=whole / 4 / 0.75)) == {"data": 2, "tensor": 4}
    assert sizes_of(choose(weights, free=whole / 4)) == {"fsdp": 8}  # too small for any: as in training


def test_one_device_and_rows_that_do_not_divide_keep_the_layout_of_training() -> None:
    weights = weights_of(llama, DENSE)
    assert choose_layout(ONE_DEVICE, "auto", {}, weights, free=GiB, rows=(8,)) == ONE_DEVICE
    assert sizes_of(choose(weights, free=GiB, mesh="same")) == {"fsdp": 8}
    assert sizes_of(choose(weights, free=GiB, rows=12)) == {"fsdp": 8}


def test_copies_at_all_devices_stay_where_they_are() -> None:
    weights, training = weights_of(llama, DENSE), {"data": 8, "fsdp": 1}
    assert choose(weights, free=GiB, training=training).rules["embed"] != ()  # the table of training
    assert choose(weights, free=GiB, training={"data": 4, "fsdp": 1, "context": 2}).rules["embed"] == ()  # rows are not


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"expert": 2, "fsdp": 4}, {"fsdp": 2, "expert": 2, "context": 2}),
        ({"expert": 4, "fsdp": 2}, {"fsdp": 2, "context": 4}),
        ({"fsdp": 8}, {"fsdp": 2, "expert": 4}),
        ({"data": 2, "fsdp": 4}, {"data": 2, "expert": 4}),
    ],
)
def test_experts_go_over_all_devices_and_those_of_training_first(
    training: dict[str, int], expected: dict[str, int]
) -> None:
    """Of four experts and eight devices two share each one's width."""
    _, sizes = find_preset("tiny_deepseek_v3")
    gate = dataclasses.replace(sizes.gate, groups=1, active_groups=1)
    weights = weights_of(deepseek_v3, dataclasses.replace(sizes, num_experts=4, active_experts=2, gate=gate))
    layout = choose(weights, free=weights.bytes_in(choose(weights, free=GiB)) / 0.45, training=training)
    assert sizes_of(layout) == expected


def test_a_mesh_of_its_own_and_rules() -> None:
    weights = weights_of(llama, DENSE)
    layout = choose(weights, free=GiB, mesh="tensor=2,data=-1", rules={"vocab": None})
    assert sizes_of(layout) == {"data": 4, "tensor": 2} and layout.rules["vocab"] == ()
    with pytest.raises(UserError, match="a mesh must be axis=size,.* got 'rows=2' .config.rollout.mesh"):
        choose(weights, free=GiB, mesh="rows=2")
    with pytest.raises(UserError, match="^config.rollout.mesh: the axes .* need 3 devices but there are 8"):
        choose(weights, free=GiB, mesh="data=1,tensor=3")
    with pytest.raises(
        UserError, match="must be divisible .* change config.rollout.mesh.tensor or config.rollout.rules"
    ):
        weights.place(choose(weights, free=GiB, mesh="tensor=8"))


def test_the_devices_keep_their_order() -> None:
    weights = weights_of(llama, DENSE)
    layout = choose(weights, free=GiB, mesh="tensor=4")
    assert layout.mesh is not None and list(layout.mesh.devices.flat) == jax.devices()[:8]
