"""Distillation by traces, R1's way: what the teacher says, where it is right, is what the student learns to say.

    prompts -> teacher's samples -> rewards -> filters -> supervised set -> student, measured before and after

Each part leaves a file in the workdir and is not done again: traces.jsonl (row by row), set.jsonl with its statistics
(in one move), then the student's supervised run with its checkpoints. The workdir is thus the student's: a MODEL for
any other command. (DeepSeek-R1, arXiv:2501.12948, section 2.4.)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from r1jax.core import console, distributed
from r1jax.core.config import unpack
from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.core.structs import Sampling
from r1jax.data.corpus import CorpusConfig, SourceConfig
from r1jax.data.filters import FilterConfig, Trace, filter_traces, statistics_file, write_set
from r1jax.data.sources import Row
from r1jax.data.tasks import TaskConfig, load_task
from r1jax.eval.held_out import EvalConfig, evaluate, make_problems
from r1jax.learner.optimizer import OptimizerConfig
from r1jax.learner.supervised import SupervisedConfig
from r1jax.models.lora import LoRAConfig
from r1jax.models.pretrained import require_tokenizer
from r1jax.models.transformer import split
from r1jax.rewards.base import load_rewards, score
from r1jax.stages import sft
from r1jax.stages.generate import RESULTS, Generation, generate_file
from r1jax.stages.sampler import Sampler
from r1jax.stages.settings import CheckpointConfig, LogConfig, ModelConfig, load_model
from r1jax.stages.sft_config import BatchConfig, HeldOutConfig, SFTConfig, check_settings
from r1jax.stages.workdir import check_config, write_config
from r1jax.text.encoding import PromptEncoder, find_prefix

log = logging.getLogger(__name__)

TRACES_FILE, SET_FILE = "traces.jsonl", "set.jsonl"


@dataclasses.dataclass(frozen=True)
class TeacherSampling(Generation):
    """How the teacher is sampled; prompts: how many of the task's (0: all); slots: sequences decoded at once."""

    prompts: int = 0
    slots: int = 64


@dataclasses.dataclass(frozen=True)
class TracesConfig:
    """A whole distillation by traces.

    data: the task whose prompts the teacher gets, and whose held-out problems measure the student. rewards: what makes
    a sample right, with weights; `filters.min_reward` is of their sum. corpus: how the set is packed, and sources that
    are mixed in. steps and the sections from `train` on: of the student's supervised run.
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

    def supervised(self, workdir: pathlib.Path) -> SFTConfig:
        """The student's run on the set that lies in the workdir, and on what is mixed in."""
        traces = SourceConfig(str(workdir / SET_FILE), template="plain")
        shared = ("steps", "seed", "mesh", "train", "loss", "lora", "optimizer", "checkpoint", "log")
        return SFTConfig(
            model=self.student,
            data=dataclasses.replace(self.corpus, sources={"traces": traces, **self.corpus.sources}),
            eval=HeldOutConfig(self.eval.every_steps),
            **{name: getattr(self, name) for name in shared},
        )


