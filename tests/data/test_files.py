"""The same rows from every kind of file; damaged, missing and changing files said by name."""

import gzip
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from r1jax.core.errors import UserError
from r1jax.data import files
from r1jax.data.files import read_rows
from r1jax.data.formats import read_piece
from r1jax.data.sources import RowErrors, SourceRow

ROWS = [{"prompt": f"q{i}", "completion": f"ä{i}", "turns": [{"role": "user", "content": "x"}]} for i in range(5)]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_array_record(path: Path, records: list[bytes] | None = None) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in [json.dumps(row).encode() for row in ROWS] if records is None else records:
        writer.write(record)
    writer.close()


def write_gzip(path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)


def write_zstd(path: Path) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS).encode())


KINDS = {
    ".jsonl": write_jsonl,
    ".jsonl.gz": write_gzip,
    ".jsonl.zst": write_zstd,
    ".parquet": write_parquet,
    ".arrayrecord": write_array_record,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_from_every_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    KINDS[kind](path)
    rows = read_rows(str(path))
    assert [row.columns for row in rows] == ROWS
    assert [row.place for row in rows] == [f"{path}:{number}" for number in range(1, 6)]


def test_a_star_reads_all_files_in_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "part-1.parquet")
    write_jsonl(tmp_path / "part-0.jsonl")
    rows = read_rows(f"{tmp_path}/part-*")
    assert [row.columns for row in rows] == ROWS * 2 and rows[0].place == f"{tmp_path}/part-0.jsonl:1"
    with pytest.raises(UserError, match="no file matches"):
        read_rows(f"{tmp_path}/other-*")


@pytest.mark.parametrize("kind", KINDS)
def test_missing_files_are_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=rf"no such file: none{kind} \(config\.data\.path\)"):
        read_rows(f"none{kind}")
    (tmp_path / f"folder{kind}").mkdir()
    with pytest.raises(UserError, match=r"no data file .* is in the folder"):
        read_rows(str(tmp_path / f"folder{kind}"))


def test_a_folder_means_all_data_files_below_it(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write_gzip(tmp_path / "b" / "1.jsonl.gz")
    write_parquet(tmp_path / "a.parquet")
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / "b" / ".hidden.jsonl").write_text("{broken")
    rows = read_rows(str(tmp_path))
    assert [row.columns for row in rows] == ROWS * 2 and rows[0].place == f"{tmp_path}/a.parquet:1"


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst", ".parquet", ".arrayrecord"])
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    KINDS[kind](path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"rows{kind}: (not a|damaged)"):
        read_rows(str(path))


def test_malformed_records_have_a_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrayrecord"
    write_array_record(path, [b'{"a": 1}', b"[1]", b"\xff"])
    with pytest.raises(UserError, match=r"rows\.arrayrecord:2: not a JSON object"):
        read_rows(str(path))
    errors = RowErrors("skip")
    assert [row.columns for row in read_rows(str(path), errors)] == [{"a": 1}] and errors.count == 2


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path)

    def grow(*arguments: Any) -> Iterator[SourceRow]:
        yield from read_piece(*arguments)
        with open(path, "a") as file:
            file.write("{}\n")

    monkeypatch.setattr(files, "read_piece", grow)
    with pytest.raises(UserError, match=r"rows\.jsonl changed while it was read \(config\.data\.path\)"):
        read_rows(str(path))


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    write_jsonl(path)
    write_jsonl(other)
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    replace = lambda *arguments: os.replace(other, path) or []
    monkeypatch.setattr(files, "read_piece", replace)
    with pytest.raises(UserError, match="changed while it was read"):
        read_rows(str(path))


# --- The hub ---


def test_a_hub_name_goes_to_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, *config: str, split: str) -> list:
        asked.append((name, *config, split))
        if name == "org/none":
            raise FileNotFoundError("Dataset 'org/none'\ndoesn't exist on the Hub")
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(files, "find_hub_files", lambda *_: None)
    rows = read_rows("org/name:test")
    assert [row.columns for row in rows] == ROWS and rows[1].place == "org/name:test:1"
    assert len(read_rows("org/name")) == len(read_rows("org/name:main:test")) == 5
    assert asked == [("org/name", "test"), ("org/name", "train"), ("org/name", "main", "test")]
    with pytest.raises(
        UserError, match=r"cannot get the data set org/none from the hub \(Dataset 'org/none' doesn't exist"
    ):
        read_rows("org/none")


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(files, "find_hub_files", lambda *_: None)
    with pytest.raises(UserError, match=r"org/name needs the package datasets: pip install -e '\.\[hub\]'"):
        read_rows("org/name")


@pytest.mark.parametrize("path", ["name", "rows.txt", "a/b/c"])
def test_other_names_are_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"is neither a \.jsonl, .*\.parquet, .* file nor a hub name"):
        read_rows(path)
