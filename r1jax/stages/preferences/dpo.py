"""Training on preferences without a reward model: DPO and its kin (losses/preference.py).

A step is one update on one batch of packed pairs. The reference is the model before the first step: its log-probs of
all pairs are computed once, kept in the workdir and read by every later start, so that no second model is in memory; or
the base under adapters computes them in every step. Data, order, adapters, checkpoints and evaluation are those of
fine-tuning (stages/sft.py).
"""

from __future__ import annotations

import dataclasses
import io
import logging
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from r1jax.core import distributed
from r1jax.core.atomic_file import replace_file
from r1jax.core.resolution import Presets
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Program
from r1jax.data.preferences.pair_loader import PairLoader
from r1jax.data.preferences.pairs import Pair
from r1jax.data.sequences import PackingConfig, SequenceLoader
from r1jax.learner.objective import Objective
from r1jax.learner.preferences import make_preference_loss, summarize_preferences
from r1jax.learner.trainable import Trainable
from r1jax.losses.preference import METHODS, PreferenceConfig
from r1jax.models.flops import Work
from r1jax.runs.abstract_model import ASSUMED, Prompts, abstract_model
from r1jax.runs.model_setup import check
from r1jax.runs.prologue import open_run
from r1jax.stages.preferences.pair_run import PairRun
from r1jax.stages.preferences.pair_updates import PairUpdates
from r1jax.stages.sft_config import PackedConfig

log = logging.getLogger(__name__)

REFERENCES = "reference.npz"  # of a workdir: log-probs of the reference by pair, those held out last
HELD_OUT = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


@dataclasses.dataclass(frozen=True)
class DPOConfig(PackedConfig):
    """Settings of a run on preferences.

    Attributes:
      stage: name of the stage.
      loss: method and its parameters.
    """

    PRESETS: ClassVar[Presets] = Presets(
        "loss.type", {name: {f"loss.{key}": value for key, value in row.items()} for name, row in METHODS.items()}
    )

    stage: str = "dpo"
    loss: PreferenceConfig = PreferenceConfig()

    def check(self) -> None:
        """Raises UserError for impossible combinations."""
        super().check()
        loss = self.loss
        check("loss.beta", loss.beta, 0 < loss.beta < np.inf, "must be above 0, and finite")
        smoothing = loss.label_smoothing
        check("loss.label_smoothing", smoothing, 0 <= smoothing < 0.5, "must be from 0 to below 0.5")
        for name in ("target_margin", "nll_weight", "desirable_weight", "undesirable_weight"):
            value = getattr(loss, name)
            check(f"loss.{name}", value, 0 <= value < np.inf, "must be 0 or more, and finite")
        frozen = loss.reference == "kept" or self.lora.rank > 0
        check("loss.reference", loss.reference, frozen, "needs adapters (config.lora.rank), whose base it is")
        point = loss.type != "kto" or loss.reference == "kept"
        check("loss.reference", loss.reference, point, "must be 'kept' with config.loss.type = 'kto'")


CONFIG = DPOConfig


def run(settings: DPOConfig, workdir: pathlib.Path) -> None:
    """Trains by the settings, resuming from `workdir` if it has a checkpoint."""
    with open_run(settings, settings.mesh):
        DPORun(settings, workdir).train()


def programs(settings: DPOConfig, prompts: Prompts = ASSUMED) -> list[Program]:
    """The programs of a run, under the mesh in use; it has no prompts."""
    return make_updates(settings, Trainable(abstract_model(settings.model), settings.lora), 1).programs()


def make_updates(settings: DPOConfig, trainable: Trainable, steps: int) -> PairUpdates:
    """The programs of a run of so many steps."""
    loss = settings.loss
    kept = loss.needs_reference and loss.reference == "kept"
    beside = trainable.count_work() if loss.needs_reference and not kept else Work()
    objective = Objective(
        make_preference_loss(trainable.graph, loss, chunk=settings.train.logits_chunk),
        work=dataclasses.replace(beside, adapters=None),
    )
    options = {"sequences": loss.sequences, "has_reference": kept, "finds_point": loss.type == "kto"}
    return PairUpdates(settings, trainable, objective, settings.steps or steps, **options)  # type: ignore[arg-type]


