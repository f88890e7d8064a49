"""The record of a run: rows whole or absent, rewound to a checkpoint, the same files after a kill as without one."""

import json
import logging
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import MetricsWriter, iterate_rows, read_rows


def test_writes_one_object_a_step_with_step_first(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "run", tensorboard=False)
    writer.write(0, {"eval/addition/pass@1": 0.02})
    writer.write(1, {"reward": np.float32(0.5), "num_tokens": np.int64(128), "loss": 0.0})
    writer.close()
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert lines == [
        '{"step": 0, "eval/addition/pass@1": 0.02}',
        '{"step": 1, "reward": 0.5, "num_tokens": 128, "loss": 0.0}',
    ]


def test_rows_are_on_disk_before_close(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 1.0})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_float_keeps_every_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=50)
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step, value in enumerate(values):
        writer.write(step, {"x": value})
    assert [row["x"] for row in read_rows(tmp_path / "metrics.jsonl")] == values.tolist()


def test_a_number_that_is_not_finite_is_null_and_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = MetricsWriter(tmp_path)
    with caplog.at_level(logging.WARNING):
        writer.write(1, {"loss": float("nan"), "kl": np.float32("inf"), "reward": 1.0})
        writer.write(2, {"loss": float("nan")})
    assert read_rows(tmp_path / "metrics.jsonl")[0] == {"step": 1, "loss": None, "kl": None, "reward": 1.0}
    ours = [record.getMessage() for record in caplog.records if record.name == "r1jax.core.metrics"]
    assert len(ours) == 2 and "loss is nan" in ours[0] and "kl is inf" in ours[1]


def test_a_step_is_written_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(3, {"loss": 1.0})
    with pytest.raises(ValueError, match="already holds step 3"):
        writer.write(3, {"reward": 1.0})
    with pytest.raises(ValueError, match=r"rewind\(1\)"):
        MetricsWriter(tmp_path, tensorboard=False).write(2, {"loss": 1.0})


def test_samples_hold_text_and_arrays(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, tensorboard=False)
    text = "line\nbreak \u2028 \x00 é 漢 \udc80 </script>"
    sample = {
        "prompt": [{"role": "user", "content": text}],
        "completion": text,
        "rewards": {"a": np.float64(1), "b": float("nan")},
    }
    writer.write_samples(4, [{**sample, "tokens": np.arange(3), "length": np.int32(3)}])
    (row,) = read_rows(tmp_path / "samples.jsonl")
    assert list(row)[0] == "step" and row["step"] == 4
    assert row["completion"] == text and row["prompt"][0]["content"] == text
    assert row["rewards"] == {"a": 1.0, "b": None} and row["tokens"] == [0, 1, 2] and row["length"] == 3
    assert "漢" in (tmp_path / "samples.jsonl").read_text(), "readable with grep"


def test_inactive_writer_leaves_no_trace(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "run", active=False)
    writer.write(1, {"loss": 1.0})
    writer.write(1, {"loss": 1.0})
    writer.write_samples(1, [{"prompt": "p"}])
    writer.rewind(0)
    writer.close()
    assert list(tmp_path.iterdir()) == []


def _write_steps(workdir: Path, first: int, last: int) -> None:
    writer = MetricsWriter(workdir, tensorboard=False)
    writer.rewind(first - 1)
    for step in range(first, last + 1):
        writer.write_samples(step, [{"completion": f"{step}.{number}"} for number in range(2)])
        writer.write(step, {"loss": 1 / (step + 1)})
    writer.close()


def test_rewound_run_ends_with_the_files_of_an_uninterrupted_one(tmp_path: Path) -> None:
    _write_steps(tmp_path / "whole", 0, 9)
    _write_steps(tmp_path / "resumed", 0, 7)
    with open(tmp_path / "resumed/samples.jsonl", "a") as file:
        file.write('{"step": 8, "completion": "to')
    _write_steps(tmp_path / "resumed", 5, 9)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "resumed").glob("*.draft"))


def test_rewind_to_the_very_start(tmp_path: Path) -> None:
    _write_steps(tmp_path, 0, 3)
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.rewind(-1)
    assert read_rows(tmp_path / "metrics.jsonl") == read_rows(tmp_path / "samples.jsonl") == []
    writer.write(0, {"loss": 1.0})


