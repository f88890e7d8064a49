"""Rows of a named source: a file (data/formats.py lists the kinds), a folder or `*` pattern of shards, objects of a
bucket (`gs://`), or a data set of the hub (data/hub.py).
"""

from __future__ import annotations

import glob
import pathlib
from collections.abc import Iterable, Iterator

from r1jax.core.buckets.objects import find_objects
from r1jax.core.buckets.staging import is_address
from r1jax.core.errors import UserError
from r1jax.data.formats import SUFFIXES, Piece, find_suffix, identify_file, read_piece
from r1jax.data.hub import find_hub_files, load_rows, split_name
from r1jax.data.sources import RowErrors, SourceRow


def read_rows(path: str, errors: RowErrors | None = None, *, key: str = "config.data.path") -> list[SourceRow]:
    """All rows in order, in memory; see `iterate_rows`."""
    return list(iterate_rows(path, errors, key=key))


def iterate_rows(path: str, errors: RowErrors | None = None, *, key: str = "config.data.path") -> Iterator[SourceRow]:
    """Rows in order. `*` in a path matches files, a folder means all data files below it, in order of name;
    `org/name[@revision][:config][:split]` is a hub name unless such a file exists.

    Raises UserError for a file that is missing, damaged or changed during reading, and for a malformed row (unless
    `errors` skips it).
    """
    errors = errors or RowErrors()
    files = find_files(path, key=key)
    if files is None:
        yield from load_rows(path, key)
        return
    for file in files:
        yield from _read_file(file, errors, key)


def find_files(path: str, *, key: str = "config.data.path") -> list[str] | None:
    """The files of a source in order, those of the hub as copies here; None for a data set of the hub that has no files
    of a known kind, only a loader. Raises UserError if there is none.
    """
    if is_address(path):
        found = [name for name in find_objects(path) if find_suffix(name) or name == path]
        if not found:
            raise UserError(f"no object matches {path} ({key})" if "*" in path else f"no such object: {path} ({key})")
    elif "*" in path:
        found = sorted(name for name in glob.glob(path) if pathlib.Path(name).is_file())
        if not found:
            raise UserError(f"no file matches {path} ({key})")
    elif pathlib.Path(path).is_dir():
        found = _list_folder(pathlib.Path(path))
        if not found:
            raise UserError(f"no data file ({', '.join(SUFFIXES)}) is in the folder {path} ({key})")
    else:
        found = [path]
    if all(map(find_suffix, found)):
        return found
    if "*" in path or is_address(path) or pathlib.Path(path).exists() or split_name(path) is None:
        odd = next(file for file in found if not find_suffix(file))
        raise UserError(f"{odd} is neither a {', '.join(SUFFIXES)} file nor a hub name like org/name ({key})")
    return find_hub_files(path, key)


def find_missing(path: str) -> str:
    """The reason why `read_rows` could not read a path now, in words; "" if its files are there."""
    if is_address(path):
        return ""  # a dry run asks no bucket
    if "*" in path:
        return "" if glob.glob(path) else "no file matches"
    if pathlib.Path(path).exists():
        return ""
    if not find_suffix(path) and split_name(path) is not None:
        return "the run takes this data set from the hub at its start"
    return "there is no such file"


def watch(files: Iterable[str], key: str) -> Iterator[str]:
    """The files one by one; raises UserError after one that changed while it was read, which would give rows other
    positions.
    """
    for file in files:
        try:
            before = identify_file(file)
        except UserError as error:
            raise UserError(f"{error} ({key})") from None
        yield file
        if identify_file(file) != before:
            raise UserError(f"{file} changed while it was read ({key}): start again after it is written")


def _read_file(file: str, errors: RowErrors, key: str) -> Iterator[SourceRow]:
    for watched in watch([file], key):
        yield from read_piece(Piece(watched), errors)


def _list_folder(folder: pathlib.Path) -> list[str]:
    found = (file for file in folder.rglob("*") if file.is_file() and find_suffix(file.name))
    return [
        str(file) for file in sorted(found) if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
