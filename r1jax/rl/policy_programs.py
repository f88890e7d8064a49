"""The compiled parts of a GRPO run, its engine and its updates, for a model of arrays or of shapes; and the list of
their programs.
"""

from __future__ import annotations

from collections.abc import Callable

from r1jax.core.structs import Program, Sampling, hold
from r1jax.learner.objective import Objective
from r1jax.learner.policy_objective import Scoring, make_loss
from r1jax.learner.trainable import Trainable
from r1jax.rewards.base import read_rewards
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rl.updates import Updates
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from r1jax.runs.sampler import Sampler
from r1jax.text.tokenizer import Tokenizer

# (policy, tokenizer, scoring) -> the loss of its updates. An abstract policy has no tokenizer.
ObjectiveMaker = Callable[[Trainable, Tokenizer | None, Scoring], Objective]


def make_policy_objective(settings: GRPOConfig) -> ObjectiveMaker:
    """The maker of the GRPO loss described by config.loss."""

    def make(trainable: Trainable, tokenizer: Tokenizer | None, scoring: Scoring) -> Objective:
        on_policy = settings.train.updates_per_step == 1
        return Objective(make_loss(trainable.graph, settings.loss, scoring, on_policy=on_policy))

    return make


def make_engine(settings: GRPOConfig, trainable: Trainable, longest: int, prefix: tuple[int, ...]) -> Engine:
    """The sampler. longest: tokens of the longest prompt. prefix: ids that all prompts begin with."""
    rollout = settings.rollout
    return Engine(
        trainable.graph,
        EngineConfig(
            slots=rollout.slots,
            max_prompt_tokens=longest,
            max_new_tokens=rollout.max_new_tokens,
            prefill_batch=rollout.prefill_batch,
            prefix=prefix,
            cache_pieces=rollout.cache_pieces,
            record_experts=settings.train.replay_experts,
        ),
    )


def make_updates(
    settings: GRPOConfig,
    trainable: Trainable,
    longest: int,
    prefix: tuple[int, ...],
    *,
    tokenizer: Tokenizer | None = None,
    make_objective: ObjectiveMaker | None = None,
) -> Updates:
    """The trainer of the same prompts. make_objective: makes its loss (None: the GRPO loss)."""
    shape = settings.row_shape(longest, len(prefix))
    scoring = Scoring(settings.rollout.temperature, settings.train.logits_chunk, prefix[: shape.prefix])
    objective = (make_objective or make_policy_objective(settings))(trainable, tokenizer, scoring)
    return Updates(settings, trainable, shape, scoring, objective)


def list_policy_programs(settings: GRPOConfig, engine: Engine, updates: Updates) -> list[Program]:
    """Programs accumulate, apply, logprobs (if old or reference log-probs are computed); prefill, insert, decode;
    judge.prefill, judge.insert, judge.decode if a reward asks the policy.

    The state, frozen parameters and the engine's slots count as resident at all times.
    """
    policy, weights, work = updates.abstract_policy(), updates.weights(), updates.work
    others = {name: tree for name, tree in updates.frozen.items() if name != "base"}
    rolls = engine.programs(weights, settings.rollout.sampling(()), work)
    slots = next(program.arguments[2] for program in rolls if program.name == "decode")
    sampling = (policy.opt_state, others)
    resident = {
        "accumulate": (policy.opt_state, updates.reference, slots),
        "apply": (updates.frozen, slots),
        "logprobs": (*sampling, slots),
        "prefill": (*sampling, slots),
        "insert": (policy, updates.frozen),
        **dict.fromkeys(("prefix", "decode", "grow"), sampling),
    }
    programs = hold([*updates.programs(), *rolls], resident)
    if any(reward.make for reward in read_rewards(settings.rewards)):
        programs += hold(list_judge_programs(settings, engine, updates), {f"judge.{k}": v for k, v in resident.items()})
    return programs


def list_judge_programs(settings: GRPOConfig, engine: Engine, updates: Updates) -> list[Program]:
    """The programs of the policy as judge, for prompts with a question and one answer."""
    judge, config = settings.judge, engine.config
    sampler = Sampler(engine.graph, updates.weights(), None, (), slots=settings.rollout.slots)
    sampling = Sampling(judge.temperature, max_new_tokens=judge.max_new_tokens)
    programs = sampler.programs(config.max_prompt_tokens + config.max_new_tokens, sampling, updates.work)
    return [program.rename(f"judge.{program.name}") for program in programs]
