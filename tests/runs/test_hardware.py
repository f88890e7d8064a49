"""Peaks by the names that jax gives devices, and a measured one for what no table knows."""

import dataclasses
from typing import Any

import jax
import pytest

from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.runs.hardware import peak_flops


@dataclasses.dataclass(frozen=True)
class Device:
    device_kind: str
    platform: str = "tpu"


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),  # v5e; "TPU v5e" from some runtimes
        ("TPU v5e", 197),
        ("TPU v5", 459),  # v5p; "TPU v5p" from some runtimes
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
    ],
)
def test_accelerators_have_their_published_peak(kind: str, teraflops: int) -> None:
    device: Any = Device(kind)
    assert peak_flops(device) == teraflops * 1e12


def test_cpu_is_measured_once_and_shared_by_its_pretend_devices() -> None:
    flops = peak_flops(jax.devices()[0])
    assert 1e8 < flops < 1e14 and peak_flops(jax.devices()[0]) == flops


def test_it_is_measured_inside_a_mesh_too() -> None:
    peak_flops.cache_clear()
    with use_mesh(make_mesh(MeshConfig(data=4, tensor=2))):
        assert 1e8 < peak_flops() < 1e14
