"""Distillation on given texts by the teacher's whole distribution (Hinton et al. 2015, 1503.02531): an SFT run whose
loss is the forward KL to a teacher that reads the same rows, over the vocabulary or its likeliest tokens.

The metric `kl` is that divergence in nats a target; `loss` and `eval/loss` stay the cross entropy of the texts.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from r1jax.core import console, distributed
from r1jax.core.config import unpack
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.learner.distillation import DivergenceConfig, make_logits_loss
from r1jax.learner.step import LossFn
from r1jax.learner.supervised import Batch
from r1jax.models.transformer import merge
from r1jax.runs.model_setup import ModelConfig, check
from r1jax.stages import sft
from r1jax.stages.distill.teacher import load_teacher
from r1jax.stages.sft_config import SFTConfig, check_settings
from r1jax.weights.pretrained import require_tokenizer


@dataclasses.dataclass(frozen=True)
class LogitsConfig(SFTConfig):
    """An SFT run's sections, the teacher, and the divergence. config.loss says nothing here."""

    stage: str = "distill"
    method: str = "logits"
    teacher: ModelConfig = ModelConfig("")
    divergence: DivergenceConfig = DivergenceConfig()


def read_config(config: ConfigDict) -> LogitsConfig:
    """The config as dataclasses. Raises UserError for unknown keys, wrong types and impossible combinations."""
    settings = unpack(LogitsConfig, config)
    check_settings(settings)
    check("teacher.path", settings.teacher.path, bool(settings.teacher.path), "must name the teacher")
    top_k = settings.divergence.top_k
    check("divergence.top_k", top_k, top_k >= 0, "must be 0 (all tokens) or more")
    return settings


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Distils as `config` says, resuming from `workdir` if it holds a checkpoint."""
    settings = read_config(config)
    console.set_up_logging()
    distributed.start()
    with use_mesh(make_mesh(settings.mesh), settings.mesh.rules):
        Run(settings, config, workdir).train()


class Run(sft.Run):
    """An SFT run whose loss is by the teacher."""

    settings: LogitsConfig

    def _make_loss(self) -> LossFn:
        graph = self.trainable.graph
        student = merge(graph, self.trainable.base or self.trainable.params)
        tokenizer = require_tokenizer(self.tokenizer, self.settings.model.path)
        self.teacher = load_teacher(self.settings.teacher, student, tokenizer)
        settings = self.settings
        return make_logits_loss(graph, self.teacher.graph, settings.divergence, chunk=settings.train.logits_chunk)

    def _feed(self, batch: Batch) -> Any:
        return self.teacher.params, batch
