"""Optimized HLO text as a graph: computations, instructions, and loop lengths.

XLA's own cost analysis counts the body of a loop once, whatever its length, which undercounts scanned layers by their
number. `read_loop` takes a loop's length from the compiler's annotation if there is one, else from the program: a
counter that starts at a constant, moves by a constant, and is compared with a constant. Text only; nothing here needs
jax.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import NamedTuple

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0, "f8e4m3": 8, "f8e5m2": 8}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_CLOSING = {"(": ")", "{": "}", "[": "]"}

HBM, HOST = 0, 5  # memory spaces of layouts: S(1) is on-chip vector memory, S(5) the host's


class Array(NamedTuple):
    """One array of an instruction's result: element type, sizes, memory space."""

    dtype: str
    shape: tuple[int, ...]
    space: int = HBM

    @property
    def bytes(self) -> int:
        """Size in bytes; sub-byte types are packed."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            digits = re.search(r"\d+", self.dtype)
            bits = int(digits[0]) if digits else 8
        return -(-bits * math.prod(self.shape) // 8)


@dataclasses.dataclass
class Instruction:
    """`%name = results opcode(operands), attributes`; `literal` is the text between the parentheses."""

    name: str
    results: tuple[Array, ...]
    opcode: str
    literal: str
    attributes: str

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return [] if self.opcode in ("constant", "parameter") else _NAME.findall(self.literal)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the first result."""
        return self.results[0].shape if self.results else ()

    def attribute(self, key: str) -> str:
        """Value of `key=`, brackets included; "" if absent."""
        found = re.search(rf"(?:^|[ ,]){key}=", self.attributes)
        if not found:
            return ""
        start = found.end()
        if self.attributes[start : start + 1] in _CLOSING:
            return self.attributes[start : _end_of_bracket(self.attributes, start)]
        return re.split(r"[,\s]", self.attributes[start:], maxsplit=1)[0]

    def called(self, *keys: str) -> list[str]:
        """Names of the computations in these attributes."""
        return [name for key in keys for name in _NAME.findall(self.attribute(key))]


@dataclasses.dataclass
class Computation:
    """Instructions by name, in order; the root is the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str = ""

    def operand(self, instruction: Instruction, position: int) -> Instruction | None:
        """The instruction of an operand, if it is in this computation."""
        operands = instruction.operands
        return self.instructions.get(operands[position]) if position < len(operands) else None

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Parameter number -> name."""
        return {int(i.literal): i.name for i in self.instructions.values() if i.opcode == "parameter"}


@dataclasses.dataclass
class Module:
    """All computations; `entry` is where execution begins; partitions: number of devices that run the program
    together.
    """

    computations: dict[str, Computation]
    entry: str
    partitions: int


def parse_module(text: str) -> Module:
    """Module from its text. Raises ValueError if there is no entry computation."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry, lines = "", list[str]()
    for line in text.splitlines():
        if current is None:
            if (header := _COMPUTATION.match(line.rstrip())) and not line.startswith("HloModule"):
                current = computations[header[2]] = Computation(header[2], {})
                entry = header[2] if header[1] else entry
        elif re.match(r"\}(, [a-z_]+=.*)?\s*$", line):
            _add(current, lines)
            current, lines = None, []
        elif _INSTRUCTION.match(line):
            _add(current, lines)
            lines = [line]
        else:  # continuation of an attribute with a line break
            lines.append(line)
    if not entry:
        raise ValueError("no ENTRY computation in this HLO text")
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _add(computation: Computation, lines: list[str]) -> None:
    if not lines:
        return
    text = " ".join(lines)
    head = _INSTRUCTION.match(text)
    assert head is not None
    rest = text[head.end() :]
    end = _end_of_bracket(rest, 0) if rest.startswith("(") else rest.index(" ")
    results, rest = parse_arrays(rest[:end]), rest[end:].lstrip()
    opening = rest.index("(")
    closing = _end_of_bracket(rest, opening)
    instruction = Instruction(
        head[2], results, rest[:opening], rest[opening + 1 : closing - 1], rest[closing:].lstrip(", ")
    )
    computation.instructions[head[2]] = instruction
    if head[1]:
        computation.root = head[2]


def parse_arrays(text: str) -> tuple[Array, ...]:
    """Arrays of a type or of a tuple of types, in order."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        shape = tuple(int(size.replace("<=", "")) for size in sizes.split(",") if size)
        found.append(Array(dtype, shape, int(space[1]) if space else HBM))
    return tuple(found)


