"""The loop around a stage that only counts: what is on disk after each way to stop, and after starting again."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.checkpoint import newest_checkpoint
from r1jax.core.checksums import has_checksums
from r1jax.core.errors import PREEMPTED, DivergedError, PreemptedError, UserError
from r1jax.core.locks import hold_lock
from r1jax.core.metrics import MetricsWriter, read_rows
from r1jax.runs.loop import Loop
from r1jax.runs.model_setup import CheckpointConfig, LogConfig

STEPS = 6


@dataclasses.dataclass(frozen=True)
class Settings:
    stage: str = "count"
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    params: Any
    updates: jax.Array


class Counter:
    """A stage whose parameters and data position are the number of its step; `on_step(step, state)` may interfere."""

    def __init__(
        self, on_step: Callable[[int], None] = lambda step: None, on_evaluate: Callable[[], None] = lambda: None
    ):
        self.state = State({"embed": jnp.zeros((4, 2))}, jnp.int32(0))
        self.position, self.on_step, self.on_evaluate = 0, on_step, on_evaluate
        self._add = jax.jit(
            lambda state: State({"embed": state.params["embed"] + 1}, state.updates + 1), donate_argnums=0
        )

    def step(self, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        assert step == self.position + 1 == int(self.state.updates) + 1
        self.position += 1
        self.on_step(step)
        self.state = self._add(self.state)
        return {"loss": float(step)}, [{"prompt": "p", "completion": f"c{step}"}]

    def evaluate(self) -> dict[str, Any]:
        self.on_evaluate()
        return {"eval/x/pass@1": float(self.state.updates)}

    def abstract_state(self) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state)

    def metadata(self) -> dict[str, Any]:
        return {"position": self.position}

    def resume(self, metadata: dict[str, Any]) -> None:
        assert set(metadata) == {"position"}
        self.position = metadata["position"]


def run(
    workdir: Path, stage: Counter | None = None, *, steps: int = STEPS, seed: int = 0, **checkpoint: Any
) -> Counter:
    stage = stage or Counter()
    options = CheckpointConfig(**{"every_steps": 2, **checkpoint})
    log = LogConfig(tensorboard=False, show_every_steps=0)
    Loop(Settings(seed=seed), workdir, steps, 3, options, log).run(stage)
    return stage


def read_record(workdir: Path) -> tuple[Any, ...]:
    return read_rows(workdir / "metrics.jsonl"), read_rows(workdir / "samples.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(workdir)
    return read_record(workdir)


def assert_whole(workdir: Path, stage: Counter, whole: tuple[Any, ...]) -> None:
    assert read_record(workdir) == whole
    assert [row["step"] for row in whole[0]] == list(range(STEPS + 1))
    assert (np.asarray(stage.state.params["embed"]) == STEPS).all()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "6"]


class BrokenError(Exception):
    pass


def break_at(step: int) -> Callable[[int], None]:
    def on_step(now: int) -> None:
        if now == step:
            raise BrokenError

    return on_step


def test_a_step_that_raises_is_preceded_by_a_save(
    tmp_path: Path, whole: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BrokenError):
        run(tmp_path / "run", Counter(break_at(4)), every_steps=0)
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "3"
    assert "step 3 was saved before the error below ended the run" in caplog.text
    assert_whole(tmp_path / "run", run(tmp_path / "run"), whole)


def test_a_state_that_was_given_up_or_changed_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = Counter()

    def give_up(step: int) -> None:
        if step == 4:
            stage._add(stage.state)
            raise BrokenError

    stage.on_step = give_up
    with pytest.raises(BrokenError):
        run(tmp_path / "run", stage)
    assert "step 3 could not be saved; step 2 is the newest checkpoint" in caplog.text
    stage = Counter()

    def change(step: int) -> None:
        if step == 5:
            stage.state = stage._add(stage.state)
            raise BrokenError

    stage.on_step = change
    with pytest.raises(BrokenError):
        run(tmp_path / "run", stage, every_steps=0)
    assert "step 4 could not be saved; step 2 is the newest checkpoint" in caplog.text


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, PreemptedError), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_in_a_step_saves_at_its_end(tmp_path: Path, whole: tuple, number: int, error: type) -> None:
    with pytest.raises(error) as caught:
        run(tmp_path / "run", Counter(lambda step: os.kill(os.getpid(), number) if step == 3 else None), every_steps=0)
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "3"
    if error is PreemptedError:
        assert caught.value.code == PREEMPTED and "step 3 of 6 is saved" in str(caught.value)
    assert_whole(tmp_path / "run", run(tmp_path / "run"), whole)


def test_a_signal_with_nothing_to_lose_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(PreemptedError, match="no step is unsaved"):
        run(tmp_path / "run", Counter(on_evaluate=lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert newest_checkpoint(tmp_path / "run") is None


@pytest.mark.parametrize("evaluation", [2, 3])  # of step 3 and of step 6, which is the last
@pytest.mark.parametrize("by_signal", [False, True])
def test_an_evaluation_that_dies_loses_no_training(
    tmp_path: Path, whole: tuple, evaluation: int, by_signal: bool
) -> None:
    """The checkpoint is written while the evaluation runs: it is waited for."""
    count = 0

    def die() -> None:
        nonlocal count
        count += 1
        if count == evaluation:
            if by_signal:
                os.kill(os.getpid(), signal.SIGTERM)
            raise BrokenError

    with pytest.raises(PreemptedError if by_signal else BrokenError):
        run(tmp_path / "run", Counter(on_evaluate=die), every_steps=3)
    step = 3 * (evaluation - 1)
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / str(step)
    assert has_checksums(tmp_path / "run" / "checkpoints" / str(step))
    stage = run(tmp_path / "run", every_steps=2)
    assert read_record(tmp_path / "run") == whole and int(stage.state.updates) == STEPS


def test_a_step_that_is_saved_because_its_evaluation_dies_keeps_its_row(tmp_path: Path, whole: tuple) -> None:
    """No save is due at step 3: that of the error is the only one."""
    stage = Counter()

    def die() -> None:
        if stage.position == 3:
            raise BrokenError

    stage.on_evaluate = die
    with pytest.raises(BrokenError):
        run(tmp_path / "run", stage, every_steps=0)
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "3"
    run(tmp_path / "run")
    assert read_record(tmp_path / "run") == whole


def test_a_row_that_cannot_be_written_is_made_up_for(
    tmp_path: Path, whole: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step without an evaluation, which the restart must not add."""
    with monkeypatch.context() as patched, pytest.raises(BrokenError):
        write = MetricsWriter.write
        patched.setattr(MetricsWriter, "write", lambda self, step, row: break_at(4)(step) or write(self, step, row))
        run(tmp_path / "run", every_steps=0)
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "4"
    run(tmp_path / "run")
    assert read_record(tmp_path / "run") == whole