class DPORun(PairRun):
    """One run: its parts, built once, and its steps."""

    summarize = staticmethod(summarize_preferences)
    updates: PairUpdates

    def __init__(self, settings: DPOConfig, workdir: pathlib.Path):
        self.sequences = settings.loss.sequences
        self._pairs: list[Sequence[Pair]] = []  # of all sources, and those held out
        super().__init__(settings, workdir)
        if self.updates.has_reference:
            references = self._find_references()
            count = sum(map(len, self._pairs[:1]))
            assert isinstance(self.loader, PairLoader)
            self.loader.set_references(references[:count])
            self.held_out = [
                {**batch, "reference": _look_up(references[count:], batch["pairs"])} for batch in self.held_out
            ]

    def step(self, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One update -> (metrics row, no sample rows). The first step's work has that of the kept log-probs."""
        metrics, rows = super().step(step)
        if step == 1 and self.updates.has_reference:
            sizes = np.array([pair.sizes for part in self._pairs for pair in part], np.float64)
            targets = sum(float(pair.weights.sum()) for part in self._pairs for pair in part)
            metrics["flops"] += self.updates.work.forward(sizes.sum(), targets, (sizes * (sizes + 1) / 2).sum())
        return metrics, rows

    def make_loader(self, sources: Any, rows: int, packing: PackingConfig, **options: Any) -> SequenceLoader:
        """Batches of `rows` rows of pairs."""
        self._pairs.append([pair for source in sources for pair in source])
        return super().make_loader(sources, rows, packing, **options)

    def make_updates(self) -> PairUpdates:
        """The programs of the run."""
        return make_updates(self.settings, self.trainable, self.steps)

    def measure(self, sums: list[dict[str, Any]]) -> dict[str, float]:
        """Metrics of held-out pairs, without `eval/`."""
        metrics = self.summarize(sums)
        return {name: metrics[name] for name in HELD_OUT}

    def _find_references(self) -> np.ndarray:
        """Log-probs of all pairs under the weights before the first step [pairs, u]: those that an earlier start left
        in the workdir, or computed now.
        """
        pairs = [pair for part in self._pairs for pair in part]
        file = self.workdir / REFERENCES
        known = _read_known(file, _checksum(pairs), (len(pairs), self.sequences)) if distributed.is_writer() else None
        is_known = bool(distributed.from_first(np.int32(known is not None)))
        if is_known:
            shape = np.zeros((len(pairs), self.sequences), np.float32) if known is None else known
            return np.asarray(distributed.from_first(shape))
        data, rows = self.settings.data, self._rows_per_batch()
        packing = PackingConfig(data.length, data.bins, data.packed, read_ahead=1)
        loader = PairLoader([pairs], rows, packing, sequences=self.sequences, epochs=1)
        with activity(f"log-probs of {len(pairs)} pairs under the reference"):
            found = self.updates.find_references(loader, len(pairs))
        loader.close()
        if distributed.is_writer():
            self.workdir.mkdir(parents=True, exist_ok=True)
            _write_known(file, _checksum(pairs), found)
        return found


def _look_up(references: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Values [B, N, u] of pairs by number [B, N], 0 for none."""
    return np.where((pairs >= 0)[..., None], references[np.maximum(pairs, 0)], 0).astype(np.float32)


def _checksum(pairs: Sequence[Pair]) -> int:
    """32-bit checksum of pairs in order."""
    checksum = 0
    for pair in pairs:
        checksum = zlib.crc32(repr(pair.sizes).encode() + pair.tokens.tobytes() + pair.targets.tobytes(), checksum)
    return checksum


def _read_known(file: pathlib.Path, checksum: int, shape: tuple[int, int]) -> np.ndarray | None:
    """The log-probs that an earlier start wrote for these pairs; None where there are none."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            values, theirs = stored["values"], int(stored["checksum"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    return values if theirs == checksum and values.shape == shape and values.dtype == np.float32 else None


def _write_known(file: pathlib.Path, checksum: int, values: np.ndarray) -> None:
    content = io.BytesIO()
    np.savez(content, values=values, checksum=np.uint32(checksum))
    replace_file(file, [content.getvalue()])
