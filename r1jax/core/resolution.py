"""Resolution of a run's settings: dataclass default < config file < flags, with the origin of every value.

The dataclasses of a stage are the one source of defaults and of types. A config file names what it changes, a flag
(`--config.a.b=v`) sets any key. A preset, a named set of values for several keys, ranks where it is named: named in the
file it yields to the file's own values, named by a flag it outranks the file for the keys that it sets; an explicit
flag always wins. A section is replaced as a whole by a flag that holds a dict.

Nothing here imports jax. Left out: which dataclass a config belongs to (stages/registry.py).
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar, Union

from ml_collections import ConfigDict

from r1jax.core.errors import UserError
from r1jax.core.sections import flatten, is_mapping, parse_section, parse_text, suggest, to_values, unpack

T = TypeVar("T")

Path = tuple[str, ...]
Values = dict[Path, Any]  # by the path of a leaf: a field that is not a section


class Presets(NamedTuple):
    """Named sets of values. key: the dotted key that names one; table: name -> dotted key -> value."""

    key: str
    table: Mapping[str, Mapping[str, Any]]


class Origin(NamedTuple):
    """Where a value comes from: "default", "file", "preset NAME" or "flag"; overrides: (source, value) it replaced."""

    source: str
    overrides: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Resolved(Generic[T]):
    """settings: what a run uses; origins: dotted key -> where its value comes from."""

    settings: T
    origins: Mapping[str, Origin]

    @property
    def values(self) -> dict[str, Any]:
        """Every value, as nested plain data."""
        return to_values(self.settings)


def resolve(
    root: type[T],
    file: Mapping[str, Any] | ConfigDict,
    flags: Mapping[str, str] | None = None,
    *,
    renamed: Mapping[str, str] | None = None,
) -> Resolved[T]:
    """The settings `root` (a dataclass; its attribute PRESETS, if any, holds its `Presets`) of a file and flags.

    flags: dotted key -> text. renamed: former dotted key -> its present name.
    Raises UserError for an unknown or renamed key, naming the closest or the new one, and for a value of a wrong type.
    """
    flags = flags or {}
    file = copy.deepcopy(file) if isinstance(file, ConfigDict) else ConfigDict(dict(file), allow_dotted_keys=True)
    _refuse_renamed([*flatten(file.to_dict()), *flags], renamed or {})
    presets: Presets | None = getattr(root, "PRESETS", None)
    defaults = dict(list_defaults(root))
    said, asked = _split(root, file.to_dict()), Values()
    for dotted, text in flags.items():
        present = _nest({**defaults, **said, **asked})
        path, value = _read_flag(root, present, dotted, text)
        is_section = isinstance(value, _Section)
        for values in (said, asked) if is_section else ():
            for key in [key for key in values if key[: len(path)] == path]:
                del values[key]
        asked |= _split(root, value.values, path) if is_section else {path: value}
        if not is_section and _set_reference(file, path, value):
            said |= {key: item for key, item in _split(root, file.to_dict()).items() if key in said and key != path}
    layers = [("default", defaults), ("file", said), ("flag", asked)]
    if presets is not None:
        layers = _add_preset(presets, defaults, said, asked)
    merged: Values = {}
    for _, values in layers:
        merged |= values
    return Resolved(unpack(root, _nest(merged)), _trace(layers))


def _add_preset(presets: Presets, defaults: Values, said: Values, asked: Values) -> list[tuple[str, Values]]:
    """The layers from the weakest to the strongest, with that of the preset where it is named.

    None in a section that presets have a say in is no value: it leaves the key to them.
    """
    sections = {key.partition(".")[0] for values in presets.table.values() for key in values}
    for values in (said, asked):
        for path in [path for path, value in values.items() if value is None and path[0] in sections]:
            del values[path]
    key = tuple(presets.key.split("."))
    name = asked.get(key, said.get(key, defaults.get(key)))
    table = presets.table.get(name, {}) if isinstance(name, str) else {}
    named = (f"preset {name}", {tuple(key.split(".")): value for key, value in table.items()})
    if key in asked:
        return [("default", defaults), ("file", said), named, ("flag", asked)]
    return [("default", defaults), named, ("file", said), ("flag", asked)]


def _trace(layers: list[tuple[str, Values]]) -> dict[str, Origin]:
    """For every leaf its value's strongest layer, and the values that it replaced."""
    origins: dict[str, Origin] = {}
    paths = dict.fromkeys(path for _, values in layers for path in values)
    for path in paths:
        found = [(source, values[path]) for source, values in layers if path in values]
        origins[".".join(path)] = Origin(found[-1][0], tuple(found[:-1]))
    return origins


def _refuse_renamed(keys: list[str], renamed: Mapping[str, str]) -> None:
    for key in keys:
        for former, new in renamed.items():
            if f"{key}.".startswith(f"{former}."):
                raise UserError(f"config.{former} is now called config.{new}")


# --- The shape of a dataclass: its leaves ---


