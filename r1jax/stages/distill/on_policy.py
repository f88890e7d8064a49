"""On-policy distillation: the student samples and learns from the teacher's log-probs of its samples (Agarwal et al.
2023, 2306.13649).

A GRPO step with another loss: prompts -> engine -> texts -> packed rows -> reverse KL to the teacher -> update. Rewards
are measured and shown, but not part of the loss. The metric `kl` is the divergence from the teacher in nats per token,
estimated like the loss.
"""

from __future__ import annotations

import dataclasses
import pathlib

from r1jax.core.structs import Program
from r1jax.learner.distillation import DivergenceConfig, make_on_policy_loss
from r1jax.learner.objective import Objective
from r1jax.learner.policy_objective import Scoring
from r1jax.learner.trainable import Trainable
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rl.policy_programs import ObjectiveMaker
from r1jax.runs.abstract_model import ASSUMED, Prompts
from r1jax.runs.model_setup import ModelConfig, check
from r1jax.runs.prologue import open_run
from r1jax.stages import grpo
from r1jax.stages.distill.teacher import find_teacher
from r1jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig(GRPOConfig):
    """Settings of an on-policy distillation: those of a GRPO run (of config.loss only the aggregation is used), and the
    teacher's.

    Attributes:
      stage: name of the stage.
      method: method of distillation.
      teacher: teacher's model.
      divergence: divergence that is minimized.
    """

    stage: str = "distill"
    method: str = "on_policy"
    teacher: ModelConfig = ModelConfig("")
    divergence: DivergenceConfig = DivergenceConfig()

    def check(self) -> None:
        """Raises UserError for impossible combinations."""
        super().check()
        updates, kl = self.train.updates_per_step, self.loss.kl_coefficient
        rule = "must be 1: the loss is that of the student's own samples"
        check("train.updates_per_step", updates, updates == 1, rule)
        check("loss.kl_coefficient", kl, kl == 0, "must be 0: the divergence from the teacher is the loss")
        check("teacher.name", self.teacher.name, bool(self.teacher.name), "must name the teacher")


CONFIG = OnPolicyConfig


def run(settings: OnPolicyConfig, workdir: pathlib.Path) -> None:
    """Distils by the settings, resuming from `workdir` if it has a checkpoint."""
    with open_run(settings, settings.mesh):
        make_run(settings, workdir).train()


def make_run(settings: OnPolicyConfig, workdir: pathlib.Path) -> grpo.GRPORun:
    """A GRPO run whose loss is the reverse KL to the teacher."""
    return grpo.GRPORun(settings, workdir, make_objective=teach(settings))


def programs(settings: OnPolicyConfig, prompts: Prompts = ASSUMED) -> list[Program]:
    """Those of a GRPO run, with the teacher in the gradient's."""
    return grpo.programs(settings, prompts, make_objective=teach(settings))


def teach(settings: OnPolicyConfig) -> ObjectiveMaker:
    """The maker of the reverse KL to the teacher on the student's samples; every completion has a gradient, whatever
    its reward.
    """

    def make(trainable: Trainable, tokenizer: Tokenizer | None, scoring: Scoring) -> Objective:
        teacher = find_teacher(settings.teacher, trainable, tokenizer)
        loss = make_on_policy_loss(trainable.graph, teacher.graph, settings.divergence, scoring)
        return Objective(loss, {"teacher": teacher.params}, teacher.work, uses_advantages=False)

    return make
