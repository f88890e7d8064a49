"""Configs: a Python file that returns a `ConfigDict`, typed arguments, overrides, and the step to dataclasses.

A run is one file with a function `get_config(arg)`. Variation comes in two ways. Typed arguments after a colon
(`configs/x.py:size=tiny,steps=20`) reach `get_config` and may change many values at once; overrides
(`--config.a.b=v`) change one value that is already there. Both take their type from the value they replace, so a
misspelt key or a word where a number belongs is an error before any device is touched. A stage then turns each
section into a frozen dataclass with `unpack`, and nothing below the stages sees a `ConfigDict`.

Left out: YAML, inheritance between files (a config may import Python), and command lines (`r1jax/train.py` has that).
Nothing here imports jax. The form of config files is that of big_vision and nanodo.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import pathlib
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

from ml_collections import ConfigDict

from r1jax.core.errors import UserError

T = TypeVar("T")

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


# --- Texts to values ---


def parse_args(arg: str | None, **defaults: Any) -> ConfigDict:
    """The arguments of a config file: `"a=1,b=x"` over `defaults`, each typed as its default; a bare `a` sets a bool.

    Raises:
      UserError: for an argument that is not among the defaults, or whose text does not fit the default's type.
    """
    values = dict(defaults)
    for part in filter(None, (part.strip() for part in (arg or "").split(","))):
        name, has_value, text = (piece.strip() for piece in part.partition("="))
        if name not in defaults:
            known = ", ".join(f"{key}={value}" for key, value in defaults.items()) or "none"
            raise UserError(
                f'unknown config argument "{name}"{_suggest(name, defaults)} (known, with defaults: {known})'
            )
        if not has_value and not isinstance(defaults[name], bool):
            raise UserError(f'config argument "{name}" needs a value: {name}=...')
        values[name] = _parse(text if has_value else "true", type(defaults[name]), defaults[name], f"argument {name}")
    return ConfigDict(values)


def _parse(text: str, kind: type, present: Any, where: str) -> Any:
    """`text` as a value of type `kind`; `present` is the value it replaces (it tells what a tuple holds)."""
    if kind is str:
        return text
    if kind is bool:
        return _parse_bool(text, where)
    if text.lower() in ("none", "null"):
        return None
    if kind in (int, float):
        return _parse_number(text, kind, where)
    if kind in (tuple, list):
        return kind(_parse_items(text, present, where))
    if present is None or kind is type(None):
        return _guess(text)
    raise UserError(f"{where} holds a {kind.__name__}, which cannot be set from the command line")


def _parse_bool(text: str, where: str) -> bool:
    if text.lower() not in _BOOLS:
        raise UserError(f'{where} must be true or false, got "{text}"')
    return _BOOLS[text.lower()]


def _parse_number(text: str, kind: type, where: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        pass
    if kind is int and _is_whole(text):  # 1e6 is a fair way to write an int
        return int(float(text))
    name = "a whole number" if kind is int else "a number"
    raise UserError(f'{where} must be {name}, got "{text}"')


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def _parse_items(text: str, present: Any, where: str) -> list[Any]:
    """`1,2,3` or `(1, 2, 3)` or `["a", "b"]`; items take the type of the first present one."""
    if text.strip()[:1] in ("(", "["):
        value = _guess(text)
        if not isinstance(value, (tuple, list)):
            raise UserError(f'{where} must be a list of values, got "{text}"')
        texts = [str(item) for item in value]
    else:
        texts = [item.strip() for item in text.split(",") if item.strip()]
    if not present:
        return [_guess(item) for item in texts]
    return [_parse(item, type(present[0]), present[0], where) for item in texts]


def _guess(text: str) -> Any:
    """A Python literal (or true, false, none) if the text is one, else the text: for places that hold no value yet."""
    if text.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(text.lower())
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


# --- Files and overrides ---


def load_config(spec: str) -> ConfigDict:
    """The locked config of `path.py` or `path.py:a=1,b=x`.

    Raises:
      UserError: for a missing file, a file without `get_config`, an argument it does not know, or an error in the file.
    """
    path, has_arg, arg = spec.partition(":")
    if not path.endswith(".py") or not pathlib.Path(path).is_file():
        raise UserError(f'no such config file: "{path}" (expected a .py file, as in --config=configs/grpo_zero.py)')
    try:
        get_config = _load_function(path)
        config = get_config(arg) if has_arg or get_config.__code__.co_argcount else get_config()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(_describe(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config must return an ml_collections.ConfigDict, got {type(config).__name__}")
    return config.lock()


def _load_function(path: str) -> Callable[..., Any]:
    file_spec = importlib.util.spec_from_file_location("r1jax_config", path)
    assert file_spec is not None and file_spec.loader is not None
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    if not isinstance(getattr(module, "get_config", None), types.FunctionType):
        raise UserError("a config file defines a function get_config(arg), this one does not")
    return module.get_config


def _describe(path: str, error: Exception) -> str:
    """`FILE:LINE: Type: message` of an error inside a config file."""
    message = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno}: SyntaxError: {error.msg}"
    own = pathlib.Path(path).resolve()
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if pathlib.Path(f.filename).resolve() == own]
    return f"{path}:{lines[-1] if lines else '?'}: {type(error).__name__}: {message}"


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Sets `{"a.b": "text"}` in place, each typed by the value that is there, and returns the config.

    A section is replaced as a whole by a Python or JSON dict (`--config.rewards='{"answer_reward": 1.0}'`).

    Raises:
      UserError: for a key that does not exist (naming the closest one) or a text that does not fit its type.
    """
    for dotted, text in overrides.items():
        *parents, last = dotted.split(".")
        section: Any = config
        for name in parents:
            section = section[name] if isinstance(section, ConfigDict) and name in section else None
        if not isinstance(section, ConfigDict) or last not in section:
            raise UserError(f"config has no key {dotted}{_suggest(dotted, _list_keys(config))}")
        _override(section, last, text, f"config.{dotted}")
    return config


