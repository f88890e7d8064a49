"""Completions for the prompts of a file, written row by row and resumed after an interruption.

Input rows have `prompt` (text, or messages for the chat template) or `tokens` (ids). An output row is the input row
with `completions`, `completion_tokens`, `logprobs` and `finish_reasons`, one of each per sample. The result of a row is
a function of the seed, its number and its tokens: neither the batch size nor an interruption changes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.core import console, distributed
from r1jax.core.atomic_file import replace_file
from r1jax.core.errors import UserError
from r1jax.core.locks import hold_lock
from r1jax.core.outputs.ownership import check_writable
from r1jax.core.processes.agreement import agree, agree_on_data, digest_settings
from r1jax.core.seeds import derive_seed
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Completion, Request, Sampling, SamplingConfig
from r1jax.data.sources import SourceRow
from r1jax.runs.journal import Journal
from r1jax.runs.sampler import Sampler, Shapes, plan_shapes
from r1jax.text.encoding import encode_prompt, find_prefix
from r1jax.text.message_forms import is_parts

log = logging.getLogger(__name__)

RESULTS = ("completions", "completion_tokens", "logprobs", "finish_reasons")
PLAYED = ("completion_messages", "completion_sampled", "environment_rewards")  # of trajectories, besides
COLLECTED = ("completion_prompts", "prompt_tokens", "environment_states")  # of trajectories in a collection, besides
WINDOW = 16  # requests per engine call, in multiples of the slots: at the end of a window some slots are idle
SHOW_SECONDS = 10.0
MOST_SAMPLES = 1_000_000  # of a row: they are in memory until the row is complete


@dataclasses.dataclass(frozen=True)
class Generation(SamplingConfig):
    """Sampling of every row. Temperature 0 is greedy, with log-probs at temperature 1.

    Attributes:
      num_samples: completions sampled for each row.
      max_new_tokens: largest number of tokens of a completion.
      seed: seed of sampling.
    """

    num_samples: int = 1
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"num_samples must be at least 1, got {self.num_samples}")
        if self.num_samples > MOST_SAMPLES:
            raise UserError(f"num_samples must be at most {MOST_SAMPLES:,}, got {self.num_samples}")
        self.check_sampling()

    def sampling(self, stop_ids: tuple[int, ...]) -> Sampling:
        """Sampling parameters of one request."""
        if self.temperature == 0:
            return Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens, stop_ids=stop_ids)
        return super().sampling(stop_ids)


def generate_file(
    sampler: Sampler,
    rows: Sequence[SourceRow],
    output: str | pathlib.Path,
    config: Generation,
    *,
    model: Mapping[str, str] | None = None,
    wrap: Callable[[Any], Any] | None = None,
    play: Callable[[Sequence[SourceRow]], Any] | None = None,
) -> dict[str, float]:
    """Completes every row into `output`, keeping rows that it already has. Returns counts of the work done.

    model: the model's settings, written beside the output with the sampling settings: `model` (its name),
    `model_digest` (weights/identity.py), and `dtype`. wrap: from a row's prompt to the one that the model gets. play:
    from the rows to what samples them in place of `Windows` (episodes/player.py). Raises UserError for a row without a
    usable prompt, and for an output that this function did not write, or wrote with other settings.
    """
    asked = [_wrap(row, wrap) for row in rows] if wrap else rows
    prompts = encode_rows(asked, sampler)
    note_length(prompts, config.max_new_tokens, sampler)
    windows = Windows(sampler, prompts, config) if play is None else play(asked)
    with open_output(output, rows, config, model=model) as journal:
        counts = _fill(sampler, rows, windows, share_todo(journal, len(rows)), journal)
    distributed.wait("the output is complete")
    log.info(
        "%s: %d rows, %d completions and %d tokens in %.1f s, %.0f tokens/s",
        output,
        *(counts[name] for name in ("rows", "completions", "tokens", "seconds", "tokens_per_second")),
    )
    return counts


@contextlib.contextmanager
def open_output(
    output: str | pathlib.Path,
    rows: Sequence[SourceRow],
    config: Generation,
    *,
    model: Mapping[str, str] | None = None,
    unit: int = 1,
    known: Mapping[str, str] | None = None,
) -> Iterator[Journal | None]:
    """Context with the journal of an output in the process that writes it, None in the others; with its lock, and its
    settings beside it.

    model: as of `generate_file`. unit, known: of the journal. Raises UserError for an output with other rows or
    settings, and where processes differ in theirs.
    """
    output, identities = pathlib.Path(output), [_identify(row.columns) for row in rows]
    settings = {**(model or {}), **dataclasses.asdict(config)}
    agree("settings", digest_settings(settings))
    agree_on_data(identities)
    if not distributed.is_writer():
        yield None
        return
    check_output(output, settings)
    identify = lambda row: _identify(row) if _is_whole(row, config.num_samples) else None
    with hold_lock(output.with_name(f".{output.name}.lock"), str(output)):
        with contextlib.closing(Journal(output, identities, identify, unit=unit, known=known)) as journal:
            replace_file(_settings_file(output), json.dumps(settings, indent=2) + "\n")
            yield journal


def share_todo(journal: Journal | None, count: int) -> list[int]:
    """The inputs of `count` that the journal of the first process lacks, in every process."""
    todo = np.zeros(count, bool)
    if journal:
        todo[journal.todo] = True
        if len(journal.todo) < count:
            log.info("%s: keeping %d of %d rows that are complete", journal.path, count - len(journal.todo), count)
    return np.flatnonzero(distributed.from_first(todo)).tolist()


def sample_prompts(
    sampler: Sampler,
    prompts: Sequence[tuple[int, ...]],
    config: Generation,
    *,
    todo: Sequence[int] | None = None,
    few_shapes: bool = False,
    on_row: Callable[[int, list[Completion]], None] = lambda number, completions: None,
) -> list[list[Completion]]:
    """`num_samples` completions of each prompt, or of those with indices in `todo`.

    few_shapes: compiles for all prompts together (sampler.plan_shapes), so that the rounding of one prompt's result may
    depend on how long the others are. on_row: called with (index, completions) as soon as a prompt has all of them.
    """
    todo = range(len(prompts)) if todo is None else todo
    windows = Windows(sampler, prompts, config, few_shapes=few_shapes)
    found: list[list[Completion]] = []
    for first in range(0, len(todo), windows.size):
        found += windows.sample(todo[first : first + windows.size], on_row)
    return found


def window_size(slots: int, prompts: int, num_samples: int) -> int:
    """Prompts whose samples are one call of the engine, of a list of so many."""
    return max(1, WINDOW * min(slots, prompts * num_samples) // num_samples)


class Windows:
    """Samples of prompts, a window of them at a time; few_shapes: as of `sample_prompts`.

    What all windows share follows from all prompts, not from the remaining ones: an interruption must not change the
    programs. A window sampled again gives the same bits.
    """

    def __init__(
        self, sampler: Sampler, prompts: Sequence[tuple[int, ...]], config: Generation, *, few_shapes: bool = False
    ):
        self._sampler, self._prompts, self._config = sampler, prompts, config
        prefix, slots = find_prefix(prompts) if prompts else (), min(sampler.slots, len(prompts) * config.num_samples)
        self._shapes = plan_shapes(prompts, prefix, config.max_new_tokens) if few_shapes else Shapes(prefix)
        self._slots = min(sampler.slots, -(-slots // 8) * 8) if few_shapes else slots
        self.size = window_size(self._slots, len(prompts), config.num_samples)

    def sample(
        self,
        numbers: Sequence[int],
        on_row: Callable[[int, list[Completion]], None] = lambda number, completions: None,
    ) -> list[list[Completion]]:
        """`num_samples` completions of each of these prompts; on_row: as of `sample_prompts`."""
        groups: list[dict[int, Completion]] = [{} for _ in numbers]
        G, sampling = self._config.num_samples, self._config.sampling(self._sampler.stop_ids)

        def keep(request: int, completion: Completion) -> None:
            group = groups[request // G]
            group[request % G] = completion
            if len(group) == G:
                on_row(numbers[request // G], [group[g] for g in range(G)])

        requests = [
            Request(self._prompts[number], sampling, derive_seed(self._config.seed, number, g))
            for number in numbers
            for g in range(G)
        ]
        with activity(f"sampling {len(requests)} completions"):
            self._sampler.generate(requests, slots=self._slots, shapes=self._shapes, on_complete=keep)
        return [[group[g] for g in range(G)] for group in groups]


def encode_rows(rows: Sequence[SourceRow], sampler: Sampler) -> list[tuple[int, ...]]:
    """Token ids of every row's prompt. Raises UserError, naming the row, for one without a usable prompt, or with one
    that is longer than the model's positions.
    """
    prompts = []
    for place, columns in rows:
        try:
            prompts.append(check_length(_encode(columns, sampler), sampler))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    return prompts


def check_length(tokens: tuple[int, ...], sampler: Sampler) -> tuple[int, ...]:
    """Returns a prompt's ids. Raises UserError if they fill the model's positions."""
    if sampler.positions and len(tokens) >= sampler.positions:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, but the model was made for sequences of {sampler.positions} "
            "(max_position_embeddings of its config.json): shorten it"
        )
    return tokens


def note_length(prompts: Sequence[tuple[int, ...]], limit: int, sampler: Sampler) -> None:
    """Logs a warning if completions of `limit` tokens go beyond the model's positions."""
    longest = max(map(len, prompts), default=0)
    if sampler.positions and longest + limit > sampler.positions:
        log.warning(
            "prompts of up to %d tokens and max_new_tokens=%d exceed the %d positions that the model was made for",
            longest,
            limit,
            sampler.positions,
        )


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns messages unchanged. Raises UserError for one without role, or without content or tool calls."""
    for number, message in enumerate(messages, 1):
        content = message.get("content")
        if not isinstance(message.get("role"), str):
            raise UserError(f"message {number} of prompt needs a role (a text), got {str(message)[:60]}")
        if not (isinstance(content, str) or is_parts(content) or content is None and message.get("tool_calls")):
            raise UserError(
                f"message {number} of prompt needs content (a text, or text parts), got {str(message)[:60]}"
            )
    return messages


def _wrap(row: SourceRow, wrap: Callable[[Any], Any]) -> SourceRow:
    prompt = row.columns.get("prompt")
    return SourceRow(row.place, {**row.columns, "prompt": wrap(prompt)}) if prompt else row


def _fill(
    sampler: Sampler,
    rows: Sequence[SourceRow],
    windows: Any,
    todo: Sequence[int],
    journal: Journal | None,
) -> dict[str, float]:
    """Completes the rows of `todo`. windows: a `Windows`, or a player of trajectories."""
    begin = time.perf_counter()
    counts = {"rows": 0, "completions": 0, "tokens": 0}
    kept = len(rows) - len(todo)
    with console.Progress(len(rows), start=kept, title="rows", every=SHOW_SECONDS) as progress:

        def write(number: int, completions: list[Completion]) -> None:
            if journal:
                journal.put(number, make_row(rows[number].columns, completions, sampler))
            for name, more in zip(counts, (1, len(completions), sum(c.length for c in completions)), strict=True):
                counts[name] += more
            speed = counts["tokens"] / (time.perf_counter() - begin)
            progress.update(kept + counts["rows"], {"rollout/tokens_per_second": speed})

        for first in range(0, len(todo), windows.size):  # none is kept in memory once it is written
            windows.sample(todo[first : first + windows.size], write)
    seconds = time.perf_counter() - begin
    return {**counts, "seconds": seconds, "tokens_per_second": counts["tokens"] / seconds if todo else 0.0}


def _encode(columns: Mapping[str, Any], sampler: Sampler) -> tuple[int, ...]:
    if "tokens" in columns:
        ids = columns["tokens"]
        if not (isinstance(ids, list) and ids and all(type(i) is int and 0 <= i < sampler.vocab_size for i in ids)):
            raise UserError(f"tokens must be a list of ids from 0 to {sampler.vocab_size - 1}, got {str(ids)[:60]}")
        return tuple(ids)
    prompt: Any = columns.get("prompt")
    is_messages = isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt)
    if not (is_messages or (isinstance(prompt, str) and prompt)):
        got = f"prompt {str(prompt)[:60]!r}" if "prompt" in columns else ", ".join(columns) or "nothing"
        raise UserError(f"a row needs prompt (a text or a list of messages) or tokens (a list of ids), got {got}")
    if sampler.tokenizer is None:
        raise UserError("the model has no tokenizer, so a row needs tokens (a list of ids) instead of prompt")
    tokens = encode_prompt(sampler.tokenizer, _check_messages(prompt) if is_messages else prompt)
    if not tokens:
        raise UserError(
            f"the prompt {str(prompt)[:60]!r} has no tokens{' in its chat template' if is_messages else ''}"
        )
    return tokens


def make_row(columns: Mapping[str, Any], completions: Sequence[Completion], sampler: Sampler) -> dict[str, Any]:
    """Output row of an input row with these columns."""
    return {
        **_input(columns),
        "completions": [sampler.decode(c.tokens) for c in completions],
        "completion_tokens": [list(c.tokens) for c in completions],
        "logprobs": [[float(f"{value:.8g}") for value in c.logprobs] for c in completions],
        "finish_reasons": [c.finish_reason for c in completions],
        **(_describe_played(completions) if completions[0].sampled is not None else {}),
    }


def _describe_played(completions: Sequence[Completion]) -> dict[str, Any]:
    """Columns of trajectories: messages, which tokens were sampled, and the environment's own reward."""
    values = (
        [[*c.messages] for c in completions],
        [[int(each) for each in c.sampled or ()] for c in completions],
        [c.payment for c in completions],
    )
    return dict(zip(PLAYED, values, strict=True))


