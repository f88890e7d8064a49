"""Collection of a training set: samples of a teacher, their rewards and the filters, chunk by chunk.

    prompts -> samples -> traces.jsonl -> rewards, filters -> set.jsonl, traces.scores.jsonl

A chunk is the prompts whose samples are one call of the engine. Its parts are written in this order, so that a restart
after a kill at any moment goes on at the chunk where it was, and ends with the same bytes; memory is bounded by a
chunk, with about 300 bytes a prompt and 150 a sample for digests. All devices sample together; each group is scored,
and looked at by the filters that need no other prompt, in one process. The first process compares samples with earlier
ones and writes; the others read no file of the workdir.

A reward that compares the rows of a whole batch (`by_batch`) compares those of a chunk.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.core import console, distributed
from r1jax.core.buckets import staging
from r1jax.core.errors import UserError
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Completion
from r1jax.data.filters import FilterConfig, Finding, Screen, Selection, Trace
from r1jax.data.preferences.group_pairs import GroupPairConfig
from r1jax.data.sources import SourceRow
from r1jax.data.training_set import PART, Position, SetWriter, statistics_file
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.models.transformer import split
from r1jax.rewards.base import Reward, connect_rewards, score
from r1jax.rl.policy_judge import JudgeConfig
from r1jax.runs.episodes.player import Player
from r1jax.runs.generate import (
    RESULTS,
    SHOW_SECONDS,
    Generation,
    Windows,
    encode_rows,
    make_row,
    open_output,
    share_todo,
    window_size,
)
from r1jax.runs.journal import Journal, digest_line, to_line
from r1jax.runs.model_setup import ModelConfig, load_model, load_tokenizer
from r1jax.runs.rater import Rater
from r1jax.runs.sampler import Sampler
from r1jax.stages.played_set import SetForms, describe_played, is_played, score_rows
from r1jax.stages.sample_judge import SampleJudge
from r1jax.stages.score_journal import ScoreJournal
from r1jax.stages.set_rows import make_rows
from r1jax.weights.identity import identify_model
from r1jax.weights.names import find_model
from r1jax.weights.pretrained import require_tokenizer

log = logging.getLogger(__name__)

TRACES_FILE, SCORES_FILE, SET_FILE = "traces.jsonl", "traces.scores.jsonl", "set.jsonl"
SAMPLES, JUDGE = GroupPairConfig(), JudgeConfig()  # defaults: no pairs, and how judgements are sampled
UPLOAD_SECONDS, UPLOAD_SHARE = 600.0, 0.05  # between uploads to a bucket, and of the time that they may take

Row = dict[str, Any]


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
        try:
            super().__post_init__()
        except UserError as error:
            raise UserError(f"config.generate.{error}") from None
        if self.prompts < 0 or self.slots < 1:
            raise UserError("config.generate.prompts must be at least 0 and config.generate.slots at least 1")


def collect(
    model: ModelConfig,
    rows: Sequence[dict[str, Any]],
    generate: TeacherSampling,
    rewards: Sequence[Reward],
    filters: FilterConfig,
    workdir: pathlib.Path,
    *,
    judged_by: Mapping[str, Any],
    reply: str = "",
    play: Play | None = None,
    pairs: GroupPairConfig = SAMPLES,
    asked: JudgeConfig = JUDGE,
) -> None:
    """Writes the model's samples of task rows, their scores and the set, with its statistics beside it.

    rewards: as of `read_rewards`; those that ask a model ask the one that is sampled. judged_by: the rewards in the
    words of the config, by which scores on file are known. reply: form of the set's samples. play: the environment that
    answers the model. pairs: makes the set one of preferences. asked: sampling of judgements. Raises UserError in every
    process if nothing is left.
    """
    named = [SourceRow(f"prompt {number}", row) for number, row in enumerate(rows)]
    size = window_size(generate.slots, len(named), generate.num_samples)
    scores = known = None
    if distributed.is_writer():
        settings = {"rewards": judged_by, "filters": dataclasses.asdict(filters), "reply": reply}
        settings |= dataclasses.asdict(play) if play else {}
        settings |= {"pairs": dataclasses.asdict(pairs)} if pairs.per_prompt else {}
        settings |= {"judge": dataclasses.asdict(asked)} if any(reward.make for reward in rewards) else {}
        scores = ScoreJournal(workdir / SCORES_FILE, settings)
        known = scores.read_known()
    files = describe_teacher(model)
    with open_output(workdir / TRACES_FILE, named, generate, model=files, unit=size, known=known) as journal:
        record = Record(workdir, journal, scores, filters, reply, pairs) if journal and scores else None
        missing = np.zeros(len(named), bool)
        missing[share_todo(journal, len(named))] = True
        teacher = Teacher(model, named, generate, missing, play)
        replies = SampleJudge(asked, lambda: teacher.sampler, seed=generate.seed)
        connected = connect_rewards(rewards, replies, Rater(model))
        judge = Judge(named, connected, Screen(filters), model if play else None, play)
        begin = int(distributed.from_first(np.int64(record.done if record else 0)))
        with console.Progress(len(named), start=begin, title="prompts", every=SHOW_SECONDS) as progress:
            while begin < len(named):
                chunk = range(begin, min(begin - begin % size + size, len(named)))
                show = lambda count, chunk=chunk: progress.update(chunk.start + count, describe(teacher, record))
                lines = teacher.sample([number for number in chunk if missing[number]], journal, show)
                replies.begin(chunk.start)
                traces, findings = judge.judge(chunk, [_read(number, lines, journal) for number in chunk])
                if record:
                    record.keep(chunk, traces, findings)
                begin = chunk.stop
                progress.update(begin, describe(teacher, record))
        lacks = distributed.text_from_first(record.find_lack() if record else "")
        if lacks:
            raise UserError(lacks)
        if record:
            record.finish()
    share(workdir)


def describe(teacher: Teacher, record: Record | None) -> dict[str, float]:
    """Figures of a collection for the line of its progress."""
    shares = record.selection.shares if record else {}
    speed = {"rollout/tokens_per_second": teacher.speed} if teacher.tokens else {}
    return {**speed, **{f"collection/{name}": share for name, share in shares.items()}}


@dataclasses.dataclass(frozen=True)
class Play:
    """The environment and tools that answer a teacher, as in a GRPO run."""

    environment: str | Mapping[str, str]
    tools: Sequence[str]
    episode: EpisodeConfig


class Teacher:
    """The model that answers the missing ones of prompts; it is loaded for the first of them, if there is one."""

    def __init__(
        self,
        model: ModelConfig,
        rows: Sequence[SourceRow],
        config: TeacherSampling,
        missing: np.ndarray,
        play: Play | None = None,
    ):
        self._model, self._rows, self._config, self._missing = model, rows, config, int(missing.sum())
        self._play = play
        self._parts: tuple[Sampler, Windows | Player] | None = None
        self.tokens, self._seconds = 0, 0.0

    @property
    def speed(self) -> float:
        """Tokens a second while it samples."""
        return self.tokens / max(self._seconds, 1e-9)

    @property
    def sampler(self) -> Sampler:
        """The model, loaded now if it was not."""
        self._parts = self._parts or self._load()
        return self._parts[0]

    def sample(self, numbers: Sequence[int], journal: Journal | None, show: Callable[[int], None]) -> dict[int, bytes]:
        """Lines of traces.jsonl for prompts, in every process, written to the journal in the one that has it.

        show: called with the number of prompts so far, but for the last.
        """
        if not numbers:
            return {}
        sampler, windows = self._parts = self._parts or self._load()
        lines: dict[int, bytes] = {}
        begin, before = time.perf_counter(), self._seconds

        def keep(number: int, completions: list[Completion]) -> None:
            columns = self._rows[number].columns
            more = describe_played(windows, columns, completions) if isinstance(windows, Player) else {}
            lines[number] = to_line({**make_row(columns, completions, sampler), **more})
            if journal:
                journal.put_line(number, lines[number])
            self.tokens += sum(len(completion.tokens) for completion in completions)
            self._seconds = before + time.perf_counter() - begin
            if len(lines) < len(numbers):
                show(len(lines))

        windows.sample(numbers, keep)
        return lines

    def _load(self) -> tuple[Sampler, Windows | Player]:
        name = self._model.name
        model, tokenizer = load_model(self._model)
        tokenizer = require_tokenizer(tokenizer, name)
        sampler = Sampler(*split(model), tokenizer, tokenizer.eos_ids, slots=self._config.slots)
        log.info("the teacher %s answers %d of %d prompts", name, self._missing, len(self._rows))
        if self._play is None:
            return sampler, Windows(sampler, encode_rows(self._rows, sampler), self._config)
        rows = [(row.columns["prompt"], row.columns) for row in self._rows]
        play = self._play
        return sampler, Player(
            sampler, rows, self._config, play.episode, environment=play.environment, tools=play.tools
        )


class Judge:
    """Rewards and the filters that need no other prompt, shared among the processes."""

    def __init__(
        self,
        rows: Sequence[SourceRow],
        rewards: Sequence[Reward],
        screen: Screen,
        model: ModelConfig | None = None,
        play: Play | None = None,
    ):
        self._rewards, self._screen = rewards, screen
        self._forms = (
            SetForms(load_tokenizer(model), play.environment, play.tools, play.episode) if model and play else None
        )
        names = dict.fromkeys(str(name) for row in rows for name in row.columns)
        self._names = [name for name in names if name not in (*RESULTS, "prompt")]

    def judge(self, numbers: Sequence[int], rows: Sequence[Row]) -> tuple[list[Trace], list[Finding]]:
        """Samples with their rewards, and findings, of the prompts of these numbers; the same in every process."""
        flat = [(row, sample) for row in rows for sample in range(len(row["completions"]))]
        count = len(flat) // len(rows)
        with activity(f"scoring {len(flat)} completions"):
            columns = {name: [row.get(name) for row, _ in flat] for name in self._names}
            scores = (
                score_rows(self._rewards, rows, columns)
                if self._forms
                else score(
                    self._rewards,
                    prompts=[row["prompt"] for row, _ in flat],
                    completions=[row["completions"][sample] for row, sample in flat],
                    completion_ids=[row["completion_tokens"][sample] for row, sample in flat],
                    columns=columns,
                    group_size=count,
                    processes=distributed,
                )
            )
        totals = distributed.from_first(scores.total)  # deadlines may have passed in one process alone
        traces = [
            Trace(
                numbers[place // count],
                row["prompt"],
                row["completions"][sample],
                float(total),
                _measure(row, sample),
                row["finish_reasons"][sample].replace("fault", "length"),  # no end of its own either
                self._forms.make_row(row, sample) if self._forms else None,
            )
            for place, ((row, sample), total) in enumerate(zip(flat, totals, strict=True))
        ]
        own = distributed.my_share(len(rows))
        with activity(f"filtering {len(flat)} completions"):
            found = self._screen.examine(traces[own.start * count : own.stop * count])
        parts = distributed.texts_from_all(json.dumps(found))
        return traces, [Finding(*facts) for part in parts for facts in json.loads(part)]


class Record:
    """Files of a collection but the samples', and the filters that compare samples: the first process's part."""

    def __init__(
        self,
        workdir: pathlib.Path,
        journal: Journal,
        scores: ScoreJournal,
        filters: FilterConfig,
        reply: str,
        pairs: GroupPairConfig,
    ):
        self._workdir, self._journal, self._scores, self._reply = workdir, journal, scores, reply
        self._pairs = pairs
        self._writer = SetWriter(workdir / SET_FILE, filters.rows_per_shard)
        self.selection = Selection(filters)
        self._writer.resume(scores.restore(journal.kept, self.selection, self._writer.holds))
        if self.done:
            log.info("%s: keeping the scores of %d prompts", workdir / SCORES_FILE, self.done)
        self._upload = time.monotonic() + UPLOAD_SECONDS

    @property
    def done(self) -> int:
        """Number of prompts that are sampled, scored and filtered."""
        return self._scores.done

    def keep(self, numbers: Sequence[int], traces: Sequence[Trace], findings: Sequence[Finding]) -> None:
        """Decides on the samples of a chunk, and writes its rows of the set and its scores."""
        dropped = self.selection.decide(traces, findings)
        position = self._writer.write(make_rows(traces, dropped, self._reply, self._pairs))
        prompts = [(self._journal.identities[number], digest_line(self._journal.read(number))) for number in numbers]
        self._scores.append(prompts, traces, findings, dropped, position)
        begin = time.monotonic()
        if begin >= self._upload and staging.is_staged(self._workdir):
            staging.push(self._workdir)
            took = time.monotonic() - begin
            self._upload = time.monotonic() + max(UPLOAD_SECONDS, took / UPLOAD_SHARE)

    def find_lack(self) -> str:
        """The reason why there is no set; "" if there is one."""
        counts = self.selection.statistics()
        dropped = {name: count for name, count in counts["dropped"].items() if count}
        total = counts["input"]["samples"]
        if not self.selection.kept:
            return (
                f"none of the teacher's {total} samples is left, dropped were {dropped}: loosen config.filters, "
                "or use a better config.teacher"
            )
        log.info("%d of %d samples are kept; dropped: %s", self.selection.kept, total, dropped or "none")
        if self._pairs.per_prompt and self._writer.position == Position():
            return (
                f"no prompt has two samples whose rewards differ by config.pairs.min_gap = {self._pairs.min_gap}: take "
                "more samples (config.generate.num_samples), or lower it"
            )
        return ""

    def finish(self) -> None:
        """Gives the set its name, with its statistics beside it."""
        self._writer.finish(self.selection.statistics())
        log.info("%s and %s", self._workdir / SET_FILE, statistics_file(self._workdir / SET_FILE))
        if staging.is_staged(self._workdir):
            for place in staging.locate(self._workdir).glob(f"*{PART}"):
                staging.remove(place)


def _measure(row: Row, sample: int) -> int:
    """Number of sampled tokens."""
    return sum(row["completion_sampled"][sample]) if is_played(row) else len(row["completion_tokens"][sample])


def _read(number: int, lines: Mapping[int, bytes], journal: Journal | None) -> Row:
    """The row of a prompt without what only trainers read; from its new line, or from the first process's file."""
    if number in lines:
        row = json.loads(lines[number])
        del row["logprobs"]
        return row
    row = json.loads(journal.read(number)) if journal else {}
    row.pop("logprobs", None)
    return json.loads(distributed.text_from_first(json.dumps(row)))


def share(workdir: pathlib.Path) -> None:
    """Waits until the files of the first process are whole for all; in a bucket the others download them."""
    if distributed.is_writer():
        staging.push(workdir)
    distributed.wait("the first process has written")
    if not distributed.is_writer():
        staging.pull(workdir)


def describe_teacher(teacher: ModelConfig) -> dict[str, str]:
    """Settings of the model, saved beside its samples: name, digest of its content, and dtype."""
    if teacher.preset:
        return {"model": teacher.preset, "dtype": teacher.dtype}
    found = find_model(teacher.name, teacher.fetch)
    return {"model": teacher.name, "model_digest": identify_model(found), "dtype": teacher.dtype}
