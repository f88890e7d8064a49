"""Programs of a run compiled for a TPU: memory, cost, whether they fit, and advice if they do not."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from r1jax.aot.costs import Costs, measure
from r1jax.core.sharding import current_layout, use_layout
from r1jax.core.structs import Program
from r1jax.learner.offload import HOST
from r1jax.runs.chips import Chip, Topology

_OUT_OF_HBM = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|[Uu]sed ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# Config keys that lower the memory of a program, most effective first.
CURES = {
    "accumulate": "config.model.remat=full, config.train.micro_batch_size, config.train.logits_chunk, with experts "
    "config.model.dispatch_tokens, config.optimizer.offload=true, or larger config.mesh.fsdp",
    "apply": "larger config.mesh.fsdp, or config.model.param_dtype",
    "logprobs": "config.train.logits_chunk, config.train.micro_batch_size, or larger config.mesh.fsdp",
    "prefill": "config.rollout.prefill_batch, config.rollout.slots, or larger config.mesh.fsdp",
    "feed": "config.rollout.slots, config.episode.max_tokens, or larger config.mesh.fsdp",
    "insert": "config.rollout.slots or config.rollout.max_new_tokens",
    "grow": "config.rollout.cache_pieces=1",
    "shrink": "config.rollout.tails=0",
    "weights": "larger tensor in config.rollout.mesh, or config.optimizer.offload=true",
    "decode": "config.rollout.slots, config.rollout.max_new_tokens, or larger config.mesh.tensor",
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. arguments, temporaries, outputs: as reported by the compiler (without outputs that alias
    arguments). resident: other arrays that the run keeps on the device. peak: the total.
    """

    arguments: int
    temporaries: int
    outputs: int
    peak: int
    resident: int = 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program. bound_seconds: the least that the chip's peak rates allow. If the compiler ran out of HBM,
    `text` is "", memory has only a peak, and times are NaN.
    """

    seconds: float
    memory: Memory
    costs: Costs
    useful_flops: float
    bound_seconds: float
    fits: bool
    text: str

    @property
    def predicted_seconds(self) -> float:
        """The time that the compiled text predicts (aot/timeline.py)."""
        return math.nan if math.isnan(self.bound_seconds) else self.costs.predicted_seconds


def find_versions() -> dict[str, str]:
    """Versions of jax, jaxlib and libtpu, which compile; "" for one that is not installed."""
    versions = dict.fromkeys(("jax", "jaxlib", "libtpu"), "")
    for name in versions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def compile_program(program: Program, topology: Topology) -> Compiled:
    """Compiles for the devices in the arguments' shardings, and measures."""
    resident = device_bytes(program.resident)
    limit, useful = topology.chip.hbm_bytes, program.useful_flops / topology.devices
    begin = time.perf_counter()
    try:
        with use_layout(program.layout or current_layout()):
            compiled = program.function.lower(*program.arguments, **program.keywords).compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := _needed(str(error))) is None:
            raise
        memory = Memory(device_bytes(program.arguments), 0, 0, needed + resident, resident)
        return Compiled(time.perf_counter() - begin, memory, Costs(), useful, math.nan, False, "")
    seconds, text = time.perf_counter() - begin, compiled.as_text()
    memory = _memory(compiled.memory_analysis(), resident)
    hops = find_hops(find_mesh(program.arguments), topology.shape)
    costs = measure(text, topology.slices, topology.devices, topology.chip, hops)
    bound = bound_seconds(costs, topology.chip)
    return Compiled(seconds, memory, costs, useful, bound, memory.peak <= limit, text)


def find_mesh(arguments: Any) -> Any:
    """The mesh of a program's devices in their order; None if no argument has one."""
    places = (x.sharding for x in jax.tree.leaves(arguments))
    return next((place.mesh for place in places if isinstance(place, jax.NamedSharding)), None)


def find_hops(mesh: Any, torus: tuple[int, ...]) -> Callable[[Sequence[int]], float] | None:
    """The function from devices of a mesh, by their number, to the links between two of them on average in a torus;
    None for devices without a place in one.
    """
    devices = [] if mesh is None else list(mesh.devices.flat)
    if not devices or getattr(devices[0], "coords", None) is None:
        return None
    coords = np.array([device.coords for device in devices])[:, : len(torus)]

    @functools.cache
    def mean(members: tuple[int, ...]) -> float:
        apart = np.abs(coords[list(members)][:, None] - coords[list(members)])
        around = np.minimum(apart, np.array(torus) - apart).sum(-1)
        return float(around.sum() / max(1, len(members) * (len(members) - 1)))

    return lambda members: mean(tuple(members))


def bound_seconds(costs: Costs, chip: Chip) -> float:
    """Roofline time: the maximum of compute, HBM traffic, and traffic inside and between slices, each at its
    peak rate.
    """
    return max(find_bounds(costs, chip).values())


def find_bounds(costs: Costs, chip: Chip) -> dict[str, float]:
    """Seconds that each resource needs at its peak rate."""
    return {
        "FLOPs": costs.flops / chip.flops,
        "HBM": costs.hbm_bytes / chip.hbm_bandwidth,
        "links": (costs.wire - costs.slow_wire) / chip.ici_bandwidth,
        "network": costs.slow_wire / chip.dcn_bandwidth,
    }


