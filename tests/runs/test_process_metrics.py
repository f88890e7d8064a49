"""Memory of devices that tell it, and the slowest of several processes."""

import types

import jax
import numpy as np
import pytest

from r1jax.core import distributed
from r1jax.runs.process_metrics import measure_processes


def test_devices_that_tell_nothing_have_no_metric() -> None:
    assert measure_processes({"time/rollout": 1.0, "loss": 2.0}) == {}


def test_memory_of_the_fullest_and_the_smallest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = [{"peak_bytes_in_use": 5, "bytes_limit": 16}, {"peak_bytes_in_use": 7, "bytes_limit": 15}]
    devices = [types.SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert measure_processes({}) == {"memory/peak_bytes": 7, "memory/limit_bytes": 15}


def test_the_slowest_process_of_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second scores slowly; the first is the slowest in sum."""
    other = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 6.0])
    monkeypatch.setattr(distributed, "from_all", lambda own: [own, other])
    found = measure_processes({"time/rollout": 2.0, "time/reward": 1.0, "time/train": 4.0})
    name = "time/slowest_process"
    assert found == {name: 1, f"{name}/rollout": 1, f"{name}/reward": 2, f"{name}/train": 1}
