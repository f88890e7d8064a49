"""Outputs are checked before the work; what is there is set aside under a new name, never lost."""

import pathlib

import pytest

from r1jax.core.errors import UserError
from r1jax.core.outputs.ownership import check_output, check_writable, has_keys, set_aside, write_output


def test_a_file_of_another_hand_is_refused_and_ours_is_not(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "scores.json"
    is_ours = lambda path: has_keys(path, ("model", "benchmarks"))
    check_output(file, is_ours)
    file.write_text('{"model": "m", "benchmarks": {}}')
    check_output(file, is_ours)
    for text in ("my notes", '["model", "benchmarks"]', '{"model": 1}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(UserError, match="no earlier result of this command; name another output"):
            check_output(file, is_ours)
        assert file.read_text() == text
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path, is_ours)


def test_a_place_that_cannot_be_written_is_found_and_left_as_it_was(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes").write_text("my notes")
    for path in (tmp_path / "notes" / "a", tmp_path / ("x" * 300), pathlib.Path("/proc/none/a"), tmp_path / "a\0b"):
        with pytest.raises(UserError, match=r"cannot be written: .* \(--output\)"):
            check_writable(path)
    check_writable(tmp_path / "new" / "folders" / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_other_results_are_set_aside_together_and_equal_ones_stay(tmp_path: pathlib.Path) -> None:
    one, two = tmp_path / "out.json", tmp_path / "out.samples.jsonl"
    for texts in (("a", "b"), ("a", "b"), ("c", "b"), ("d", "e")):
        write_output(dict(zip((one, two), texts, strict=True)))
    read = lambda number: [path.with_name(f"{path.name}.old-{number}").read_text() for path in (one, two)]
    assert (one.read_text(), two.read_text()) == ("d", "e") and read(1) == ["a", "b"] and read(2) == ["c", "b"]
    assert len(list(tmp_path.iterdir())) == 6


def test_names_that_are_taken_are_passed_over(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.old-1").write_text("mine")
    assert [place.name for place in set_aside([tmp_path / "a"])] == ["a.old-2"]
    assert (tmp_path / "a.old-1").read_text() == "mine"
