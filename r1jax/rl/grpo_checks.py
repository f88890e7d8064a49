"""Checks of a GRPO config's settings that go together: schedules, loss, reference, and rollouts over several steps."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from r1jax.runs.model_setup import check, check_divides

if TYPE_CHECKING:
    from r1jax.rl.grpo_config import GRPOConfig


def check_controls(settings: GRPOConfig) -> None:
    """Checks the settings of sampling schedules, loss and reference."""
    rollout, train, loss, reference = settings.rollout, settings.train, settings.loss, settings.reference
    curriculum = settings.curriculum
    for name in ("skip", "low", "high"):
        check(f"curriculum.{name}", value := getattr(curriculum, name), 0 <= value <= 1, "must be from 0 to 1")
    for name in ("kl_coefficient", "entropy_coefficient"):
        check(f"loss.{name}", value := getattr(loss, name), abs(value) < math.inf, "must be finite")
    lower = ("clip_low", "clip_high", "clip_delta", "kl_coefficient", "importance_correction_low")
    weights = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "off_policy_mask_threshold")
    entropy = ("entropy_target", "entropy_coefficient_delta", "entropy_coefficient_min")
    for name in (*lower, *weights, *entropy):
        check(f"loss.{name}", value := getattr(loss, name), value >= 0, "must be 0 or more")
    check(
        "loss.importance_correction_high",
        loss.importance_correction_high,
        loss.importance_correction_high > loss.importance_correction_low,
        "must be the larger",
    )
    own = train.old_logprobs == "sampler" and not settings.is_on_policy
    check(
        "loss.importance_correction",
        loss.importance_correction,
        loss.importance_correction == "none" or not own,
        "compares trainer and sampler, which config.train.old_logprobs = 'sampler' takes for the same",
    )
    for name in ("sapo_temperature_pos", "sapo_temperature_neg"):
        check(f"loss.{name}", value := getattr(loss, name), value > 0, "must be above 0")
    check(
        "loss.top_entropy_quantile",
        loss.top_entropy_quantile,
        0 <= loss.top_entropy_quantile <= 1,
        "must be from 0 to 1",
    )
    largest = loss.entropy_coefficient_max
    check(
        "loss.entropy_coefficient_max",
        largest,
        largest >= loss.entropy_coefficient_min,
        "must be at least the smallest",
    )
    by_tokens = loss.surrogate != "vespo" or not loss.importance_correction.startswith("sequence")
    check("loss.importance_correction", loss.importance_correction, by_tokens, "must be by tokens with surrogate vespo")
    check(
        "dynamic_sampling.max_rounds",
        settings.dynamic_sampling.max_rounds,
        settings.dynamic_sampling.max_rounds >= 1,
        "must be at least 1",
    )
    for name in ("max_new_tokens_schedule", "temperature_schedule"):
        points = getattr(rollout, name)
        rising = all(a[0] < b[0] for a, b in itertools.pairwise(points))
        check(f"rollout.{name}", points, rising, "must be (step, value) pairs by rising steps")
    inside = all(1 <= limit <= rollout.max_new_tokens for _, limit in rollout.max_new_tokens_schedule)
    check(
        "rollout.max_new_tokens_schedule",
        rollout.max_new_tokens_schedule,
        inside,
        f"must be from 1 to max_new_tokens = {rollout.max_new_tokens}",
    )
    positive = all(0 < value < math.inf for _, value in rollout.temperature_schedule)
    check("rollout.temperature_schedule", rollout.temperature_schedule, positive, "must be positive")
    check("reference.every_updates", reference.every_updates, reference.every_updates >= 0, "must be 0 or more")
    check("reference.mixing", reference.mixing, 0 < reference.mixing <= 1, "must be above 0 and at most 1")
    if reference.every_updates:
        check_divides(
            "reference.every_updates", reference.every_updates, "train.updates_per_step", train.updates_per_step
        )


def check_staleness(settings: GRPOConfig) -> None:
    """Checks what goes with rollouts over several steps."""
    staleness, train, loss = settings.rollout.max_staleness, settings.train, settings.loss
    check("rollout.max_staleness", staleness, 0 <= staleness <= 64, "must be from 0 (none) to 64")
    if not staleness:
        return
    corrected = loss.importance_correction != "none" or train.old_logprobs == "sampler"
    rules = {
        "needs config.loss.importance_correction, or config.train.old_logprobs='sampler': tokens of older weights must "
        "count by their ratio": corrected,
        "must be 0 with rounds of dynamic sampling (config.dynamic_sampling.max_rounds)": (
            settings.dynamic_sampling.max_rounds == 1
        ),
        "must be 0 with config.rollout.temperature_schedule": not settings.rollout.temperature_schedule,
        "must be 0 with config.train.replay_experts": not train.replay_experts,
        "must be 0 with a critic (config.loss.baseline='critic')": loss.baseline != "critic",
    }
    for rule, holds in rules.items():
        check("rollout.max_staleness", staleness, holds, rule)


def check_critic(settings: GRPOConfig) -> None:
    """Checks what goes with a critic."""
    critic, ppo = settings.critic, settings.loss.baseline == "critic"
    for name in ("gamma", "decay"):
        check(f"critic.{name}", value := getattr(critic, name), 0 <= value <= 1, "must be from 0 to 1")
    check("critic.clip", critic.clip, 0 <= critic.clip < math.inf, "must be 0 (no bound) or more, and finite")
    scale, moves = settings.loss.scale, settings.reference.every_updates
    check("loss.scale", scale, not ppo or scale == "none", "must be 'none' with a critic (critic.whiten)")
    check("reference.every_updates", moves, not (ppo and moves), "must be 0 with a critic")
    rounds, rule = settings.dynamic_sampling.max_rounds, "must be 1 with a critic, which needs no spread"
    check("dynamic_sampling.max_rounds", rounds, not ppo or rounds == 1, rule)


def check_environment(settings: GRPOConfig) -> None:
    """Checks what goes with an environment."""
    if not settings.has_environment:
        return
    settings.episode.check_episode()
    check("train.replay_experts", True, not settings.train.replay_experts, "must be false with an environment")
    critic, stale = settings.loss.baseline, settings.rollout.max_staleness
    check("loss.baseline", critic, critic != "critic", "must not be 'critic' with an environment")
    check("rollout.max_staleness", stale, not stale, "must be 0 with an environment")


def check_harness(settings: GRPOConfig) -> None:
    """Checks what goes with a harness."""
    harness, longest = settings.harness, settings.rollout.max_prompt_tokens
    if not harness.command:
        check("harness.tasks", harness.tasks, not harness.tasks, "needs config.harness.command")
        return
    harness.check_harness()
    other = settings.environment or settings.tools
    check("harness.command", harness.command, not other, "must be empty with an environment or tools")
    rule = "must be above 0 with a harness, whose programs write their prompts themselves"
    check("rollout.max_prompt_tokens", longest, longest > 0, rule)
