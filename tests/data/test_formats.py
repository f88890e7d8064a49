"""Pieces of a file hold its rows once and in order; 40 hostile rows are each refused by place, or each counted."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from r1jax.core.errors import UserError
from r1jax.data.corpus import CorpusConfig, SourceConfig, load_corpus
from r1jax.data.formats import SUFFIXES, read_piece, split_file
from r1jax.data.sources import RowErrors
from tests.data.test_corpus import with_template

GOOD = [{"prompt": f"question {i} ä", "completion": "x" * (i % 37) + f" {i}"} for i in range(300)]
# Rows that are no JSON object, or no row to learn from; those of the second kind can stand in a Parquet file too.
BROKEN = [
    *(b"{", b"[1]", b"3", b"null", b'"a"', b"{}}", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800", "completion": "a"}'),
    *(
        b"[" * 5000,
        b"{" * 3000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\x00",
        b"nul",
        b"True",
        b"{'a': 1}",
        b"\xef\xbb\xbf{}x",
    ),
]
ODD: list[dict[str, Any]] = [
    *({"prompt": None, "completion": "a"}, {"prompt": "", "completion": "a"}, {"prompt": "   ", "completion": "a"}),
    *({"prompt": "a", "completion": None}, {"other": "a"}, {"prompt": "a"}, {"completion": "a"}, {"text": None}),
    *({"prompt": "a", "completion": value} for value in (3, 1.5, [], {}, [1], ["a"], {"role": "user"}, True)),
    *({"messages": value} for value in ("a", [], [1], [{}], [{"role": 1}], 7, {"role": "user"}, [[]])),
]
HOSTILE = [*BROKEN, *(json.dumps(row).encode() for row in ODD)]
assert len(HOSTILE) == 40


def write(path: Path, records: list[bytes]) -> None:
    if path.suffix == ".parquet":
        kept = [json.loads(record) for record in records]
        columns = {name: [row.get(name) for row in kept] for name in ("prompt", "completion")}
        table = pyarrow.table({name: pyarrow.array(values, pyarrow.string()) for name, values in columns.items()})
        pyarrow.parquet.write_table(table, path, row_group_size=64)
    elif "record" in path.suffix:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    else:
        text = b"".join(record + b"\n" for record in records)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text))
        elif path.suffix == ".zst":
            with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
                file.write(text)
        else:
            path.write_bytes(text)


def mix(hostile: list[bytes]) -> list[bytes]:
    """Good rows with a hostile one after every seventh."""
    records = []
    for number, row in enumerate(GOOD):
        records.append(json.dumps(row).encode())
        if number % 7 == 6 and number // 7 < len(hostile):
            records.append(hostile[number // 7])
    return records


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [1, 900, 10**9])
def test_pieces_hold_every_row_once_and_in_order(tmp_path: Path, suffix: str, size: int) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path, [json.dumps(row).encode() for row in GOOD])
    pieces = split_file(str(path), size)
    rows = [row for piece in pieces for row in read_piece(piece, RowErrors())]
    assert [row.columns for row in rows] == GOOD
    assert [row.place for row in rows] == [f"{path}:{number}" for number in range(1, 301)]
    assert (len(pieces) == 1) == (size > 10**6)
    last = pieces[-1]
    assert list(read_piece(last, RowErrors())) == rows[-len(list(read_piece(last, RowErrors()))) :]


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".parquet"])
def test_hostile_rows_are_counted_or_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path, mix(HOSTILE))
    config = CorpusConfig({"main": SourceConfig(str(path), template="plain")}, length=64, on_error="skip")
    corpus = load_corpus(config, with_template())
    assert len(corpus.train[0]) == 300 and any("40 malformed rows left out" in note for note in corpus.notes)
    for hostile in HOSTILE:
        write(path, mix([hostile])[:10])
        with pytest.raises(UserError, match=rf"rows{suffix}:8: ") as caught:
            load_corpus(CorpusConfig({"main": SourceConfig(str(path))}, length=64), with_template())
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


NO_TEXT = (b"\xff\xfe", b"\xc0", b"a\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80", b"ok \xc3\x28")
PAIRS = [  # prompt, completion
    *((None, b"a"), (b"a", None), (None, None), (b"", b"a"), (b"  ", b"a"), (b"\n\t", b"a")),
    *((text, b"a") for text in NO_TEXT),
    *((b"a", text) for text in NO_TEXT),
]
TALKS = [  # (role, content) of each message
    *(None, [], [None], [(None, None)], [(None, b"a")], [(b"user", b"a")], [(b"user", b"a"), None], [(b"tool", b"a")]),
    *([(b"user", b"a"), (b"assistant", text)] for text in NO_TEXT),
    *([(b"user", b"a"), (b"\xffassistant", b"b")], [(b"\xc0", b"a"), (b"assistant", b"b")]),
    *([(b"user", b"\xff"), (b"assistant", b"b")], [(b"system", b"a")], [(b"user", b"a"), (None, b"b")]),
]
assert len(PAIRS) + len(TALKS) == 40
GOOD_TALK = [(b"user", b"a"), (b"assistant", b"b")]


def as_text(values: list[bytes | None]) -> Any:
    """A column of strings from bytes that may be none."""
    return pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())


def make_table(pairs: list[Any], talks: list[Any]) -> Any:
    """A table of prompts and completions, or of messages."""
    if pairs:
        prompts, completions = (as_text([pair[place] for pair in pairs]) for place in (0, 1))
        return pyarrow.table({"prompt": prompts, "completion": completions})
    said = [message for talk in talks for message in talk or []]
    parts = [as_text([message and message[place] for message in said]) for place in (0, 1)]
    absent = pyarrow.array([message is None for message in said])
    messages = pyarrow.StructArray.from_arrays(parts, ["role", "content"], mask=absent)
    ends = itertools.accumulate((len(talk or []) for talk in talks), initial=0)
    offsets = [None if talk is None else end for talk, end in itertools.zip_longest([*talks, []], ends)]
    return pyarrow.table({"messages": pyarrow.ListArray.from_arrays(pyarrow.array(offsets, "int32"), messages)})


@pytest.mark.parametrize("kind", ["pairs", "talks"])
def test_hostile_rows_of_parquet(tmp_path: Path, kind: str) -> None:
    """Missing texts, and bytes that are no text, among good rows of their row group."""
    path, hostile = tmp_path / "rows.parquet", PAIRS if kind == "pairs" else TALKS
    good = [(b"q", b"a")] if kind == "pairs" else [GOOD_TALK]
    make = lambda rows: make_table(rows, []) if kind == "pairs" else make_table([], rows)
    rows = [row for odd in hostile for row in [*good * 7, odd]]
    pyarrow.parquet.write_table(make(rows), path, row_group_size=50)
    config = CorpusConfig({"main": SourceConfig(str(path), template="plain")}, length=64, on_error="skip")
    corpus = load_corpus(config, with_template())
    assert len(corpus.train[0]) == 7 * len(hostile)
    note = f"{len(hostile)} malformed rows left out, the first: {path}:"
    assert any(note in line for line in corpus.notes), corpus.notes
    for odd in hostile:
        pyarrow.parquet.write_table(make([*good * 7, odd, *good]), path)
        with pytest.raises(UserError, match=r"rows\.parquet:8: ") as caught:
            load_corpus(CorpusConfig({"main": SourceConfig(str(path))}, length=64), with_template())
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
