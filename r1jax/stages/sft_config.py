"""The sections of an SFT config as frozen dataclasses, and the checks that need no device."""

from __future__ import annotations

import dataclasses

from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig
from r1jax.data.corpus import CorpusConfig
from r1jax.learner.optimizer import OptimizerConfig
from r1jax.learner.supervised import SupervisedConfig
from r1jax.learner.update_guard import GuardsConfig
from r1jax.models.adapters.lora import LoRAConfig
from r1jax.runs.model_setup import CheckpointConfig, LogConfig, ModelConfig, check_divides, check_run
from r1jax.runs.profile import ProfileConfig


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """The batch of a step and how it is computed.

    Attributes:
      rows_per_step: packed rows of config.data.length tokens, the batch of one update.
      micro_batch_size: rows per device and accumulation.
      logits_chunk: positions of a row whose logits exist at once; 0 is all.
    """

    rows_per_step: int = 8
    micro_batch_size: int = 1
    logits_chunk: int = 0


@dataclasses.dataclass(frozen=True)
class HeldOutConfig:
    """The loss of held-out rows, measured before and after the run.

    Attributes:
      every_steps: steps between further measurements; 0 makes none.
    """

    every_steps: int = 0


@dataclasses.dataclass(frozen=True)
class PackedConfig:
    """Settings of a run on given rows, but its loss.

    Attributes:
      model: model that is trained.
      data: training texts.
      steps: updates of the run; 0 makes as many as the passes of data.epochs.
      stage: name of the stage.
      seed: seed of all randomness in the run.
      mesh: devices, and what is split over them.
      train: batches.
      lora: adapters that are trained in place of all parameters.
      optimizer: optimizer and learning rate.
      eval: held-out rows.
      checkpoint: when checkpoints are saved.
      log: what is logged.
      profile: steps that are traced.
      guards: reactions to updates and rewards that go wrong.
      watchdog_minutes: minutes without a sign of progress after which a process ends; 0 is never.
    """

    model: ModelConfig
    data: CorpusConfig
    steps: int = 0
    stage: str = ""
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    train: BatchConfig = BatchConfig()
    lora: LoRAConfig = LoRAConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    eval: HeldOutConfig = HeldOutConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    profile: ProfileConfig = ProfileConfig()
    guards: GuardsConfig = GuardsConfig()
    watchdog_minutes: float = 30.0

    def check(self) -> None:
        """Raises UserError for impossible combinations."""
        check_settings(self)

    def outline(self) -> list[str]:
        """Steps and tokens in words, for a dry run."""
        rows, length = self.train.rows_per_step, self.data.length
        return [
            f"steps: {self.steps or f'as many as {self.data.epochs} passes over the data make'}",
            f"tokens a step: up to {rows * length:,}, {rows} rows of {length:,}",
        ]


@dataclasses.dataclass(frozen=True)
class SFTConfig(PackedConfig):
    """Settings of a supervised run.

    Attributes:
      stage: name of the stage.
      loss: terms of the loss.
    """

    stage: str = "sft"
    loss: SupervisedConfig = SupervisedConfig()


def check_settings(settings: PackedConfig) -> None:
    """Raises UserError for impossible combinations."""
    check_run(settings)
    train = settings.train
    if settings.steps < 0 or (settings.steps > 0) == (settings.data.epochs is not None):
        raise UserError(
            "set config.steps, or set it to 0 and config.data.epochs to the passes over the data; "
            f"got steps = {settings.steps} and epochs = {settings.data.epochs}"
        )
    for key in ("rows_per_step", "micro_batch_size"):
        if getattr(train, key) < 1:
            raise UserError(f"config.train.{key} must be at least 1, got {getattr(train, key)}")
    check_divides("train.rows_per_step", train.rows_per_step, "train.micro_batch_size", train.micro_batch_size)
    if 0 < train.logits_chunk < settings.data.length:
        check_divides("data.length", settings.data.length, "train.logits_chunk", train.logits_chunk)
    if settings.lora.rank < 0:
        raise UserError(f"config.lora.rank must be at least 0, got {settings.lora.rank}")
    if settings.lora.rank > 2**16:
        raise UserError(f"config.lora.rank must be at most 65536, got {settings.lora.rank}")
