"""The compiled parts of a GRPO run, its engine and its updates, for a model of arrays or of shapes; and the list of
their programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from r1jax.core import distributed
from r1jax.core.sharding import current_layout, is_abstract, use_layout
from r1jax.core.structs import Program, Sampling, hold
from r1jax.environments.contract import Contract
from r1jax.learner.objective import Objective
from r1jax.learner.policy_objective import Scoring, make_loss
from r1jax.learner.trainable import Trainable
from r1jax.models.flops import Work
from r1jax.models.transformer import Params, logical_axes, merge
from r1jax.rewards.base import read_rewards
from r1jax.rl.critic import Critic, make_critic_model
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rl.updates import Updates
from r1jax.rollout.continuous import ContinuousConfig, ContinuousEngine
from r1jax.rollout.engine import Engine
from r1jax.rollout.handover import Handover, find_weights
from r1jax.rollout.layout import choose_layout, find_bytes
from r1jax.rollout.slots import EngineConfig
from r1jax.runs.episodes.driver import Driver, make_continuous
from r1jax.runs.hardware import find_device_memory
from r1jax.runs.rater import list_scorer_programs
from r1jax.runs.sampler import Sampler
from r1jax.text.tokenizer import Tokenizer
from r1jax.text.tools.dialogue import Dialogue

LIVE_CHUNK, LIVE_BURST = 32, 64  # tokens of a sequence that are fed at once, and sampled between two looks, at most

# (policy, tokenizer, scoring) -> the loss of its updates. An abstract policy has no tokenizer.
ObjectiveMaker = Callable[[Trainable, Tokenizer | None, Scoring], Objective]


def make_policy_objective(settings: GRPOConfig) -> ObjectiveMaker:
    """The maker of the GRPO loss described by config.loss."""

    def make(trainable: Trainable, tokenizer: Tokenizer | None, scoring: Scoring) -> Objective:
        weight = settings.train.index_weight
        loss = make_loss(trainable.graph, settings.loss, scoring, on_policy=settings.is_on_policy, index_weight=weight)
        return Objective(loss)

    return make


def make_handover(settings: GRPOConfig, trainable: Trainable) -> Handover:
    """The way of the weights from training to the sampler, whose layout is chosen beside the state of the run."""
    rollout, layout, whole = settings.rollout, current_layout(), trainable.whole(trainable.params)
    if layout.mesh is None:
        chosen = layout
    else:
        model = merge(trainable.graph, whole)
        weights = find_weights(whole, logical_axes(model), rollout.dtype or model.dtypes.compute)
        memory = find_device_memory(layout.mesh.devices.flat[0])
        free = int(distributed.from_first(np.int64(memory - _count_state(settings, trainable))))
        rows = rollout.slots, rollout.prefill_batch
        chosen = choose_layout(layout, rollout.mesh, rollout.rules, weights, free=free, rows=rows)
    return Handover(trainable.graph, whole, layout, chosen, rollout.dtype)


def _count_state(settings: GRPOConfig, trainable: Trainable) -> int:
    """Bytes of a device that a run keeps while it samples, without what samples: parameters, moments, reference, and
    the base of adapters.
    """
    trained = find_bytes(trainable.params)
    moments = 0 if settings.optimizer.offload else 2 * find_bytes(trainable.params, width=4)
    if settings.loss.baseline == "critic":  # about as large as the policy
        moments += trained + 2 * find_bytes(trainable.params, width=4)
    base = 0 if trainable.base is None else find_bytes(trainable.base)
    return trained + moments + base + (trained if settings.loss.kl_coefficient else 0)


def make_engine(settings: GRPOConfig, handover: Handover, longest: int, prefix: tuple[int, ...]) -> Engine:
    """The sampler. longest: tokens of the longest prompt. prefix: ids that all prompts begin with."""
    rollout = settings.rollout
    with use_layout(handover.layout):
        return Engine(
            handover.graph,
            EngineConfig(
                slots=rollout.slots,
                max_prompt_tokens=longest,
                max_new_tokens=rollout.max_new_tokens,
                prefill_batch=rollout.prefill_batch,
                prefix=prefix,
                cache_pieces=rollout.cache_pieces,
                tails=rollout.tails,
                record_experts=settings.train.replay_experts,
            ),
        )


def make_live_engine(settings: GRPOConfig, handover: Handover, longest: int) -> ContinuousEngine:
    """The sampler of completions that go on over several steps, without weights. longest: tokens of a prompt."""
    rollout = settings.rollout
    with use_layout(handover.layout):
        return ContinuousEngine(
            handover.graph,
            None,
            ContinuousConfig(
                slots=rollout.slots,
                max_tokens=longest + rollout.max_new_tokens,
                chunk=LIVE_CHUNK,
                feed_rows=rollout.prefill_batch,
                burst=LIVE_BURST,
                share=True,
            ),
        )


def make_episode_engine(
    settings: GRPOConfig, handover: Handover, longest: int, params: Params | None, *, stop_ids: int = 0
) -> ContinuousEngine:
    """The sampler of trajectories with environments; params: None for one without weights."""
    rollout = settings.rollout
    tokens, slots = longest + settings.trajectory_tokens, min(rollout.slots, rollout.completions)
    with use_layout(handover.layout):
        return make_continuous(handover.graph, params, slots=slots, tokens=tokens, stop_ids=stop_ids)


def make_driver(
    settings: GRPOConfig,
    handover: Handover,
    dialogues: Mapping[str, Dialogue],
    contracts: Mapping[str, Contract],
    longest: int,
) -> Driver:
    """The sampler of trajectories. longest: tokens of the longest prompt, with its tools."""
    stop_ids = len(next(iter(dialogues.values())).tokenizer.eos_ids)

    def make(params: Params) -> ContinuousEngine:
        return make_episode_engine(settings, handover, longest, params, stop_ids=stop_ids)

    return Driver(make, dialogues, contracts, settings.episode, longest=longest)


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
    critic = None
    if settings.loss.baseline == "critic":
        abstract = is_abstract(trainable.params)
        model = make_critic_model(settings.critic, settings.model, seed=settings.seed, abstract=abstract)
        critic = Critic(
            settings.critic, model, settings.lora, scoring, settings.steps * settings.train.updates_per_step
        )
    return Updates(settings, trainable, shape, scoring, objective, critic)


def list_policy_programs(settings: GRPOConfig, handover: Handover, engine: Engine, updates: Updates) -> list[Program]:
    """Programs accumulate, apply, logprobs (if old or reference log-probs are computed), entropies (if tokens are
    selected by them), critic.accumulate, critic.apply, critic.values (of PPO); weights (where rollouts
    have a layout of their own), prefill, insert, decode, collect (on several devices), or with an environment feed,
    start, decode, stop, copy; judge.prefill, judge.insert, judge.decode, judge.collect if a reward asks the policy.

    The state, frozen parameters and the engine's slots count as resident at all times, weights that were handed over
    while they sample.
    """
    policy, own, work = updates.abstract_policy(), updates.weights(), updates.work
    weights = handover.shapes(own)
    others = {name: tree for name, tree in updates.frozen.items() if name != "base"}
    sampler: Engine | ContinuousEngine = engine
    if settings.has_environment:
        sampler = make_episode_engine(settings, handover, engine.config.max_prompt_tokens, None)
    rolls = sampler.programs(weights, settings.rollout.sampling(()), work)
    slots = next(program.arguments[-3] for program in rolls if program.name == "decode")
    critic = updates.critic
    judging = () if critic is None else (critic.abstract_state(), critic.trainable.frozen)
    kept = (policy.opt_state, others, judging)
    sampling = kept if handover.is_identity else (*kept, own)
    resident = {
        "accumulate": (policy.opt_state, updates.reference, slots, judging),
        "apply": (updates.frozen, slots, judging),
        **dict.fromkeys(("logprobs", "entropies"), (*kept, slots)),
        "weights": kept,
        "prefill": (*sampling, slots),
        **dict.fromkeys(
            ("insert", "collect", "start", "copy"),
            (policy, updates.frozen, () if handover.is_identity else weights, judging),
        ),
        **dict.fromkeys(("prefix", "decode", "grow", "shrink", "feed"), sampling),
    }
    if critic is not None:
        own_state, base = critic.abstract_state(), critic.trainable.frozen
        resident |= {
            "critic.accumulate": (policy, updates.frozen, slots, own_state.opt_state),
            "critic.apply": (policy, updates.frozen, slots, base),
            "critic.values": (policy, updates.frozen, slots, own_state.opt_state),
        }
    programs = hold([*updates.programs(), *handover.programs(own), *rolls], resident)
    rewards = read_rewards(settings.rewards)
    for name in dict.fromkeys(str(reward.options["model"]) for reward in rewards if reward.asks == "rate"):
        longest = engine.config.max_prompt_tokens + engine.config.max_new_tokens
        scored = list_scorer_programs(settings.model, name, longest)
        programs += hold(scored, dict.fromkeys(("reward_model.score",), (policy, updates.frozen, slots, judging)))
    if any(reward.asks == "generate" for reward in rewards):
        with use_layout(handover.layout):
            judged = list_judge_programs(settings, engine, weights, work)
        programs += hold(judged, {f"judge.{k}": v for k, v in resident.items()})
    return programs


def list_judge_programs(settings: GRPOConfig, engine: Engine, weights: Params, work: Work) -> list[Program]:
    """The programs of the policy as judge, for prompts with a question and one answer."""
    judge, config = settings.judge, engine.config
    sampler = Sampler(engine.graph, weights, None, (), slots=settings.rollout.slots)
    sampling = Sampling(judge.temperature, max_new_tokens=judge.max_new_tokens)
    programs = sampler.programs(config.max_prompt_tokens + config.max_new_tokens, sampling, work)
    return [program.rename(f"judge.{program.name}") for program in programs]
