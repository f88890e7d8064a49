"""Output files of commands: checked before the work, and never written over a file of the user's.

A file that is there already is an error, unless it can be recognized as a result of the same command; such a result is
moved to NAME.old-1, NAME.old-2, … before another one is written.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.core.atomic_file import replace_file
from r1jax.core.errors import UserError

log = logging.getLogger(__name__)

LONGEST_ENDING = ".settings.json.draft"  # what a command adds to the name of an output, at most
CURE = "name another output, or move it away"


def check_output(path: pathlib.Path, is_ours: Callable[[pathlib.Path], bool], *, flag: str = "--output") -> None:
    """Raises UserError, naming the flag, if `path` is a file or folder that is not ours, or cannot be written."""
    check_writable(path, flag=flag)
    if path.is_dir() or (path.exists() and not (path.is_file() and is_ours(path))):
        kind = "is a folder" if path.is_dir() else "exists and is no earlier result of this command"
        raise UserError(f"{path} {kind}; {CURE} ({flag})")


def check_writable(path: pathlib.Path, *, flag: str = "--output") -> None:
    """Raises UserError, naming the flag, if a file `path` cannot be written; leaves nothing behind."""
    made: list[pathlib.Path] = []
    try:
        for attempt in range(3):  # processes of one run on several hosts do this at the same time
            try:
                _probe(path, made)
                break
            except FileNotFoundError:
                if attempt == 2:
                    raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name, or no name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shorten(path)} cannot be written: {reason} ({flag})") from None
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _probe(path: pathlib.Path, made: list[pathlib.Path]) -> None:
    """Creates missing folders, which it adds to `made`, and a file, which it removes."""
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            made.append(folder)
    probe = path.with_name(path.name + LONGEST_ENDING)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        probe.unlink(missing_ok=True)


def set_aside(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Moves files or folders that belong together to NAME.old-N, with the same number for all; logs and returns the new
    places.
    """
    for number in itertools.count(1):
        places = [path.with_name(f"{path.name}.old-{number}") for path in paths]
        if not any(place.exists() for place in places):
            break
    for path, place in zip(paths, places, strict=True):
        os.replace(path, place)
        log.warning("%s was there already; it is now %s", path, place)
    return places


def write_output(texts: Mapping[pathlib.Path, str | Sequence[bytes]], *, flag: str = "--output") -> None:
    """Writes files that belong together, each atomically; earlier ones with another content are set aside.

    Raises UserError, naming the flag, if that fails.
    """
    contents = {path: text.encode() if isinstance(text, str) else b"".join(text) for path, text in texts.items()}
    try:
        there = [path for path in contents if path.exists()]
        if any(path.read_bytes() != contents[path] for path in there):
            set_aside(there)
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, [content])
    except OSError as error:
        raise UserError(
            f"{error.filename or next(iter(contents))} cannot be written: {error.strerror} ({flag})"
        ) from error


def has_keys(path: pathlib.Path, names: Sequence[str], *, first_line: bool = False) -> bool:
    """Whether a file, or its first line, is a JSON object with these keys; an empty file is."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.readline() if first_line else file.read()
        content: Any = json.loads(text) if text else dict.fromkeys(names)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and set(names) <= set(content)


def shorten(path: pathlib.Path | str) -> str:
    """A path in a message, cut if it is very long."""
    text = str(path)
    return text if len(text) <= 160 else f"{text[:120]}… ({len(text)} characters)"
