"""On-policy distillation: the student samples, and learns by the teacher's log-probs on what it said (Agarwal et al.
2023, 2306.13649).

A GRPO step with another loss: prompts -> engine -> texts -> packed rows -> reverse KL to the teacher -> update. Rewards
are measured and shown, and take no part in the loss. The metric `kl` is the divergence from the teacher in nats a
token, estimated as the loss is.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from r1jax.core import console, distributed
from r1jax.core.config import unpack
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.data.packing import PackedRows, RowShape
from r1jax.learner.distillation import DivergenceConfig, make_on_policy_loss
from r1jax.learner.policy_objective import Scoring
from r1jax.learner.step import Learner
from r1jax.learner.trainable import Trainable
from r1jax.models.transformer import merge
from r1jax.rl.grpo_config import GRPOConfig, check_settings, expand_preset
from r1jax.rl.rollout_batch import Groups
from r1jax.rl.updates import Arrays, Updates, Work
from r1jax.runs.model_setup import ModelConfig, check
from r1jax.stages import grpo
from r1jax.stages.distill.teacher import Teacher, load_teacher


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig(GRPOConfig):
    """A GRPO run's sections, the teacher, and the divergence. Of config.loss only the aggregation counts."""

    stage: str = "distill"
    method: str = "on_policy"
    teacher: ModelConfig = ModelConfig("")
    divergence: DivergenceConfig = DivergenceConfig()


def read_config(config: ConfigDict) -> OnPolicyConfig:
    """The config as dataclasses. Raises UserError for unknown keys, wrong types and impossible combinations."""
    settings = unpack(OnPolicyConfig, expand_preset(config))
    check_settings(settings)
    updates, kl = settings.train.updates_per_step, settings.loss.kl_coefficient
    check("train.updates_per_step", updates, updates == 1, "must be 1: the loss is that of the student's own samples")
    check("loss.kl_coefficient", kl, kl == 0, "must be 0: the divergence from the teacher is the loss")
    check("teacher.path", settings.teacher.path, bool(settings.teacher.path), "must name the teacher")
    return settings


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Distils as `config` says, resuming from `workdir` if it holds a checkpoint."""
    settings = read_config(config)
    console.set_up_logging()
    distributed.start()
    with use_mesh(make_mesh(settings.mesh), settings.mesh.rules):
        Run(settings, config, workdir).train()


class Run(grpo.Run):
    """A GRPO run whose updates are by the teacher."""

    settings: OnPolicyConfig

    def _build_updates(self, trainable: Trainable) -> Updates:
        student = merge(trainable.graph, trainable.base or trainable.params)
        teacher = load_teacher(self.settings.teacher, student, self.tokenizer)
        return TaughtUpdates(self.settings, trainable, self.shape, self.prefix[: self.shape.prefix], teacher)


class TaughtUpdates(Updates):
    """Updates of the student by the reverse KL to its teacher on its own samples."""

    def __init__(
        self,
        settings: OnPolicyConfig,
        trainable: Trainable,
        shape: RowShape,
        prefix: tuple[int, ...],
        teacher: Teacher,
    ):
        super().__init__(settings, trainable, shape, prefix)
        scoring = Scoring(settings.rollout.temperature, settings.train.logits_chunk, prefix)
        loss = make_on_policy_loss(trainable.graph, teacher.graph, settings.divergence, scoring)
        self.teacher, self.learner = teacher, Learner(trainable.wrap(loss), self.optimizer)

    def take(
        self, groups: Groups, advantages_PG: np.ndarray, excluded_PG: np.ndarray, temperature: float
    ) -> tuple[dict[str, float], Work]:
        """The update of a step: every completion teaches, whatever it earned."""
        return super().take(groups, np.ones_like(advantages_PG), excluded_PG, temperature)

    def _batches(self, packed: PackedRows, arrays: Arrays, temperature: float) -> list[Any]:
        return [(self.teacher.params, batch) for batch in super()._batches(packed, arrays, temperature)]
