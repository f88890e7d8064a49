"""The sampling half of a GRPO step that does not wait for its longest completions (`config.rollout.max_staleness`).

The slots hold completions of this step's groups and of groups of steps to come. A step ends when it has its groups
(live_groups.py); what is unfinished stays as tokens, and goes on under the next weights: its keys and values are
computed anew with them, so that each token follows a distribution that the trainer can compute, and a resumed run
equals an uninterrupted one. Which groups a step takes follows from counts of decode steps, never from the clock.

A token is sampled with the weights of its step and trained on with those of a later one; `Completion.ages` tells the
number of steps between. Seeds are a function of (seed, step at which the group began, place among those).
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.core.seeds import derive_seed
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Request
from r1jax.models.transformer import Params
from r1jax.rewards.base import Reward
from r1jax.rl.curriculum import Curriculum
from r1jax.rl.grpo_config import GRPOConfig
from r1jax.rl.live_groups import LiveGroup, Member, choose_groups
from r1jax.rl.rollout_batch import Groups
from r1jax.rl.rollouts import RolloutResult, Rollouts
from r1jax.rollout.continuous import ContinuousEngine
from r1jax.rollout.engine import Engine
from r1jax.text.encoding import PromptEncoder
from r1jax.text.tokenizer import Tokenizer

ENDS_SHARE = 0.125  # share of the sampled completions that end before the host fills their slots


class LiveRollouts(Rollouts):
    """Samples, scores and selects the groups of each step, and keeps unfinished ones for the next.

    live: engine of the slots, without weights.
    """

    def __init__(
        self,
        settings: GRPOConfig,
        engine: Engine,
        curriculum: Curriculum,
        encode: PromptEncoder,
        tokenizer: Tokenizer,
        rewards: Sequence[Reward],
        live: ContinuousEngine,
    ):
        super().__init__(settings, engine, curriculum, encode, tokenizer, rewards)
        self.live, self._groups = live, list[LiveGroup]()

    def draw(self, params: Params, step: int) -> RolloutResult:
        """The groups of a step with their scores."""
        begin, P = time.perf_counter(), self.settings.rollout.prompts_per_step
        with activity(f"step {step}: sampling until {P} groups are complete"):
            self.live.load(params)
            chosen, idle = self._run(step)
            self.live.unload()
        seconds = time.perf_counter() - begin
        taken = [self._groups.pop(place) for place in reversed(chosen)][::-1]
        completions = [member.complete(step) for group in taken for member in group.members]
        prompts = [group.members[0].request.tokens for group in taken]
        groups = Groups(
            [group.row for group in taken], prompts, completions, [self.tokenizer.decode(c.tokens) for c in completions]
        )
        scores, flat = self._judge(groups, step)
        found = self._select(groups, scores, flat, step, rounds=1, seconds=seconds)
        return dataclasses.replace(found, metrics=found.metrics | self._describe_ages(groups, seconds * idle))

    def get_state(self) -> list[dict[str, Any]]:
        """The groups that go on, for JSON."""
        return [group.get_state() for group in self._groups]

    def set_state(self, state: Sequence[dict[str, Any]]) -> None:
        """Continues from the state of `get_state`."""
        self._groups = [self._begin(saved["row"], saved["begun"], saved["place"]) for saved in state]
        for group, saved in zip(self._groups, state, strict=True):
            group.set_members(saved["members"])

    def _run(self, step: int) -> tuple[list[int], float]:
        """Samples until the step has its groups: their places, and the share of slots that were idle meanwhile."""
        rollout = self.settings.rollout
        held: dict[int, Member] = {}
        sampled, decoded, begun = 0, 0, 0
        while not (chosen := choose_groups(self._groups, rollout.prompts_per_step, step, rollout.max_staleness)):
            begun = self._fill(held, step, begun)
            bursts = self.live.step(ends=max(1, int(len(held) * ENDS_SHARE)))
            decoded += max(len(burst.tokens) for burst in bursts)
            for burst in bursts:
                member = held[burst.slot]
                member.tokens += burst.tokens
                member.logprobs += burst.logprobs
                member.steps += [step] * len(burst.tokens)
                member.finish_reason = burst.finish_reason
                sampled += len(burst.tokens)
                if burst.finish_reason:
                    self.live.close(burst.slot)
                    del held[burst.slot]
        return chosen, 1 - sampled / max(1, decoded * self.live.config.slots)

    def _fill(self, held: dict[int, Member], step: int, begun: int) -> int:
        """Opens free slots for members that wait, and for new groups while these can be trained on in time; the number
        of groups that began in this step, `begun` of them before.
        """
        rollout, steps = self.settings.rollout, self.settings.steps
        most = rollout.prompts_per_step * min(rollout.max_staleness + 1, steps - step + 1)
        inside = {id(member) for member in held.values()}
        waiting = deque(
            member
            for group in self._groups
            for member in group.members
            if not member.finish_reason and id(member) not in inside
        )
        while self.live.free:
            if not waiting and len(self._groups) < most:
                (row,) = self.curriculum.take(1)
                self._groups.append(self._begin(row, step, begun))
                waiting.extend(self._groups[-1].members)
                begun += 1
            if not waiting:
                break
            member = waiting.popleft()
            request, done = member.request, len(member.tokens)
            left = dataclasses.replace(request.sampling, max_new_tokens=request.sampling.max_new_tokens - done)
            held[self.live.open([*request.tokens, *member.tokens], left, request.seed, done=done)] = member
        return begun

    def _begin(self, row: dict[str, Any], step: int, place: int) -> LiveGroup:
        """A group without tokens."""
        sampling = self.settings.rollout.sampling_at(step, self.tokenizer.eos_ids)
        prompt = self.encode(row["prompt"])
        seeds = (derive_seed(self.settings.seed, step, place, g) for g in range(self.settings.rollout.group_size))
        return LiveGroup(row, step, place, [Member(Request(prompt, sampling, seed)) for seed in seeds])

    def _describe_ages(self, groups: Groups, idle_seconds: float) -> dict[str, float]:
        """Ages of the tokens, in steps, and the seconds of slots without a completion, over all slots."""
        ages = np.concatenate([c.ages for c in groups.completions if c.ages is not None])
        shares = {f"off_policy/share/{age}": float((ages == age).mean()) for age in range(ages.max() + 1)}
        means = {"off_policy/staleness/mean": float(ages.mean()), "off_policy/staleness/max": float(ages.max())}
        return {**means, **shares, "time/idle": idle_seconds}
