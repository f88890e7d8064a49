"""The sections of a GRPO config as frozen dataclasses, and the checks that need no device."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from ml_collections import ConfigDict

from r1jax.core.config import unpack
from r1jax.core.sharding import MeshConfig
from r1jax.core.structs import Sampling
from r1jax.data.tasks import TaskConfig
from r1jax.eval.held_out import EvalConfig
from r1jax.learner.optimizer import OptimizerConfig
from r1jax.losses.policy import PolicyLossConfig
from r1jax.stages.settings import CheckpointConfig, LogConfig, ModelConfig, check, check_divides


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """What is sampled a step, and the engine's shapes.

    max_prompt_tokens: 0 takes the longest prompt of the data. ignore_stop: sample to the limit whatever comes, for
    benchmarks of equal work.
    """

    prompts_per_step: int = 8
    group_size: int = 8
    max_new_tokens: int = 128
    max_prompt_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    slots: int = 64
    prefill_batch: int = 8
    ignore_stop: bool = False

    @property
    def completions(self) -> int:
        """Completions a step."""
        return self.prompts_per_step * self.group_size

    def sampling(self, stop_ids: tuple[int, ...]) -> Sampling:
        """The same for one request."""
        stop_ids = () if self.ignore_stop else stop_ids
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.max_new_tokens, stop_ids)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a rollout becomes updates.

    updates_per_step: mini-batches of whole groups. micro_batch_size: completions per device per accumulation, at full
    length; shorter ones pack tighter. completions_per_row: how many of those share a row. logits_chunk: positions of a
    row whose logits exist at once (0: all). old_logprobs: "trainer" recomputes them before the first of several
    updates, "sampler" takes the engine's. difference_alarm: bound on the mean log-prob difference that is warned about.
    """

    updates_per_step: int = 1
    micro_batch_size: int = 8
    completions_per_row: int = 4
    logits_chunk: int = 0
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    zero_spread: float = 1e-3
    difference_alarm: float = 1e-3


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """A whole GRPO run. `rewards`: registered name or module:function -> weight or {weight, arguments}."""

    steps: int
    model: ModelConfig
    data: TaskConfig
    rewards: dict[str, Any]
    stage: str = "grpo"
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    loss: PolicyLossConfig = PolicyLossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()


def read_config(config: ConfigDict) -> GRPOConfig:
    """The config as dataclasses. Raises UserError for unknown keys, wrong types and impossible combinations."""
    settings = unpack(GRPOConfig, config)
    rollout, train = settings.rollout, settings.train
    for name in ("prompts_per_step", "max_new_tokens", "slots", "prefill_batch"):
        check(f"rollout.{name}", value := getattr(rollout, name), value >= 1, "must be at least 1")
    for name in ("updates_per_step", "micro_batch_size", "completions_per_row"):
        check(f"train.{name}", value := getattr(train, name), value >= 1, "must be at least 1")
    check("steps", settings.steps, settings.steps >= 1, "must be at least 1")
    check("rollout.group_size", rollout.group_size, rollout.group_size >= 2, "must be at least 2 to compare answers")
    hot, heat = rollout.temperature, settings.eval.temperature
    check("rollout.temperature", hot, 0 < hot < math.inf, "must be positive to explore")
    check("eval.temperature", heat, 0 <= heat < math.inf, "must be 0 (greedy) or more")
    check("rollout.top_k", rollout.top_k, rollout.top_k >= 0, "must be 0 (off) or more")
    check("rollout.top_p", rollout.top_p, 0 < rollout.top_p <= 1, "must be above 0 and at most 1 (off)")
    check("rollout.min_p", rollout.min_p, 0 <= rollout.min_p <= 1, "must be from 0 (off) to 1")
    check("rollout.max_prompt_tokens", rollout.max_prompt_tokens, rollout.max_prompt_tokens >= 0, "must be 0 or more")
    check("eval.strict", settings.eval.strict, bool(settings.eval.strict), "must name at least one reward")
    check("eval.lenient", settings.eval.lenient, bool(settings.eval.lenient), "must name a reward")
    check_divides(
        "rollout.prompts_per_step", rollout.prompts_per_step, "train.updates_per_step", train.updates_per_step
    )
    check_divides(
        "train.micro_batch_size", train.micro_batch_size, "train.completions_per_row", train.completions_per_row
    )
    per_update = rollout.completions // train.updates_per_step
    check_divides(
        "rollout.prompts_per_step x group_size / updates_per_step",
        per_update,
        "train.micro_batch_size",
        train.micro_batch_size,
    )
    targets = train.completions_per_row * rollout.max_new_tokens
    if 0 < train.logits_chunk < targets:
        check_divides(
            "train.completions_per_row x rollout.max_new_tokens", targets, "train.logits_chunk", train.logits_chunk
        )
    check("rewards", settings.rewards, bool(settings.rewards), "must name a reward")
    return settings
