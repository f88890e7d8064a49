"""Rates of the devices as measured: matrix products, memory, and the links between devices.

Each is the best of some short runs, of a loop inside one program, so that neither the host nor the first run counts.
Matrix products are bfloat16 on accelerators and float32 on CPUs. Memory: an array much larger than any cache is read
and written. Links: the arrays of all devices are summed, by a ring of which each device sends 2 (n - 1) / n of an array
(the same count as aot/costs.py's).

A rate is wrong where it is under a share of the table's (runs/chips.py), or a device is much slower than the others of
its process. For links the share is small: the table counts all links of a chip, and a small slice is a mesh that uses a
third to a half of them. Of a CPU's pretend devices, which share its cores, the first is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.checkup.findings import Finding
from r1jax.runs.chips import Chip, find_chip

SHARES = {"FLOPs": 0.5, "HBM": 0.5, "links": 0.2}  # of the table's rate, under which a device or link is wrong
APART = 0.7  # of the median of all devices, under which an accelerator is wrong
CURES = {
    "FLOPs": "another program may use the device, or it is throttled (power, heat): look at it with the vendor's tool "
    "(tpu-info, nvidia-smi), restart the machine, and exchange it if it stays slow",
    "HBM": "another program may use the device: stop it; else restart the machine, and exchange it if it stays slow",
    "links": "devices talk over another way than their links: on GPUs NCCL_DEBUG=INFO tells which (NVLink, InfiniBand; "
    "--shm-size of a container), on TPUs restart the slice; exchange it if it stays slow",
}
UNITS = {"FLOPs": (1e12, "TFLOP/s"), "HBM": (1e9, "GB/s"), "links": (1e9, "GB/s")}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of what is timed. matrix: rows and columns; array, sent: bytes; repeats: turns of the loop in a program."""

    matrix: int
    array: int
    sent: int
    repeats: int
    runs: int = 3


def choose_sizes(platform: str, *, quick: bool) -> Sizes:
    """Sizes that take seconds on a device of the platform."""
    if platform == "cpu":
        return Sizes(1024, 2**26, 2**22, 2 if quick else 6, 2 if quick else 3)
    return Sizes(8192, 2**30, 2**28, 10 if quick else 40)


def check_flops(sizes: Sizes) -> Finding:
    """Rates of matrix products of this process's devices, one after the other."""
    return _judge("FLOPs", [measure_flops(device, sizes) for device in _choose_devices()])


def check_memory(sizes: Sizes) -> Finding:
    """Memory rates of this process's devices, one after the other."""
    return _judge("HBM", [measure_memory(device, sizes) for device in _choose_devices()])


def check_links(sizes: Sizes) -> Finding:
    """The rate at which the devices of all processes exchange data; every process calls this."""
    count = jax.device_count()
    if count == 1:
        return Finding("links", "skipped", "one device, no links")
    return _judge("links", [measure_links(sizes)], of=f"{count} devices in a sum: ")


def measure_flops(device: jax.Device, sizes: Sizes) -> float:
    """FLOP/s of square matrix products."""
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    start = jnp.ones((sizes.matrix, sizes.matrix), dtype)

    def run(x: jax.Array) -> jax.Array:
        kernel = jnp.eye(sizes.matrix, dtype=dtype) + x * 1e-3
        return jax.lax.fori_loop(0, sizes.repeats, lambda _, x: x @ kernel * 0.5, x)

    return 2.0 * sizes.matrix**3 * sizes.repeats / time_best(jax.jit(run), jax.device_put(start, device), sizes.runs)


def measure_memory(device: jax.Device, sizes: Sizes) -> float:
    """Bytes/s of reading and writing an array."""
    start = jnp.ones(sizes.array // 4, jnp.float32)
    run = jax.jit(lambda x: jax.lax.fori_loop(0, sizes.repeats, lambda i, x: x + 1, x))
    return 2.0 * sizes.array * sizes.repeats / time_best(run, jax.device_put(start, device), sizes.runs)


def measure_links(sizes: Sizes) -> float:
    """Bytes/s that each device sends while all devices sum their arrays."""
    mesh, count = Mesh(np.array(jax.devices()), ("device",)), jax.device_count()
    spec = PartitionSpec("device")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def add(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, sizes.repeats, lambda _, x: jax.lax.psum(x, "device") / count, x)

    make = jax.jit(lambda: jnp.ones(count * sizes.sent // 4, jnp.float32), out_shardings=NamedSharding(mesh, spec))
    sent = 2 * (count - 1) / count * sizes.sent * sizes.repeats
    return sent / time_best(jax.jit(add), make(), sizes.runs)


def time_best(function: Callable[[Any], jax.Array], argument: Any, runs: int) -> float:
    """Seconds of the fastest of some runs, after one that compiles."""
    seconds = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        jax.block_until_ready(function(argument))
        seconds.append(time.perf_counter() - begin)
    return max(min(seconds[1:]), 1e-9)


def _choose_devices() -> list[jax.Device]:
    """This process's devices; the first of a CPU's, which share its cores."""
    devices = jax.local_devices()
    return devices[:1] if devices[0].platform == "cpu" else devices


def _judge(name: str, rates: Sequence[float], *, of: str = "") -> Finding:
    """The verdict on rates of devices, or of all links, against the table and each other."""
    device = jax.local_devices()[0]
    chip, (unit, spelled) = find_chip(device.device_kind), UNITS[name]
    expected = None if chip is None else _table_rate(chip, name)
    slowest, median = min(rates), float(np.median(rates))
    figures = {"measured": list(rates), "table": expected, "kind": device.device_kind}
    shown = f"{of}{slowest / unit:,.4g} {spelled}"
    if len(rates) > 1:
        shown += f" ({len(rates)} devices, the slowest; median {median / unit:,.4g})"
    if slowest < APART * median:
        number = rates.index(slowest)
        text = f"device {number} has {slowest / unit:,.4g} {spelled}, the median is {median / unit:,.4g}"
        return Finding(name, "wrong", text, CURES[name], figures)
    if expected is None:
        return Finding(name, "measured", f"{shown}; the table has no {device.device_kind}", figures=figures)
    share = slowest / expected
    text = f"{shown}, {share:.0%} of the table's {expected / unit:,.4g} ({chip.name if chip else ''})"
    if share < SHARES[name]:
        return Finding(name, "wrong", f"{text}; at least {SHARES[name]:.0%} is usual", CURES[name], figures)
    return Finding(name, "right", text, figures=figures)


def _table_rate(chip: Chip, name: str) -> float:
    return {"FLOPs": chip.flops, "HBM": chip.hbm_bandwidth, "links": chip.ici_bandwidth}[name]