def _input(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if name not in (*RESULTS, *PLAYED, *COLLECTED)}


def _identify(columns: Mapping[str, Any]) -> str:
    """Hash of an input row, which its output row reproduces."""
    return hashlib.sha256(json.dumps(_input(columns), sort_keys=True, default=str).encode()).hexdigest()


def _is_whole(row: Mapping[str, Any], num_samples: int) -> bool:
    return all(isinstance(row.get(name), list) and len(row[name]) == num_samples for name in RESULTS)


def _settings_file(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(output.name + ".settings.json")


def check_output(output: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if `output` has anything but rows made with these settings, or cannot be written."""
    check_writable(output)
    if not output.exists() or (output.is_file() and not output.stat().st_size):
        return
    cure = "name another output, or move it away (--output)"
    try:
        before = json.loads(_settings_file(output).read_text("utf-8"))
        assert isinstance(before, dict)
    except (OSError, ValueError, AssertionError):
        raise UserError(f"{output} exists and was not written by r1jax.generate; {cure}") from None
    by_content = bool(settings.get("model_digest")) and "model_digest" in before
    for name, value in settings.items():
        if name in before and before[name] != value and not (name == "model" and by_content):
            raise UserError(
                f"{output} has rows made with {name}={before[name]!r}, this run has {name}={value!r}: {cure}"
            )