def _end_of_bracket(text: str, start: int) -> int:
    """Index after the bracket that closes the one at `start`; brackets in strings are ignored."""
    opening, closing, depth = text[start], _CLOSING[text[start]], 0
    for found in re.compile(rf'"(?:[^"\\]|\\.)*"|[{re.escape(opening + closing)}]').finditer(text, start):
        if found[0] == opening:
            depth += 1
        elif found[0] == closing:
            depth -= 1
            if not depth:
                return found.end()
    return len(text)


# --- Loops ---


class Carried(NamedTuple):
    """An element of a loop's state, by its index, plus a constant."""

    element: int
    plus: int = 0


Value = int | Carried | None  # None: unknown
_SAME = {"copy", "bitcast", "convert", "reshape", "opt-barrier", "copy-start", "copy-done", "broadcast"}
_MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "EQ": "EQ", "NE": "NE"}


class Scope(NamedTuple):
    """Known values inside a computation: its parameters by number, and the elements of its single tuple parameter."""

    parameters: dict[int, Value]
    elements: dict[int, Value]


NOTHING = Scope({}, {})


def evaluate(module: Module, computation: Computation, name: str, scope: Scope) -> Value:
    """Value of a scalar, as far as constants, sums and loop state determine it."""
    instruction = computation.instructions.get(name)
    if instruction is None or len(instruction.results) != 1 or math.prod(instruction.shape) != 1:
        return None  # only scalars, which depend on short chains
    again = lambda operand: evaluate(module, computation, operand, scope)
    match instruction.opcode:
        case "constant":
            return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
        case "parameter":
            return scope.parameters.get(int(instruction.literal))
        case "add" | "subtract":
            left, right = map(again, instruction.operands)
            sign = 1 if instruction.opcode == "add" else -1
            if isinstance(left, int) and isinstance(right, Carried) and sign == 1:
                left, right = right, left
            if not isinstance(right, int) or left is None:
                return None
            return left + sign * right if isinstance(left, int) else Carried(left.element, left.plus + sign * right)
        case "get-tuple-element":
            return _element(module, computation, instruction, scope)
        case "fusion" | "call":
            inner, arguments = enter_computation(module, computation, instruction, scope)
            return evaluate(module, inner, inner.root, arguments)
        case opcode if opcode in _SAME:
            return again(instruction.operands[0])
    return None


def _element(module: Module, computation: Computation, instruction: Instruction, scope: Scope) -> Value:
    index = int(instruction.attribute("index"))
    source = computation.operand(instruction, 0)
    while source is not None and source.opcode in _SAME:
        source = computation.operand(source, 0)
    if source is None:
        return None
    if source.opcode == "parameter":
        return scope.elements.get(index)
    if source.opcode == "tuple":
        return evaluate(module, computation, source.operands[index], scope)
    if source.opcode == "fusion":
        inner, arguments = enter_computation(module, computation, source, scope)
        root = inner.instructions[inner.root]
        return evaluate(module, inner, root.operands[index], arguments) if root.opcode == "tuple" else None
    return None


def enter_computation(
    module: Module, computation: Computation, caller: Instruction, scope: Scope
) -> tuple[Computation, Scope]:
    """The computation that a fusion or call runs, and the known values of its parameters."""
    inner = module.computations[caller.called("calls", "to_apply")[0]]
    if len(caller.operands) == 1 and (elements := _elements(module, computation, caller, scope)):
        return inner, Scope({}, elements)
    return inner, Scope({n: evaluate(module, computation, name, scope) for n, name in enumerate(caller.operands)}, {})


class Loop(NamedTuple):
    """Length of a loop (None: unknown), and known values inside its body."""

    length: int | None
    inside: Scope