def device_bytes(tree: Any) -> int:
    """Bytes per device, excluding host-resident arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if getattr(x, "sharding", None) is not None and x.sharding.memory_kind != HOST
    )


def _memory(stats: Any, resident: int) -> Memory:
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    sizes = stats.argument_size_in_bytes, stats.temp_size_in_bytes, outputs
    needed = max(sum(sizes) + stats.generated_code_size_in_bytes, getattr(stats, "peak_memory_in_bytes", 0))
    return Memory(*sizes, peak=needed + resident, resident=resident)


def _needed(message: str) -> int | None:
    """Bytes needed according to the compiler's message, if it ran out of HBM; else None."""
    if not (found := _OUT_OF_HBM.search(message)):
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * _UNITS[unit])


def _spell(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds:.4g}"


def find_limit(costs: Costs, chip: Chip) -> str:
    """The resource that a program needs for longest."""
    bounds = find_bounds(costs, chip)
    return max(bounds, key=lambda name: bounds[name])


def describe_costs(costs: Costs, chip: Chip) -> dict[str, Any]:
    """Costs of a program as plain figures per device."""
    return {
        "flops": costs.flops,
        "collectives": {
            kind: {"count": int(count), "bytes": int(costs.collective_bytes[kind])}
            for kind, count in sorted(costs.collective_counts.items())
        },
        "predicted_seconds": costs.predicted_seconds,
        "bound_seconds": bound_seconds(costs, chip),
        "bound_by": find_limit(costs, chip),
        "exposed_seconds": costs.exposed,
        "memory_traffic_bytes": costs.hbm_bytes,
        "kernels_without_flops": sorted(costs.unpriced),
        "open_loops": sorted(costs.unknown_loops),
    }


class Report:
    """Table of all programs, and its JSON form."""

    def __init__(self, topology: Topology):
        self.topology, self.programs = topology, dict[str, Compiled]()
        self.further: dict[str, Any] = {}  # figures beside those of the programs

    def add(self, name: str, compiled: Compiled) -> None:
        """Adds a program's figures."""
        self.programs[name] = compiled

    @property
    def fits(self) -> bool:
        """Whether all programs fit."""
        return all(program.fits for program in self.programs.values())

    def as_dict(self) -> dict[str, Any]:
        """Figures per device."""
        return {
            "chip": self.topology.chip.name,
            "devices": self.topology.devices,
            "versions": find_versions(),
            "programs": {name: self._describe(program) for name, program in self.programs.items()},
            **self.further,
        }

    def _describe(self, program: Compiled) -> dict[str, Any]:
        figures = describe_costs(program.costs, self.topology.chip)
        if math.isnan(program.bound_seconds):
            figures |= dict.fromkeys(("predicted_seconds", "bound_seconds", "bound_by"))
        return {
            "compile_seconds": round(program.seconds, 2),
            "hbm_bytes": {**dataclasses.asdict(program.memory), "limit": self.topology.chip.hbm_bytes},
            "fits": program.fits,
            "model_flops": program.useful_flops,
            "exchange_buffer_bytes": program.costs.exchange_buffer,
            "kernel_flops": program.costs.kernel_flops,
            **figures,
        }

    # --- Text output ---

    def head(self) -> str:
        """Header lines: topology, compiler and columns."""
        chip, GiB = self.topology.chip, 2**30
        slices = f" x {self.topology.slices} slices" if self.topology.slices > 1 else ""
        return (
            f"{self.topology.name}{slices}: {self.topology.devices} devices, each {chip.hbm_bytes / GiB:.2f} GiB, "
            f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.hbm_bandwidth / 1e9:.0f} GB/s\n"
            f"{', '.join(f'{name} {version}' for name, version in find_versions().items() if version)}\n"
            f"{'program':<12}{'compile s':>10}{'HBM GiB':>9}{'fits':>6}{'TFLOP':>11}{'useful':>11}"
            f"{'sent GB':>9}{'buffer GiB':>12}{'at best s':>11}{'predicted':>11}  limit"
        )

    def line(self, name: str) -> str:
        """Line of one program."""
        program = self.programs[name]
        costs = program.costs
        return (
            f"{name:<12}{program.seconds:>10.1f}{program.memory.peak / 2**30:>9.2f}{'yes' if program.fits else 'NO':>6}"
            f"{costs.flops / 1e12:>11.4g}{program.useful_flops / 1e12:>11.4g}"
            f"{sum(costs.collective_bytes.values()) / 1e9:>9.3g}{costs.exchange_buffer / 2**30:>12.3g}"
            f"{_spell(program.bound_seconds):>11}{_spell(program.predicted_seconds):>11}"
            f"  {'–' if math.isnan(program.bound_seconds) else find_limit(costs, self.topology.chip)}"
        )

    def advice(self) -> list[str]:
        """Lines about programs that do not fit, with the excess and remedies, and about operations that could not be
        counted.
        """
        limit, lines = self.topology.chip.hbm_bytes, []
        for name, program in self.programs.items():
            if not program.fits:
                missing = (program.memory.peak - limit) / 2**30
                kept = program.memory.resident / 2**30
                lines.append(
                    f"{name} does not fit: {missing:.2f} GiB too much of {limit / 2**30:.2f} GiB a device "
                    f"({kept:.2f} GiB of it are other arrays that the run keeps there); lower it by "
                    f"{CURES.get(name.rpartition('.')[2], 'a larger config.mesh.fsdp')}"
                )
            if program.costs.unpriced:
                lines.append(f"{name}: kernels without FLOPs: {', '.join(sorted(program.costs.unpriced))}")
        return lines or ["everything fits"]