@pytest.mark.parametrize(
    "tail", ['{"step": 2, "lo', '{"step": 2, "loss": 1.0}', "\x00\x00\x00", '{"step": 2, "loss": 0.' + "1" * 200_000]
)
def test_torn_last_line(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n' + tail)
    whole = tail.endswith("}")
    assert [row["step"] for row in read_rows(path)] == ([1, 2] if whole else [1])
    MetricsWriter(tmp_path, tensorboard=False).write(3, {"loss": 3.0})
    assert [row["step"] for row in read_rows(path)] == ([1, 2, 3] if whole else [1, 3])


def test_torn_only_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"st')
    MetricsWriter(tmp_path, tensorboard=False).write(0, {"loss": 3.0})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 3.0}]


@pytest.mark.parametrize("bad", ["nonsense", '{"loss": 1.0}', "[1, 2]"])
def test_malformed_line_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + bad + '\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2:"):
        read_rows(path)


def test_iterate_rows_gives_the_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\n{"step":2}\n')
    assert list(iterate_rows(tmp_path / "rows.jsonl")) == [
        (b'{"step": 1}\n', {"step": 1}),
        (b'{"step":2}\n', {"step": 2}),
    ]
    assert list(iterate_rows(tmp_path / "absent.jsonl")) == []


def test_killed_writer_leaves_whole_rows(tmp_path: Path) -> None:
    code = (
        "import itertools, sys\n"
        "from r1jax.core.metrics import MetricsWriter\n"
        "writer = MetricsWriter(sys.argv[1], tensorboard=False)\n"
        "for step in itertools.count():\n"
        "    writer.write(step, {'loss': 1.0})\n"
        "    if step == 50: print('ready', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    steps = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert steps == list(range(len(steps))) and len(steps) > 50


def _scalars(folder: Path) -> list[tuple[str, int, float]]:
    """All scalars of the event files, read with the record format itself: length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value.tag, event.step, round(value.simple_value, 6)) for value in event.summary.value]
            if event.session_log.status == 1:
                found.append(("purge", event.step, 0.0))
            at += 16 + size
    return found


def test_tensorboard_events(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"reward": step / 2, "loss": float("nan")})
    writer.rewind(1)
    writer.write(2, {"reward": 9.0})
    writer.close()
    expected = [("reward", 1, 0.5), ("reward", 2, 1.0), ("reward", 3, 1.5), ("purge", 2, 0.0), ("reward", 2, 9.0)]
    assert _scalars(tmp_path / "tensorboard") == expected


def test_wandb_gets_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    run = types.SimpleNamespace(
        log=lambda row, step: calls.append(("log", row, step)), finish=lambda: calls.append(("finish",))
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.append(("init", options["project"], options["dir"])) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with_wandb = MetricsWriter(tmp_path, tensorboard=False, wandb={"project": "r1"})
    with_wandb.write(1, {"reward": 1.0, "kl": float("nan")})
    with_wandb.close()
    assert calls == [("init", "r1", str(tmp_path)), ("log", {"reward": 1.0}, 1), ("finish",)]


def test_trackio_gets_each_row_under_the_workdirs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    run = types.SimpleNamespace(
        log=lambda row, step: calls.append((row, step)), finish=lambda: calls.append(("finish",))
    )
    fake = types.ModuleType("trackio")
    fake.init = lambda **options: calls.append(tuple(options.items())) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    writer = MetricsWriter(tmp_path / "zero", tensorboard=False, trackio={"project": "r1"})
    writer.write(1, {"reward": 1.0, "kl": float("nan")})
    writer.rewind(1)
    writer.write(2, {"reward": 2.0})
    opened = (("name", "zero"), ("resume", "allow"), ("project", "r1"))
    assert calls == [opened, ({"reward": 1.0}, 1), ("finish",), opened, ({"reward": 2.0}, 2)]


def test_missing_wandb_is_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log.wandb_project\) needs the package wandb: pip install -e '\.\[wandb\]'"):
        MetricsWriter(tmp_path, tensorboard=False, wandb={}).write(1, {"reward": 1.0})
    assert not any(tmp_path.iterdir()), "it is found before anything is written"
    MetricsWriter(tmp_path, tensorboard=False, active=False, wandb={}).write(1, {"reward": 1.0})


def test_rows_are_plain_json(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"flag": np.bool_(True), "zero_d": np.array(2.5)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "flag": 1, "zero_d": 2.5}