def read_loop(module: Module, computation: Computation, loop: Instruction, scope: Scope) -> Loop:
    """Length of a `while` in a computation with a known `scope`."""
    body = module.computations[loop.called("body")[0]]
    condition = module.computations[loop.called("condition")[0]]
    start = _elements(module, computation, loop, scope)
    symbols = Scope({}, {index: Carried(index) for index in range(len(loop.results))})
    after: dict[int, Value] = {}
    root = body.instructions[body.root]
    if root.opcode == "tuple":
        after = {index: evaluate(module, body, name, symbols) for index, name in enumerate(root.operands)}
    fixed: dict[int, Value] = {i: start[i] for i, value in after.items() if value == Carried(i) and i in start}
    inside = Scope({}, fixed)
    if annotated := re.search(r'known_trip_count"?\s*[:=]\s*\{"?n"?\s*[:=]\s*"?(\d+)', loop.attributes):
        return Loop(int(annotated[1]), inside)
    compared = _comparison(module, condition, condition.root, symbols)
    if compared is None:
        return Loop(None, inside)
    direction, left, right = compared
    left, right = (fixed.get(v.element, v) if isinstance(v, Carried) and not v.plus else v for v in (left, right))
    if isinstance(left, int):
        direction, left, right = _MIRRORED[direction], right, left
    if (
        not isinstance(left, Carried)
        or not isinstance(right, int)
        or not isinstance(first := start.get(left.element), int)
    ):
        return Loop(None, inside)
    step = after.get(left.element)
    if not isinstance(step, Carried) or step.element != left.element or not step.plus:
        return Loop(None, inside)
    return Loop(_count(direction, right - first - left.plus, step.plus), inside)


def _count(direction: str, distance: int, step: int) -> int | None:
    """Steps until a counter that is `distance` below its bound fails the comparison; None if it never does."""
    if direction in ("LE", "GE"):
        direction, distance = direction[0] + "T", distance + (1 if direction == "LE" else -1)
    if direction == "NE":
        return distance // step if distance % step == 0 and distance // step >= 0 else None
    if direction not in ("LT", "GT") or (direction == "LT") != (step > 0):
        return None
    return max(0, math.ceil(distance / step))


def _elements(module: Module, computation: Computation, user: Instruction, scope: Scope) -> dict[int, Value]:
    """Elements of the tuple passed to a loop or call, as far as they are known."""
    source = computation.operand(user, 0)
    values: dict[int, Value] = {}
    if source is not None and source.opcode == "tuple":
        values = {i: evaluate(module, computation, name, scope) for i, name in enumerate(source.operands)}
    elif source is not None and source.opcode == "parameter":
        values = scope.elements
    return {index: value for index, value in values.items() if isinstance(value, int)}


def _comparison(module: Module, computation: Computation, name: str, scope: Scope) -> tuple[str, Value, Value] | None:
    """Direction, left and right value of the comparison that ends a condition."""
    instruction = computation.instructions[name]
    if instruction.opcode == "compare":
        left, right = (evaluate(module, computation, operand, scope) for operand in instruction.operands)
        return instruction.attribute("direction"), left, right
    if instruction.opcode == "fusion":
        inner, arguments = enter_computation(module, computation, instruction, scope)
        return _comparison(module, inner, inner.root, arguments)
    if instruction.opcode in _SAME:
        return _comparison(module, computation, instruction.operands[0], scope)
    return None


def group_members(attributes: str, partitions: int) -> list[int]:
    """Devices that exchange data with device 0 (or those of the first group) in a collective."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return [int(device) for device in found[1].split(",")]
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        devices = np.arange(int(found[1]) * int(found[2])).reshape([int(n) for n in found[3].split(",")])
        if found[4]:
            devices = devices.transpose([int(n) for n in found[4].split(",")])
        return devices.reshape(int(found[1]), int(found[2]))[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        return _mesh_members(found[1], found[2])
    if found := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        pairs = [[int(device) for device in pair] for pair in re.findall(r"(\d+),(\d+)", found[1])]
        return max(pairs, key=lambda pair: abs(pair[0] - pair[1])) if pairs else [0]
    return list(range(partitions))


def _mesh_members(axes: str, used: str) -> list[int]:
    """Device 0's group along named axes of a mesh, or along parts of them: `'a':(2)4` is the part of size 4 after a
    part of size 2.
    """
    members, stride = np.zeros(1, int), 1
    parts = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used)}
    for name, whole in reversed(re.findall(r"'([^']+)'=(\d+)", axes)):
        if name in parts:
            before, size = parts[name]
            steps = int(size or whole)
            inner = stride * int(whole) // (int(before or 1) * steps)
            members = (members[None] + inner * np.arange(steps)[:, None]).ravel()
        stride *= int(whole)
    return sorted(members.tolist())
