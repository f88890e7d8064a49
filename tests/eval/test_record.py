"""Reading a run back: rows merged by step, a bounded and even choice of samples, long texts cut and said so."""

import json
from pathlib import Path

import pytest

from r1jax.eval.record import choose_samples, read_run, spread


def _write_samples(workdir: Path, steps: int, per_step: int) -> None:
    rows = [
        {"step": step, "completion": f"{step}.{number}"} for step in range(1, steps + 1) for number in range(per_step)
    ]
    (workdir / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_are_merged_and_ascend(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "a": 1}\n{"step": 1, "a": 0}\n{"step": 2, "a": 3, "b": null}\n'
    )
    run = read_run(tmp_path)
    assert run.rows == [{"step": 1, "a": 0}, {"step": 2, "a": 3, "b": None}]
    assert run.names() == ["a"] and run.series("a") == [(1, 0), (2, 3)]
    assert run.name == tmp_path.name and run.config == {}


@pytest.mark.parametrize("count", [0, 1, 7, 100])
@pytest.mark.parametrize("limit", [0, 1, 2, 7, 99])
def test_spread_is_even_and_has_both_ends(count: int, limit: int) -> None:
    positions = spread(count, limit)
    assert len(positions) == min(count, limit) and positions == sorted(set(positions))
    if min(count, limit) > 1:
        gaps = {after - before for before, after in zip(positions, positions[1:], strict=False)}
        assert positions[0] == 0 and positions[-1] == count - 1 and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("steps", "per_step"), [(10, 4), (100, 8), (1000, 1), (3, 500), (1, 900), (40, 100)])
def test_choice_is_bounded_and_even(tmp_path: Path, steps: int, per_step: int) -> None:
    _write_samples(tmp_path, steps, per_step)
    samples = choose_samples(tmp_path, limit=120)
    chosen = [row["completion"] for row in samples.rows]
    assert samples.total == steps * per_step and samples.steps == steps
    assert len(chosen) == samples.total if samples.total <= 120 else 60 <= len(chosen) <= 120
    assert chosen == sorted(set(chosen), key=lambda text: tuple(map(int, text.split(".")))), "in the order of the file"
    shown = [row["step"] for row in samples.rows]
    assert shown[0] == 1 and shown[-1] == steps and len(set(shown)) == samples.steps_shown >= min(4, steps)


def test_no_samples(tmp_path: Path) -> None:
    assert choose_samples(tmp_path).rows == [] and choose_samples(tmp_path).total == 0


def test_long_texts_keep_their_ends(tmp_path: Path) -> None:
    text = "a" * 600 + "b" * 600
    row = {"step": 1, "prompt": [{"role": "user", "content": text}], "completion": text, "length": 9}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    (short,) = choose_samples(tmp_path, text_limit=100).rows
    assert short["completion"] == "a" * 50 + "\n[… 1,100 characters left out of this page …]\n" + "b" * 50
    assert short["prompt"][0]["content"] == short["completion"] and short["length"] == 9