def section_type(kind: Any) -> Any:
    """The dataclass that a type hint names, also an optional one; None for any other hint."""
    if dataclasses.is_dataclass(kind):
        return kind
    if typing.get_origin(kind) in (Union, types.UnionType):
        found = [arm for arm in typing.get_args(kind) if dataclasses.is_dataclass(arm)]
        return found[0] if found else None
    return None


def list_defaults(root: Any, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, default) of the leaves of a dataclass, type or instance; leaves that must be given are left out."""
    hints = typing.get_type_hints(root if isinstance(root, type) else type(root))
    for field in dataclasses.fields(root):
        path, value = (*prefix, field.name), field.default
        if not isinstance(root, type):
            value = getattr(root, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if dataclasses.is_dataclass(hints[field.name]):
            yield from list_defaults(hints[field.name] if value is dataclasses.MISSING else value, path)
        elif value is not dataclasses.MISSING:
            yield path, value


def _split(root: Any, values: Mapping[str, Any], prefix: Path = ()) -> Values:
    """The leaves of nested values; a key that the dataclass lacks is one of them. None for a section says nothing."""
    kind = root
    for name in prefix:
        kind = typing.get_type_hints(kind)[name]
    hints, found = typing.get_type_hints(kind), Values()
    for key, value in values.items():
        path = (*prefix, str(key))
        if not dataclasses.is_dataclass(hints.get(key)):
            found[path] = value
        elif isinstance(value, Mapping):
            found |= _split(root, value, path)
        elif value is not None:
            raise UserError(f"config.{'.'.join(path)} must be a section, got {value!r}")
    return found


def _nest(values: Values) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        section = nested
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    return nested


# --- Flags ---


class _Section(NamedTuple):
    """The values that a flag gives a whole section."""

    values: dict[str, Any]


def _read_flag(root: Any, present: dict[str, Any], dotted: str, text: str) -> tuple[Path, Any]:
    """(path of the leaf that a flag changes, its new value), or (path of a section, `_Section`)."""
    leaf, inside, kind, value = _find(root, present, dotted)
    where = f"config.{dotted}"
    if not inside and dataclasses.is_dataclass(kind):
        return leaf, _Section(parse_section(text, where, [field.name for field in dataclasses.fields(kind)]))
    new = parse_text(text, kind, where, value)
    if not inside:
        return leaf, new
    whole: Any = present
    for name in leaf:
        whole = whole.get(name) if isinstance(whole, Mapping) else None
    whole = changed = copy.deepcopy(dict(whole or {}))
    for name in inside[:-1]:
        changed[name] = dict(changed.get(name) or {})
        changed = changed[name]
    changed[inside[-1]] = new
    return leaf, whole


def _find(root: Any, present: Any, dotted: str) -> tuple[Path, Path, Any, Any]:
    """Path of the leaf or section, path inside it, type hint and present value of a dotted key."""
    names, kind, value = dotted.split("."), root, present
    leaf, inside, at = Path(), Path(), 0
    while at < len(names):
        section = section_type(kind)
        if section is not None:
            count = 1 if names[at] in typing.get_type_hints(section) else 0
        elif isinstance(value, Mapping):  # its keys may contain dots
            fits = [n for n in range(1, len(names) - at + 1) if ".".join(names[at : at + n]) in value]
            count = max(fits, default=0)
        else:
            count = 0
        if not count:
            raise UserError(f"config has no key {dotted}{suggest(dotted, list_keys(root, present))}")
        name = ".".join(names[at : at + count])
        if inside or not dataclasses.is_dataclass(kind):
            inside = (*inside, name)
        else:
            leaf = (*leaf, name)
        args = typing.get_args(kind)
        kind = typing.get_type_hints(section)[name] if section is not None else args[1] if is_mapping(kind) else Any
        value = value.get(name) if isinstance(value, Mapping) else None
        at += count
    return leaf, inside, kind, value


def list_keys(root: Any, present: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a dataclass and of the dicts that its present values are."""
    section, keys = section_type(root), []
    names = [field.name for field in dataclasses.fields(section)] if section is not None else list(present or ())
    for name in names:
        keys.append(f"{prefix}{name}")
        value = present.get(name) if isinstance(present, Mapping) else None
        kind = typing.get_type_hints(section)[name] if section is not None else Any
        if is_mapping(root):
            kind = typing.get_args(root)[1]
        if section_type(kind) is not None or isinstance(value, Mapping):
            keys += list_keys(kind, value, f"{prefix}{name}.")
    return keys


def _set_reference(file: ConfigDict, path: Path, value: Any) -> bool:
    """Sets the file's own value, so that values derived from it by reference follow; returns whether it has one."""
    section: Any = file
    for name in path[:-1]:
        section = section[name] if isinstance(section, ConfigDict) and name in section else None
    if not isinstance(section, ConfigDict) or path[-1] not in section or isinstance(section[path[-1]], ConfigDict):
        return False
    with section.unlocked(), section.ignore_type():
        section[path[-1]] = value
    return True
