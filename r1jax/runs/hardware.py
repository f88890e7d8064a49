"""Peak FLOP/s of a device: published matmul peaks of accelerators, a measured one for CPUs. For utilisation figures."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.core.startup.memory import find_memory
from r1jax.runs.chips import CHIPS

# Chips by the beginning of their devices' kind; v5p's second name is a prefix of v5e's, so it comes after it.
KINDS = {"TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6": "v6e", "TPU7x": "tpu7x"}

# Dense bf16 FLOP/s per device, from the vendors' data sheets (runs/chips.py, NVIDIA data sheets).
PEAK_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    **{name: CHIPS[chip].flops for name, chip in KINDS.items()},
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def find_device_memory(device: jax.Device) -> int:
    """Bytes of memory of a device, which a compiler's may be without its machine; a CPU's is shared by all of them."""
    chips = {name: CHIPS[chip] for name, chip in KINDS.items()}
    known = next((chip.hbm_bytes for name, chip in chips.items() if device.device_kind.startswith(name)), None)
    if known is not None:
        return known
    return find_memory() // (len(jax.local_devices()) if device.platform == "cpu" else 1)


@functools.cache
def peak_flops(device: jax.Device | None = None) -> float:
    """Peak FLOP/s of one device; on a CPU the float32 matmul rate of all its cores, measured once (about 0.3 s)."""
    device = device or jax.local_devices()[0]  # each process measures its own
    for name, flops in PEAK_FLOPS.items():
        if device.device_kind.startswith(name):
            return flops
    size, repeats = 1536, 6
    with jax.set_mesh(Mesh([device], ("device",))):  # independent of the caller's mesh
        multiply = jax.jit(lambda x: x @ x)
        x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
        multiply(x).block_until_ready()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            multiply(x).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / max(1, len([d for d in jax.local_devices() if d.platform == device.platform]))
