"""Values that cross between a test and a program in two processes, as JSON; used by both sides, in a sandbox.

Plain data crosses as a copy: None, bool, numbers, text, bytes, containers, and common types of the standard library, of
exactly these types. Builtin types and functions cross by name. Anything else crosses as a handle: `{"mine": n}` is an
object of the sender, `{"yours": n}` one of the receiver.
"""

import builtins
import collections
import datetime
import decimal
import fractions
import importlib
import inspect
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

MAX_LINE = 16 << 20
_MOST_BITS = 4096  # of integers that are written in decimal
# The items of these types cross one by one, and the type is called with them.
_SEQUENCES: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
_MAPPINGS: dict[str, Any] = {kind.__name__: kind for kind in (dict, collections.Counter, collections.OrderedDict)}
_VIEWS = {type({}.keys()): "dict_keys", type({}.values()): "dict_values", type({}.items()): "dict_items"}
# (the parts that make a value, the value from its parts), for types that are made from few parts
_MADE: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
    "complex": (lambda value: [value.real, value.imag], complex),
    "range": (lambda value: [value.start, value.stop, value.step], range),
    "slice": (lambda value: [value.start, value.stop, value.step], slice),
    "Fraction": (lambda value: [value.numerator, value.denominator], fractions.Fraction),
    "Decimal": (lambda value: [str(value)], decimal.Decimal),
    "date": (lambda value: [value.isoformat()], datetime.date.fromisoformat),
    "datetime": (lambda value: [value.isoformat()], datetime.datetime.fromisoformat),
    "time": (lambda value: [value.isoformat()], datetime.time.fromisoformat),
    "timedelta": (lambda value: [value.days, value.seconds, value.microseconds], datetime.timedelta),
    "deque": (lambda value: [list(value), value.maxlen], collections.deque),
    "bytes": (lambda value: [value.hex()], bytes.fromhex),
    "bytearray": (lambda value: [value.hex()], bytearray.fromhex),
}
_MADE_TYPES = frozenset((
    complex, range, slice, fractions.Fraction, decimal.Decimal, datetime.date, datetime.datetime, datetime.time,
    datetime.timedelta, collections.deque, bytes, bytearray,
))  # fmt: skip
_NAMED_TYPES = (type, types.BuiltinFunctionType, types.FunctionType)


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """A value as JSON; `keep(value)` is called for what crosses by handle."""
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if value.bit_length() <= _MOST_BITS else {"int": hex(value)}
    name = kind.__name__
    if _SEQUENCES.get(name) is kind:
        return {name: [encode(item, keep) for item in value]}
    if _MAPPINGS.get(name) is kind:
        return {name: [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    if kind in _MADE_TYPES:
        return {name: [encode(part, keep) for part in _MADE[name][0](value)]}
    if kind is collections.defaultdict:
        return {name: [encode(value.default_factory, keep), encode(dict(value), keep)]}
    if kind in _VIEWS:
        return {_VIEWS[kind]: [encode(item, keep) for item in value]}
    if kind is inspect.Signature:
        return {name: [[p.name, int(p.kind), encode(p.default, lambda _: None)] for p in value.parameters.values()]}
    if isinstance(value, _NAMED_TYPES) and (place := _find_place(value)):
        return {"named": place}
    if isinstance(value, BaseException) and kind.__module__ == "builtins":
        return {"exception": [kind.__name__, encode(list(value.args), keep)]}
    if kind is types.TracebackType:
        return None
    return keep(value)


def decode(value: Any, find: Callable[[dict[str, Any]], Any]) -> Any:
    """Inverse of `encode`; `find` returns the object of a handle."""
    if not isinstance(value, dict):
        return value
    if "mine" in value or "yours" in value:
        return find(value)
    ((kind, parts),) = value.items()
    if kind == "int":
        return int(parts, 16)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(item, find) for item in parts)
    if kind in _MAPPINGS:
        return _MAPPINGS[kind]({decode(key, find): decode(item, find) for key, item in parts})
    if kind in _MADE:
        return _MADE[kind][1](*(decode(part, find) for part in parts))
    if kind == "defaultdict":
        return collections.defaultdict(decode(parts[0], find), decode(parts[1], find))
    if kind in _VIEWS.values():
        items = [decode(item, find) for item in parts]
        view: dict[str, Any] = {
            "dict_keys": dict.fromkeys,
            "dict_values": lambda found: dict(enumerate(found)),
            "dict_items": dict,
        }
        return getattr(view[kind](items), kind.removeprefix("dict_"))()
    if kind == "Signature":
        make = lambda name, kind, default: inspect.Parameter(name, inspect._ParameterKind(kind), default=default)
        return inspect.Signature([make(name, kind, _default(value, find)) for name, kind, value in parts])
    if kind == "named":
        return _resolve(*parts)
    if kind == "exception":
        return builtin_exception(parts[0])(*decode(parts[1], find))
    raise ValueError(f"a value of the unknown kind {kind!r}")


def builtin_exception(name: str) -> type[Exception]:
    """The builtin exception of a name; RuntimeError for a name that is none, or would end the process."""
    kind = getattr(builtins, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError


class Pipe:
    """This process's end of the pipes to the other: messages, one a line. Stdin and stdout are closed for others."""

    def __init__(self) -> None:
        self._in, self._out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message."""
        self._out.write(json.dumps(message).encode() + b"\n")
        self._out.flush()

    def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end, or behind a line that is too long."""
        line = self._in.readline(MAX_LINE)
        return json.loads(line) if line.endswith(b"\n") else None


def _default(value: Any, find: Callable[[dict[str, Any]], Any]) -> Any:
    return inspect.Parameter.empty if value == {"named": ["inspect", "_empty"]} else decode(value, find)


def _find_place(value: Any) -> list[str] | None:
    """The module and name of something of the standard library."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not isinstance(module, str) or module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    try:
        return [module, name] if _resolve(module, name) is value else None
    except (ImportError, AttributeError):
        return None


def _resolve(module: str, name: str) -> Any:
    if module.partition(".")[0] not in sys.stdlib_module_names or not all(part.isidentifier() for part in [name]):
        raise AttributeError(name)
    return getattr(importlib.import_module(module), name)
