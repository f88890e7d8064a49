from pathlib import Path

import pytest

from r1jax.core.checksums import find_damage, has_checksums, write_checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("state/d/1", "state/d/2", "state/_METADATA", "facts/metadata"):
        file = tmp_path / "4" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode() * 1000)
    return tmp_path / "4"


def test_nothing_is_damaged_and_nothing_is_summed_twice(folder: Path) -> None:
    assert find_damage(folder) == "" and not has_checksums(folder)
    write_checksums(folder)
    assert has_checksums(folder) and find_damage(folder) == ""
    write_checksums(folder)
    assert find_damage(folder) == ""


@pytest.mark.parametrize("count", [1, 3])
def test_every_kind_of_damage_is_found_by_the_process_that_looks(folder: Path, count: int) -> None:
    for index in range(count):
        write_checksums(folder, index=index, count=count)
    file = folder / "state/d/2"
    before = file.read_bytes()
    damages = {
        "has a wrong checksum": lambda: file.write_bytes(b"x" + before[1:]),
        "has 9 bytes instead of 9000": lambda: file.write_bytes(before[:9]),
        "is missing": file.unlink,
    }
    for message, damage in damages.items():
        damage()
        found = [find_damage(folder, index=index, count=2) for index in range(2)]
        assert sum(map(bool, found)) == 1 and f"state/d/2 {message}" in "".join(found)
        file.write_bytes(before)
        assert find_damage(folder) == ""


def test_checksums_that_cannot_be_read_are_damage(folder: Path) -> None:
    write_checksums(folder)
    (folder / "checksums.0.json").write_text("{")
    assert find_damage(folder) == "checksums.0.json cannot be read"
