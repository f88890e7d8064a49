"""Rejection sampling: a model answers prompts, and its correct and readable answers become a training set.

    prompts -> samples -> rewards -> filters -> requested form -> set.jsonl

traces.jsonl is written row by row and continued after an interruption; set.jsonl, with its statistics beside it, is
written atomically. R1 makes its cold-start data from R1-Zero's samples in this way, and its second SFT set from those
of the first RL stage (DeepSeek-R1, arXiv:2501.12948, sections 2.3.1 and 2.3.3); there a model rewrites the kept
samples, here a template does.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from r1jax.core import distributed
from r1jax.core.buckets.staging import pull, push
from r1jax.core.errors import UserError
from r1jax.core.processes.agreement import agree_on_data
from r1jax.core.sharding import MeshConfig
from r1jax.core.structs import Program
from r1jax.data.filters import FilterConfig, Trace, filter_traces, statistics_file, write_set
from r1jax.data.sources import SourceRow
from r1jax.data.tasks import TaskConfig, load_task
from r1jax.models.flops import count_work
from r1jax.models.transformer import split
from r1jax.rewards.base import load_rewards, score
from r1jax.rewards.reader.golds import log_golds
from r1jax.runs.abstract_model import ASSUMED, Prompts, abstract_model
from r1jax.runs.generate import RESULTS, Generation, generate_file
from r1jax.runs.model_setup import ModelConfig, load_model
from r1jax.runs.prologue import open_run
from r1jax.runs.sampler import Sampler
from r1jax.runs.workdir import check_config, write_config
from r1jax.text.prompts import fill_all
from r1jax.weights.identity import identify_model
from r1jax.weights.names import find_model
from r1jax.weights.pretrained import require_tokenizer

log = logging.getLogger(__name__)

TRACES_FILE, SET_FILE = "traces.jsonl", "set.jsonl"


@dataclasses.dataclass(frozen=True)
class TeacherSampling(Generation):
    """Sampling of a model's answers to a task.

    Attributes:
      prompts: number of the task's prompts to use; 0 is all.
      slots: sequences decoded at once, on all devices together.
    """

    prompts: int = 0
    slots: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts < 0 or self.slots < 1:
            raise UserError("config.generate.prompts must be at least 0 and config.generate.slots at least 1")


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Settings of rejection sampling.

    Attributes:
      model: model that is sampled.
      data: task whose prompts it gets.
      rewards: rewards that a sample is judged by, with weights; filters.min_reward is of their sum.
      generate: sampling.
      filters: samples that become the set.
      reply: form that a tagged sample is brought into, a text with {reasoning} and {answer}; "" keeps the sample as it
        is.
      stage: name of the stage.
      seed: seed of all randomness in the run.
      mesh: devices, and what is split over them.
    """

    model: ModelConfig
    data: TaskConfig
    rewards: dict[str, Any]
    generate: TeacherSampling = TeacherSampling()
    filters: FilterConfig = FilterConfig()
    reply: str = ""
    stage: str = "rejection_sampling"
    seed: int = 0
    mesh: MeshConfig = MeshConfig()

    def check(self) -> None:
        """Raises UserError for impossible combinations."""
        if self.reply and not all(place in self.reply for place in ("{reasoning}", "{answer}")):
            raise UserError(f"config.reply must contain {{reasoning}} and {{answer}}, or be empty; got {self.reply!r}")

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
        if distributed.flag_from_first((workdir / SET_FILE).exists()):
            log.info("%s exists already", workdir / SET_FILE)
            return
        if distributed.is_writer():
            write_config(settings, workdir)
        rewards, task = load_rewards(settings.rewards), load_task(settings.data)
        log_golds(task.train, [reward.name for reward in rewards])
        agree_on_data(task.train)
        rows = task.train[: settings.generate.prompts or None]
        collect(settings.model, rows, settings.generate, rewards, settings.filters, workdir, reply=settings.reply)


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


def collect(
    model: ModelConfig,
    rows: Sequence[dict[str, Any]],
    generate: TeacherSampling,
    rewards: Any,
    filters: FilterConfig,
    workdir: pathlib.Path,
    *,
    reply: str = "",
) -> None:
    """Writes traces.jsonl and set.jsonl from the model's samples of task rows."""
    ask_teacher(model, rows, generate, workdir / TRACES_FILE)
    share(workdir)
    keep_best(read_traces(workdir / TRACES_FILE, rewards), filters, workdir / SET_FILE, reply=reply)
    share(workdir)


def share(workdir: pathlib.Path) -> None:
    """Waits until the files of the first process are whole for all; in a bucket the others download them."""
    if distributed.is_writer():
        push(workdir)
    distributed.wait("the first process has written")
    if not distributed.is_writer():
        pull(workdir)


def ask_teacher(
    teacher: ModelConfig, rows: Sequence[dict[str, Any]], generate: TeacherSampling, output: pathlib.Path
) -> None:
    """The teacher's samples of every prompt, written to `output`; existing ones are kept."""
    model, tokenizer = load_model(teacher)
    tokenizer = require_tokenizer(tokenizer, teacher.name)
    sampler = Sampler(*split(model), tokenizer, tokenizer.eos_ids, slots=generate.slots)
    log.info("the teacher %s answers %d prompts", teacher.name, len(rows))
    named = [SourceRow(f"prompt {number}", row) for number, row in enumerate(rows)]
    generate_file(sampler, named, output, generate, model=describe_teacher(teacher))


def describe_teacher(teacher: ModelConfig) -> dict[str, str]:
    """Settings of the model, saved beside its samples: name, digest of its content, and dtype."""
    if teacher.preset:
        return {"model": teacher.preset, "dtype": teacher.dtype}
    found = find_model(teacher.name, teacher.fetch)
    return {"model": teacher.name, "model_digest": identify_model(found), "dtype": teacher.dtype}


def read_traces(path: pathlib.Path, rewards: Any) -> list[Trace]:
    """The samples of a file written by `generate`, each with its reward: the weighted sum of `rewards`; the same in
    every process.
    """
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
        processes=distributed,
    )
    totals = distributed.from_first(scores.total)  # deadlines may have passed in one process alone
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
        for group, (row, sample), reward in zip(groups, flat, totals, strict=True)
    ]


def keep_best(traces: Sequence[Trace], filters: FilterConfig, output: pathlib.Path, *, reply: str = "") -> None:
    """Writes the training set, with its statistics beside it. Raises UserError if no sample is left."""
    kept, statistics = filter_traces(traces, filters)
    dropped = {name: count for name, count in statistics["dropped"].items() if count}
    if not kept:
        raise UserError(
            f"none of the teacher's {len(traces)} samples is left, dropped were {dropped}: loosen config.filters, "
            "or use a better config.teacher"
        )
    log.info("%d of %d samples are kept; dropped: %s", len(kept), len(traces), dropped or "none")
    if distributed.is_writer():
        write_set(output, [rewrite(trace, reply) if reply else trace for trace in kept], statistics)
        log.info("%s and %s", output, statistics_file(output))


def rewrite(trace: Trace, reply: str) -> Trace:
    """The trace in the form of `reply`, with normalized white space; unchanged if it lacks one of the tags."""
    _, opened, rest = trace.completion.partition("<think>")
    reasoning, closed, rest = rest.partition("</think>")
    _, asked, rest = rest.partition("<answer>")
    answer, answered, _ = rest.partition("</answer>")
    if not (opened and closed and asked and answered):
        return trace
    parts = {name: " ".join(text.split()) for name, text in {"reasoning": reasoning, "answer": answer}.items()}
    return dataclasses.replace(trace, completion=fill_all(reply, **parts))
