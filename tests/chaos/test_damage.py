"""Kinds of damage to checkpoints and workdirs: each is named, and the run ends with the bits of an undamaged one from
the checkpoint before, or there is one clear error and nothing is lost.

The stage only counts (tests/runs/test_loop.py), which costs no time: what is damaged belongs to the loop around it.
R1JAX_TEST_DAMAGE=sft or =grpo does the same to a run of that stage.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from tests.runs.test_loop import Counter, run
from tests.stages import runs
from tests.stages.runs import CONFIG, assert_same_run, untimed

pytestmark = pytest.mark.slow

STEPS = 8
STAGE = os.environ.get("R1JAX_TEST_DAMAGE", "count")
Damage = Callable[[pathlib.Path], None]


def train(workdir: pathlib.Path, model: pathlib.Path, *, seed: int = 0, other: bool = False) -> None:
    """Runs the command's part in this process. other: another optimizer, so that the state has other arrays."""
    if STAGE == "count":
        stage = Counter()
        if other:
            stage.state = dataclasses.replace(stage.state, params={"embed": jnp.zeros((4, 3))})
        run(workdir, stage, steps=STEPS, seed=seed, every_steps=2, keep=3)
    else:
        changes = {"steps": STEPS, "checkpoint__every_steps": 2, "checkpoint__keep": 3, "log__tensorboard": "false"}
        changes |= {"seed": seed} | ({"lora__rank": 2} if other else {})
        runs.train(workdir, model, config=CONFIG.with_name(f"tiny_{STAGE}.py"), **changes)


