"""Training of a reward model: a score in place of the output head, learnt from pairs of which one text is preferred
(Bradley and Terry 1952; Ouyang et al. 2022, 2203.02155).

A step is one update on one batch of packed pairs. A text is scored at its last token. The score is new, or that of the
loaded reward model; beside adapters (LoRA) it is trained whole. Held-out pairs tell accuracy and calibration
(eval/calibration.py), whose tenths are in `calibration.json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any, ClassVar

from r1jax.core import distributed
from r1jax.core.atomic_file import replace_file
from r1jax.core.structs import Program
from r1jax.eval.calibration import measure_calibration
from r1jax.learner.objective import Objective
from r1jax.learner.preferences import find_scores, make_reward_loss, summarize_scores
from r1jax.learner.trainable import Trainable
from r1jax.losses.preference import RewardLossConfig
from r1jax.models.scores import attach_score
from r1jax.models.transformer import Transformer
from r1jax.runs.abstract_model import ASSUMED, Prompts, abstract_model
from r1jax.runs.model_setup import check, load_model
from r1jax.runs.prologue import open_run
from r1jax.stages.preferences.pair_run import PairRun
from r1jax.stages.preferences.pair_updates import PairUpdates
from r1jax.stages.sft_config import PackedConfig

CALIBRATION = "calibration.json"


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(PackedConfig):
    """Settings of a reward model's training.

    Attributes:
      stage: name of the stage.
      loss: terms of the loss.
    """

    SCORED: ClassVar[bool] = True  # the model of a workdir ends in a score

    stage: str = "reward_model"
    loss: RewardLossConfig = RewardLossConfig()

    def check(self) -> None:
        """Raises UserError for impossible combinations."""
        super().check()
        weight = self.loss.center_coefficient
        check("loss.center_coefficient", weight, 0 <= weight < math.inf, "must be 0 or more, and finite")


CONFIG = RewardModelConfig


def run(settings: RewardModelConfig, workdir: pathlib.Path) -> None:
    """Trains by the settings, resuming from `workdir` if it has a checkpoint."""
    with open_run(settings, settings.mesh):
        RewardModelRun(settings, workdir).train()


def programs(settings: RewardModelConfig, prompts: Prompts = ASSUMED) -> list[Program]:
    """The programs of a run, under the mesh in use; it has no prompts."""
    model = add_score(abstract_model(settings.model), settings.seed)
    return make_updates(settings, Trainable(model, settings.lora), 1).programs()


def make_updates(settings: RewardModelConfig, trainable: Trainable, steps: int) -> PairUpdates:
    """The programs of a run of so many steps."""
    objective = Objective(make_reward_loss(trainable.graph, settings.loss))
    return PairUpdates(settings, trainable, objective, settings.steps or steps)


def add_score(model: Transformer, seed: int) -> Transformer:
    """The model with a score: its own, or a new one."""
    return model if model.score is not None else attach_score(model, seed=seed)


class RewardModelRun(PairRun):
    """One run: its parts, built once, and its steps."""

    whole = True
    summarize = staticmethod(summarize_scores)

    def load_model(self) -> Transformer:
        """The model before the first step."""
        return add_score(load_model(self.settings.model)[0], self.settings.seed)

    def make_updates(self) -> PairUpdates:
        """The programs of the run."""
        return make_updates(self.settings, self.trainable, self.steps)

    def measure(self, sums: list[dict[str, Any]]) -> dict[str, float]:
        """Metrics of held-out pairs, without `eval/`; writes their calibration to the workdir."""
        metrics, calibration = self.summarize(sums), measure_calibration(find_scores(sums))
        if distributed.is_writer():
            self.workdir.mkdir(parents=True, exist_ok=True)
            replace_file(self.workdir / CALIBRATION, json.dumps(dataclasses.asdict(calibration), indent=2) + "\n")
        kept = {name: metrics[name] for name in ("loss", "accuracy", "margin")}
        return {**kept, "calibration_error": calibration.error}
