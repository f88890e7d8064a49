"""Sections of a config as frozen dataclasses: values checked by type hints, texts read by them, and plain values back.

`unpack` makes a dataclass of nested plain values, `parse_text` a value of a flag's text, `to_values` plain values of a
dataclass. A wrong value is one line that says the rule, the value, and the key. Nothing here imports jax.
"""

import ast
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

from ml_collections import ConfigDict

from r1jax.core.errors import UserError

T = TypeVar("T")

BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
NONES = ("none", "null")
NOT_FINITE = ("inf", "-inf", "nan")  # JSON has no such numbers; config.json has them as text


# --- Values to dataclasses ---


def unpack(cls: type[T], section: Mapping[str, Any] | ConfigDict, where: str = "") -> T:
    """A `cls` (dataclass) from a section; `where` is the section's dotted place, for messages ("" for the root).

    Values must have the fields' types; an int may stand for a float and a list for a tuple. Fields without default
    must be there. A value for a nested dataclass is a section in turn; a mapping field gets a plain dict.

    Raises:
      UserError: naming `config.<where>.<key>`, for an unknown key, a missing key or a value of the wrong type.
    """
    values = section.to_dict() if isinstance(section, ConfigDict) else dict(section)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            known = ", ".join(fields)
            raise UserError(f"{_place(where, key)} is not a known key{suggest(key, fields)} (known: {known})")
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not has_default:
            raise UserError(f"{_place(where, name)} is missing: it must be {name_type(hints[name])}")
    return cls(**{key: _check(value, hints[key], _place(where, key)) for key, value in values.items()})


def _place(where: str, key: str) -> str:
    return ".".join(filter(None, ("config", where, str(key))))


class _MismatchError(UserError):
    """A value of the wrong type, as against an error inside a nested section."""


def _check(value: Any, kind: Any, where: str) -> Any:
    """`value` converted to the type hint `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return unpack(typing.cast(type, kind), value, where.removeprefix("config."))
    if origin in (Union, types.UnionType):
        return _check_union(value, args, where)
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in args):
        return value
    if origin in (tuple, list) and isinstance(value, (tuple, list)):
        return _check_items(value, origin, args, where)
    if is_mapping(kind) and isinstance(value, Mapping):
        return {key: _check(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if kind is float and (type(value) is int or value in NOT_FINITE):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (type(value) is not bool or kind in (bool, object)):
        return value
    raise _MismatchError(f"{where} must be {name_type(kind)}, got {value!r}")


def _check_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    for kind in kinds:
        try:
            return _check(value, kind, where)
        except _MismatchError:
            continue
    raise _MismatchError(f"{where} must be {' or '.join(map(name_type, kinds))}, got {value!r}")


def _check_items(value: Any, origin: type, args: tuple[Any, ...], where: str) -> Any:
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _MismatchError(f"{where} must hold {len(args)} values, got {value!r}")
    return origin(_check(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, args, strict=True)))


def is_mapping(kind: Any) -> bool:
    """Whether a type hint is a dict's."""
    return typing.get_origin(kind) in (dict, Mapping)


def name_type(kind: Any) -> str:
    """A type hint in words."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(name_type, args))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return _name_tuple(args)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none"}
    if kind in words:
        return words[kind]
    if dataclasses.is_dataclass(kind) or is_mapping(kind):
        return "a section"
    return str(kind) if origin else getattr(kind, "__name__", str(kind))


def _name_tuple(args: tuple[Any, ...]) -> str:
    """`a list of texts`, or the members of a tuple of fixed length one by one."""
    plural = {int: "whole numbers", float: "numbers", str: "texts", bool: "bools"}
    if args[-1] is Ellipsis:
        return f"a list of {plural.get(args[0], f'({name_type(args[0])})')}"
    return f"({', '.join(map(name_type, args))})"


# --- Texts to values ---


def parse_text(text: str, kind: Any, where: str, present: Any = None) -> Any:
    """The value that a flag's `text` means where the type hint is `kind`.

    present: the value it replaces, which gives the type where the hint is Any. Literals are not checked here: `unpack`
    does. Raises UserError naming `where` for a text that does not fit.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return _guess(text) if present is None else parse_text(text, type(present), where, present)
    if kind is str:
        return text
    if kind is bool:
        return _parse_bool(text, where)
    if origin is Literal:
        return next((choice for choice in args if str(choice) == text), text)
    if origin in (Union, types.UnionType):
        return _parse_union(text, args, where, present)
    if kind in (int, float):
        return _parse_number(text, kind, where)
    if (origin or kind) in (tuple, list):
        return _parse_items(text, origin or kind, args, present, where)
    if is_mapping(kind) or kind is dict or dataclasses.is_dataclass(kind):
        return parse_section(text, where, present or ())
    raise UserError(f"{where} holds {name_type(kind)}, which cannot be set from the command line")


