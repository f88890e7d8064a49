"""Distillation by traces, as in R1: the student is trained on the teacher's correct answers.

    prompts -> teacher's samples -> rewards -> filters -> SFT set -> student, evaluated before and after

Each part writes files to the workdir and is not repeated: traces.jsonl, its scores and set.jsonl with its statistics,
chunk by chunk (stages/collection.py), then the student's SFT run with its checkpoints. The workdir is thus the
student's: a MODEL for any other command. (DeepSeek-R1, arXiv:2501.12948, section 2.4.)
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from r1jax.core import distributed
from r1jax.core.errors import UserError
from r1jax.core.processes.agreement import agree_on_data
from r1jax.core.sharding import MeshConfig
from r1jax.core.structs import Program, Sampling
from r1jax.data.corpus import CorpusConfig, SourceConfig, without_weights
from r1jax.data.filters import FilterConfig
from r1jax.data.prepared.opening import open_corpus
from r1jax.data.tasks import TaskConfig, load_task
from r1jax.data.training_set import find_pattern, is_finished
from r1jax.eval.held_out import EvalConfig, evaluate, make_problems
from r1jax.learner.optimizer import OptimizerConfig
from r1jax.learner.supervised import SupervisedConfig
from r1jax.models.adapters.lora import LoRAConfig
from r1jax.rewards.base import read_rewards
from r1jax.rewards.reader.golds import log_golds
from r1jax.runs.abstract_model import ASSUMED, Prompts
from r1jax.runs.model_setup import CheckpointConfig, LogConfig, ModelConfig, load_tokenizer
from r1jax.runs.profile import ProfileConfig
from r1jax.runs.prologue import open_run
from r1jax.runs.sampler import Sampler
from r1jax.runs.workdir import check_config, write_config
from r1jax.stages import sft
from r1jax.stages.collection import SET_FILE, TeacherSampling, collect
from r1jax.stages.rejection_sampling import list_sampler_programs, outline_sampling
from r1jax.stages.sft_config import BatchConfig, HeldOutConfig, SFTConfig
from r1jax.text.encoding import PromptEncoder, find_prefix

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TracesConfig:
    """Settings of a distillation by traces; those from `train` on are of the student's supervised run.

    Attributes:
      teacher: teacher's model.
      student: student's model, which is trained.
      data: task whose prompts the teacher gets and whose held-out problems measure the student.
      rewards: rewards that a sample is judged by, with weights; filters.min_reward is of their sum.
      corpus: packing of the set, and sources that are mixed in.
      steps: updates of the student; 0 makes as many as the passes of corpus.epochs.
      stage: name of the stage.
      method: method of distillation.
      seed: seed of all randomness in the run.
      mesh: devices, and what is split over them.
      generate: sampling of the teacher.
      filters: samples that become the set.
      train: batches of the student.
      loss: terms of the student's loss.
      lora: adapters that are trained in place of all parameters.
      optimizer: optimizer and learning rate.
      eval: held-out problems.
      checkpoint: when checkpoints are saved.
      log: what is logged.
      profile: steps of the student that are traced.
    """

    teacher: ModelConfig
    student: ModelConfig
    data: TaskConfig
    rewards: dict[str, Any]
    corpus: CorpusConfig
    steps: int = 0
    stage: str = "distill"
    method: str = "traces"
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    generate: TeacherSampling = TeacherSampling()
    filters: FilterConfig = FilterConfig()
    train: BatchConfig = BatchConfig()
    loss: SupervisedConfig = SupervisedConfig()
    lora: LoRAConfig = LoRAConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    profile: ProfileConfig = ProfileConfig()

    def check(self) -> None:
        """Raises UserError for impossible combinations."""
        self.supervised(pathlib.Path()).check()
        if "traces" in self.corpus.sources:
            raise UserError("config.corpus.sources.traces is reserved for the teacher's samples: use another name")

    def outline(self) -> list[str]:
        """Steps and tokens in words, for a dry run."""
        return [*outline_sampling(self.generate), *self.supervised(pathlib.Path()).outline()]

    def supervised(self, workdir: pathlib.Path) -> SFTConfig:
        """Config of the student's SFT run on the set in the workdir and on the sources mixed in."""
        traces = SourceConfig(str(find_pattern(workdir / SET_FILE, self.filters.rows_per_shard)), template="plain")
        shared = ("steps", "seed", "mesh", "train", "loss", "lora", "optimizer", "checkpoint", "log", "profile")
        return SFTConfig(
            model=self.student,
            data=dataclasses.replace(self.corpus, sources={"traces": traces, **self.corpus.sources}),
            eval=HeldOutConfig(self.eval.every_steps),
            **{name: getattr(self, name) for name in shared},
        )


