"""Rejection sampling: a model answers prompts, and its correct and readable answers become a training set.

    prompts -> samples -> rewards -> filters -> requested form -> set.jsonl

All of it flows in chunks of prompts, each of which is done once (collection.py). R1 makes its cold-start data from
R1-Zero's samples in this way, and its second SFT set from those of the first RL stage (DeepSeek-R1, arXiv:2501.12948,
sections 2.3.1 and 2.3.3); there a model rewrites the kept samples, here a template does.

With `pairs` the set is one of preferences, for stages dpo and reward_model: of each prompt the best and the worst
sample. Rewards may be rules, a reward model, or a judge: `self_rank_reward` with `at_once` and `num_samples` 2 has two
samples compared in both orders, and `pairs.min_gap` 1 keeps those that the judge orders the same way twice.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from typing import Any

from r1jax.core import distributed
from r1jax.core.buckets.staging import push
from r1jax.core.errors import UserError
from r1jax.core.processes.agreement import agree_on_data
from r1jax.core.sharding import MeshConfig
from r1jax.core.structs import Program
from r1jax.data.filters import FilterConfig
from r1jax.data.preferences.group_pairs import GroupPairConfig
from r1jax.data.tasks import TaskConfig, load_task
from r1jax.data.training_set import is_finished
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.eval.report import write_report
from r1jax.models.flops import count_work
from r1jax.models.transformer import split
from r1jax.rewards.base import read_rewards
from r1jax.rewards.reader.golds import log_golds
from r1jax.rl.policy_judge import JudgeConfig
from r1jax.runs.abstract_model import ASSUMED, Prompts, abstract_model
from r1jax.runs.model_setup import ModelConfig
from r1jax.runs.prologue import open_run
from r1jax.runs.sampler import Sampler
from r1jax.runs.workdir import check_config, write_config
from r1jax.stages.collection import SET_FILE, Play, TeacherSampling, collect

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Settings of rejection sampling.

    Attributes:
      model: model that is sampled.
      data: task whose prompts it gets.
      rewards: rewards that a sample is judged by, with weights; filters.min_reward is of their sum.
      generate: sampling.
      filters: samples that become the set.
      pairs: makes a set of preferences.
      judge: sampling of judgements, for rewards that ask the sampled model.
      reply: form that a tagged sample is brought into, a text with {reasoning} and {answer}; "" keeps the sample as it
        is.
      environment: environment that answers replies, as in GRPO; "" is none. The set is then of trajectories.
      tools: plain functions as tools, as in GRPO.
      episode: limits of trajectories, and how their environment is run.
      stage: name of the stage.
      seed: seed of all randomness in the run.
      mesh: devices, and what is split over them.
    """

    model: ModelConfig
    data: TaskConfig
    rewards: dict[str, Any]
    generate: TeacherSampling = TeacherSampling()
    filters: FilterConfig = FilterConfig()
    pairs: GroupPairConfig = GroupPairConfig()
    judge: JudgeConfig = JudgeConfig()
    reply: str = ""
    environment: str | dict[str, str] = ""
    tools: tuple[str, ...] = ()
    episode: EpisodeConfig = EpisodeConfig()
    stage: str = "rejection_sampling"
    seed: int = 0
    mesh: MeshConfig = MeshConfig()

    def check(self) -> None:
        """Raises UserError for impossible combinations."""
        if self.reply and not all(place in self.reply for place in ("{reasoning}", "{answer}")):
            raise UserError(f"config.reply must contain {{reasoning}} and {{answer}}, or be empty; got {self.reply!r}")
        if self.environment or self.tools:
            self.episode.check_episode()
            if self.reply:
                raise UserError(f"config.reply must be empty with an environment, got {self.reply!r}")
            if self.pairs.per_prompt:
                raise UserError("config.pairs.per_prompt must be 0 with an environment")
        if self.pairs.per_prompt and self.generate.num_samples < 2:
            raise UserError("config.pairs.per_prompt needs config.generate.num_samples of at least 2")
        if self.pairs.per_prompt and self.filters.samples_per_prompt:
            raise UserError("config.filters.samples_per_prompt must be 0 with config.pairs.per_prompt")

    def outline(self) -> list[str]:
        """Samples in words, for a dry run."""
        return outline_sampling(self.generate)


def outline_sampling(generate: TeacherSampling) -> list[str]:
    """Samples in words, for a dry run."""
    prompts = f"{generate.prompts} prompts" if generate.prompts else "all prompts of the task"
    return [f"samples: {generate.num_samples} of each of {prompts}, up to {generate.max_new_tokens:,} tokens each"]


CONFIG = CollectConfig


def run(settings: CollectConfig, workdir: pathlib.Path) -> None:
    """Samples and filters by the settings, continuing from the content of `workdir`."""
    with open_run(settings, settings.mesh):
        check_config(settings, workdir)
        if distributed.flag_from_first(is_finished(workdir / SET_FILE, settings.filters.rows_per_shard)):
            log.info("%s exists already", workdir / SET_FILE)
            return
        if distributed.is_writer():
            write_config(settings, workdir)
        rewards, task = read_rewards(settings.rewards), load_task(settings.data)
        log_golds(task.train, [reward.name for reward in rewards])
        agree_on_data(task.train)
        rows = task.train[: settings.generate.prompts or None]
        parts = settings.model, rows, settings.generate, rewards, settings.filters, workdir
        play = None
        if settings.environment or settings.tools:
            play = Play(settings.environment, settings.tools, settings.episode)
        forms = {"reply": settings.reply, "pairs": settings.pairs, "asked": settings.judge}
        collect(*parts, judged_by=settings.rewards, play=play, **forms)  # type: ignore[arg-type]
        if distributed.is_writer():
            log.info("report: %s", write_report(workdir))
            push(workdir)


def programs(settings: CollectConfig, prompts: Prompts = ASSUMED) -> list[Program]:
    """The programs of the model that samples, under the mesh in use."""
    return list_sampler_programs(settings.model, settings.generate, prompts)


def list_sampler_programs(
    config: ModelConfig, generate: TeacherSampling, prompts: Prompts, key: str = "model"
) -> list[Program]:
    """prefill, insert, decode of a model that only samples. key: the section of the config that names it."""
    graph, params = split(model := abstract_model(config, key))
    sampler = Sampler(graph, params, None, (), slots=generate.slots)
    work = count_work(params, model.config)
    return sampler.programs(prompts.tokens, generate.sampling(()), work, prefix=prompts.prefix)
