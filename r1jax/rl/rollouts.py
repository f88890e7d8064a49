"""The sampling half of a GRPO step: choice of prompts, sampling, rewards, and selection of groups.

Dynamic sampling (DAPO, 2503.14476): groups whose members all have the same reward teach nothing. They are dropped and
replaced by as many new prompts, in at most `dynamic_sampling.max_rounds` rounds; missing groups are then filled with
dropped ones, so that a step always has its number of prompts. Request seeds are a function of (seed, step, index).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from r1jax.core import distributed
from r1jax.core.console import Progress
from r1jax.core.seeds import derive_seed
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.losses.advantage import group_advantages
from r1jax.models.transformer import Params
from r1jax.rewards.base import Reward, Scores, score
from r1jax.rl.curriculum import Curriculum
from r1jax.rl.episode_rollouts import score_trajectories
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rl.rollout_batch import Groups, join_groups, join_scores
from r1jax.rollout.engine import Engine
from r1jax.text.encoding import PromptEncoder
from r1jax.text.tokenizer import Tokenizer


class Trajectories(Protocol):
    """A source of completions that are trajectories: of environments, or of programs."""

    def sample(
        self,
        params: Params,
        rows: list[dict[str, Any]],
        sampling: Sampling,
        group_size: int,
        step: int,
        *,
        first: int,
    ) -> Groups:
        """Groups of trajectories for rows; `first` is the index of the first row in the step."""

    def answer(
        self, params: Params, requests: Sequence[Request], rows: Sequence[dict[str, Any]], progress: Progress
    ) -> list[Completion]:
        """Completions of an evaluation, whose requests go through the rows, in order, once or several times."""

    def release(self) -> None:
        """Ends what the trajectories so far have kept for their rewards."""

    def take_metrics(self) -> dict[str, float]:
        """Metrics of the trajectories since the last call."""

    def close(self) -> None:
        """Ends what lives as long as the run."""


@dataclasses.dataclass(frozen=True)
class RolloutResult:
    """Everything sampled in a step. kept: indices of prompts to train on, in order; flat: whether each has zero spread.

    excluded: completions left out of the loss, whatever their reward [P, G].
    """

    groups: Groups
    scores: Scores
    kept: np.ndarray
    flat: np.ndarray
    excluded: np.ndarray
    metrics: dict[str, float]


class Rollouts:
    """Samples, scores and selects the groups of each step."""

    def __init__(
        self,
        settings: GRPOConfig,
        engine: Engine,
        curriculum: Curriculum,
        encode: PromptEncoder,
        tokenizer: Tokenizer,
        rewards: Sequence[Reward],
        episodes: Trajectories | None = None,
    ):
        self.settings, self.engine, self.curriculum, self.episodes = settings, engine, curriculum, episodes
        self.encode, self.tokenizer, self.rewards = encode, tokenizer, rewards

    def draw(self, params: Params, step: int) -> RolloutResult:
        """The groups of a step with their scores."""
        rollout, dynamic_sampling = self.settings.rollout, self.settings.dynamic_sampling
        P = rollout.prompts_per_step
        rounds: list[tuple[Groups, Scores]] = []
        flat = np.zeros(0, bool)
        seconds = 0.0
        while len(rounds) < dynamic_sampling.max_rounds and (missing := P - int((~flat).sum())):
            begin = time.perf_counter()
            groups = self._sample(params, self.curriculum.take(missing), step, first=len(flat))
            seconds += time.perf_counter() - begin
            scores, is_flat = self._judge(groups, step)
            rounds.append((groups, scores))
            flat = np.append(flat, is_flat)
        if self.episodes is not None:
            self.episodes.release()
        groups, scores = join_groups([g for g, _ in rounds]), join_scores([s for _, s in rounds])
        return self._select(groups, scores, flat, step, rounds=len(rounds), seconds=seconds)

    def get_state(self) -> list[dict[str, Any]]:
        """Groups that go on in the next step, for JSON: none."""
        return []

    def set_state(self, state: Sequence[dict[str, Any]]) -> None:
        """Continues from the state of `get_state`."""

    def _judge(self, groups: Groups, step: int) -> tuple[Scores, np.ndarray]:
        """Scores of groups, and whether the rewards of each prompt have no spread [P]."""
        with activity(f"step {step}: scoring {len(groups.texts)} completions"):
            scores = self._score(groups)
        rewards_PG = scores.by_group(self.settings.rollout.group_size)
        return scores, group_advantages(rewards_PG, min_group_std=self.settings.train.min_group_std)[1]

    def _select(
        self, groups: Groups, scores: Scores, flat: np.ndarray, step: int, *, rounds: int, seconds: float
    ) -> RolloutResult:
        """The result of a step from all groups of its rounds, which took so many seconds to sample."""
        P, G = self.settings.rollout.prompts_per_step, self.settings.rollout.group_size
        kept = np.sort(np.argsort(flat, kind="stable")[:P])
        cut_short = np.array([c.finish_reason == "length" for c in groups.completions])
        excluded = scores.out_of_loss | (cut_short & self.settings.dynamic_sampling.filter_truncated)
        metrics = {"time/rollout": seconds, **scores.metrics} | self._describe(step, flat, kept, cut_short, rounds)
        if self.episodes is not None:
            metrics |= self.episodes.take_metrics()
        solved = scores.by_name[self.settings.curriculum.reward or self.rewards[0].name]
        metrics |= self.curriculum.remember(groups.rows, solved.reshape(-1, G))
        return RolloutResult(groups, scores, kept, flat, excluded.reshape(-1, G), metrics)

    def _describe(
        self, step: int, flat: np.ndarray, kept: np.ndarray, cut_short: np.ndarray, rounds: int
    ) -> dict[str, float]:
        """Metrics of the enabled sampling controls."""
        rollout, dynamic_sampling = self.settings.rollout, self.settings.dynamic_sampling
        metrics: dict[str, float] = {}
        if dynamic_sampling.max_rounds > 1:
            unfilled = int(flat[kept].sum())
            metrics |= {
                "dynamic_sampling/rounds": float(rounds),
                "dynamic_sampling/dropped": float(len(flat) - len(kept)),
                "dynamic_sampling/unfilled": float(unfilled),
            }
        if dynamic_sampling.filter_truncated:
            metrics["completions/filtered_ratio"] = float(cut_short.mean())
        if rollout.max_new_tokens_schedule:
            metrics["rollout/limit"] = float(rollout.limit_at(step))
        if rollout.temperature_schedule:
            metrics["rollout/temperature"] = rollout.temperature_at(step)
        return metrics

    def _sample(self, params: Params, rows: list[dict[str, Any]], step: int, *, first: int) -> Groups:
        """Groups of completions for rows; `first` is the index of the first row in the step."""
        rollout = self.settings.rollout
        sampling = rollout.sampling_at(step, self.tokenizer.eos_ids)
        if self.episodes is not None:
            return self.episodes.sample(params, rows, sampling, rollout.group_size, step, first=first)
        prompts = [self.encode(row["prompt"]) for row in rows]
        requests = [
            Request(prompt, sampling, derive_seed(self.settings.seed, step, p, g))
            for p, prompt in enumerate(prompts, start=first)
            for g in range(rollout.group_size)
        ]
        with activity(f"step {step}: sampling {len(requests)} completions"):
            completions = self.engine.generate(params, requests)
        return Groups(rows, prompts, completions, [self.tokenizer.decode(c.tokens) for c in completions])

    def _score(self, groups: Groups) -> Scores:
        if self.episodes is not None:
            return score_trajectories(self.rewards, groups, strict=self.settings.guards.rewards == "strict")
        G = self.settings.rollout.group_size
        scores = score(
            self.rewards,
            prompts=[row["prompt"] for row in groups.rows for _ in range(G)],
            completions=groups.texts,
            completion_ids=[list(c.tokens) for c in groups.completions],
            columns=groups.columns(G),
            group_size=G,
            processes=distributed,
            strict=self.settings.guards.rewards == "strict",
        )
        total, by_name, out_of_loss = distributed.from_first((scores.total, scores.by_name, scores.out_of_loss))
        return dataclasses.replace(scores, total=total, by_name=by_name, out_of_loss=out_of_loss)
