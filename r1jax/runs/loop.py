"""The training loop around a stage's steps: resume, evaluate, write and save, in one order for all stages.

A checkpoint contains the stage's state and the metadata to continue from; everything written after it is removed on
resume, so a resumed run ends with the same files as an uninterrupted one. A run is evaluated before training, every N
steps, and at the end.

A step with an evaluation is saved before the evaluation if a save is due. A step that is saved before its row is
written has the row in the checkpoint's metadata: a run that dies during the evaluation loses no training and no row.
Signals wait for the end of a step (core/interrupts.py), and if a step raises, the last finished step is saved if the
state is still that step's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

import jax

from r1jax.core import console, distributed
from r1jax.core.atomic_file import find_full_disk
from r1jax.core.buckets.staging import locate, push
from r1jax.core.checkpoint import Checkpoints
from r1jax.core.errors import DivergedError
from r1jax.core.interrupts import Interrupts
from r1jax.core.locks import hold_lock
from r1jax.core.metrics import METRICS_FILE, MetricsWriter, Row, read_rows
from r1jax.core.startup import voice
from r1jax.core.startup.heap import give_back
from r1jax.core.watchdog import Watchdog, beat
from r1jax.eval.report import write_report
from r1jax.learner.step import measure_norm
from r1jax.runs import hosts
from r1jax.runs.first_step import START
from r1jax.runs.model_setup import CheckpointConfig, LogConfig, is_due
from r1jax.runs.process_metrics import measure_processes
from r1jax.runs.profile import ProfileConfig, Profiler
from r1jax.runs.workdir import (
    check_config,
    check_folders,
    compare_records,
    name_faults,
    set_aside,
    write_config,
)
from r1jax.weights.restore import restore_state

_log = logging.getLogger(__name__)


# In a checkpoint's metadata: the metrics of a step saved before its row was written, and the bytes of the records.
PENDING, RECORDS = "pending_row", "records"


class Stage(Protocol):
    """The interface of a stage to the loop. `state` is a pytree of arrays: everything that training changes."""

    state: Any

    def step(self, step: int) -> tuple[Row, list[Row]]:
        """Runs step number `step` (from 1); returns its metrics and its rows of samples.jsonl."""

    def evaluate(self) -> Row:
        """Held-out metrics of the current state; {} without held-out data."""

    def abstract_state(self) -> Any:
        """Shapes with shardings of the state, to restore it into."""

    def metadata(self) -> Row:
        """Plain numbers to save beside the state: the data position and counters."""

    def resume(self, metadata: Row) -> None:
        """Continues from a checkpoint's metadata; `state` is already restored."""


@dataclasses.dataclass
class Loop:
    """All steps of a run: `steps` is the last one, `eval_every` the steps between evaluations (0: none between).

    settings: the run's settings, which are saved in config.json and must be equal on resume.
    """

    settings: Any
    workdir: pathlib.Path
    steps: int
    eval_every: int
    checkpoint: CheckpointConfig
    log: LogConfig
    watchdog_minutes: float = 0.0
    profile: ProfileConfig = ProfileConfig()

    def run(self, stage: Stage) -> None:
        """Runs from the workdir's current step to the last; then writes the report page.

        Raises UserError if the workdir is in use, belongs to another config, or has only damaged checkpoints;
        PreemptedError or KeyboardInterrupt, after saving, if a signal asked to stop.
        """
        lock = (
            hold_lock(self.workdir / ".lock", f"--workdir={locate(self.workdir)}") if distributed.is_writer() else None
        )
        watchdog = Watchdog(self.watchdog_minutes)
        with name_faults(self.workdir), lock or contextlib.nullcontext(), watchdog, Interrupts() as interrupts:
            checkpoints = Checkpoints(self.workdir, keep=self.checkpoint.keep)
            hosts.describe_alone()
            START.enter("restore")
            start, facts = self._restore(checkpoints, stage)
            START.enter("evaluate")
            writer = self._open_writer(start)
            saves = _Saves(self.workdir, checkpoints, stage, self.checkpoint, interrupts, writer, start or 0)
            if start is not None:
                if distributed.is_writer():
                    compare_records(self.workdir, start, facts.get(RECORDS, {}), pending=PENDING in facts)
                if PENDING in facts:
                    self._finish_row(writer, start, facts[PENDING], stage)
            if start is None and (before := stage.evaluate()):
                writer.write(0, before)
            START.enter("step")
            profiler = Profiler(self.profile, self.workdir, active=distributed.is_writer())
            bar = console.Progress(self.steps, start=start or 0, title="step")
            with bar as progress, saves.rescue(), contextlib.closing(profiler):
                for step in range((start or 0) + 1, self.steps + 1):
                    with profiler.step(step):
                        metrics, samples = stage.step(step)
                    metrics |= measure_processes(metrics)
                    if step == (start or 0) + 1:
                        _log.info(START.finish())
                    kept = self.log.samples_per_step
                    writer.write_samples(step, samples if kept < 0 else samples[:kept])
                    saves.note(step, dict(metrics))
                    due = saves.is_due(step, self.steps)
                    if is_due(step, self.eval_every, self.steps):
                        with saves.beside(step) if due else contextlib.nullcontext():
                            metrics |= stage.evaluate()
                        due = False
                    writer.write(step, metrics)
                    saves.row = None
                    progress.update(step, metrics)
                    voice.settle()
                    if samples and self.log.show_every_steps and step % self.log.show_every_steps == 0:
                        console.show_samples(samples, limit=3)
                    if due:
                        saves.save(step)
                    if interrupts.is_due(step) and step < self.steps:
                        saves.save(step)
                        checkpoints.close()
                        writer.close()
                        interrupts.stop(f"step {step} of {self.steps} is saved; the same command resumes from there")
            checkpoints.close()
            writer.close()
        if distributed.is_writer():
            report = write_report(self.workdir)
            push(self.workdir)
            _log.info("report: %s", locate(report))

    def _restore(self, checkpoints: Checkpoints, stage: Stage) -> tuple[int | None, Row]:
        """The restored step, and the loop's own part of its metadata; None for a fresh start."""
        check_folders(self.workdir)
        start = checkpoints.find_whole()
        if start is None:
            if distributed.is_writer():
                set_aside(self.workdir)
            distributed.wait("set aside")
            return None, {}
        check_config(self.settings, self.workdir)
        abstract = stage.abstract_state()
        for leaf in jax.tree.leaves(stage.state):  # the initial state makes room for the restored one
            leaf.delete()
        stage.state, metadata = restore_state(checkpoints, start, abstract)
        facts = {key: metadata.pop(key) for key in (PENDING, RECORDS) if key in metadata}
        stage.resume(metadata)
        if start >= self.steps:
            _log.info("%s is finished: step %d of %d is done", locate(self.workdir), start, self.steps)
        else:
            _log.info("resuming %s from step %d of %d", locate(self.workdir), start, self.steps)
        return start, facts

    def _finish_row(self, writer: MetricsWriter, step: int, row: Row, stage: Stage) -> None:
        """Writes the row of a step that was saved before it, with its evaluation, unless it is already written."""
        there = any(row["step"] == step for row in read_rows(self.workdir / METRICS_FILE))
        if not distributed.flag_from_first(there):
            writer.write(step, row | stage.evaluate() if is_due(step, self.eval_every, self.steps) else row)

    def _open_writer(self, step: int | None) -> MetricsWriter:
        """The metrics writer, with everything after the checkpoint of `step` removed (None: nothing is saved)."""
        writer = MetricsWriter(
            self.workdir,
            active=distributed.is_writer(),
            tensorboard=self.log.tensorboard,
            **self.log.trackers,
        )
        writer.rewind(-1 if step is None else step)
        if distributed.is_writer():
            write_config(self.settings, self.workdir)
        return writer


