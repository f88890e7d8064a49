"""Chips by name with their peak rates, and topology names of TPUs: `v5p:8x8x8`, or a machine's type such as `v5p-64`.

Figures are from Google's system pages (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x; read November 2026), for
one jax *device*: a whole chip, except on tpu7x, where a device is one of a chip's two chiplets and has half its
figures. Usable HBM is what the compiler states when a program does not fit (libtpu 0.0.52), slightly less than the
pages'. Figures of GPUs are from NVIDIA's data sheets (SXM forms, dense rates without sparsity).
"""

from __future__ import annotations

import dataclasses
import math
import re

from r1jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device: FLOP/s of dense bf16 matmuls, usable HBM in bytes, HBM bytes/s, outgoing ICI bytes/s over all links
    (half of the bidirectional figure), DCN bytes/s, number of torus axes, and chips per pod.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    torus: int
    pod: int
    devices: int = 1


_GIB = 2**30
CHIPS: dict[str, Chip] = {
    "v5e": Chip("v5e", 197e12, int(15.75 * _GIB), 819e9, 200e9, 25e9 / 8, 2, 256),
    "v5p": Chip("v5p", 459e12, int(95.73 * _GIB), 2765e9, 600e9, 50e9 / 8, 3, 8960),
    "v6e": Chip("v6e", 918e12, int(31.24 * _GIB), 1638e9, 400e9, 100e9 / 8, 2, 256),
    "tpu7x": Chip("tpu7x", 2307e12 / 2, int(94.74 * _GIB), 7380e9 / 2, 600e9 / 2, 100e9 / 16, 3, 9216, devices=2),
}

# By the beginning of jax's `device_kind`; a longer name comes before its own beginning. ICI is NVLink (half of the
# bidirectional figure), DCN a 400 Gbit/s network card a GPU; torus 1: a switch connects all GPUs of a machine.
GPUS: dict[str, Chip] = {
    "NVIDIA A100-SXM4-40GB": Chip("a100-40", 312e12, 40 * 10**9, 1555e9, 300e9, 25e9, 1, 8),
    "NVIDIA A100-SXM4-80GB": Chip("a100", 312e12, 80 * 10**9, 2039e9, 300e9, 25e9, 1, 8),
    "NVIDIA H100 80GB HBM3": Chip("h100", 989e12, 80 * 10**9, 3350e9, 450e9, 50e9, 1, 8),
    "NVIDIA H200": Chip("h200", 989e12, 141 * 10**9, 4800e9, 450e9, 50e9, 1, 8),
    "NVIDIA B200": Chip("b200", 2250e12, 180 * 10**9, 8000e9, 900e9, 50e9, 1, 8),
    "Tesla T4": Chip("t4", 65e12, 15 * 10**9, 320e9, 16e9, 4e9, 1, 8),
}

# What jax calls the TPUs (`device_kind`), in the order of their names' beginnings.
_KINDS = {"TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6": "v6e", "TPU7x": "tpu7x"}


def find_chip(kind: str) -> Chip | None:
    """The chip of a device by jax's `device_kind`; None for one that the tables lack, as a CPU."""
    named = next((CHIPS[name] for start, name in _KINDS.items() if kind.startswith(start)), None)
    return named or next((chip for start, chip in GPUS.items() if kind.startswith(start)), None)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of a chip: number of chips along each torus axis, and number of slices."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """Name as given on the command line, without the number of slices."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Chips in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """jax devices in all slices."""
        return math.prod(self.shape) * self.chip.devices * self.slices


# Chip names in a machine's type (`gcloud`'s accelerator type), and what its number counts a chip.
_TYPES = {"v5litepod": ("v5e", 1), "v5e": ("v5e", 1), "v6e": ("v6e", 1), "v5p": ("v5p", 2)}


def read_topology(text: str, slices: int = 1) -> Topology:
    """Topology from `v5p:4x4x2` or a machine's type (`v6e-16`, `v5litepod-8`; the number of `v5p-64` counts cores, two
    a chip), `slices` times. Raises UserError for an unknown chip or an invalid shape.
    """
    spelled = text.strip().lower()
    if len(spelled) > 100:
        raise UserError(f"--topology={text[:60]}…: too long for a slice; write it as in --topology=v5p:8x8x8")
    if found := re.fullmatch(r"([a-z0-9]+)-([1-9]\d*)", spelled):
        spelled = _spell_type(text, found[1], int(found[2]))
    name, _, rest = spelled.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology={text}: no such chip; known: {', '.join(CHIPS)}, as in --topology=v5p:8x8x8")
    chip = CHIPS[name]
    example = f"{name}:{'x'.join(['4'] * chip.torus)}"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", rest):
        raise UserError(f"--topology={text}: the numbers of chips along each axis are missing, as in {example}")
    shape = tuple(map(int, rest.split("x")))
    if len(shape) != chip.torus:
        raise UserError(f"--topology={text}: {name} comes as a torus of {chip.torus} axes, as in {example}")
    if math.prod(shape) > chip.pod:
        raise UserError(
            f"--topology={text}: {math.prod(shape)} chips, but a pod of {name} has {chip.pod}; use several slices "
            "(--num_slices)"
        )
    if slices < 1:
        raise UserError(f"--num_slices must be at least 1, got {slices}")
    return Topology(chip, shape, slices)


def _spell_type(text: str, kind: str, number: int) -> str:
    """The name `CHIP:AxB` of a machine's type: the shape with the most even sides."""
    if kind not in _TYPES:
        chip = next((name for name in CHIPS if name == kind), "v5p")
        raise UserError(
            f"--topology={text}: no such machine; known: {', '.join(f'{name}-N' for name in _TYPES)}, or a chip "
            f"({', '.join(CHIPS)}) and a shape, as in {chip}:{'x'.join(['4'] * CHIPS[chip].torus)}"
        )
    name, cores = _TYPES[kind]
    chips, axes = number // cores, CHIPS[name].torus
    power = chips.bit_length() - 1
    if number % cores or chips != 1 << power:
        counted = "cores, two a chip" if cores == 2 else "chips"
        raise UserError(
            f"--topology={text}: {number} counts {counted}, and only powers of two have one shape; "
            f"name a shape, as in {name}:{'x'.join(['4'] * axes)}"
        )
    sides = [1 << ((power + axis) // axes) for axis in range(axes)]
    if axes == 3 and chips == 4:
        sides = [2, 2, 1]  # a host's four chips
    return f"{name}:{'x'.join(map(str, sides))}"
