"""Files are replaced whole: text and pieces arrive, and a failure leaves the old file and no draft."""

import os
import pathlib
from collections.abc import Iterator

import pytest

from r1jax.core.atomic_file import replace_file


def test_text_and_pieces_replace_the_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.json"
    replace_file(file, "größer\n")
    assert file.read_bytes() == "größer\n".encode()
    replace_file(str(file), (line for line in (b"1\n", b"2\n")))
    assert file.read_bytes() == b"1\n2\n" and os.listdir(tmp_path) == ["a.json"]


def test_a_failure_leaves_the_old_file_and_no_draft(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    replace_file(file, "old")

    def break_off() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(file, break_off())

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_it_is_on_disk_before_it_takes_the_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen = tmp_path / "a.json", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_size, file.exists())))
    replace_file(file, "four")
    assert seen == [(4, False)] and file.read_text() == "four"
