"""GRPO: sample groups of answers, reward them, reinforce those above the group mean (DeepSeekMath 2402.03300,
DeepSeek-R1 2501.12948).

A step is one rollout batch and the updates made from it:

    prompts -> engine -> texts -> rewards -> group advantages -> packed rows -> updates -> metrics

Sampler and trainer share one model and its weights, so nothing is converted or synchronized. All randomness is a
function of (seed, step), and a checkpoint contains weights, moments and data position: a resumed run equals an
uninterrupted one. Held-out problems are answered before training, every N steps, and at the end.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from r1jax.core import console, distributed
from r1jax.core.errors import UserError
from r1jax.core.extras import check_installed
from r1jax.core.processes.agreement import agree_on_data
from r1jax.core.sharding import use_layout
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Completion, Program, Request
from r1jax.data.loader import PromptLoader
from r1jax.data.tasks import Prompt, Task, leave_out_long, load_task
from r1jax.eval.held_out import evaluate, make_problems
from r1jax.learner.balance import holds_biases
from r1jax.learner.state import TrainState
from r1jax.learner.trainable import Trainable
from r1jax.learner.update_guard import SKIPPED
from r1jax.losses.advantage import group_advantages
from r1jax.models.rope import find_positions
from r1jax.models.transformer import Params
from r1jax.rewards.base import Reward, connect_rewards, read_rewards
from r1jax.rewards.episodes.environment_reward import environment_reward
from r1jax.rewards.reader.golds import log_golds
from r1jax.rl.curriculum import Curriculum
from r1jax.rl.episode_rollouts import EpisodeRollouts, find_contracts
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rl.live_rollouts import LiveRollouts
from r1jax.rl.policy_judge import Judge
from r1jax.rl.policy_programs import (
    ObjectiveMaker,
    list_policy_programs,
    make_driver,
    make_engine,
    make_episode_engine,
    make_handover,
    make_live_engine,
    make_updates,
)
from r1jax.rl.rollout_batch import describe_lengths, describe_rewards, describe_samples
from r1jax.rl.rollouts import Rollouts, Trajectories
from r1jax.runs.abstract_model import ASSUMED, Prompts, abstract_model
from r1jax.runs.episodes.driver import make_dialogues
from r1jax.runs.hardware import peak_flops
from r1jax.runs.loop import Loop
from r1jax.runs.model_setup import check, load_model, load_tokenizer
from r1jax.runs.prologue import open_run
from r1jax.runs.rater import Rater
from r1jax.runs.workdir import describe_change
from r1jax.text.encoding import PrefixSearch, PromptEncoder

log = logging.getLogger(__name__)

CONFIG = GRPOConfig
MOST_STOP_IDS = 16  # that a program's request may add to those of the model


def run(settings: GRPOConfig, workdir: pathlib.Path) -> None:
    """Trains by the settings, resuming from `workdir` if it has a checkpoint."""
    with open_run(settings, settings.mesh):
        GRPORun(settings, workdir).train()


def programs(
    settings: GRPOConfig, prompts: Prompts = ASSUMED, *, make_objective: ObjectiveMaker | None = None
) -> list[Program]:
    """The programs of a run, under the mesh in use. config.rollout.max_prompt_tokens goes before `prompts`."""
    trainable = Trainable(abstract_model(settings.model), settings.lora)
    longest = settings.rollout.max_prompt_tokens or len(prompts.prefix) + prompts.tokens
    if settings.harness.command:
        prompts = prompts._replace(prefix=())
    handover = make_handover(settings, trainable)
    engine = make_engine(settings, handover, longest, prompts.prefix)
    updates = make_updates(settings, trainable, longest, prompts.prefix, make_objective=make_objective)
    return list_policy_programs(settings, handover, engine, updates)


class GRPORun:
    """One run: its parts, built once, and its steps. make_objective: makes the loss of the updates after the model is
    loaded (None: the GRPO loss).
    """

    def __init__(
        self,
        settings: GRPOConfig,
        workdir: pathlib.Path,
        *,
        make_objective: ObjectiveMaker | None = None,
    ):
        self.settings, self.workdir = settings, workdir
        rewards = read_rewards(settings.rewards)  # finds mistakes before the model is loaded
        if settings.curriculum.reward and settings.curriculum.reward not in (
            names := [reward.name for reward in rewards]
        ):
            raise UserError(
                f"config.curriculum.reward must be one of {', '.join(names)}, got {settings.curriculum.reward!r}"
            )
        contracts = find_contracts(settings, rewards)
        task = load_task(settings.tasks)
        for note in task.notes:
            log.warning(note)
        agree_on_data(task.train, task.held_out)
        model_config = settings.model
        self.tokenizer = load_tokenizer(model_config)
        self.dialogues = make_dialogues(self.tokenizer, contracts, settings.episode)
        self._may_grow = any(contract.place for contract in contracts.values())  # prompts, by what `reset` adds
        self.encode = PromptEncoder(self.tokenizer)
        task, prefix, longest = self._survey(task)
        model, _ = load_model(model_config)
        self._check_positions(find_positions(model.config.max_positions, model.config.rope_scaling))
        trainable = Trainable(model, settings.lora, seed=settings.seed)
        self.graph, routed = trainable.graph, model.routing[0] > 0
        check("train.replay_experts", True, routed or not settings.train.replay_experts, "needs a model with experts")
        rate, moves = settings.train.bias_rate, holds_biases(trainable.params)
        check("train.bias_rate", rate, moves or not rate, "must be 0 where no correction biases of experts are trained")
        self.handover = make_handover(settings, trainable)
        with use_layout(self.handover.layout):
            self.judge = Judge(
                settings.judge,
                self.handover.graph,
                self.tokenizer,
                seed=settings.seed,
                slots=settings.rollout.slots,
                context=model.config.max_positions,
                work=trainable.count_work(),
            )
        self.rater = Rater(settings.model)
        connected = connect_rewards(rewards, self.judge, self.rater)
        self.loader = PromptLoader(task.train, settings.rollout.prompts_per_step, seed=settings.seed)
        self.engine = make_engine(settings, self.handover, longest, prefix)
        self.updates = make_updates(
            settings, trainable, longest, prefix, tokenizer=self.tokenizer, make_objective=make_objective
        )
        self.updates.guard.folder = workdir / SKIPPED
        self.engine.check_memory(self.handover.shapes(jax.eval_shape(self.updates.weights)))
        curriculum = Curriculum(settings.curriculum, self.loader, settings.seed)
        self.episodes: Trajectories | None = None
        if contracts:
            driver = make_driver(settings, self.handover, self.dialogues, contracts, longest)
            self.episodes = EpisodeRollouts(driver, settings.seed)
        if settings.harness.command:
            self.episodes = self._make_programs(rewards, longest)
        parts = settings, self.engine, curriculum, self.encode, self.tokenizer, connected
        self.rollouts = Rollouts(*parts, self.episodes)
        if settings.rollout.max_staleness:
            self.rollouts = LiveRollouts(*parts, make_live_engine(settings, self.handover, longest))
        self.eval = dataclasses.replace(settings.eval, name=settings.eval.name or settings.tasks.name)
        self.problems = make_problems(task.held_out, self.encode, self.eval, rewards)
        self.num_tokens = 0
        log_golds(task.train, [reward.name for reward in rewards])
        log.info(
            "%s: %.1f M parameters; %d problems to train on, %d held out; prompts up to %d tokens, %d of them shared",
            model_config.name,
            trainable.count_parameters() / 1e6,
            len(task.train),
            len(task.held_out),
            longest,
            len(prefix),
        )

    def _survey(self, task: Task) -> tuple[Task, tuple[int, ...], int]:
        """The task without prompts that are too long, the prefix that the others share, and the tokens of the longest
        prompt that the engine takes.
        """
        limit, search = self.settings.rollout.max_prompt_tokens, PrefixSearch()
        if self.settings.harness.command:  # programs write their prompts
            self.longest_prompt = limit
            return task, (), limit

        def measure(prompt: Prompt) -> int:
            tokens = self.encode(prompt)
            if self.dialogues:
                tokens = max((each.open(prompt) for each in self.dialogues.values()), key=len)
            if not limit or len(tokens) <= limit:
                search.add(tokens)
            return len(tokens)

        rule = "config.rollout.max_prompt_tokens"
        with activity("measuring the prompts"):
            task, needed = leave_out_long(task, measure, limit, self.settings.data, rule=rule)
        for note in task.notes:
            log.warning(note)
        self.longest_prompt = needed
        prefix = () if self._may_grow else search.find()
        behind = -(-(needed - len(prefix)) // 8) * 8  # rounded up to a multiple of 8
        return task, prefix, limit or len(prefix) + behind

    def _make_programs(self, rewards: Sequence[Reward], longest: int) -> Trajectories:
        """The programs of config.harness."""
        for module in ("fastapi", "uvicorn", "jsonschema"):
            check_installed(module, "serve", "config.harness")
        from r1jax.serving.harness.program_rollouts import ProgramRollouts
        from r1jax.serving.harness.transcript import Limits

        settings, stop_ids = self.settings, len(self.tokenizer.eos_ids) + MOST_STOP_IDS
        make = lambda params: make_episode_engine(settings, self.handover, longest, params, stop_ids=stop_ids)
        limits = Limits(longest, settings.trajectory_tokens, settings.episode.turn_tokens)
        pays = any(reward.name == environment_reward.__name__ for reward in rewards)
        return ProgramRollouts(settings.harness, make, self.tokenizer, limits, pays=pays, seed=settings.seed)

    def _check_positions(self, positions: int) -> None:
        """Raises UserError if a prompt fills the model's positions, and logs if completions may go beyond them."""
        needed, limit = self.longest_prompt, self.settings.trajectory_tokens
        if needed >= positions:
            raise UserError(
                f"a prompt of config.data has {needed} tokens, but the model was made for sequences of {positions} "
                f"(max_position_embeddings of its config.json): config.rollout.max_prompt_tokens={positions - 1} with "
                "config.data.long_prompts=skip leaves such prompts out"
            )
        if needed + limit > positions:
            log.warning(
                "prompts of up to %d tokens and completions of up to %d exceed the %d positions that the "
                "model was made for",
                needed,
                limit,
                positions,
            )

    # --- Interface of the loop ---

    def train(self) -> None:
        """Runs all steps from the workdir's current step."""
        settings = self.settings
        every = settings.eval.every_steps
        loop = Loop(settings, self.workdir, settings.steps, every, settings.checkpoint, settings.log)
        try:
            dataclasses.replace(loop, watchdog_minutes=settings.watchdog_minutes, profile=settings.profile).run(self)
        finally:
            if self.episodes is not None:
                self.episodes.close()
        if distributed.is_writer():
            console.show_table("before and after", describe_change(self.workdir, self.eval.name))

    @property
    def state(self) -> TrainState:
        """All that training changes."""
        return self.updates.state

    @state.setter
    def state(self, state: TrainState) -> None:
        self.updates.state = state

    def abstract_state(self) -> TrainState:
        """Shapes with shardings of a checkpoint's state."""
        return self.updates.abstract_state()

    def metadata(self) -> dict[str, Any]:
        """The data position, the solve rates of prompts, completions that go on, and the number of tokens so far."""
        return {
            "loader": self.loader.get_state(),
            "pools": self.rollouts.curriculum.get_state(),
            "live": self.rollouts.get_state(),
            "num_tokens": self.num_tokens,
            "guard": self.updates.guard.get_state(),
            **({"entropy": self.updates.entropy_control.get_state()} if self.settings.loss.entropy_target else {}),
        }

    def resume(self, metadata: dict[str, Any]) -> None:
        """Continues from a checkpoint's metadata."""
        self.loader.set_state(metadata["loader"])
        self.rollouts.curriculum.set_state(metadata["pools"])
        self.rollouts.set_state(metadata.get("live", []))
        self.num_tokens = metadata["num_tokens"]
        self.updates.guard.set_state(metadata.get("guard"))
        self.updates.entropy_control.set_state(metadata.get("entropy"))

    def step(self, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Rollout, rewards, updates -> (metrics row, sample rows)."""
        begin, settings, G = time.perf_counter(), self.settings, self.settings.rollout.group_size
        temperature, loss = settings.rollout.temperature_at(step), settings.loss
        weights, handed = self._hand_over()
        with self.judge.weights(weights, step):
            drawn = self.rollouts.draw(weights, step)
        del weights  # those of rollouts make room for the gradient
        trained, excluded_PG = drawn.groups.pick(drawn.kept, G), drawn.excluded[drawn.kept]
        rewards_PG = drawn.scores.by_group(G)[drawn.kept]
        ready = time.perf_counter()
        sampled = drawn.metrics["time/rollout"] + sum(handed.values())
        metrics = {**drawn.metrics, **handed, **self.engine.take_metrics(), "time/reward": ready - begin - sampled}
        estimate = None
        if loss.baseline == "critic":
            with activity(f"step {step}: estimating values"):
                estimate, told = self.updates.estimate(trained, rewards_PG, excluded_PG, temperature)
            metrics |= told
        elif loss.kl_coefficient and loss.kl_in == "reward":
            kl_N = self.updates.measure_kl(trained, temperature)
            rewards_PG = rewards_PG - loss.kl_coefficient * kl_N.reshape(-1, G)
            metrics["kl"] = float(kl_N.sum() / sum(c.length for c in trained.completions))
        if estimate is not None:  # of completions the mean over their tokens, for samples.jsonl
            lengths = np.array([c.length for c in trained.completions])
            sums = np.add.reduceat(estimate.advantages, np.cumsum([0, *lengths])[:-1])
            advantages_PG = (sums / lengths).reshape(-1, G)
        else:
            advantages_PG, _ = group_advantages(
                rewards_PG, baseline=loss.baseline, scale=loss.scale, min_group_std=settings.train.min_group_std
            )
        with activity(f"step {step}: updating the model"):
            learned, targets, flops = self.updates.take(trained, advantages_PG, excluded_PG, temperature, estimate)
        end = time.perf_counter()
        lengths = np.array([c.length for c in drawn.groups.completions])
        behind = sum(len(c.tokens) for c in drawn.groups.completions)
        self.num_tokens += sum(map(len, drawn.groups.prompts)) * G + behind
        asked = self.judge.take_flops() + self.rater.take_flops()
        metrics |= {
            **learned,
            **describe_rewards(drawn.scores, G),
            **describe_lengths(drawn.groups),
            "frac_reward_zero_std": float(drawn.flat.mean()),
            "num_tokens": self.num_tokens,
            "step_time": end - begin,
            "time/train": end - ready,
            "rollout/tokens_per_second": float(lengths.sum() / metrics["time/rollout"]),
            "train/tokens_per_second": targets / (end - ready),
            "flops": flops + self.updates.work.forward(*drawn.groups.counts) + asked,
            "mfu": flops / (end - ready) / (peak_flops() * jax.device_count()),
        }
        self._check_difference(metrics)
        everyones_PG = np.zeros((len(drawn.flat), G))
        everyones_PG[drawn.kept] = np.where(excluded_PG, 0.0, advantages_PG)
        return metrics, describe_samples(drawn.groups, drawn.scores, self.rollouts.rewards, everyones_PG)

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics of the current weights."""
        if not self.problems.rows:
            return {}
        log.info("answering %d held-out problems, sampled and greedy", len(self.problems.rows))
        weights, _ = self._hand_over()

        def generate(requests: list[Request]) -> list[Completion]:
            with console.Progress(len(requests), title="held-out answers", every=10) as progress:
                if self.episodes is not None:
                    return self.episodes.answer(weights, requests, self.problems.rows, progress)
                return self.engine.generate(weights, requests, progress.count)

        sampling = self.settings.rollout.sampling(self.tokenizer.eos_ids)
        begin = time.perf_counter()
        metrics = evaluate(generate, self.tokenizer.decode, self.problems, self.eval, sampling, seed=self.settings.seed)
        if self.episodes is not None:
            self.episodes.release()
        return metrics | {"time/eval": time.perf_counter() - begin}

    def _hand_over(self) -> tuple[Params, dict[str, float]]:
        """The current weights where the engine samples from them, and the seconds of their way, if they have one."""
        begin = time.perf_counter()
        weights = self.handover(self.updates.weights())
        if self.handover.is_identity:
            return weights, {}
        jax.block_until_ready(weights)
        return weights, {"time/weights": time.perf_counter() - begin}

    def _check_difference(self, metrics: dict[str, Any]) -> None:
        difference = metrics["sampling/sampling_logp_difference/mean"]
        if difference > self.settings.train.difference_alarm:
            log.warning(
                "the sampler's log-probs differ from the trainer's by %.2g on average (alarm at %.2g, "
                "config.train.difference_alarm): they do not compute the same distribution",
                difference,
                self.settings.train.difference_alarm,
            )
