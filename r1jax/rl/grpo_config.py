"""The sections of a GRPO config as frozen dataclasses, and the checks that need no device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from r1jax.core.resolution import Presets
from r1jax.core.sections import flatten
from r1jax.core.sharding import MeshConfig
from r1jax.core.structs import Sampling, SamplingConfig
from r1jax.data.packing import RowShape
from r1jax.data.tasks import TaskConfig
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.environments.harness_config import HarnessConfig
from r1jax.eval.held_out import EvalConfig
from r1jax.learner.optimizer import OptimizerConfig
from r1jax.learner.update_guard import GuardsConfig
from r1jax.losses.policy import PRESETS, PolicyLossConfig
from r1jax.models.adapters.lora import LoRAConfig
from r1jax.rl.critic import CriticConfig
from r1jax.rl.curriculum import CurriculumConfig
from r1jax.rl.grpo_checks import check_controls, check_critic, check_environment, check_harness, check_staleness
from r1jax.rl.policy_judge import JudgeConfig
from r1jax.rollout.layout import AUTO, SAME, read_sizes
from r1jax.runs.model_setup import CheckpointConfig, LogConfig, ModelConfig, check, check_divides, check_run
from r1jax.runs.profile import ProfileConfig


@dataclasses.dataclass(frozen=True)
class RolloutConfig(SamplingConfig):
    """Sampling of a step, and the shapes of the engine.

    Attributes:
      prompts_per_step: prompts of a step.
      group_size: completions sampled for each prompt.
      max_new_tokens: largest number of tokens of a completion, the engine's shape and the limit of evaluations.
      max_prompt_tokens: largest number of tokens of a prompt; 0 takes the longest prompt of the data.
      slots: sequences decoded at once, on all devices together.
      prefill_batch: prompts prefilled at once, on all devices together.
      ignore_stop: whether completions go on to the limit past their stop tokens, for benchmarks of equal work.
      cache_pieces: steps in which the sampler's cache grows; 1 where it fills the memory (rollout/slots.py).
      tails: smaller batches, each a quarter of the one before, in which the last completions of a step go on; each
        compiles decoding once more (0: none; rollout/slots.py).
      max_staleness: largest number of steps by which the weights that sampled a token may be older than those that
        are trained on it. 0: a step waits for all its completions; above, it trains as soon as it has its groups, and
        unfinished ones go on under the next weights (rl/live_rollouts.py).
      mesh: arrangement of the devices for sampling: "auto" (a rule, rollout/layout.py), "same" as in training, or axes
        and sizes (`tensor=8,expert=64`).
      rules: entries over the sampler's table from logical axes to mesh axes (rollout/layout.py).
      dtype: dtype of computation when sampling; empty is `model.dtype`.
      max_new_tokens_schedule: ((step, tokens), ...): the limit from each step on, as in R1-Zero; before the first
        entry that one's.
      temperature_schedule: ((step, temperature), ...): linear in between, for sampler and trainer alike.
    """

    prompts_per_step: int = 8
    group_size: int = 8
    max_new_tokens: int = 128
    max_prompt_tokens: int = 0
    slots: int = 64
    prefill_batch: int = 8
    ignore_stop: bool = False
    cache_pieces: int = 4
    tails: int = 1
    max_staleness: int = 0
    mesh: str = AUTO
    rules: Mapping[str, str | tuple[str, ...] | None] = dataclasses.field(default_factory=dict, hash=False)
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    max_new_tokens_schedule: tuple[tuple[int, int], ...] = ()
    temperature_schedule: tuple[tuple[int, float], ...] = ()

    @property
    def completions(self) -> int:
        """Completions per step."""
        return self.prompts_per_step * self.group_size

    def sampling(self, stop_ids: tuple[int, ...]) -> Sampling:
        """Sampling parameters of one request."""
        return super().sampling(() if self.ignore_stop else stop_ids)

    def sampling_at(self, step: int, stop_ids: tuple[int, ...]) -> Sampling:
        """Sampling parameters of one request at a training step."""
        same = self.sampling(stop_ids)
        if self.max_new_tokens_schedule:
            same = dataclasses.replace(same, max_new_tokens=self.limit_at(step))
        if self.temperature_schedule:
            same = dataclasses.replace(same, temperature=self.temperature_at(step))
        return same

    def limit_at(self, step: int) -> int:
        """Limit of new tokens at a step; the first entry's value before it."""
        schedule = self.max_new_tokens_schedule
        reached = [limit for start, limit in schedule if start <= step] or [limit for _, limit in schedule[:1]]
        return reached[-1] if reached else self.max_new_tokens

    def temperature_at(self, step: int) -> float:
        """Sampling temperature at a step."""
        if not self.temperature_schedule:
            return self.temperature
        steps, values = zip(*self.temperature_schedule, strict=True)
        return float(np.interp(step, steps, values))


