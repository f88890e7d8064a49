"""The journal: rows in the order of their inputs, whatever the order of results, and nothing lost or repeated."""

import json
import pathlib
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.runs.journal import Journal, digest_line

INPUTS = ["a", "b", "c", "d", "e"]


def open_journal(path: pathlib.Path, inputs: list[str] = INPUTS, **options: Any) -> Journal:
    return Journal(path, inputs, lambda row: row.get("input"), **options)


def put(journal: Journal, *numbers: int, inputs: list[str] = INPUTS, by: str = "one") -> None:
    for number in numbers:
        journal.put(number, {"input": inputs[number], "by": by})


def read(path: pathlib.Path) -> list[tuple[str, str]]:
    return [(row["input"], row["by"]) for row in map(json.loads, path.read_text().splitlines())]


def test_results_in_any_order_are_written_in_the_order_of_the_inputs(tmp_path: pathlib.Path):
    journal = open_journal(tmp_path / "new" / "out.jsonl")
    assert journal.todo == [0, 1, 2, 3, 4]
    put(journal, 2, 1)
    assert journal.done == 0 and read(journal.path) == []
    put(journal, 0)
    assert journal.done == 3 and read(journal.path) == [("a", "one"), ("b", "one"), ("c", "one")]
    put(journal, 4, 3)
    journal.close()
    assert [name for name, _ in read(journal.path)] == INPUTS
    assert [file.name for file in journal.path.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("torn", [b'{"input": "c", "by": "on', b'{"input": "c", "by": "one"}', b"\xff\xfe"])
def test_a_torn_last_line_is_redone(tmp_path: pathlib.Path, torn: bytes):
    path = tmp_path / "out.jsonl"
    put(open_journal(path), 0, 1, 4)
    path.write_bytes(path.read_bytes() + torn)
    journal = open_journal(path)
    assert journal.todo == [2, 3, 4] and journal.done == 2
    put(journal, 2, 3, 4, by="two")
    journal.close()
    assert read(path) == [("a", "one"), ("b", "one"), ("c", "two"), ("d", "two"), ("e", "two")]


def test_lines_behind_one_that_no_longer_answers_are_kept(tmp_path: pathlib.Path):
    path = tmp_path / "out.jsonl"
    journal = open_journal(path)
    put(journal, *range(5))
    journal.close()
    edited = ["a", "B", "c", "D", "e"]
    journal = open_journal(path, edited)
    assert journal.todo == [1, 3]
    put(journal, 1, inputs=edited, by="two")  # and killed here, without a close
    journal = open_journal(path, edited)
    assert journal.todo == [3]
    put(journal, 3, inputs=edited, by="three")
    journal.close()
    assert read(path) == [("a", "one"), ("B", "two"), ("c", "one"), ("D", "three"), ("e", "one")]
    assert [name for name, _ in read(tmp_path / "out.jsonl.old-1")] == INPUTS, "the rows of the edited inputs are kept"


def test_inputs_may_be_added_or_taken_away(tmp_path: pathlib.Path):
    path = tmp_path / "out.jsonl"
    put(open_journal(path, INPUTS[:3]), 0, 1, 2)
    journal = open_journal(path)
    assert journal.todo == [3, 4]
    put(journal, 3, 4, by="two")
    journal.close()
    journal = open_journal(path, INPUTS[:2])
    assert journal.todo == []
    journal.close()
    assert read(path) == [("a", "one"), ("b", "one")]
    assert [name for name, _ in read(tmp_path / "out.jsonl.old-1")] == INPUTS, "no row is deleted"


def test_rows_follow_their_inputs_wherever_these_moved(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "out.jsonl"
    journal = open_journal(path)
    put(journal, *range(5))
    journal.close()
    moved = ["new", "e", "a", "a", "c"]
    for by in ("two", "three"):
        journal = open_journal(path, moved)
        assert journal.todo == ([0, 3] if by == "two" else [3])
        put(journal, journal.todo[0], inputs=moved, by=by)  # killed here, at first
    journal.close()
    assert read(path) == [("new", "two"), ("e", "one"), ("a", "one"), ("a", "three"), ("c", "one")]
    assert [name for name, _ in read(tmp_path / "out.jsonl.old-1")] == INPUTS
    assert "2 rows no longer belong to an input; they are in" in caplog.text
    journal = open_journal(path, ["other"])
    put(journal, 0, inputs=["other"])
    journal.close()
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["out.jsonl", "out.jsonl.old-1", "out.jsonl.old-2"]


def test_a_torn_unit_is_done_again_as_a_whole(tmp_path: pathlib.Path):
    path = tmp_path / "out.jsonl"
    put(open_journal(path), 0, 1, 2)
    journal = open_journal(path, unit=2)
    assert journal.todo == [2, 3, 4] and len(journal.kept) == 2 and json.loads(journal.read(1))["input"] == "b"
    put(journal, 3, 2, 4, by="two")
    assert json.loads(journal.read(3)) == {"input": "d", "by": "two"}
    journal.close()
    assert open_journal(path, unit=2).todo == [], "the last unit may be a short one"
    assert open_journal(path, [*INPUTS, "f", "g"], unit=2).todo == [4, 5, 6]


def test_rows_of_other_places_are_not_a_torn_unit(tmp_path: pathlib.Path):
    path = tmp_path / "out.jsonl"
    put(open_journal(path), 0, 1, 2)
    assert open_journal(path, ["b", "a", "c", "d"], unit=2).todo == [3]


def test_a_known_line_is_not_parsed(tmp_path: pathlib.Path):
    path, parsed = tmp_path / "out.jsonl", []
    put(open_journal(path), 0, 1, 2)
    lines = path.read_bytes().splitlines(keepends=True)

    def identify(row: dict[str, Any]) -> Any:
        parsed.append(row)
        return row["input"]

    known = {digest_line(line): name for line, name in zip(lines[:2], "ab", strict=True)}
    journal = Journal(path, INPUTS, identify, known=known)
    assert journal.todo == [3, 4] and [row["input"] for row in parsed] == ["c"]
    assert journal.kept == [digest_line(line) for line in lines]


def test_a_line_is_one_line_however_the_text_is_split(tmp_path: pathlib.Path):
    journal = Journal(tmp_path / "out.jsonl", ["1", "2"], lambda row: None)
    texts = ["日本 a\x85b\u2028c\u2029d\n", "half a pair: \ud800"]
    for number, text in enumerate(texts):
        journal.put(number, {"text": text})
    assert [json.loads(line)["text"] for line in journal.path.read_text("utf-8").splitlines()] == texts
    assert "日本" in journal.path.read_text("utf-8")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: pathlib.Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="out.jsonl cannot be written"):
        open_journal(tmp_path / "file" / "out.jsonl")
