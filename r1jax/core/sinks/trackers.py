"""Trackers of metrics as sinks: Weights & Biases, Trackio, MLflow. Each is a package in an extra of its name.

A run is one run of the tracker, however often it is started again: its id is in the workdir (`trackers.json`, by
tracker and project). A resumed run computes some steps again, with the same results; a tracker keeps the rows that it
has.

The packages are imported with the first row: they take seconds.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from r1jax.core.atomic_file import replace_file
from r1jax.core.extras import check_installed, require
from r1jax.core.sinks.sink import Numbers, Sink

IDS_FILE = "trackers.json"

Options = Mapping[str, Any]  # "project" and what else the package's start of a run takes


def check_tracker(name: str, key: str) -> None:
    """Raises UserError, with the line that installs it, if the package of a tracker is missing; does not import it.

    key: of the config, for the message.
    """
    check_installed(name, name, f"{TRACKERS[name]} ({key})")


def open_tracker(name: str, workdir: pathlib.Path, options: Options) -> Sink:
    """The sink of a tracker of TRACKERS for the run in `workdir`."""
    return _SINKS[name](workdir, dict(options))


class _Tracker:
    """Common part: opens the run with its first row, and leaves out rows that the tracker has from before a restart."""

    name = ""

    def __init__(self, workdir: pathlib.Path, options: dict[str, Any]):
        self.workdir, self.options = workdir, options
        self.run: Any = None
        self.last = -1  # the last step that the tracker has

    def write(self, step: int, numbers: Numbers) -> None:
        """Logs the row."""
        if step <= self.last:
            return
        if self.run is None:
            self.run = self.open(require(self.name, self.name, TRACKERS[self.name]))
        self.log(step, numbers)
        self.last = step

    def rewind(self, step: int, last: int) -> None:
        """Rows up to `last` stay as they are."""
        self.last = max(step, last)

    def close(self) -> None:
        """Ends this part of the run."""
        if self.run is not None:
            self.finish()
            self.run = None

    def open(self, package: Any) -> Any:
        """The tracker's run, begun or gone on with."""
        raise NotImplementedError

    def log(self, step: int, numbers: Numbers) -> None:
        """One row."""
        self.run.log(dict(numbers), step=step)

    def finish(self) -> None:
        """The end of the run, or of its part until the next start."""
        self.run.finish()

    def find_id(self, make: Callable[[], str]) -> tuple[str, bool]:
        """The run's id for the project, and whether it is new: made, and kept in the workdir."""
        file, project = self.workdir / IDS_FILE, str(self.options.get("project", ""))
        ids = _read_mapping(file)
        own = found if isinstance(found := ids.get(self.name), dict) else {}
        if isinstance(own.get(project), str):
            return own[project], False
        made = make()
        replace_file(file, json.dumps({**ids, self.name: {**own, project: made}}, indent=1) + "\n")
        return made, True


def _read_mapping(file: pathlib.Path) -> dict[str, Any]:
    """The object of a JSON file; {} if there is none, or it is garbage, which a new id replaces."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class WandB(_Tracker):
    """Weights & Biases, by `wandb.init`. It ignores rows of steps that it already has by itself."""

    name = "wandb"

    def rewind(self, step: int, last: int) -> None:
        """Rows that were lost on their way when the run was killed are sent again."""
        self.last = -1

    def open(self, package: Any) -> Any:
        """A run with an id of ours."""
        own, _ = self.find_id(
            lambda: f"{re.sub(r'[^A-Za-z0-9_-]', '-', self.workdir.name)[:40]}-{secrets.token_hex(4)}"
        )
        given = {"dir": str(self.workdir), "name": self.workdir.resolve().name, "id": own, "resume": "allow"}
        return package.init(**{**given, **self.options})


class Trackio(_Tracker):
    """Trackio, by `trackio.init`; it knows a run by its name, which is the workdir's."""

    name = "trackio"

    def open(self, package: Any) -> Any:
        """The run of the workdir's name."""
        return package.init(**{"name": self.workdir.resolve().name, "resume": "allow", **self.options})


class MLflow(_Tracker):
    """MLflow, by its client; the project is its experiment. Without MLFLOW_TRACKING_URI the store is
    `WORKDIR/mlflow.db`. Names take no `@` there: `pass@1` is `pass_at_1`.
    """

    name = "mlflow"

    def open(self, package: Any) -> Any:
        """The client; the run is found by its id, or created."""
        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(self.workdir / 'mlflow.db').resolve()}"
        client = package.MlflowClient(tracking_uri=store)
        project = self.options["project"]

        def create() -> str:
            experiment = client.get_experiment_by_name(project)
            number = client.create_experiment(project) if experiment is None else experiment.experiment_id
            return str(client.create_run(number, run_name=self.workdir.resolve().name).info.run_id)

        self.id, new = self.find_id(create)
        if not new:
            client.update_run(self.id, status="RUNNING")
        return client

    def log(self, step: int, numbers: Numbers) -> None:
        """One row, as metrics of one time."""
        from mlflow.entities import Metric  # type: ignore[import-not-found,unused-ignore]

        now = int(1000 * time.time())
        named = {re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_")): value for name, value in numbers.items()}
        self.run.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in named.items()])

    def finish(self) -> None:
        """The run counts as finished until it goes on."""
        self.run.set_terminated(self.id)


TRACKERS = {"wandb": "Weights & Biases", "trackio": "Trackio", "mlflow": "MLflow"}  # package, and extra -> its name
_SINKS: dict[str, Callable[[pathlib.Path, dict[str, Any]], Sink]] = {
    sink.name: sink for sink in (WandB, Trackio, MLflow)
}
