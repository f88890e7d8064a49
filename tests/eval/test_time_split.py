"""The table of a profile: means over its steps, small parts as one, and no table where there is no profile."""

import json
from pathlib import Path

import pytest

from r1jax.eval.time_split import MOST_PARTS, read_split


def write(workdir: Path, *steps: tuple[int, dict[str, float]]) -> Path:
    (workdir / "profile").mkdir(parents=True)
    content = {"steps": [{"step": n, "seconds": sum(parts.values()), "parts": parts} for n, parts in steps]}
    (workdir / "profile" / "split.json").write_text(json.dumps(content))
    return workdir


def test_means_over_steps(tmp_path: Path) -> None:
    write(tmp_path, (3, {"decode": 6.0, "host": 2.0}), (4, {"decode": 2.0, "apply": 2.0}))
    rows = [{"step": n, "step_time": float(n)} for n in range(6)]
    split = read_split(tmp_path, rows)
    assert split is not None and (split["steps"], split["total"], split["step_time"]) == ("3 to 4", 6.0, 3.5)
    assert split["parts"] == [
        {"name": "decode", "seconds": 4.0, "share": pytest.approx(2 / 3)},
        {"name": "host", "seconds": 1.0, "share": pytest.approx(1 / 6)},
        {"name": "apply", "seconds": 1.0, "share": pytest.approx(1 / 6)},
    ]


def test_small_parts_are_one(tmp_path: Path) -> None:
    write(tmp_path, (1, {f"p{number}": float(number) for number in range(1, MOST_PARTS + 4)}))
    split = read_split(tmp_path, [])
    assert split is not None and split["step_time"] is None and split["steps"] == "1"
    assert len(split["parts"]) == MOST_PARTS + 1
    assert split["parts"][-1] == {"name": "other programs", "seconds": 6.0, "share": pytest.approx(6 / 91)}


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"steps": []}', '{"steps": [{"step": 1}]}'])
def test_without_a_whole_profile_there_is_no_table(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "profile").mkdir()
        (tmp_path / "profile" / "split.json").write_text(text)
    assert read_split(tmp_path, []) is None