class _Saves:
    """Decides when a run saves, and tracks what is unsaved."""

    def __init__(
        self,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        stage: Stage,
        config: CheckpointConfig,
        interrupts: Interrupts,
        writer: MetricsWriter,
        start: int,
    ):
        self.workdir, self.writer = workdir, writer
        self.row: Row | None = None  # of the last finished step, until it is written
        self.checkpoints, self.stage, self.config, self.interrupts = checkpoints, stage, config, interrupts
        self.saved = self.finished = start
        self._metadata: Row = {}
        self._updates = -1
        self._time = time.monotonic()

    def note(self, step: int, row: Row) -> None:
        """Notes that a step is finished, not saved, and its row not written."""
        self.row = row
        self.finished, self._metadata, self._updates = step, self.stage.metadata(), _count_updates(self.stage.state)
        self.interrupts.unsaved = True

    def is_due(self, step: int, last: int) -> bool:
        """Whether to save after this step: by its number, or by the first process's clock."""
        if is_due(step, self.config.every_steps, last):
            return True
        minutes = self.config.every_minutes
        late = minutes > 0 and time.monotonic() - self._time >= 60 * minutes
        return distributed.flag_from_first(late)

    @contextlib.contextmanager
    def beside(self, step: int) -> Iterator[None]:
        """Context whose body runs while the state after `step`, which it does not change, is being written."""
        before = self.saved
        self.save(step, kept=True)
        try:
            yield
        finally:
            self.saved = before
            self.checkpoints.finish()
            self.saved = step

    def save(self, step: int, *, kept: bool = False) -> None:
        """Saves the state after `step`, unless that is done, with the stage's metadata and what is not yet written;
        kept: returns while it is being written, since the state stays as it is until `checkpoints.finish`. Raises
        DivergedError if the parameters are not finite.
        """
        if step == self.saved:
            return
        if not self._is_finite():
            raise DivergedError(
                f"the parameters are not finite after step {step}, which is not saved; {self._describe_newest()}. "
                "Lower config.optimizer.learning_rate"
            )
        facts: Row = {RECORDS: self.writer.sync()}  # rows first: a checkpoint must not be ahead of them
        if distributed.is_writer():
            push(self.workdir)
        if self.row is not None:
            facts[PENDING] = self.row
        self.checkpoints.save(step, self.stage.state, self._metadata | facts, kept=kept)
        self.saved, self._time, self.interrupts.unsaved = step, time.monotonic(), False
        give_back()
        beat()

    @contextlib.contextmanager
    def rescue(self) -> Iterator[None]:
        """Context that saves the last finished step if its body raises and the state is still that step's; logs what is
        saved.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.finished > self.saved:
                if jax.process_count() == 1 and self._is_whole() and not find_full_disk(error):
                    self.save(self.finished)
                    self.checkpoints.close()
                    _log.warning("step %d was saved before the error below ended the run", self.finished)
                else:
                    _log.warning("step %d could not be saved; %s", self.finished, self._describe_newest())
            raise

    def _is_whole(self) -> bool:
        """Whether the state is that of the last finished step: no array was donated and no update was made since."""
        leaves = jax.tree.leaves(self.stage.state)
        whole = not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)
        return whole and _count_updates(self.stage.state) == self._updates and self._is_finite()

    def _is_finite(self) -> bool:
        """Whether the norm of the parameters is finite. The moments are if they are: each gradient was."""
        return math.isfinite(measure_norm(getattr(self.stage.state, "params", {})))

    def _describe_newest(self) -> str:
        return f"step {self.saved} is the newest checkpoint" if self.saved else "no step was saved"


def _count_updates(state: Any) -> int:
    return int(getattr(state, "updates", 0))