def _parse_union(text: str, kinds: tuple[Any, ...], where: str, present: Any) -> Any:
    """`none` where that is allowed, else what fits first; a text in brackets is no plain text."""
    if type(None) in kinds and text.lower() in NONES:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    is_list = text.strip()[:1] in ("(", "[")
    lists = [kind for kind in kinds if typing.get_origin(kind) in (tuple, list)]
    if is_list and lists:
        kinds = tuple(lists)
    for kind in kinds[:-1]:
        try:
            return parse_text(text, kind, where, present)
        except UserError:
            continue
    return parse_text(text, kinds[-1], where, present)


def _parse_bool(text: str, where: str) -> bool:
    if text.lower() not in BOOLS:
        raise UserError(f'{where} must be true or false, got "{text}"')
    return BOOLS[text.lower()]


def _parse_number(text: str, kind: Any, where: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        pass
    if kind is int and _is_whole(text):  # 1e6 is a valid int
        return int(float(text))
    name = "a whole number" if kind is int else "a number"
    raise UserError(f'{where} must be {name}, got "{text}"')


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def _parse_items(text: str, kind: Any, args: tuple[Any, ...], present: Any, where: str) -> Any:
    """`1,2,3` or `(1, 2, 3)` or `["a", "b"]`; without hints items take the type of the first present one."""
    if text.strip()[:1] in ("(", "["):
        items = _guess(text)
        if not isinstance(items, (tuple, list)):
            raise UserError(f'{where} must be a list of values, got "{text}"')
    else:
        items = [item.strip() for item in text.split(",") if item.strip()]
    if not args:
        args = (type(present[0]) if present else Any, Ellipsis)
    kinds = [args[0] if Ellipsis in args else args[min(i, len(args) - 1)] for i in range(len(items))]
    return kind(
        item if isinstance(item, (tuple, list)) else parse_text(str(item), one, where)
        for item, one in zip(items, kinds, strict=True)
    )


def parse_section(text: str, where: str, keys: Iterable[str]) -> dict[str, Any]:
    """A JSON object or a Python dict, in the order that a config file's section has. Raises UserError for anything
    else, naming the section's keys.
    """
    value: Any = None
    if text.strip().startswith("{"):
        try:
            value = json.loads(text)
        except ValueError:
            value = _guess(text)
    if not isinstance(value, dict):
        raise UserError(f"{where} is a section: set one of its keys ({', '.join(keys)}), or all by a dict")
    return ConfigDict(value, allow_dotted_keys=True).to_dict()


def _guess(text: str) -> Any:
    """A Python literal (or true, false, none) if the text is one, else the text: for places that hold no value yet."""
    if text.lower() in ("true", "false", *NONES):
        return {"true": True, "false": False}.get(text.lower())
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "..."?` or nothing. A dotted name also matches by its last part, wherever that stands."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not close:
        by_leaf = {key.rpartition(".")[2]: key for key in reversed(known)}
        close = [by_leaf[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1)]
    return f'; did you mean "{close[0]}"?' if close else ""


# --- Values out ---


def to_values(settings: Any) -> dict[str, Any]:
    """All values of a dataclass as nested plain data; the inverse of `unpack`."""
    return dataclasses.asdict(settings)


def to_json(config: Mapping[str, Any] | ConfigDict) -> str:
    """The values as JSON text, keys sorted, references resolved. Numbers that JSON lacks (inf, nan) become strings.

    Raises:
      UserError: for a value that is not plain data.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(_to_plain(values, "config"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _to_plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"{where} must be plain data (text, number, bool, list or dict), got {type(value).__name__}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a.b": value}` of nested sections; an empty section stays, as an empty dict."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
