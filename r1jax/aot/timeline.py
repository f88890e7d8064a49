"""Predicted time of an optimized program, from its HLO text alone: the same formula for any compiler's or peer's text.

Per device and execution, loops counted in full:

- An operation takes the longer of its FLOPs and its HBM bytes, each at a share of the chip's peak: EFFICIENCY, by kind
  (matrix products, attention kernels, grouped kernels, memory). A fusion is one operation. Asynchronous copies hide
  behind operations, as far as the memory's rate allows all bytes of the computation together.
- A collective takes its bytes on the wire (a ring's, aot/costs.py) at a share of all links of a chip, or of the network
  where it crosses slices.
- A synchronous collective is exposed: nothing else runs. An asynchronous one, or one that is fused with compute, hides
  behind the operations of its own computation (the same loop body); what is longer than these is exposed.

The prediction is the sum of all operations and of what is exposed. Left out: the latency of small operations and
collectives, transfers to host memory, hops between chips that are no neighbours, and time in which the host does not
keep up. The shares are assumptions; docs/predictions.md holds them against published step times, and no hardware was
measured here.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol

from r1jax.aot.hlo import Instruction
from r1jax.runs.chips import Chip

# Shares of the chip's peaks, by kind of operation.
EFFICIENCY = {"products": 0.8, "attention": 0.5, "grouped": 0.6, "other kernels": 0.5, "HBM": 0.85, "links": 0.7}
_KERNELS = {"attention": r"splash|flash|attention|mha", "grouped": r"gmm|ragged|megablox"}


@dataclasses.dataclass
class Timeline:
    """Seconds on a chip: `busy` in operations, `exposed` in collectives that nothing hides, `hidden` in others."""

    busy: float = 0.0
    exposed: float = 0.0
    hidden: float = 0.0

    @property
    def seconds(self) -> float:
        """The predicted time."""
        return self.busy + self.exposed


class Work(Protocol):
    """Costs of an operation (aot/costs.py): FLOPs, of which some are those of Pallas kernels; bytes in HBM; bytes on
    the wire, of which some cross slices.
    """

    flops: float
    kernel_flops: float
    hbm_bytes: float
    wire: float
    slow_wire: float


class Clock:
    """Times the operations of one computation, one after the other, on a chip."""

    def __init__(self, chip: Chip):
        self.chip = chip
        self._busy = self._memory = self._waiting = self._behind = 0.0

    def note(self, instruction: Instruction, work: Work) -> None:
        """Adds an operation."""
        chip, shares = self.chip, EFFICIENCY
        computing = (work.flops - work.kernel_flops) / (chip.flops * shares["products"])
        computing += work.kernel_flops / (chip.flops * shares[kind_of_kernel(instruction.name)])
        memory = work.hbm_bytes / (chip.hbm_bandwidth * shares["HBM"])
        starts = instruction.opcode.endswith("-start")
        self._memory += memory
        self._busy += computing if starts else max(computing, memory)
        sending = (work.wire - work.slow_wire) / chip.ici_bandwidth + work.slow_wire / chip.dcn_bandwidth
        if starts or instruction.opcode == "fusion":
            self._behind += sending / shares["links"]
        else:
            self._waiting += sending / shares["links"]

    def read(self) -> Timeline:
        """The computation's own time."""
        busy = max(self._busy, self._memory)
        hidden = min(self._behind, busy)
        return Timeline(busy, self._waiting + self._behind - hidden, hidden)


def kind_of_kernel(name: str) -> str:
    """The kind of a kernel, by its name."""
    return next((kind for kind, pattern in _KERNELS.items() if re.search(pattern, name.lower())), "other kernels")