CONFIG = TracesConfig


def run(settings: TracesConfig, workdir: pathlib.Path) -> None:
    """Distils by the settings, continuing from the content of `workdir`."""
    with open_run(settings, settings.mesh):
        distil(settings, workdir)


def programs(settings: TracesConfig, prompts: Prompts = ASSUMED) -> list[Program]:
    """teacher.prefill, teacher.insert, teacher.decode; the student's accumulate, apply, measure, and prefill, insert,
    decode on held-out problems. The teacher is gone when the student comes; its programs are left out, with a line in
    the log, where its sizes are known only from files that are not there.
    """
    try:
        asked = list_sampler_programs(settings.teacher, settings.generate, prompts, "teacher")
    except UserError as error:
        log.warning("the teacher's programs are left out: %s", error)
        asked = []
    trained = sft.programs(settings.supervised(pathlib.Path()))
    moments = next(program.resident for program in trained if program.name == "measure")
    sampled = list_sampler_programs(settings.student, settings.generate, prompts, "student")
    return [
        *(program.rename(f"teacher.{program.name}") for program in asked),
        *trained,
        *(dataclasses.replace(program, resident=moments) for program in sampled),
    ]


def distil(settings: TracesConfig, workdir: pathlib.Path) -> None:
    """Runs all parts that the workdir lacks."""
    check_config(settings, workdir)
    rewards = read_rewards(settings.rewards)
    task = load_task(settings.data)
    for note in task.notes:
        log.warning(note)
    agree_on_data(task.train, task.held_out)
    log_golds(task.train, [reward.name for reward in rewards])
    if not distributed.flag_from_first(is_finished(workdir / SET_FILE, settings.filters.rows_per_shard)):
        if distributed.is_writer():
            write_config(settings, workdir)
        check_mixed_in(settings)
        rows = task.train[: settings.generate.prompts or None]
        parts = settings.teacher, rows, settings.generate, rewards, settings.filters, workdir
        collect(*parts, judged_by=settings.rewards)
    Student(settings, workdir, task.held_out).train()


def check_mixed_in(settings: TracesConfig) -> None:
    """Reads the sources that are mixed in, and prepares them if they are large, before the teacher is loaded.

    Raises UserError for whatever would end the student's run after the teacher's work.
    """
    if (mixed_in := without_weights(settings.corpus)).sources:
        open_corpus(mixed_in, load_tokenizer(settings.student))


class Student(sft.SFTRun):
    """The student's SFT run, evaluated on the task's held-out problems too."""

    def __init__(self, settings: TracesConfig, workdir: pathlib.Path, held_out: Sequence[dict[str, Any]]):
        super().__init__(settings.supervised(workdir), workdir)
        self.distillation = self.saved_settings = settings
        self.problems = make_problems(held_out, PromptEncoder(self.tokenizer), settings.eval)
        slots, stop_ids = settings.generate.slots, self.tokenizer.eos_ids
        self.sampler = Sampler(self.trainable.graph, self.trainable.params, self.tokenizer, stop_ids, slots=slots)

    def evaluate(self) -> dict[str, Any]:
        """The loss of held-out rows, and the share of solved held-out problems."""
        metrics = super().evaluate()
        if not self.problems.rows:
            return metrics
        prefix = find_prefix(self.problems.tokens)
        self.sampler.params = self.trainable.whole(self.state.params)
        limit = self.distillation.generate.max_new_tokens
        sampling = Sampling(max_new_tokens=limit, stop_ids=self.sampler.stop_ids)
        return metrics | evaluate(
            lambda requests: self.sampler.generate(requests, prefix=prefix),
            self.sampler.decode,
            self.problems,
            self.distillation.eval,
            sampling,
            seed=self.distillation.seed,
        )