def _override(section: ConfigDict, key: str, text: str, where: str) -> None:
    present = section[key]
    if isinstance(present, ConfigDict):
        value = _parse_dict(text)
        if not isinstance(value, dict):
            raise UserError(f"{where} is a section: set one of its keys ({', '.join(present)}), or all by a dict")
        with section.ignore_type():
            section[key] = ConfigDict(value, allow_dotted_keys=True).lock()
        return
    try:
        section[key] = _parse(text, section.get_type(key), present, where)
    except TypeError as error:
        raise UserError(f'{where} cannot be set to "{text}": {error}') from error


def _parse_dict(text: str) -> Any:
    """A JSON object or a Python dict; anything else comes back as it is or as None."""
    if not text.strip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return _guess(text)


def _list_keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for key in config:
        keys.append(f"{prefix}{key}")
        if isinstance(config[key], ConfigDict):
            keys += _list_keys(config[key], f"{prefix}{key}.")
    return keys


def _suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "..."?` or nothing. A dotted name also matches by its last part, wherever that stands."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not close:
        by_leaf = {key.rpartition(".")[2]: key for key in reversed(known)}
        close = [by_leaf[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1)]
    return f'; did you mean "{close[0]}"?' if close else ""


# --- Sections to dataclasses ---


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
            raise UserError(f"{_place(where, key)} is not a known key{_suggest(key, fields)} (known: {known})")
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not has_default:
            raise UserError(f"{_place(where, name)} is missing: it must be {_name(hints[name])}")
    return cls(**{key: _check(value, hints[key], _place(where, key)) for key, value in values.items()})


def _place(where: str, key: str) -> str:
    return ".".join(filter(None, ("config", where, str(key))))


class _MismatchError(UserError):
    """A value of the wrong type, as against an error inside a nested section."""


def _check(value: Any, kind: Any, where: str) -> Any:
    """`value` as the type hint `kind` wants it."""
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
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _check(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (type(value) is not bool or kind in (bool, object)):
        return value
    raise _MismatchError(f"{where} must be {_name(kind)}, got {value!r}")


def _check_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    for kind in kinds:
        try:
            return _check(value, kind, where)
        except _MismatchError:
            continue
    raise _MismatchError(f"{where} must be {' or '.join(map(_name, kinds))}, got {value!r}")


def _check_items(value: Any, origin: type, args: tuple[Any, ...], where: str) -> Any:
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _MismatchError(f"{where} must hold {len(args)} values, got {value!r}")
    return origin(_check(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, args, strict=True)))


def _name(kind: Any) -> str:
    """A type hint in words."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_name, args))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none"}
    if kind in words:
        return words[kind]
    if dataclasses.is_dataclass(kind):
        return "a section"
    return str(kind) if origin else getattr(kind, "__name__", str(kind))


# --- To JSON ---


def to_json(config: ConfigDict) -> str:
    """The config as JSON text, keys sorted, references resolved. Numbers that JSON lacks (inf, nan) become strings.

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
