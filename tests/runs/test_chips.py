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
    ("kind", "name", "chips"),
    [
        ("v6e-16", "v6e:4x4", 16),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v5e-1", "v5e:1x1", 1),
        ("v6e-256", "v6e:16x16", 256),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-16", "v5p:2x2x2", 8),
        ("v5p-64", "v5p:2x4x4", 32),
        ("v5p-1024", "v5p:8x8x8", 512),
    ],
)
def test_a_type_of_machine_is_a_topology(kind: str, name: str, chips: int) -> None:
    topology = read_topology(kind)
    assert (topology.name, topology.chips) == (name, chips)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100-8", "no such machine; known: v5litepod-N, v5e-N, v6e-N, v5p-N, or a chip"),
        ("tpu7x-8", "as in tpu7x:4x4x4"),
        ("v5p-63", "63 counts cores, two a chip, and only powers of two have one shape"),
        ("v6e-12", "12 counts chips, and only powers of two have one shape; name a shape, as in v6e:4x4"),
        ("v6e-512", "512 chips, but a pod of v6e has 256"),
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
