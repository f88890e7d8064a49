"""Definitions of tools as JSON schemas, from typed Python functions with docstrings.

The form is that of chat templates (`{"type": "function", "function": {"name", "description", "parameters"}}`), equal to
transformers' `get_json_schema` for the types that both know. A docstring is read in Google's style: its first part is
the description, `Args:` describes the arguments, `Returns:` the result; `(choices: ["a", "b"])` at the end of an
argument's line restricts its values.

Left out: descriptions of nested types (dataclasses), which appear as objects.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from r1jax.core.errors import UserError

Schema = dict[str, Any]

_NAMES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null", dict: "object"}
_HEADINGS = "Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?"
_SECTION = re.compile(rf"^[ \t]*({_HEADINGS}):[ \t]*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\s*)(\w+)[ \t]*(?:\([^)]*\))?:[ \t]*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(\[.*\])\)\s*$", re.IGNORECASE | re.DOTALL)


def describe_function(function: Callable[..., Any], *, is_method: bool = False) -> Schema:
    """The definition of a function as a tool; is_method: of a class, so that its first argument is the instance.

    Raises UserError, naming the function, if it has no docstring, an argument without a type, or `*` arguments.
    """
    name = function.__name__
    parts = _split_docstring(inspect.getdoc(function) or "")
    if not parts[""]:
        raise UserError(f"the tool {name} needs a docstring that says what it does")
    told, hints = _read_arguments(parts.get("Args", "")), _read_hints(function)
    properties: dict[str, Schema] = {}
    required = []
    for parameter in [*inspect.signature(function).parameters.values()][is_method:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise UserError(f"the tool {name} must take named arguments only, got {parameter}")
        if parameter.name not in hints:
            raise UserError(f"the tool {name} needs a type for its argument {parameter.name}")
        properties[parameter.name] = describe_type(hints[parameter.name])
        if text := told.get(parameter.name):
            if choices := _CHOICES.search(text):
                properties[parameter.name]["enum"] = _read_choices(name, choices.group(1))
                text = text[: choices.start()].strip()
            properties[parameter.name]["description"] = text
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: Schema = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    described: Schema = {"name": name, "description": parts[""], "parameters": parameters}
    if "return" in hints and parts.get("Returns"):
        described["return"] = {**describe_type(hints["return"]), "description": " ".join(parts["Returns"].split())}
    return {"type": "function", "function": described}


def describe_type(hint: Any) -> Schema:
    """The JSON schema of a type; {} for one that JSON does not know."""
    if hint is Any:
        return {}
    if hint in _NAMES:
        return {"type": _NAMES[hint]}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _describe_union(inner)
    if origin is Literal:
        kinds = {type(value) for value in inner}
        return {**(describe_type(kinds.pop()) if len(kinds) == 1 else {}), "enum": list(inner)}
    if hint in (list, tuple, set) or origin in (list, tuple, set):
        items = describe_type(inner[0]) if inner and origin is not tuple else {}
        return {"type": "array", **({"items": items} if items else {})}
    if origin in (dict, Mapping):
        values = describe_type(inner[1])
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    return {"type": "object"} if isinstance(hint, type) else {}


def name_of(schema: Mapping[str, Any]) -> str:
    """The name of a defined tool."""
    return str(schema.get("function", schema)["name"])


def arguments_of(schema: Mapping[str, Any]) -> dict[str, Schema]:
    """The arguments of a defined tool, each with its schema."""
    return schema.get("function", schema).get("parameters", {}).get("properties", {})


def _describe_union(inner: tuple[Any, ...]) -> Schema:
    kinds = [describe_type(kind) for kind in inner if kind is not type(None)]
    if len(kinds) == 1:
        return {**kinds[0], "nullable": True}
    if all(list(kind) == ["type"] for kind in kinds):
        union: Schema = {"type": sorted(kind["type"] for kind in kinds)}
    else:
        union = {"anyOf": kinds}
    return {**union, "nullable": True} if len(kinds) < len(inner) else union


def _read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception as error:  # a name that only a type checker sees
        raise UserError(f"the types of the tool {function.__name__} cannot be read ({error})") from None


def _split_docstring(text: str) -> dict[str, str]:
    """Parts of a docstring by their heading; "" is the description."""
    pieces = _SECTION.split(text)
    parts = {"": pieces[0].strip()}
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        parts["Args" if heading in ("Arguments", "Parameters") else heading] = body
    return parts


def _read_arguments(text: str) -> dict[str, str]:
    """Descriptions by argument; a line that is indented deeper continues the one before."""
    found: dict[str, str] = {}
    lines = inspect.cleandoc("\n" + text).splitlines()
    for line in lines:
        match = _ARGUMENT.match(line)
        if match and not match.group(1):
            found[last := match.group(2)] = match.group(3).strip()
        elif found and line.strip():
            found[last] = f"{found[last]} {line.strip()}".strip()
    return found


def _read_choices(name: str, text: str) -> list[Any]:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"the tool {name}: choices must be a JSON list, got {text[:60]}") from None
