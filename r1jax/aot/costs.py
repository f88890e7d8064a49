"""Cost of an optimized program per device and execution: FLOPs, HBM traffic and collectives, loops counted in full.

- FLOPs: 2 per multiply-add of dots, convolutions (the form of a TPU's matrix products) and Pallas kernels: by the
  kernel's own estimate if it has one, by formula for splash attention; others are listed in `unpriced`.
- HBM bytes: operands read and results written by each kernel; arrays in on-chip memory are free, a fused slice counts
  the bytes that it touches, an in-place update those that it writes, a Pallas kernel its own estimate if that is less.
- Collectives: the payload is the whole array that is gathered, scattered or permuted: the gathered result, the reduced
  or scattered input. An asynchronous one counts once, at its start. `wire` is the traffic of a ring per device; of an
  all-to-all inside a slice it is the bytes times the links that they pass on average.
- A conditional counts as its most expensive branch; a loop of unknown length counts once, and its name is reported.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from r1jax.aot.hlo import (
    HBM,
    HOST,
    NOTHING,
    Array,
    Computation,
    Instruction,
    Module,
    Scope,
    enter_computation,
    group_members,
    parse_module,
    read_loop,
)
from r1jax.aot.products import convolution_flops, dot_flops
from r1jax.aot.timeline import Clock
from r1jax.runs.chips import Chip

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier add-dependency "
    "conditional call while".split()
)
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass
class Costs:
    """Totals per device. Keys of the counters: kind of collective; name of the kernel; name of the loop or kernel.

    slow_wire: the part of `wire` that crosses slices; host_bytes: copies to or from host memory. exchange_buffer: the
    largest receive buffer of an all-to-all exchange that the program itself requests, which is that of experts' rows.
    busy, exposed, hidden: predicted seconds of operations and collectives on a chip (aot/timeline.py), if it is given.
    """

    flops: float = 0.0
    kernel_flops: float = 0.0
    hbm_bytes: float = 0.0
    host_bytes: float = 0.0
    wire: float = 0.0
    slow_wire: float = 0.0
    busy: float = 0.0
    exposed: float = 0.0
    hidden: float = 0.0
    exchange_buffer: int = 0
    collective_counts: Counter = dataclasses.field(default_factory=Counter)
    collective_bytes: Counter = dataclasses.field(default_factory=Counter)
    kernels: Counter = dataclasses.field(default_factory=Counter)
    unpriced: Counter = dataclasses.field(default_factory=Counter)
    unknown_loops: Counter = dataclasses.field(default_factory=Counter)

    @property
    def predicted_seconds(self) -> float:
        """The time that the program takes by aot/timeline.py."""
        return self.busy + self.exposed

    def add(self, other: Costs, times: float = 1) -> None:
        """Adds `other`, multiplied by `times`."""
        for field in dataclasses.fields(Costs):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "exchange_buffer":
                self.exchange_buffer = max(mine, theirs)
            elif isinstance(mine, Counter):
                for key, value in theirs.items():
                    mine[key] += value * times
            else:
                setattr(self, field.name, mine + theirs * times)


def measure(
    text: str,
    slices: int = 1,
    devices: int = 0,
    chip: Chip | None = None,
    hops: Callable[[Sequence[int]], float] | None = None,
) -> Costs:
    """Costs of the module in `text`. devices: number of devices, in `slices` equal consecutive slices; 0: the module's
    partitions (a module compiled for several slices may be that of one, which sends to the others). chip: predicts the
    time on it too. hops: links between two of some devices on average (None: 1).
    """
    module = parse_module(text)
    slice_size = max(1, (devices or module.partitions) // slices)
    walk = _Walk(module, slices, slice_size, chip, hops or (lambda members: 1.0))
    return walk.run(module.computations[module.entry], NOTHING)


class _Walk:
    """A walk over a module; a computation with the same known values is priced only once."""

    def __init__(
        self,
        module: Module,
        slices: int,
        slice_size: int,
        chip: Chip | None,
        hops: Callable[[Sequence[int]], float],
    ):
        self.module, self.slices, self.slice_size, self.chip = module, slices, slice_size, chip
        self.hops = hops
        self.known: dict[tuple, Costs] = {}

    def run(self, computation: Computation, scope: Scope, *, fused: bool = False) -> Costs:
        key = (computation.name, fused, *(tuple(known.items()) for known in scope))
        if key not in self.known:
            self.known[key] = self._price(computation, scope, fused)
        return self.known[key]

    def _price(self, computation: Computation, scope: Scope, fused: bool) -> Costs:
        total, chained = Costs(), set[str]()
        clock = Clock(self.chip) if self.chip and not fused else None
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode == "while":
                self._price_loop(total, computation, instruction, scope)
            elif opcode == "conditional":
                self._price_branches(total, instruction)
            elif opcode == "call":
                total.add(self.run(*enter_computation(self.module, computation, instruction, scope), fused=fused))
            elif not opcode.endswith(("-done", "-update")):
                own = self._price_operation(computation, instruction, chained, fused)
                total.add(own)
                if clock:
                    clock.note(instruction, own)
        if clock:
            total.add(Costs(**dataclasses.asdict(clock.read())))
        return total

    def _price_operation(
        self, computation: Computation, instruction: Instruction, chained: set[str], fused: bool
    ) -> Costs:
        """The costs of one operation with what it calls; not of loops, branches and calls."""
        own, opcode = Costs(), instruction.opcode
        self._price_collective(own, computation, instruction)
        if opcode in ("dot", "convolution"):
            own.flops += (dot_flops if opcode == "dot" else convolution_flops)(computation, instruction)
        if opcode == "custom-call" and "tpu_custom_call" in instruction.attributes:
            _price_kernel(own, computation, instruction)
        if not fused:
            own.hbm_bytes += self._traffic(computation, instruction)
        if opcode == "copy-start" or (opcode == "copy" and not fused):
            own.host_bytes += sum(a.bytes for a in instruction.results[:1] if a.space == HOST)
        if opcode in ("fusion", "custom-call") or opcode.endswith("-start"):
            for name in instruction.called("calls", "called_computations"):
                inner = self.run(self.module.computations[name], NOTHING, fused=True)
                own.add(inner if opcode != "fusion" else self._without_repeats(inner, name, chained))
        return own

    def _price_loop(self, total: Costs, computation: Computation, instruction: Instruction, scope: Scope) -> None:
        loop = read_loop(self.module, computation, instruction, scope)
        body = self.module.computations[instruction.called("body")[0]]
        if loop.length is None:
            total.unknown_loops[instruction.name] += 1
        total.add(self.run(body, loop.inside), 1 if loop.length is None else loop.length)

    def _price_branches(self, total: Costs, instruction: Instruction) -> None:
        names = instruction.called("branch_computations", "true_computation", "false_computation")
        branches = [self.run(self.module.computations[name], NOTHING) for name in names]
        total.add(max(branches, key=lambda costs: (costs.flops, costs.hbm_bytes)))

    def _without_repeats(self, inner: Costs, name: str, chained: set[str]) -> Costs:
        """The costs without repeated collectives: one that a chain of fusions performs piece by piece appears in each
        of them, and counts in the first only.
        """
        links = {
            found[1]
            for i in self.module.computations[name].instructions.values()
            if "chain_id=" in i.attributes and (found := re.search(r"channel_id=(\d+)", i.attributes))
        }
        repeated = bool(links & chained)
        chained |= links
        if not repeated:
            return inner
        return dataclasses.replace(
            inner, collective_counts=Counter(), collective_bytes=Counter(), wire=0.0, slow_wire=0.0
        )

    def _price_collective(self, total: Costs, computation: Computation, instruction: Instruction) -> None:
        kind = instruction.opcode.removesuffix("-start")
        if found := kind == "send" and re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes):
            self._price_transfer(total, found[1].lower().replace("_", "-"), instruction.results[0].bytes)
        if kind not in COLLECTIVES:
            return
        results = instruction.results
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            results = results[len(instruction.operands) :][: len(instruction.operands)] or results
        payload = sum(array.bytes for array in results)
        asked_for = kind == "all-to-all" and re.search(r'op_name="[^"]*all_to_all"', instruction.attributes)
        if kind == "ragged-all-to-all" or asked_for:
            total.exchange_buffer = max(total.exchange_buffer, payload)
        members = group_members(instruction.attributes, self.module.partitions)
        size = len(members)
        if kind == "reduce-scatter":
            payload *= size
        elif kind == "all-reduce" and _is_scattered(computation, instruction):
            kind = "reduce-scatter"
        share = (size - 1) / size if size > 1 else 0.0
        sent = payload * {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(
            kind, share
        )
        total.collective_counts[kind] += 1
        total.collective_bytes[kind] += payload
        if len({member // self.slice_size for member in members}) > 1:
            total.slow_wire += sent
        elif kind in ("all-to-all", "ragged-all-to-all") and size > 1:
            sent *= self.hops(members)
        total.wire += sent

    def _price_transfer(self, total: Costs, kind: str, payload: int) -> None:
        """A collective between corresponding devices of all slices, through their hosts."""
        share = (self.slices - 1) / self.slices
        sent = payload * (2 * share if kind == "all-reduce" else share)
        total.collective_counts[kind] += 1
        total.collective_bytes[kind] += payload
        total.wire += sent
        total.slow_wire += sent

    # --- HBM ---

    def _traffic(self, computation: Computation, instruction: Instruction) -> float:
        opcode = instruction.opcode
        if opcode in _FREE:
            return 0.0
        if opcode in _SLICES:
            return 2.0 * _in_hbm(instruction.results)
        if opcode == "dynamic-update-slice":
            update = computation.operand(instruction, 1)
            return 2.0 * _in_hbm(update.results) if update else 0.0
        if opcode.endswith("-start"):  # results include the operands
            return float(_in_hbm(instruction.results))
        operands = [computation.instructions.get(name) for name in instruction.operands]
        if opcode != "fusion":
            whole = float(_in_hbm(instruction.results) + sum(_in_hbm(o.results) for o in operands if o))
            told = re.search(r'"bytes_accessed"\s*:\s*"?(\d+)', instruction.attributes)
            return min(whole, float(told[1])) if told and "tpu_custom_call" in instruction.attributes else whole
        inner = self.module.computations[instruction.called("calls")[0]]
        written, updated = _written(inner, instruction)
        read: float = sum(
            min(_in_hbm(operand.results), _touched(self.module, inner, inner.parameters[n]))
            for n, operand in enumerate(operands)
            if operand is not None and n in inner.parameters and inner.parameters[n] not in updated
        )
        return float(written + read)


def _in_hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.space == HBM)


def _written(inner: Computation, fusion: Instruction) -> tuple[int, set[str]]:
    """Bytes that a fusion writes, and its parameters that it updates in place."""
    root = inner.instructions[inner.root]
    outputs = [inner.instructions.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
    total, updated = 0, set[str]()
    for array, output in zip(fusion.results, outputs, strict=False):
        source = _behind(inner, output)
        target = (
            _behind(inner, inner.operand(source, 0)) if source and source.opcode == "dynamic-update-slice" else None
        )
        update = inner.operand(source, 1) if source and target else None
        if target is not None and target.opcode == "parameter" and update is not None:
            updated.add(target.name)
            total += sum(a.bytes for a in update.results) if array.space == HBM else 0
        else:
            total += array.bytes if array.space == HBM else 0
    return total, updated


def _behind(inner: Computation, instruction: Instruction | None) -> Instruction | None:
    """The instruction behind views and casts."""
    while instruction is not None and instruction.opcode in ("bitcast", "copy", "convert"):
        instruction = inner.operand(instruction, 0)
    return instruction


def _touched(module: Module, inner: Computation, parameter: str) -> float:
    """Bytes of a parameter that a fusion reads: those of its slices if nothing else reads it, in fusions inside too."""
    total: float = 0
    for user in inner.instructions.values():
        if parameter not in user.operands:
            continue
        if user.opcode in _SLICES and user.operands[0] == parameter:
            total += sum(array.bytes for array in user.results)
        elif user.opcode == "bitcast":
            total += _touched(module, inner, user.name)
        elif user.opcode == "fusion":
            nested = module.computations[user.called("calls")[0]]
            places = [place for place, name in enumerate(user.operands) if name == parameter]
            total += sum(_touched(module, nested, nested.parameters[place]) for place in places)
        else:
            return math.inf
    return total


# --- Kernels ---


def _price_kernel(total: Costs, computation: Computation, instruction: Instruction) -> None:
    name = re.sub(r"[.\d]+$", "", instruction.name)
    told = re.search(r'cost_estimate"?\s*:\s*\{\s*"flops"\s*:\s*"?(\d+)', instruction.attributes)
    flops = float(told[1]) if told else splash_flops(computation, instruction)
    total.kernels[name] += 1
    if flops is None:
        total.unpriced[name] += 1
        return
    total.flops += flops
    total.kernel_flops += flops


def splash_flops(computation: Computation, instruction: Instruction) -> float | None:
    """FLOPs of the splash attention kernels, by name and shapes, with half of the pairs masked (causal); None for other
    kernels.

    Matrix products per pair: forward qk, pv; for dq also do v, ds k; for dk and dv qk, do v, p do, ds q, plus one in
    the kernel fused with dq.
    """
    name = instruction.name.lower()
    if "splash" not in name:
        return None
    operands = [computation.instructions.get(name) for name in instruction.operands]
    arrays = [o.results[0] for o in operands if o is not None and o.results]
    wide = [a.shape for a in arrays if a.dtype in ("bf16", "f32", "f16") and len(a.shape) >= 3 and a.shape[-2] > 1]
    if len(wide) < 3:
        return None
    query, keys, values = wide[:3]
    per_pair = 2.0 * math.prod(query[:-1]) * keys[-2] / 2
    head, value = query[-1], values[-1]
    if "dkv" in name:
        with_dq = re.search(r"use_fused_bwd_kernel[^a-z]*true", instruction.attributes)
        return per_pair * (2 * head + 2 * value + (head if with_dq else 0))
    return per_pair * (2 * head + value) if "dq" in name else per_pair * (head + value)


# --- Groups of devices ---


def _is_scattered(computation: Computation, instruction: Instruction) -> bool:
    """Whether a fused all-reduce keeps only this device's slice: a TPU's form of reduce-scatter."""
    return any(
        user.opcode == "dynamic-slice" and instruction.name in user.operands
        for user in computation.instructions.values()
    )
