"""Rows of a file by its suffix (JSONL, Parquet, ArrayRecord), or of a hub data set by its name.

ArrayRecord (each record a JSON object) is read with array_record, which comes with grain. Parquet is read with pyarrow
and the hub with `datasets`, an optional extra; the error for a missing package says how to install it.

Left out: streaming; all rows are in memory at once.
"""

from __future__ import annotations

import glob
import importlib
import json
import os
import pathlib

from r1jax.core.errors import UserError
from r1jax.core.extras import require
from r1jax.data.sources import RowErrors, SourceRow, find_half_character, read_jsonl


def read_rows(path: str, errors: RowErrors | None = None, *, key: str = "config.data.path") -> list[SourceRow]:
    """All rows in order. `*` in a path matches files in order of name; `org/name`, `org/name:split` or
    `org/name:config:split` is a hub name unless such a file exists.

    Raises UserError for a file that is missing, damaged or changed during reading, and for a malformed row (unless
    `errors` skips it).
    """
    errors = errors or RowErrors()
    files = sorted(glob.glob(path)) if "*" in path else [path]
    if not files:
        raise UserError(f"no file matches {path} ({key})")
    kinds = {pathlib.Path(file).suffix for file in files}
    if kinds <= {*_READERS}:
        return [row for file in files for row in _read_file(file, errors, key)]
    if "*" in path or pathlib.Path(path).exists() or path.count("/") != 1:
        raise UserError(f"{path} is neither a {', '.join(_READERS)} file nor a hub name like org/name ({key})")
    return _read_hub(path, key)


def find_missing(path: str) -> str:
    """The reason why `read_rows` could not read a path now, in words; "" if its files are there."""
    if "*" in path:
        return "" if glob.glob(path) else "no file matches"
    if pathlib.Path(path).exists():
        return ""
    if pathlib.Path(path).suffix not in _READERS and path.count("/") == 1:
        return "the run takes this data set from the hub at its start"
    return "there is no such file"


def _read_file(path: str, errors: RowErrors, key: str) -> list[SourceRow]:
    """Rows of a file; raises UserError if it changes while it is read, which would give rows other positions."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"no such file: {path} ({key})")
    before = os.stat(path)
    rows = _READERS[pathlib.Path(path).suffix](path, errors)
    after = os.stat(path)
    if any(getattr(before, fact) != getattr(after, fact) for fact in ("st_size", "st_mtime_ns", "st_ino")):
        raise UserError(f"{path} changed while it was read ({key}): start again after it is written")
    return rows


def _read_parquet(path: str, errors: RowErrors) -> list[SourceRow]:
    parquet = require("pyarrow.parquet", "hub", f"reading {path}")
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow's errors have no common base
        raise UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0][:120]})") from None
    return [SourceRow(f"{path}:{number}", columns) for number, columns in enumerate(table.to_pylist(), 1)]


def _read_array_record(path: str, errors: RowErrors) -> list[SourceRow]:
    reader = importlib.import_module("array_record.python.array_record_module")
    try:
        records = reader.ArrayRecordReader(path).read_all()
    except Exception as error:  # the C++ reader raises many types
        raise UserError(f"{path}: not an ArrayRecord file ({str(error).splitlines()[0][:120]})") from None
    if not records:  # the reader's result for a file truncated at the end of a block
        raise UserError(f"{path}: not an ArrayRecord file, or one without records")
    rows = []
    for number, record in enumerate(records, 1):
        try:
            columns = json.loads(record)
            if not isinstance(columns, dict):
                raise ValueError(f"{type(columns).__name__}")
            if broken := find_half_character(bytes(record).decode()):
                raise ValueError(f"half of a surrogate pair ({broken}) is no character")
        except (ValueError, RecursionError) as error:
            errors.report(f"{path}:{number}", f"not a JSON object: {error}")
            continue
        rows.append(SourceRow(f"{path}:{number}", columns))
    return rows


def _read_hub(name: str, key: str) -> list[SourceRow]:
    datasets = require("datasets", "hub", f"reading {name}")
    repository, *config, split = name.split(":") if ":" in name else (name, "train")
    try:
        rows = datasets.load_dataset(repository, *config, split=split)
    except Exception as error:  # the hub's errors have no common base; each means that the data set is unavailable
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"cannot get the data set {name} from the hub ({reason}); {key} may name a file") from None
    return [SourceRow(f"{name}:{number}", dict(row)) for number, row in enumerate(rows)]


_READERS = {
    ".jsonl": read_jsonl,
    ".parquet": _read_parquet,
    ".arrayrecord": _read_array_record,
    ".array_record": _read_array_record,
}
