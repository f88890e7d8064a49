"""Trackers by stand-ins of their packages: one run over restarts, by an id in the workdir, and no row twice."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.metrics import MetricsWriter
from r1jax.core.sinks.trackers import IDS_FILE


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of stand-ins for all packages."""
    calls: list[tuple[Any, ...]] = []
    for name in ("wandb", "trackio"):
        run = types.SimpleNamespace(
            log=lambda row, step, name=name: calls.append((name, step, row)),
            finish=lambda name=name: calls.append((name, "finish")),
        )
        package: Any = types.ModuleType(name)
        package.init = lambda name=name, run=run, **options: calls.append((name, "init", options)) or run
        monkeypatch.setitem(sys.modules, name, package)

    class Client:
        def __init__(self, tracking_uri: str):
            calls.append(("mlflow", "store", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return f"experiment {name}"

        def create_run(self, experiment: str, run_name: str) -> Any:
            calls.append(("mlflow", "create", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))

        def update_run(self, number: str, status: str) -> None:
            calls.append(("mlflow", number, status))

        def log_batch(self, number: str, metrics: list[Any]) -> None:
            calls.append(("mlflow", metrics[0][3], {name: value for name, value, *_ in metrics}))

        def set_terminated(self, number: str) -> None:
            calls.append(("mlflow", "finish"))

    mlflow: Any = types.ModuleType("mlflow")
    mlflow.MlflowClient = Client
    entities: Any = types.ModuleType("mlflow.entities")
    entities.Metric = lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return calls


def start(workdir: Path, first: int, last: int, *names: str) -> None:
    """A start of a run that resumes before step `first`."""
    writer = MetricsWriter(workdir, tensorboard=False, **{name: {"project": "r1"} for name in names})
    writer.rewind(first - 1)
    for step in range(first, last + 1):
        writer.write(step, {"eval/x/pass@1": step / 2})
    writer.close()


def test_wandb_goes_on_in_one_run(calls: list, tmp_path: Path) -> None:
    for first, last in ((0, 2), (2, 3), (4, 5)):
        start(tmp_path / "zero", first, last, "wandb")
    opened = [options for name, what, *rest in calls if what == "init" for options in rest]
    (own,) = {options["id"] for options in opened}
    assert len(opened) == 3 and own.startswith("zero-") and {options["resume"] for options in opened} == {"allow"}
    assert json.loads((tmp_path / "zero" / IDS_FILE).read_text()) == {"wandb": {"r1": own}}
    start(tmp_path / "other", 0, 0, "wandb")
    assert calls[-3][2]["id"] != own


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_a_step_that_is_computed_again_is_not_sent_again(name: str, calls: list, tmp_path: Path) -> None:
    for first, last in ((0, 3), (2, 4)):
        start(tmp_path / "zero", first, last, name)
    assert [call[1] for call in calls if isinstance(call[1], int)] == [0, 1, 2, 3, 4]


def test_mlflow_goes_on_in_one_run_with_names_that_it_takes(calls: list, tmp_path: Path) -> None:
    start(tmp_path / "zero", 0, 0, "mlflow")
    start(tmp_path / "zero", 1, 1, "mlflow")
    store = ("mlflow", "store", f"sqlite:///{tmp_path / 'zero' / 'mlflow.db'}")
    row = lambda step: ("mlflow", step, {"eval/x/pass_at_1": step / 2})
    assert calls == [
        store,
        ("mlflow", "create", "experiment r1", "zero"),
        row(0),
        ("mlflow", "finish"),
        store,
        ("mlflow", "m1", "RUNNING"),
        row(1),
        ("mlflow", "finish"),
    ]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"wandb": 3}', '{"wandb": {"r1": null}}', '{"mlflow": {"a": "b"}}'])
def test_ids_that_are_garbage_are_made_anew(text: str, calls: list, tmp_path: Path) -> None:
    (tmp_path / IDS_FILE).write_text(text)
    start(tmp_path, 0, 0, "wandb")
    ids = json.loads((tmp_path / IDS_FILE).read_text())
    assert ids["wandb"]["r1"] == calls[0][2]["id"]
    assert ids.get("mlflow") == ({"a": "b"} if "mlflow" in text else None)