def test_minutes_are_told_by_the_clock(tmp_path: Path) -> None:
    stage = Counter(break_at(6))
    stage.metadata = lambda: {"position": stage.position}  # type: ignore[method-assign]
    with pytest.raises(BrokenError):
        run(tmp_path / "run", stage, every_steps=0, every_minutes=1e-9)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["4", "5"]


def test_records_without_a_checkpoint_are_set_aside(
    tmp_path: Path, whole: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    for number, seed in ((1, 0), (2, 5)):  # the same config, then another
        with pytest.raises(BrokenError):
            run(tmp_path / "run", Counter(break_at(1)), seed=seed)
        rows = read_record(tmp_path / "run")
        assert rows[0] == [{"step": 0, "eval/x/pass@1": 0.0}]
        stage = run(tmp_path / "run", steps=STEPS)
        assert f"moved to {tmp_path / 'run'}.earlier-{number}" in caplog.text
        assert read_record(tmp_path / f"run.earlier-{number}") == rows
        assert json.loads((tmp_path / f"run.earlier-{number}" / "config.json").read_text())["seed"] == seed
        assert_whole(tmp_path / "run", stage, whole)
        shutil.rmtree(tmp_path / "run")


def test_two_runs_do_not_share_a_workdir(tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path / "run" / ".lock", "it"),
        pytest.raises(UserError, match=r"--workdir=\S+ is in use by process"),
    ):
        run(tmp_path / "run")


def damage_bytes(step: Path) -> None:
    file = max((path for path in step.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_bytes(bytes(byte ^ 0xFF for byte in file.read_bytes()))


def damage_size(step: Path) -> None:
    file = next(path for path in step.rglob("d/*") if path.is_file())
    file.write_bytes(file.read_bytes()[:-1])


def lose(name: str) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        path = step / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    damage.__name__ = f"lose_{name.replace('/', '_')}"
    return damage


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = (damage_bytes, damage_size, empty, *map(lose, ("facts", "state", "state/_METADATA", "state/manifest.ocdbt")))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, whole: tuple, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    workdir = tmp_path / "run"
    run(workdir)
    damage(workdir / "checkpoints" / "6")
    assert newest_checkpoint(workdir) == workdir / "checkpoints" / "4"
    stage = run(workdir)
    assert "the checkpoint of step 6 is damaged" in caplog.text
    assert [path.name for path in (workdir / "checkpoints.damaged").iterdir()] == ["6"]
    assert_whole(workdir, stage, whole)


def test_without_a_whole_checkpoint_there_is_one_clear_error(tmp_path: Path) -> None:
    run(tmp_path / "run")
    for step in (4, 6):
        damage_size(tmp_path / "run" / "checkpoints" / str(step))
    with pytest.raises(UserError, match="none of the 2 checkpoints is whole"):
        newest_checkpoint(tmp_path / "run")
    with pytest.raises(UserError, match="no whole checkpoint is left in .*: 2 damaged ones are in"):
        run(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints.damaged").iterdir()) == ["4", "6"]


def test_fewer_than_two_checkpoints_are_refused() -> None:
    with pytest.raises(UserError, match=r"config\.checkpoint\.keep must be at least 2, .*, got 0"):
        CheckpointConfig(keep=0)
    with pytest.raises(UserError, match=r"config\.checkpoint\.every_steps must be 0 \(off\) or more, got -1"):
        CheckpointConfig(every_steps=-1)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """They are found when the next save is due; the run ends, and the finite checkpoint before it is the newest."""
    stage = Counter()

    def spoil(step: int) -> None:
        if step == 3:
            stage.state.params["embed"] = jnp.full((4, 2), jnp.inf)

    stage.on_step = spoil
    with pytest.raises(DivergedError, match="not finite after step 4, which is not saved; step 2 is the newest"):
        run(tmp_path / "run", stage)
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.name == "2"
    assert int(run(tmp_path / "run").state.params["embed"][0, 0]) == STEPS
