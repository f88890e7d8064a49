"""The sampling half of a GRPO step whose completions are trajectories with environments.

The prompt of a group is what the prompts of its members have in common, since `reset` may give each another text; the
rest of a member's prompt stands at the head of its trajectory, among the tokens that were given. Rewards see the
environments of trajectories that came to their end; one that its environment failed has no reward and is out of the
loss. Environments live in the first process, so rewards are computed there.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from r1jax.core import distributed
from r1jax.core.console import Progress
from r1jax.core.errors import UserError
from r1jax.core.seeds import derive_seed
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.environments.contract import Contract, read_contracts
from r1jax.models.transformer import Params
from r1jax.rewards.base import Reward, Scores
from r1jax.rewards.episodes.environment_reward import environment_reward
from r1jax.rewards.episodes.played import score_played
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rl.rollout_batch import Groups
from r1jax.runs.episodes.driver import Driver
from r1jax.runs.episodes.episode_metrics import describe_episodes
from r1jax.runs.episodes.trajectory import Episode, Start


class EpisodeRollouts:
    """Samples and scores groups of trajectories. seed: of the run."""

    def __init__(self, driver: Driver, seed: int):
        self.driver, self.seed = driver, seed
        self._episodes: list[Episode] = []

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
        starts = [
            self.start(
                row, sampling, derive_seed(self.seed, step, p, g), derive_seed("environment", self.seed, step, p)
            )
            for p, row in enumerate(rows, start=first)
            for g in range(group_size)
        ]
        with activity(f"step {step}: sampling {len(starts)} trajectories"):
            episodes = self.driver.run(params, starts)
        self._episodes += episodes
        return make_groups(rows, episodes, self.driver)

    def start(self, row: dict[str, Any], sampling: Sampling, seed: int, environment_seed: int) -> Start:
        """The start of a trajectory for a row of the data."""
        kinds = self.driver.contracts
        kind = next(iter(kinds)) if len(kinds) == 1 else str(row.get(self.driver.config.column, ""))
        columns = {name: value for name, value in row.items() if name != "prompt"}
        return Start(row["prompt"], columns, kind, sampling, seed, environment_seed)

    def answer(
        self, params: Params, requests: Sequence[Request], rows: Sequence[dict[str, Any]], progress: Progress
    ) -> list[Completion]:
        """Completions of an evaluation, whose requests go through the rows, in order, once or several times."""
        starts = [
            self.start(rows[i % len(rows)], each.sampling, each.seed, derive_seed("eval", self.seed, i % len(rows)))
            for i, each in enumerate(requests)
        ]
        done = 0

        def report(count: int) -> None:
            nonlocal done
            if count > done:
                done = count
                progress.update(count, {})

        return [episode.completion for episode in self.driver.run(params, starts, report)]

    def release(self) -> None:
        """Ends the environments of the trajectories so far."""
        self.driver.release()

    def close(self) -> None:
        """Ends environments and the threads of their calls."""
        self.driver.workers.shut()

    def take_metrics(self) -> dict[str, float]:
        """Metrics of the episodes since the last call."""
        episodes, self._episodes = self._episodes, []
        return describe_episodes(episodes, self.driver.take_parked())


def score_trajectories(rewards: Sequence[Reward], groups: Groups, *, strict: bool) -> Scores:
    """Scores of groups of trajectories, computed where their environments are, the same in every process."""
    if not distributed.is_writer():
        return _share_scores(None)
    G = len(groups.completions) // len(groups.prompts)
    prompts = [row["prompt"] for row in groups.rows for _ in range(G)]
    found = score_played(rewards, prompts, groups.completions, groups.columns(G), group_size=G, strict=strict)
    return _share_scores(found)


def find_contracts(settings: GRPOConfig, rewards: Sequence[Reward]) -> dict[str, Contract]:
    """The environments of a run by name; {} for a run without. Raises UserError for what is no environment, and for
    rewards that cannot be had with one.
    """
    paid = [reward for reward in rewards if reward.name == environment_reward.__name__]
    if not settings.has_environment:
        if paid:
            raise UserError("config.rewards.environment_reward needs config.environment or config.harness, got none")
        return {}
    if settings.harness.command:
        if jax.process_count() > 1:
            raise UserError(f"config.harness needs a run of one process, got {jax.process_count()}")
        return {}
    contracts = read_contracts(settings.environment, settings.tools)
    if paid and not any(contract.pays for contract in contracts.values()):
        raise UserError("config.rewards.environment_reward needs an environment with a method get_reward")
    asking = [reward.name for reward in rewards if reward.make is not None]
    if asking and jax.process_count() > 1:
        raise UserError(f"with an environment and several processes no reward may ask the policy, got {asking[0]}")
    return contracts


def make_groups(rows: list[dict[str, Any]], episodes: Sequence[Episode], driver: Driver) -> Groups:
    """Groups of episodes in the order of rows."""
    G = len(episodes) // len(rows)
    prompts, completions = [], []
    for p, row in enumerate(rows):
        members = episodes[p * G : (p + 1) * G]
        told = [one.prompt_tokens for one in members if one.prompt_tokens] or [_open(driver, row)]
        common = tuple(os.path.commonprefix(told)[: driver.longest])
        prompts.append(common)
        completions += [_add_head(one, common) for one in members]
    tokenizer = next(iter(driver.dialogues.values())).tokenizer
    return Groups(rows, prompts, completions, [tokenizer.decode(completion.tokens) for completion in completions])


def _open(driver: Driver, row: dict[str, Any]) -> tuple[int, ...]:
    """A prompt of a row, none of whose environments began."""
    return next(iter(driver.dialogues.values())).open(row["prompt"])


def _add_head(episode: Episode, common: tuple[int, ...]) -> Completion:
    """The completion of an episode behind a prompt that may be shorter than its own."""
    completion, head = episode.completion, episode.prompt_tokens[len(common) :]
    if not head:
        return completion
    assert completion.sampled is not None
    return dataclasses.replace(
        completion,
        tokens=(*head, *completion.tokens),
        logprobs=(*[0.0] * len(head), *completion.logprobs),
        sampled=(*[False] * len(head), *completion.sampled),
    )


def _share_scores(scores: Scores | None) -> Scores:
    """The first process's scores in every process."""
    if jax.process_count() == 1:
        assert scores is not None
        return scores
    told: list[Any] = []
    if scores is not None:
        by_name = {name: values.tolist() for name, values in scores.by_name.items()}
        told = [scores.total.tolist(), by_name, scores.out_of_loss.tolist(), scores.calls, scores.metrics]
    total, by_name, out, calls, metrics = json.loads(distributed.text_from_first(json.dumps(told, default=str)))
    arrays = {name: np.array(values, float) for name, values in by_name.items()}
    return Scores(np.array(total, float), arrays, np.array(out, bool), calls, metrics)
