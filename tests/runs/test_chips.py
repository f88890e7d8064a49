"""Topology names, the devices they stand for, and what is said of names that stand for nothing."""

import pytest

from r1jax.core.errors import UserError
from r1jax.runs.chips import CHIPS, read_topology


@pytest.mark.parametrize(
    ("name", "slices", "devices"),
    [("v5e:4x4", 1, 16), ("v5p:8x8x8", 1, 512), ("v6e:16x16", 1, 256), ("tpu7x:2x2x1", 1, 8), ("v5p:2x2x1", 2, 8)],
)
def test_a_name_says_how_many_devices(name: str, slices: int, devices: int) -> None:
    topology = read_topology(name, slices)
    assert (topology.devices, topology.name, topology.chip.name) == (devices, name, name.partition(":")[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "no such chip; known: v5e, v5p, v6e, tpu7x"),
        ("v5p", "chips along each axis are missing, as in v5p:4x4x4"),
        ("v5p:2x0x1", "chips along each axis are missing"),
        ("v5p:4x4", "v5p comes as a torus of 3 axes"),
        ("v6e:4x4x4", "v6e comes as a torus of 2 axes, as in v6e:4x4"),
    ],
)
def test_an_odd_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_topology(name)


def test_slices_are_counted_from_one() -> None:
    with pytest.raises(UserError, match="--num_slices must be at least 1, got 0"):
        read_topology("v5p:2x2x1", 0)


def test_figures_are_of_one_device() -> None:
    """A step at the peak reads HBM once in 20 to 40 ms on all of them: a slip of a factor would stand out."""
    for chip in CHIPS.values():
        assert 0.015 < chip.hbm_bytes / chip.hbm_bandwidth < 0.045
        assert 100 < chip.flops / chip.hbm_bandwidth < 600
