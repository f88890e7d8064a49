"""Reference of config keys: every key of a stage with its type, default and meaning, from the dataclasses.

The meaning of a key is its paragraph under `Attributes:` in the docstring of its dataclass. `docs/config.md` has the
same text for all stages:

    python -m r1jax.train --help_config > docs/config.md
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from r1jax.core.resolution import section_type
from r1jax.core.sections import is_mapping, name_type
from r1jax.stages.distill.distill import METHODS
from r1jax.stages.pipeline.resolve import Links
from r1jax.stages.registry import STAGES, find_stage

HEAD = """# Config keys

Every key of every stage with its type, its default and its meaning. A config file names only what it changes; any key
can be set by a flag, as in `--config.optimizer.learning_rate=1e-6`, and `--dry_run` shows what a run would use. `NAME`
in a key stands for a name that the config gives, as of a data source.

This page is generated from the dataclasses: `python -m r1jax.train --help_config > docs/config.md`.
"""


def describe_all() -> str:
    """The reference of all stages, as in docs/config.md."""
    names = [{"stage": name, "method": None} for name in STAGES if name != "distill"]
    names += [{"stage": "distill", "method": method} for method in METHODS]
    titles = [" ".join(filter(None, name.values())) for name in names]
    parts = [describe_stage(find_stage(name).CONFIG, title) for name, title in zip(names, titles, strict=True)]
    return "\n".join([HEAD, *parts])


def describe_stage(root: type, title: str) -> str:
    """The reference of one stage: its summary, and one entry per key."""
    lines = [f"## {title}", "", *textwrap.wrap(read_summary(root), 120), ""]
    for key, kind, default, meaning in list_entries(root):
        value = "" if default is dataclasses.MISSING else f"; default {_show(default)}"
        must = "; must be given" if default is dataclasses.MISSING else ""
        lines += textwrap.wrap(
            f"- `{key}` ({kind}{value}{must}): {meaning}",
            120,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join([*lines, ""])


def list_entries(root: type, prefix: str = "", instance: Any = None) -> Iterator[tuple[str, str, Any, str]]:
    """(dotted key, type in words, default or MISSING, meaning) of every leaf; a name chosen by the config is in
    capitals.
    """
    hints, meanings = typing.get_type_hints(root), read_meanings(root)
    for field in dataclasses.fields(root):
        kind, key, default = hints[field.name], prefix + field.name, field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if instance is not None:
            default = getattr(instance, field.name)
        if dataclasses.is_dataclass(kind):
            given = None if default is dataclasses.MISSING else default
            yield from list_entries(typing.cast(type, kind), f"{key}.", given)
            continue
        yield key, name_type(kind), default, meanings[field.name]
        inner = section_type(typing.get_args(kind)[1] if is_mapping(kind) else kind)
        if inner is not None:
            yield from list_entries(inner, f"{key}.NAME." if is_mapping(kind) else f"{key}.")
        elif key == "stages":
            yield from list_entries(Links, "stages.NAME.")


def read_summary(cls: type) -> str:
    """The docstring of a dataclass up to its attributes, on one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")[0].split())


def read_meanings(cls: type) -> dict[str, str]:
    """Field -> meaning, from the docstrings of a dataclass and of those that it extends."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for entry in re.findall(r"^  (\w+: .*(?:\n    .*)*)", text, re.MULTILINE):
            name, _, meaning = entry.partition(": ")
            meanings[name] = " ".join(meaning.split())
    return meanings


def _show(value: Any) -> str:
    """A default in the form used on the command line."""
    if value == "":
        return '""'
    if isinstance(value, (tuple, list)):
        return f"`{','.join(map(str, value))}`" if value else "empty"
    if value == {}:
        return "empty"
    return f"`{str(value).lower() if value is None or isinstance(value, bool) else value}`"
