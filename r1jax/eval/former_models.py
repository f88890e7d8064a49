"""Model sections of before version 0.2.0, which named a model by `path` and by `hub`, the name used where `path` was
absent; with `preset`, `path` named the tokenizer.

Today `name` names the model and `tokenizer` that of a preset. Former keys are accepted, with a warning, until
`ACCEPTED_UNTIL`, but where `hub` would have taken the place of an absent `path`: that is an error.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from r1jax.core.errors import UserError

SECTIONS = ("model", "teacher", "student")
ACCEPTED_UNTIL = "0.4.0"  # two minor versions after the one that renamed them


def rename_saved(section: Mapping[str, Any]) -> dict[str, Any]:
    """A saved model section under today's keys: `path` is the name, unless it is empty."""
    values = {key: value for key, value in section.items() if key not in ("path", "hub")}
    if len(values) < len(section):
        path, hub = section.get("path", ""), section.get("hub", "")
        values |= {"tokenizer": path} if section.get("preset") else {"name": path or hub}
        if hub and not path and "fetch" in values:
            values["fetch"] = ""  # it made the file at `path`
    return values


def accept_former(
    config: Mapping[str, Any] | ConfigDict, flags: Mapping[str, str]
) -> tuple[Mapping[str, Any] | ConfigDict, dict[str, str], list[str]]:
    """A config file's values and flags under today's keys, and a warning for each section with former ones.

    A flag that names another model also removes the file's `fetch`, which makes the file's model. Raises UserError
    where former keys do not say one model.
    """
    file, flags, warnings = copy.deepcopy(config), dict(flags), list[str]()
    for key in SECTIONS:
        section = file.get(key)
        if not isinstance(section, (Mapping, ConfigDict)):
            section = {}
        in_file = {former: section[former] for former in ("path", "hub") if former in section}
        in_flags = {former: flags.pop(f"{key}.{former}") for former in ("path", "hub") if f"{key}.{former}" in flags}
        name = "tokenizer" if flags.get(f"{key}.preset", section.get("preset")) else "name"
        if in_file or in_flags:
            if (
                in_file
                and name in section
                or in_flags
                and (f"{key}.{name}" in flags or "path" not in in_flags and name in section)
            ):
                raise UserError(f"config.{key}: path and hub are former keys of {name}; give config.{key}.{name} alone")
            if in_flags:
                flags[f"{key}.{name}"] = _choose(key, {**in_file, **in_flags}, name)
            elif f"{key}.{name}" not in flags:
                _change(section, (), {name: _choose(key, in_file, name)})
            _change(section, in_file, {})
            if section.get("name") and section["name"] == in_file.get("hub") and "fetch" in section:
                _change(section, ("fetch",), {})  # it made the file at `path`
            warnings.append(
                f"config.{key}.{f' and config.{key}.'.join({**in_file, **in_flags})} are now config.{key}.{name} = "
                f"{flags.get(f'{key}.{name}', section.get(name))!r}; former names work until version {ACCEPTED_UNTIL}"
            )
        named = flags.get(f"{key}.name")
        if named is not None and f"{key}.fetch" not in flags and "fetch" in section and named != section.get("name"):
            _change(section, ("fetch",), {})
    return file, flags, warnings


def _choose(key: str, former: Mapping[str, str], name: str) -> str:
    """The model or tokenizer that former keys name."""
    path, hub = former.get("path", ""), former.get("hub", "")
    if name == "name" and path and hub and not (path.startswith("@") or pathlib.Path(path).exists()):
        raise UserError(
            f"config.{key}.path = {path!r} does not exist, and config.{key}.hub = {hub!r} no longer takes its place; "
            f"name one of them with config.{key}.name"
        )
    return path if name == "tokenizer" else path or hub


def _change(section: Any, without: Any, values: Mapping[str, Any]) -> None:
    """Removes keys of a section and sets others."""
    if isinstance(section, ConfigDict):
        with section.unlocked():
            for name in without:
                del section[name]
            section.update(values)
    else:
        for name in without:
            del section[name]
        section.update(values)