@dataclasses.dataclass(frozen=True)
class DynamicSamplingConfig:
    """Dynamic sampling (DAPO, 2503.14476).

    Attributes:
      max_rounds: rounds of prompts in a step; each replaces the groups whose rewards have no spread. 1 is off.
      filter_truncated: whether completions that reach the token limit are excluded from the loss (overlong filtering);
        a group that is wholly excluded is not replaced if its rewards have a spread.
    """

    max_rounds: int = 1
    filter_truncated: bool = False


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """Updates of the reference model of the KL term.

    Attributes:
      every_updates: updates between moves of the reference to the policy; 0 never moves it.
      mixing: share of the way that it moves, above 0 and at most 1.
    """

    every_updates: int = 0
    mixing: float = 1.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The way from a rollout to updates.

    Attributes:
      updates_per_step: mini-batches of whole groups that a rollout is split into.
      micro_batch_size: completions per device and accumulation, at full length; shorter ones pack tighter.
      completions_per_row: completions that share a row.
      share_prompts: whether a prompt occurs once in a row for all completions beside it; where rows are long and few
        completions fill them, a copy before each lets a TPU's kernel for long rows run.
      logits_chunk: positions of a row whose logits exist at once; 0 is all.
      old_logprobs: source of the old log-probs of several updates: "trainer" recomputes them before the first,
        "sampler" takes the engine's.
      replay_experts: whether routers reuse, for completions, the experts that the sampler chose.
      bias_rate: change of the experts' correction biases per update (learner/balance.py); it counts the tokens that are
        fed, a prompt once for all completions that share it.
      index_weight: weight of the loss of sparse attention's indexers (DeepSeek-V3.2), by which they alone learn.
      min_group_std: standard deviation of a group's rewards below which its advantages are 0.
      difference_alarm: mean log-prob difference between sampler and trainer, in nats, above which a step warns.
    """

    updates_per_step: int = 1
    micro_batch_size: int = 8
    completions_per_row: int = 4
    share_prompts: bool = True
    logits_chunk: int = 0
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    replay_experts: bool = False
    bias_rate: float = 0.0
    index_weight: float = 1.0
    min_group_std: float = 1e-3
    difference_alarm: float = 1e-3


MOST_COMPLETIONS = 2**24  # completions of a step: more do not fit in any host's memory

# Settings that a loss preset (losses/policy.py) implies for the rest of the run.
RUN_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "r1": {"train": {"updates_per_step": 16}, "reference": {"every_updates": 400}},
    "dapo": {"dynamic_sampling": {"max_rounds": 4, "filter_truncated": True}},
}


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """Settings of a GRPO run.

    Attributes:
      steps: steps of the run: rollouts, each with its updates.
      model: model that is trained.
      data: problems that are asked; must be given unless harness.tasks is.
      rewards: rewards: registered name or module:function -> weight, or {weight, arguments}.
      stage: name of the stage.
      environment: environment that answers replies: a registered name, module:Class, an adapter's PREFIX:WHAT, or
        several by name, of which config.episode.column chooses; "" is none.
      tools: plain functions as tools: registered names or module:function.
      episode: limits of trajectories, and how their environment is run.
      harness: external program that plays each trajectory, in place of an environment.
      seed: seed of all randomness in the run.
      mesh: devices, and what is split over them.
      rollout: sampling.
      train: updates.
      loss: policy loss.
      reference: reference model of the KL term.
      critic: critic of PPO, where loss.baseline is "critic".
      dynamic_sampling: rounds of prompts in a step.
      curriculum: choice of prompts.
      judge: sampling of rewards that ask the policy.
      lora: adapters that are trained in place of all parameters.
      optimizer: optimizer and learning rate.
      eval: held-out problems.
      checkpoint: when checkpoints are saved.
      log: what is logged.
      profile: steps that are traced.
      guards: reactions to updates and rewards that go wrong.
      watchdog_minutes: minutes without a sign of progress after which a process ends; 0 is never.
    """

    PRESETS: ClassVar[Presets] = Presets(
        "loss.preset", {name: flatten({"loss": row, **RUN_PRESETS.get(name, {})}) for name, row in PRESETS.items()}
    )

    steps: int
    model: ModelConfig
    rewards: dict[str, Any]
    data: TaskConfig = TaskConfig("")
    stage: str = "grpo"
    environment: str | dict[str, str] = ""
    tools: tuple[str, ...] = ()
    episode: EpisodeConfig = EpisodeConfig()
    harness: HarnessConfig = HarnessConfig()
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    loss: PolicyLossConfig = PolicyLossConfig()
    reference: ReferenceConfig = ReferenceConfig()
    critic: CriticConfig = CriticConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    judge: JudgeConfig = JudgeConfig()
    lora: LoRAConfig = LoRAConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    eval: EvalConfig = EvalConfig()
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
        rollout, updates = self.rollout, self.train.updates_per_step
        tokens = rollout.completions * rollout.max_new_tokens
        return [
            f"steps: {self.steps}, each of {updates} update{'s' if updates > 1 else ''}",
            f"tokens a step: up to {tokens:,} sampled, {rollout.prompts_per_step} prompts x {rollout.group_size} "
            f"completions of up to {rollout.max_new_tokens:,} tokens",
        ]

    @property
    def is_on_policy(self) -> bool:
        """Whether the old log-probs of an update are its own: one update a step, not compared with the sampler's."""
        is_stale = self.rollout.max_staleness > 0 and self.train.old_logprobs == "sampler"
        return self.train.updates_per_step == 1 and not is_stale

    @property
    def has_environment(self) -> bool:
        """Whether completions are trajectories of several turns."""
        return bool(self.environment or self.tools or self.harness.command)

    @property
    def tasks(self) -> TaskConfig:
        """The source of prompts: that of harness.tasks, or config.data."""
        path = self.harness.tasks
        return dataclasses.replace(self.data, source="file", path=path) if path else self.data

    @property
    def trajectory_tokens(self) -> int:
        """Largest number of tokens behind a prompt, sampled and given."""
        return (self.episode.max_tokens if self.has_environment else 0) or self.rollout.max_new_tokens

    def row_shape(self, prompt_tokens: int, prefix: int) -> RowShape:
        """Row shape of an update, for the longest prompt of `prompt_tokens` tokens, of which all prompts share
        `prefix`.
        """
        train = self.train
        apart = prefix if train.share_prompts else 0
        return RowShape(
            prompt_tokens - apart, self.trajectory_tokens, train.completions_per_row, apart, train.share_prompts
        )