def read_config(config: ConfigDict) -> TracesConfig:
    """The config as dataclasses. Raises UserError for unknown keys, wrong types and impossible combinations."""
    settings = unpack(TracesConfig, config)
    check_settings(settings.supervised(pathlib.Path()))
    if settings.generate.prompts < 0 or settings.generate.slots < 1:
        raise UserError("config.generate.prompts must not be negative and config.generate.slots must be at least 1")
    if "traces" in settings.corpus.sources:
        raise UserError("config.corpus.sources.traces is the teacher's: give what is mixed in another name")
    return settings


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Distils as `config` says, going on from what `workdir` holds."""
    settings = read_config(config)
    console.set_up_logging()
    distributed.start()
    with use_mesh(make_mesh(settings.mesh), settings.mesh.rules):
        distil(settings, config, workdir)


def distil(settings: TracesConfig, config: ConfigDict, workdir: pathlib.Path) -> None:
    """All parts that the workdir lacks."""
    check_config(config, workdir)
    rewards = load_rewards(settings.rewards)
    task = load_task(settings.data)
    for note in task.notes:
        log.warning(note)
    if not (workdir / SET_FILE).exists():
        if distributed.is_writer():
            write_config(config, workdir)
        rows = task.train[: settings.generate.prompts or None]
        ask_teacher(settings, rows, workdir / TRACES_FILE)
        keep_best(read_traces(workdir / TRACES_FILE, rewards), settings.filters, workdir / SET_FILE)
    Student(settings, config, workdir, task.held_out).train()


def ask_teacher(settings: TracesConfig, rows: Sequence[dict[str, Any]], output: pathlib.Path) -> None:
    """The teacher's samples of every prompt, written to `output`; those that are there are kept."""
    teacher = settings.teacher
    model, tokenizer = load_model(teacher)
    tokenizer = require_tokenizer(tokenizer, teacher.path)
    sampler = Sampler(*split(model), tokenizer, tokenizer.eos_ids, slots=settings.generate.slots)
    log.info("the teacher %s answers %d prompts", teacher.path, len(rows))
    named = [Row(f"prompt {number}", row) for number, row in enumerate(rows)]
    generate_file(sampler, named, output, settings.generate, model=teacher.path)


def read_traces(path: pathlib.Path, rewards: Any) -> list[Trace]:
    """The samples of a file that `generate` wrote, each with its reward: the weighted sum of `rewards`."""
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    flat = [(row, sample) for row in rows for sample in range(len(row["completions"]))]
    names = dict.fromkeys(name for row in rows for name in row if name not in (*RESULTS, "prompt"))
    scores = score(
        rewards,
        prompts=[row["prompt"] for row, _ in flat],
        completions=[row["completions"][sample] for row, sample in flat],
        completion_ids=[row["completion_tokens"][sample] for row, sample in flat],
        columns={name: [row.get(name) for row, _ in flat] for name in names},
        group_size=len(rows[0]["completions"]),
    )
    groups = [group for group, row in enumerate(rows) for _ in row["completions"]]
    return [
        Trace(
            group,
            row["prompt"],
            row["completions"][sample],
            float(reward),
            len(row["completion_tokens"][sample]),
            row["finish_reasons"][sample],
        )
        for group, (row, sample), reward in zip(groups, flat, scores.total, strict=True)
    ]


def keep_best(traces: Sequence[Trace], filters: FilterConfig, output: pathlib.Path) -> None:
    """The set that the student learns from, with its statistics beside it. Raises UserError if nothing is left."""
    kept, statistics = filter_traces(traces, filters)
    dropped = {name: count for name, count in statistics["dropped"].items() if count}
    if not kept:
        raise UserError(
            f"none of the teacher's {len(traces)} samples is left to learn from, dropped were {dropped}: loosen "
            "config.filters, or take a better config.teacher"
        )
    log.info("%d of %d samples are kept; dropped: %s", len(kept), len(traces), dropped or "none")
    if distributed.is_writer():
        write_set(output, kept, statistics)
        log.info("%s and %s", output, statistics_file(output))


class Student(sft.Run):
    """The student's supervised run, measured on the task's held-out problems too."""

    def __init__(
        self, settings: TracesConfig, config: ConfigDict, workdir: pathlib.Path, held_out: list[dict[str, Any]]
    ):
        super().__init__(settings.supervised(workdir), config, workdir)
        self.distillation = settings
        self.problems = make_problems(held_out, PromptEncoder(self.tokenizer), settings.eval)
        slots, stop_ids = settings.generate.slots, self.tokenizer.eos_ids
        self.sampler = Sampler(self.trainable.graph, self.trainable.params, self.tokenizer, stop_ids, slots=slots)

    def evaluate(self) -> dict[str, Any]:
        """The loss of held-out rows, and how many of the held-out problems are solved."""
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
