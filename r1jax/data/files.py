"""Rows of a file by what its name ends in: JSONL, Parquet, ArrayRecord; else a data set of the hub by its name.

Parquet is read through pyarrow, ArrayRecord (each record a JSON object) through array_record, the hub through
`datasets`: the last two are extras, and asking for one that is not installed says how to get it.
"""

from __future__ import annotations

import importlib
import json
import pathlib
from typing import Any

from r1jax.core.errors import UserError
from r1jax.data.sources import Row, RowErrors, read_jsonl


def read_rows(path: str, errors: RowErrors | None = None, *, key: str = "config.data.path") -> list[Row]:
    """All rows in order. `org/name[:split]` or `org/name:config:split` is a hub name where no such file is here.

    Raises UserError for a missing file, a damaged one, and a malformed row (unless `errors` skips it).
    """
    errors = errors or RowErrors()
    kind = pathlib.Path(path).suffix
    if kind in _READERS and not pathlib.Path(path).is_file():
        raise UserError(f"no such file: {path} ({key})")
    if kind in _READERS:
        return _READERS[kind](path, errors)
    if pathlib.Path(path).exists() or path.count("/") != 1:
        raise UserError(f"{path} is no {', '.join(_READERS)} file and no hub name like org/name ({key})")
    return _read_hub(path, key)


def _read_parquet(path: str, errors: RowErrors) -> list[Row]:
    parquet = _require("pyarrow.parquet", "pyarrow", path)
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow's errors have no common base
        raise UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0][:120]})") from None
    return [Row(f"{path}:{number}", columns) for number, columns in enumerate(table.to_pylist(), 1)]


def _read_array_record(path: str, errors: RowErrors) -> list[Row]:
    reader = _require("array_record.python.array_record_module", "array_record", path)
    try:
        records = reader.ArrayRecordReader(path).read_all()
    except Exception as error:  # the C++ reader raises whatever its status says
        raise UserError(f"{path}: not an ArrayRecord file ({str(error).splitlines()[0][:120]})") from None
    rows = []
    for number, record in enumerate(records, 1):
        try:
            columns = json.loads(record)
            if not isinstance(columns, dict):
                raise ValueError(f"{type(columns).__name__}")
        except ValueError as error:
            errors.report(f"{path}:{number}", f"not a JSON object: {error}")
            continue
        rows.append(Row(f"{path}:{number}", columns))
    return rows


def _read_hub(name: str, key: str) -> list[Row]:
    datasets = _require("datasets", "datasets", name)
    repository, *config, split = name.split(":") if ":" in name else (name, "train")
    try:
        rows = datasets.load_dataset(repository, *config, split=split)
    except Exception as error:  # the hub's errors have no common base; each of them means: not to be had
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the data set {name} cannot be had from the hub ({reason}); {key} may name a file") from None
    return [Row(f"{name}:{number}", dict(row)) for number, row in enumerate(rows)]


def _require(module: str, package: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"reading {path} needs the package {package}: pip install {package}") from None


_READERS = {
    ".jsonl": read_jsonl,
    ".parquet": _read_parquet,
    ".arrayrecord": _read_array_record,
    ".array_record": _read_array_record,
}
