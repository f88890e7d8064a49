"""Distillation on given texts by the teacher's full distribution (Hinton et al. 2015, 1503.02531): an SFT run whose
loss is the forward KL to a teacher that reads the same rows, over the vocabulary or its most likely tokens.

The metric `kl` is that divergence in nats per target; `loss` and `eval/loss` stay the cross entropy of the texts.
"""

from __future__ import annotations

import dataclasses
import pathlib

from r1jax.core.structs import Program
from r1jax.learner.distillation import DivergenceConfig, make_logits_loss
from r1jax.learner.objective import Objective
from r1jax.learner.trainable import Trainable
from r1jax.runs.abstract_model import ASSUMED, Prompts
from r1jax.runs.model_setup import ModelConfig, check
from r1jax.runs.prologue import open_run
from r1jax.stages import sft
from r1jax.stages.distill.teacher import find_teacher
from r1jax.stages.sft_config import SFTConfig
from r1jax.stages.sft_updates import ObjectiveMaker
from r1jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LogitsConfig(SFTConfig):
    """Settings of a distillation on given texts: those of a supervised run (config.loss is not used), and the
    teacher's.

    Attributes:
      stage: name of the stage.
      method: method of distillation.
      teacher: teacher's model.
      divergence: divergence that is minimized.
    """

    stage: str = "distill"
    method: str = "logits"
    teacher: ModelConfig = ModelConfig("")
    divergence: DivergenceConfig = DivergenceConfig()

    def check(self) -> None:
        """Raises UserError for impossible combinations."""
        super().check()
        check("teacher.name", self.teacher.name, bool(self.teacher.name), "must name the teacher")
        top_k = self.divergence.top_k
        check("divergence.top_k", top_k, top_k >= 0, "must be 0 (all tokens) or more")


CONFIG = LogitsConfig


def run(settings: LogitsConfig, workdir: pathlib.Path) -> None:
    """Distils by the settings, resuming from `workdir` if it has a checkpoint."""
    with open_run(settings, settings.mesh):
        make_run(settings, workdir).train()


def make_run(settings: LogitsConfig, workdir: pathlib.Path) -> sft.SFTRun:
    """An SFT run whose loss is the forward KL to the teacher."""
    return sft.SFTRun(settings, workdir, make_objective=teach(settings))


def programs(settings: LogitsConfig, prompts: Prompts = ASSUMED) -> list[Program]:
    """Those of an SFT run, with the teacher in them."""
    return sft.programs(settings, prompts, make_objective=teach(settings))


def teach(settings: LogitsConfig) -> ObjectiveMaker:
    """The maker of the forward KL to the teacher on given texts."""

    def make(trainable: Trainable, tokenizer: Tokenizer | None) -> Objective:
        teacher, chunk = find_teacher(settings.teacher, trainable, tokenizer), settings.train.logits_chunk
        loss = make_logits_loss(trainable.graph, teacher.graph, settings.divergence, chunk=chunk)
        return Objective(loss, {"teacher": teacher.params}, teacher.work)

    return make
