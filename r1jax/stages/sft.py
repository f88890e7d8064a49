"""Supervised fine-tuning and base training on the rows of a corpus.

A step is one update on one batch of packed rows:

    rows -> packed batch -> micro-batches -> gradient -> update -> metrics

Rows are chat turns, prompts with completions, or plain text (base training); the model is pretrained, or a named shape
with fresh weights; all its parameters are trained, or adapters (LoRA). The order of rows is a function of (seed,
position), and a checkpoint contains weights, moments and data position: a resumed run equals an uninterrupted one. The
loss of held-out rows is measured before training, every N steps, and at the end.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from r1jax.core import console, distributed
from r1jax.core.errors import UserError
from r1jax.core.processes.agreement import agree_on_data
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Program
from r1jax.data.corpus import Corpus
from r1jax.data.examples import Example
from r1jax.data.prepared.opening import open_corpus
from r1jax.data.sequences import PackingConfig, SequenceLoader, identify_examples, utilisation
from r1jax.eval.headline import find_headlines, tabulate_headlines
from r1jax.eval.record import read_run
from r1jax.learner.balance import LOAD, measure_load
from r1jax.learner.state import TrainState
from r1jax.learner.supervised import Batch, share_weights, split_batch, summarize
from r1jax.learner.trainable import Trainable
from r1jax.learner.update_guard import SKIPPED
from r1jax.models.transformer import Transformer
from r1jax.runs.abstract_model import ASSUMED, Prompts, abstract_model
from r1jax.runs.hardware import peak_flops
from r1jax.runs.loop import Loop
from r1jax.runs.model_setup import check_divides, load_model, load_tokenizer
from r1jax.runs.prologue import open_run
from r1jax.stages.sft_config import SFTConfig
from r1jax.stages.sft_updates import (
    ObjectiveMaker,
    SupervisedUpdates,
    make_supervised_objective,
    rows_here,
    rows_per_batch,
)

log = logging.getLogger(__name__)

CONFIG = SFTConfig


def run(settings: SFTConfig, workdir: pathlib.Path) -> None:
    """Trains by the settings, resuming from `workdir` if it has a checkpoint."""
    with open_run(settings, settings.mesh):
        SFTRun(settings, workdir).train()


def programs(
    settings: SFTConfig, prompts: Prompts = ASSUMED, *, make_objective: ObjectiveMaker | None = None
) -> list[Program]:
    """The programs of a run, under the mesh in use; it has no prompts."""
    trainable = Trainable(abstract_model(settings.model), settings.lora)
    objective = (make_objective or make_supervised_objective(settings))(trainable, None)
    rate = settings.loss.bias_rate
    return SupervisedUpdates(settings, trainable, objective, settings.steps or 1, bias_rate=rate).programs()


class PackedRun:
    """One run on given rows: its parts, built once, and its steps. A stage says in a subclass how its data are read
    (`open_data`, `make_loader`), which model is trained (`load_model`), by which loss (`make_updates`), and what its
    sums mean (`share`, `summarize`).
    """

    share: Callable[[Sequence[Batch]], list[Batch]] = staticmethod(share_weights)
    summarize: Callable[[Sequence[dict[str, Any]]], dict[str, float]] = staticmethod(summarize)

    def __init__(self, settings: Any, workdir: pathlib.Path):
        self.settings, self.workdir = settings, workdir
        self.saved_settings: Any = settings  # written to config.json
        rows = settings.train.rows_per_step
        check_divides("train.rows_per_step", rows, "train.micro_batch_size x devices", self._rows_per_batch())
        name = settings.model.preset or settings.model.name
        self.tokenizer = load_tokenizer(settings.model)
        corpus = self.open_data()
        for note in corpus.notes:
            log.info(note)
        agree_on_data(*map(identify_examples, (*corpus.train, corpus.held_out)))
        self.loader = self._load(corpus.train, corpus.mixing)  # mistakes in data are found before the model is loaded
        self.trainable = Trainable(self.load_model(), settings.lora, seed=settings.seed)
        self.steps = settings.steps or self.loader.count_batches()
        self.held_out = self.share(self._pack_held_out(corpus.held_out))
        self.updates = self.make_updates()
        self.updates.guard.folder = workdir / SKIPPED
        self.num_tokens = 0
        log.info(
            "%s: %.1f M parameters, %.1f M of them trained, for %d steps; %d examples to train on, %d held out",
            name,
            self.trainable.count_parameters() / 1e6,
            sum(leaf.size for leaf in jax.tree.leaves(self.state.params)) / 1e6,
            self.steps,
            sum(map(len, corpus.train)),
            len(corpus.held_out),
        )

    # --- Parts ---

    def open_data(self) -> Corpus:
        """The rows to train on and held out."""
        return open_corpus(self.settings.data, self.tokenizer)

    def make_loader(self, sources: Any, rows: int, packing: PackingConfig, **options: Any) -> SequenceLoader:
        """Batches of `rows` rows."""
        return SequenceLoader(sources, rows, packing, **options)

    def load_model(self) -> Transformer:
        """The model before the first step."""
        return load_model(self.settings.model)[0]

    def make_updates(self) -> SupervisedUpdates:
        """The programs of the run."""
        raise NotImplementedError

    # --- Data ---

    def _load(self, sources: Sequence[Sequence[Example]], mixing: Sequence[float] | None) -> SequenceLoader:
        data = self.settings.data
        packing = PackingConfig(data.length, data.bins, data.packed, data.read_ahead)
        rows = self.settings.train.rows_per_step
        mine = rows_here(self.settings) if jax.process_count() > 1 else None
        seed, epochs = self.settings.seed, data.epochs
        return self.make_loader(sources, rows, packing, mixing=mixing, seed=seed, epochs=epochs, mine=mine)

    def _pack_held_out(self, examples: Sequence[Example]) -> list[Batch]:
        """All held-out examples as batches of one shape."""
        if not examples:
            return []
        data, rows = self.settings.data, self._rows_per_batch()
        packing = PackingConfig(data.length, data.bins, data.packed, read_ahead=1)
        return list(self.make_loader([examples], rows, packing, epochs=1))

    def _rows_per_batch(self) -> int:
        return rows_per_batch(self.settings)

    # --- Interface of the loop ---

    def train(self) -> None:
        """Runs all steps from the workdir's current step."""
        settings, every = self.settings, self.settings.eval.every_steps
        loop = Loop(self.saved_settings, self.workdir, self.steps, every, settings.checkpoint, settings.log)
        dataclasses.replace(loop, watchdog_minutes=settings.watchdog_minutes, profile=settings.profile).run(self)
        self.loader.close()
        if distributed.is_writer():
            table = tabulate_headlines(find_headlines(read_run(self.workdir).rows))
            console.show_table("before and after", table)

    @property
    def state(self) -> TrainState:
        """All that training changes."""
        return self.updates.state

    @state.setter
    def state(self, state: TrainState) -> None:
        self.updates.state = state

    def abstract_state(self) -> TrainState:
        """Shapes with shardings of a checkpoint's state."""
        return self.updates.abstract_state()

    def metadata(self) -> dict[str, Any]:
        """The data position, and the number of tokens so far."""
        return {
            "loader": self.loader.get_state(),
            "num_tokens": self.num_tokens,
            "guard": self.updates.guard.get_state(),
        }

    def resume(self, metadata: dict[str, Any]) -> None:
        """Continues from a checkpoint's metadata."""
        self.loader.set_state(metadata["loader"])
        self.num_tokens = metadata["num_tokens"]
        self.updates.guard.set_state(metadata.get("guard"))

    def step(self, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One update -> (metrics row, no sample rows)."""
        begin = time.perf_counter()
        batch = self._next(step)
        read = time.perf_counter()
        parts = self.share(split_batch(batch, self._rows_per_batch()))
        with activity(f"step {step}: updating the model"):
            outcome, sums = distributed.fetch(self.updates.update(parts))
        end = time.perf_counter()
        fed, targets = int((batch["segments"] > 0).sum()), int((batch["weights"] > 0).sum())
        self.num_tokens += fed
        pairs = int((batch["positions"] + 1)[batch["segments"] > 0].sum())
        flops = self.updates.count_flops(fed, targets, pairs)
        metrics = {
            **self.summarize(sums),
            **self.updates.guard.take_metrics(),
            **(measure_load(outcome[LOAD]) if LOAD in outcome else {}),
            "grad_norm": float(outcome["grad_norm"]),
            "learning_rate": float(self.updates.schedule(int(self.state.updates) - 1)),
            "num_tokens": self.num_tokens,
            "utilisation": utilisation(batch),
            "step_time": end - begin,
            "time/input": read - begin,
            "time/train": end - read,
            "train/tokens_per_second": fed / (end - read),
            "flops": flops,
            "mfu": flops / (end - read) / (peak_flops() * jax.device_count()),
        }
        return metrics, []

    def _next(self, step: int) -> Batch:
        try:
            return next(self.loader)
        except StopIteration:
            raise UserError(
                f"the data ended before step {step} of {self.steps}: config.data.epochs = {self.settings.data.epochs} "
                "passes are used up; set config.data.epochs to none for no end, or lower config.steps"
            ) from None

    def evaluate(self) -> dict[str, float]:
        """Metrics of the held-out rows with the current weights."""
        if not self.held_out:
            return {}
        begin = time.perf_counter()
        with activity("measuring the loss of held-out rows"):
            kept = self.measure(distributed.fetch(self.updates.evaluate(self.held_out)))
        return {**{f"eval/{name}": value for name, value in kept.items()}, "time/eval": time.perf_counter() - begin}

    def measure(self, sums: list[dict[str, Any]]) -> dict[str, float]:
        """Metrics of held-out rows, without `eval/`."""
        metrics = self.summarize(sums)
        return {name: metrics[name] for name in ("loss", "token_accuracy")}


class SFTRun(PackedRun):
    """A supervised run. make_objective: makes the loss after the model is loaded (None: the supervised loss)."""

    def __init__(self, settings: SFTConfig, workdir: pathlib.Path, *, make_objective: ObjectiveMaker | None = None):
        self.make_objective = make_objective or make_supervised_objective(settings)
        super().__init__(settings, workdir)

    def make_updates(self) -> SupervisedUpdates:
        """The programs of the run."""
        objective = self.make_objective(self.trainable, self.tokenizer)
        rate = self.settings.loss.bias_rate
        return SupervisedUpdates(self.settings, self.trainable, objective, self.steps, bias_rate=rate)