@pytest.fixture(scope="module")
def whole(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run with the checkpoints of steps 4, 6 and 8."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(workdir, tiny_model)
    return workdir


@pytest.fixture
def killed(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the run, as a kill after step 7 would have left it."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "8")
    edit_rows(workdir / "metrics.jsonl", lambda lines: lines[:-1])
    edit_rows(workdir / "samples.jsonl", lambda lines: [line for line in lines if json.loads(line)["step"] < 8])
    return workdir


def edit_rows(file: pathlib.Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    file.write_bytes(b"".join(edit(file.read_bytes().splitlines(keepends=True))))


def newest(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "checkpoints" / "6"


def arrays(workdir: pathlib.Path) -> pathlib.Path:
    """The largest file of the newest checkpoint."""
    return max((newest(workdir) / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


def lose(path: pathlib.Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    """Flips every bit of 64 bytes in the middle."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    path.write_bytes(data)


def bar(path: pathlib.Path) -> None:
    """Makes a path unreadable, to root too: a link to itself."""
    if path.exists():
        lose(path)
    path.symlink_to(path)


def write_garbage(path: pathlib.Path) -> None:
    path.write_bytes(bytes(range(128, 256)) * 8)


def empty(path: pathlib.Path) -> None:
    lose(path)
    path.mkdir()


def copy_step(workdir: pathlib.Path, name: str) -> None:
    shutil.copytree(newest(workdir), newest(workdir).with_name(name))


def write_lease(workdir: pathlib.Path, **changes: Any) -> None:
    lease = {"host": socket.gethostname(), "process": 2**22 - 3, "time": time.time() - 10} | changes
    (workdir / ".lock").write_text(json.dumps(lease))


def change_version(workdir: pathlib.Path) -> None:
    """A checkpoint of a later version of orbax's format."""
    file = newest(workdir) / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('"version"', '"former"') + "x")


# Each: the damage, and words of the log. The newest checkpoint is set aside and the one before used; same bits.
CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    "an array file cut": (lambda run: cut(arrays(run)), "bytes instead of"),
    "64 bytes flipped": (lambda run: flip(arrays(run)), "has a wrong checksum"),
    "an array file lost": (lambda run: lose(arrays(run)), "is missing"),
    "an array file unreadable": (lambda run: bar(arrays(run)), "is missing"),
    "the manifest lost": (lambda run: lose(newest(run) / "state/manifest.ocdbt"), "state/manifest.ocdbt is missing"),
    "the shapes lost": (lambda run: lose(newest(run) / "state/_METADATA"), "state/_METADATA is missing"),
    "the state lost": (lambda run: lose(newest(run) / "state"), "is missing"),
    "the facts lost": (lambda run: lose(newest(run) / "facts"), "facts/data.json is missing"),
    "the facts garbage": (lambda run: write_garbage(newest(run) / "facts/data.json"), "facts/data.json cannot be read"),
    "the facts cut, without checksums": (
        lambda run: (cut(newest(run) / "facts/data.json"), lose(newest(run) / "checksums.0.json")),
        "facts/data.json cannot be read",
    ),
    "the checksums garbage": (lambda run: write_garbage(newest(run) / "checksums.0.json"), "checksums.0.json cannot"),
    "the format's version wrong": (change_version, "_CHECKPOINT_METADATA has"),
    "an empty step": (lambda run: empty(newest(run)), "state/_METADATA is missing"),
    "renamed to a later step": (
        lambda run: newest(run).rename(newest(run).with_name("7")),
        "it has the state of step 6",
    ),
    "copied to a later step": (lambda run: copy_step(run, "7"), "it has the state of step 6"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_damaged_checkpoint_is_set_aside(
    kind: str, killed: pathlib.Path, whole: pathlib.Path, tiny_model: pathlib.Path, caplog: Any
) -> None:
    damage, words = CHECKPOINTS[kind]
    damage(killed)
    with caplog.at_level("INFO"):
        train(killed, tiny_model)
    step = 6 if kind == "copied to a later step" else 4
    assert words in caplog.text and f"from step {step} of 8" in caplog.text
    assert [path.name for path in (killed / "checkpoints.damaged").iterdir()] == ["7" if "later" in kind else "6"]
    assert_same_run(killed, whole)


# Each: the damage, and words of the log ("": none are needed). The newest checkpoint is used; the bits are the same.
HARMLESS: dict[str, tuple[Damage, str]] = {
    "nothing": (lambda run: None, ""),
    "the checksums lost": (lambda run: lose(newest(run) / "checksums.0.json"), ""),
    "half a checkpoint": (lambda run: copy_step(run, "8.orbax-checkpoint-tmp"), ""),
    "half a checkpoint, cut": (
        lambda run: (copy_step(run, "8.orbax-checkpoint-tmp"), lose(run / "checkpoints/8.orbax-checkpoint-tmp/state")),
        "",
    ),
    "the lock of a dead process": (lambda run: write_lease(run), "which no longer runs"),
    "a lock that is garbage": (lambda run: write_garbage(run / ".lock"), ""),
    "an old lock of another host": (lambda run: write_lease(run, host="elsewhere", time=1.0), "which no longer runs"),
    "a lock of odd values": (lambda run: write_lease(run, host=7, time="then"), ""),
    "a torn last row": (lambda run: edit_rows(run / "metrics.jsonl", lambda lines: [*lines[:-1], lines[-1][:9]]), ""),
    "zeros after the last row": (lambda run: edit_rows(run / "metrics.jsonl", lambda lines: [*lines, bytes(512)]), ""),
    "a row beyond the checkpoint": (
        lambda run: edit_rows(run / "metrics.jsonl", lambda lines: [*lines, b'{"step": 9, "loss": 1.0}\n']),
        "",
    ),
    "the config lost": (lambda run: lose(run / "config.json"), "config.json is missing"),
    "the config garbage": (lambda run: write_garbage(run / "config.json"), "config.json is torn"),
    "the report lost": (lambda run: lose(run / "report.html"), ""),
    "folders that are no steps": (
        lambda run: [(run / "checkpoints" / name).mkdir() for name in ("six", "6.bak", "6 (copy)", "-7", "7²", "²")],
        "",
    ),
    "a torn last sample": (
        lambda run: edit_rows(run / "samples.jsonl", lambda lines: [*lines, lines[-1].replace(b"7", b"8")[:9]]),
        "",
    ),
    "a file that is no step": (lambda run: (run / "checkpoints/notes.txt").write_text("best: 6"), ""),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_does_no_harm_is_mended(
    kind: str, killed: pathlib.Path, whole: pathlib.Path, tiny_model: pathlib.Path, caplog: Any
) -> None:
    damage, words = HARMLESS[kind]
    damage(killed)
    with caplog.at_level("INFO"):
        train(killed, tiny_model)
    assert words in caplog.text and "from step 6 of 8" in caplog.text
    assert not (killed / "checkpoints.damaged").exists() and not list(killed.parent.glob("run.earlier-*"))
    assert (killed / "report.html").exists()
    assert_same_run(killed, whole)


def drop_steps(*steps: int) -> Damage:
    return lambda run: edit_rows(
        run / "metrics.jsonl", lambda lines: [line for line in lines if json.loads(line)["step"] not in steps]
    )


# Rows from before the checkpoint cannot be made again: the log says which, and training goes on.
INCOMPLETE: dict[str, tuple[Damage, str, set[int]]] = {
    "a hole": (drop_steps(2, 3), "metrics.jsonl has lost rows (steps 2, 3) since step 6 was saved", {2, 3}),
    "the first rows": (drop_steps(0, 1), "metrics.jsonl has lost rows (steps 1) since step 6 was saved", {0, 1}),
    "the samples lost": (lambda run: lose(run / "samples.jsonl"), "samples.jsonl has lost rows since step 6", set()),
    "all rows lost": (lambda run: lose(run / "metrics.jsonl"), "has lost rows (steps 1, 2, 3, 4, 5", set(range(7))),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_rows_that_are_lost_are_said(
    kind: str, killed: pathlib.Path, whole: pathlib.Path, tiny_model: pathlib.Path, caplog: Any
) -> None:
    damage, words, lost = INCOMPLETE[kind]
    damage(killed)
    train(killed, tiny_model)
    assert words in caplog.text
    rows, expected = (untimed(read_rows(workdir / "metrics.jsonl")) for workdir in (killed, whole))
    steps = [row["step"] for row in rows]
    assert rows == [row for row in expected if row["step"] in steps]
    assert set(range(STEPS + 1)) - set(steps) in (lost, lost - {6})  # that of step 6 may be in the checkpoint
    for name in ("metrics.jsonl", "samples.jsonl"):
        shutil.copy(whole / name, killed / name)
    assert_same_run(killed, whole)  # all but the rows


def set_row(text: str) -> Damage:
    return lambda run: edit_rows(run / "metrics.jsonl", lambda lines: [*lines[:3], text.encode() + b"\n", *lines[4:]])


def replace_by_file(path: pathlib.Path) -> None:
    lose(path)
    path.write_text("not a folder")


def damage_all(run: pathlib.Path) -> None:
    for step in (4, 6):
        cut(run / "checkpoints" / str(step) / "facts/data.json")


# Each: the damage, changes of the config, and the error. The workdir stays as it is.
REFUSED: dict[str, tuple[Damage, dict[str, Any], str]] = {
    "a row that is garbage": (set_row("\x00garbage"), {}, r"metrics\.jsonl:4: a line must be one JSON object"),
    "a row that is a list": (set_row("[1]"), {}, r"metrics\.jsonl:4: a line must be one JSON object"),
    "a row without a step": (set_row('{"loss": 1.0}'), {}, r"metrics\.jsonl:4: a line must be one JSON object"),
    "a row of a step that is text": (set_row('{"step": "3"}'), {}, r"metrics\.jsonl:4: a line must be one JSON object"),
    "the metrics unreadable": (lambda run: bar(run / "metrics.jsonl"), {}, r"metrics\.jsonl: .*--workdir"),
    "the metrics a folder": (lambda run: empty(run / "metrics.jsonl"), {}, r"metrics\.jsonl: .*--workdir"),
    "the config unreadable": (lambda run: bar(run / "config.json"), {}, r"config\.json: .*--workdir"),
    "the config a list": (lambda run: (run / "config.json").write_text("[]"), {}, "a config must be a JSON object"),
    "the config of another run": (lambda run: None, {"seed": 1}, r"config\.seed = 0, this one has 1"),
    "another optimizer": (
        lambda run: lose(run / "config.json"),
        {"other": True},
        "the checkpoint of step 6 in .* does not fit this run .*--workdir",
    ),
    "a fresh lock of another host": (
        lambda run: write_lease(run, host="elsewhere", time=time.time()),
        {},
        "is in use by process .* on elsewhere",
    ),
    "the checkpoints a file": (
        lambda run: replace_by_file(run / "checkpoints"),
        {},
        "checkpoints must be the folder of .*, but it is a file",
    ),
    "the lock a folder": (lambda run: empty(run / ".lock"), {}, "--workdir=.* cannot be written"),
}


def list_contents(workdir: pathlib.Path) -> dict[str, Any]:
    """The content of every file but the lock; samples beyond the checkpoint, which are made again, are left out."""
    names = [path for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"]
    found: dict[str, Any] = {path.relative_to(workdir).as_posix(): path.read_bytes() for path in names}
    samples = found.get("samples.jsonl", b"").splitlines()
    return found | {"samples.jsonl": [line for line in samples if json.loads(line)["step"] <= 6]}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_go_on_is_one_error_and_nothing_is_lost(
    kind: str, killed: pathlib.Path, tiny_model: pathlib.Path
) -> None:
    damage, changes, words = REFUSED[kind]
    damage(killed)
    before = list_contents(killed)
    with pytest.raises(UserError, match=words) as caught:
        train(killed, tiny_model, **changes)
    assert "\n" not in str(caught.value)
    assert list_contents(killed) == before


def test_a_step_that_is_a_file_is_none(whole: pathlib.Path, killed: pathlib.Path, tiny_model: pathlib.Path) -> None:
    replace_by_file(newest(killed))
    train(killed, tiny_model)
    assert_same_run(killed, whole)


def test_the_two_newest_damaged_leave_the_third(
    whole: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = shutil.copytree(whole, tmp_path / "run")
    for step in (6, 8):
        cut(workdir / "checkpoints" / str(step) / "state/_METADATA")
    train(workdir, tiny_model)
    assert sorted(path.name for path in (workdir / "checkpoints.damaged").iterdir()) == ["6", "8"]
    assert_same_run(workdir, whole)


def test_all_damaged_is_one_error_that_keeps_them(killed: pathlib.Path, tiny_model: pathlib.Path) -> None:
    damage_all(killed)
    rows = (killed / "metrics.jsonl").read_bytes()
    for words in ("no whole checkpoint is left in .*: 2 damaged ones are in", "."):
        with pytest.raises(UserError, match=words):
            train(killed, tiny_model)
        assert sorted(path.name for path in (killed / "checkpoints.damaged").iterdir()) == ["4", "6"]
        assert (killed / "metrics.jsonl").read_bytes() == rows
