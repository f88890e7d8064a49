"""The loop around the steps of a training stage: resume, evaluate, write, save, in one order for all stages.

A checkpoint holds the stage's state and the metadata from which it goes on; everything written after it is taken back,
so a resumed run leaves what an uninterrupted one leaves. A run is evaluated before, every N steps, and after.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from typing import Any, Protocol

from ml_collections import ConfigDict

from r1jax.core import console, distributed
from r1jax.core.checkpoint import Checkpoints
from r1jax.core.metrics import MetricsWriter
from r1jax.eval.report import write_report
from r1jax.runs.model_setup import CheckpointConfig, LogConfig, is_due
from r1jax.runs.workdir import check_config, write_config
from r1jax.weights.restore import restore_state

_log = logging.getLogger(__name__)

Row = dict[str, Any]


class Stage(Protocol):
    """What a stage gives the loop. `state` is a pytree of arrays, all that training changes."""

    state: Any

    def step(self, step: int) -> tuple[Row, list[Row]]:
        """Takes step number `step` (from 1): its metrics and its rows of samples.jsonl."""

    def evaluate(self) -> Row:
        """Held-out metrics of the present state; {} where nothing is held out."""

    def abstract_state(self) -> Any:
        """Shapes with shardings of the state, to restore it into."""

    def metadata(self) -> Row:
        """Plain numbers to save beside the state: the position in the data and what has been counted."""

    def resume(self, metadata: Row) -> None:
        """Goes on from a checkpoint's metadata; `state` is restored already."""


@dataclasses.dataclass
class Loop:
    """All steps of a run: `steps` is the last one, `eval_every` the steps between evaluations (0: none between)."""

    config: ConfigDict
    workdir: pathlib.Path
    steps: int
    eval_every: int
    checkpoint: CheckpointConfig
    log: LogConfig

    def run(self, stage: Stage) -> None:
        """From where the workdir stands to the last step; then the report page."""
        checkpoints = Checkpoints(self.workdir, keep=self.checkpoint.keep)
        start = checkpoints.latest
        if start is not None:
            check_config(self.config, self.workdir)
            stage.state, metadata = restore_state(checkpoints, start, stage.abstract_state())
            stage.resume(metadata)
            if start >= self.steps:
                _log.info("%s is finished: it holds step %d of %d, nothing is left", self.workdir, start, self.steps)
            else:
                _log.info("resuming %s from step %d of %d", self.workdir, start, self.steps)
        writer = self._open_writer(start)
        if start is None and (before := stage.evaluate()):
            writer.write(0, before)
        with console.Progress(self.steps, start=start or 0, title="step") as progress:
            for step in range((start or 0) + 1, self.steps + 1):
                metrics, samples = stage.step(step)
                if is_due(step, self.eval_every, self.steps):
                    metrics |= stage.evaluate()
                self._write(writer, step, metrics, samples)
                progress.update(step, metrics)
                if samples and self.log.show_every_steps and step % self.log.show_every_steps == 0:
                    console.show_samples(samples, limit=3)
                if is_due(step, self.checkpoint.every_steps, self.steps):
                    checkpoints.save(step, stage.state, stage.metadata())
        checkpoints.close()
        writer.close()
        if distributed.is_writer():
            _log.info("report: %s", write_report(self.workdir))

    def _open_writer(self, step: int | None) -> MetricsWriter:
        """The writer, with everything after the checkpoint of `step` taken back (None: everything)."""
        writer = MetricsWriter(
            self.workdir,
            active=distributed.is_writer(),
            tensorboard=self.log.tensorboard,
            wandb={"project": self.log.wandb_project} if self.log.wandb_project else None,
        )
        writer.rewind(-1 if step is None else step)
        if distributed.is_writer():
            write_config(self.config, self.workdir)
        return writer

    def _write(self, writer: MetricsWriter, step: int, metrics: Row, samples: list[Row]) -> None:
        writer.write(step, metrics)
        kept = self.log.samples_per_step
        writer.write_samples(step, samples if kept < 0 else samples[:kept])