def check_settings(settings: GRPOConfig) -> None:
    """Raises UserError for impossible combinations."""
    check_run(settings)
    rollout, train = settings.rollout, settings.train
    for name in ("prompts_per_step", "slots", "prefill_batch", "cache_pieces"):
        check(f"rollout.{name}", value := getattr(rollout, name), value >= 1, "must be at least 1")
        check(f"rollout.{name}", value, value <= MOST_COMPLETIONS, f"must be at most {MOST_COMPLETIONS}")
    check("rollout.tails", rollout.tails, 0 <= rollout.tails <= 8, "must be from 0 (none) to 8")
    for name in ("updates_per_step", "micro_batch_size", "completions_per_row"):
        check(f"train.{name}", value := getattr(train, name), value >= 1, "must be at least 1")
    for name in ("logits_chunk", "min_group_std", "difference_alarm", "bias_rate", "index_weight"):
        check(f"train.{name}", value := getattr(train, name), 0 <= value < math.inf, "must be 0 or more, and finite")
    check(
        "rollout.prompts_per_step",
        rollout.prompts_per_step,
        rollout.completions <= MOST_COMPLETIONS,
        f"x config.rollout.group_size = {rollout.group_size} must be at most {MOST_COMPLETIONS} completions a step",
    )
    check("lora.rank", settings.lora.rank, 0 <= settings.lora.rank <= 2**16, "must be from 0 (off) to 65536")
    check("steps", settings.steps, settings.steps >= 1, "must be at least 1")
    check("rollout.group_size", rollout.group_size, rollout.group_size >= 2, "must be at least 2 to compare answers")
    heat = settings.eval.temperature
    rollout.check_sampling("config.rollout.", lowest="must be positive to explore")
    if rollout.mesh not in (AUTO, SAME):
        read_sizes(rollout.mesh)
    settings.judge.check_sampling("config.judge.")
    check("eval.temperature", heat, 0 <= heat < math.inf, "must be 0 (greedy) or more")
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
    targets = train.completions_per_row * settings.trajectory_tokens
    if 0 < train.logits_chunk < targets:
        check_divides(
            "train.completions_per_row x tokens of a completion", targets, "train.logits_chunk", train.logits_chunk
        )
    check_controls(settings)
    check_staleness(settings)
    check_critic(settings)
    check_environment(settings)
    check_harness(settings)
    check("data.source", settings.data.source, bool(settings.tasks.source), "must be given")
    check("rewards", settings.rewards, bool(settings.rewards), "must name a reward")
