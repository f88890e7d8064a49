"""RL tasks from source rows: rows with a `prompt`, a `solution`, and all other columns.

A `TaskConfig` (the config's `data` section) names a source, the columns of question and answer, how to extract the
answer from a worked solution, and the template that makes a prompt of a question. `load_task` does all of it and keeps
training and held-out problems disjoint.

Templates: `chat` is one user message, for the model's own chat template. The others are raw texts: `r1` is that of
DeepSeek-R1-Zero (Table 1 of arXiv:2501.12948), `question_reply` a short one, `plain` the question alone; any text that
contains `{question}` is a template too. A raw template may show one worked example before the question.
"""

import dataclasses
import pathlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from r1jax.core.errors import UserError
from r1jax.data import sources
from r1jax.data.files import iterate_rows
from r1jax.data.row_store import choose_rows, store_rows
from r1jax.data.sources import RowErrors, SourceRow
from r1jax.text.prompts import PLAIN, QUESTION_REPLY, R1_ZERO, fill, show_example

Prompt = str | list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Example:
    """A worked example shown in the prompt.

    Attributes:
      question: question of the example.
      reasoning: reasoning of its reply.
      answer: answer of its reply.
      ending: text after the reply: the model's end token, spelled out, shows where to stop.
      source: the `data.source` that the example belongs to; with another source it is not shown. "" is any.
    """

    question: str
    reasoning: str
    answer: str
    ending: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The `data` section of a config that asks problems.

    Attributes:
      source: kind of source: `addition`, `arithmetic`, `reasoning_gym:TASK`, `same` (args.question every time, for an
        environment that draws what it asks), `verifiers:ID` (the problems of such an environment) or `file` (`jsonl`
        means the same).
      path: training file, folder or pattern of files, or a hub name (data/files.py); for source = file.
      eval_path: file of held-out problems; without one, rows of `path` are held out.
      eval_problems: number of held-out problems, at most.
      problems: number of training problems that arithmetic, same or a reasoning-gym task draws.
      args: arguments of a procedural source (addition: low, high, question; arithmetic: signs, too; same: question;
        reasoning-gym: those of the task).
      columns: column of a row -> column of the file, as in {"prompt": "question", "solution": "answer"}.
      extractor: way to take the solution out of its column: `gsm8k` (what follows ####), or None for the whole column.
      template: prompt made of a question: `chat`, `r1`, `question_reply`, `plain`, or a text with {question}.
      example: worked example that a raw template shows before the question.
      on_error: treatment of a malformed row: raise an error, or skip it and count it.
      long_prompts: treatment of a prompt that is longer than the run takes (rollout.max_prompt_tokens): raise an error,
        or leave it out and count it.
      seed: seed of draws and splits.
    """

    source: str
    path: str | None = None
    eval_path: str | None = None
    eval_problems: int = 200
    problems: int = 10_000
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    extractor: str | None = None
    template: str = "chat"
    example: Example | None = None
    on_error: Literal["raise", "skip"] = "raise"
    long_prompts: Literal["raise", "skip"] = "raise"
    seed: int = 0

    @property
    def shown_example(self) -> Example | None:
        """The worked example, unless it belongs to another source."""
        return self.example if self.example and self.example.source in ("", self.source) else None

    @property
    def name(self) -> str:
        """Name of the task: addition, that of a reasoning-gym task, or that of the file."""
        return pathlib.Path(self.path).stem if self.source in FILES and self.path else self.source.rpartition(":")[2]


@dataclasses.dataclass(frozen=True)
class Task:
    """Training rows and held-out rows, no problem in both; `notes` are lines for the log. Many rows are not in memory
    (data/row_store.py).
    """

    train: Sequence[dict[str, Any]]
    held_out: Sequence[dict[str, Any]]
    notes: tuple[str, ...] = ()


def load_task(config: TaskConfig) -> Task:
    """Reads or draws the rows and makes their prompts.

    Raises:
      UserError: for an unknown source, template or extractor, a missing file or argument, or a malformed row.
    """
    if config.eval_problems < 0:
        raise UserError(f"config.data.eval_problems must not be negative, got {config.eval_problems}")
    build = make_builder(config)  # first, so that a misspelt template fails before the draw
    if config.source in FILES:
        return _load_file(config, build)
    draw = draw_problems(config.source, config.eval_problems, config.seed, problems=config.problems, args=config.args)
    if draw is None:
        known = "addition, arithmetic, reasoning_gym:TASK, verifiers:ID, same, file"
        raise UserError(f'config.data.source must be one of {known}, got "{config.source}"')
    return Task([build(row) for row in draw.train], [build(row) for row in draw.held_out])


def draw_problems(
    source: str, eval_problems: int, seed: int, *, problems: int, args: dict[str, Any]
) -> sources.Draw | None:
    """Problems of `addition`, `arithmetic`, `same`, `reasoning_gym:TASK` or `verifiers:ID`; None for other sources."""
    kind, _, name = source.partition(":")
    if kind == "reasoning_gym" and name:
        return sources.draw_reasoning_gym(name, eval_problems, seed, problems=problems, args=args)
    if kind == "verifiers" and name:
        return sources.draw_verifiers(name, eval_problems, problems=problems)
    if source == "addition":
        _check_args(source, args, {"low": int, "high": int, "question": str})
        return sources.draw_addition(eval_problems, seed, **args)
    if source == "arithmetic":
        _check_args(source, args, {"low": int, "high": int, "signs": str, "question": str})
        return sources.draw_arithmetic(eval_problems, seed, problems=problems, **args)
    if source == "same":
        _check_args(source, args, {"question": str})
        return sources.draw_same(eval_problems, problems=problems, question=args.get("question", ""))
    return None


def _check_args(source: str, args: dict[str, Any], kinds: dict[str, type]) -> None:
    for key, value in args.items():
        if key not in kinds or type(value) is not kinds[key]:
            known = ", ".join(kinds)
            raise UserError(
                f"config.data.args of {source} are {known} (low and high whole numbers); got {key}={value!r}"
            )


# --- Reading, building and splitting rows of files ---


FILES = ("file", "jsonl")


def _load_file(config: TaskConfig, build: Callable[[SourceRow], dict[str, Any]]) -> Task:
    if not config.path:
        raise UserError(f"config.data.path must name a file when config.data.source is {config.source}")
    errors = RowErrors(config.on_error, hint="; config.data.on_error=skip leaves such rows out")
    rows = store_rows(_build_all(iterate_rows(config.path, errors), build, errors))
    rows = choose_rows(rows, _shuffle(len(rows), f"split {config.seed}"))
    if config.eval_path:
        theirs = iterate_rows(config.eval_path, errors, key="config.data.eval_path")
        held_out = store_rows(_build_all(theirs, build, errors))
        order = _shuffle(len(held_out), f"held out {config.seed}")
        task = _note_overlap(rows, choose_rows(held_out, order[: config.eval_problems]))
    else:
        task = _split(rows, config)
    if errors.count:
        note = f"{errors.count} malformed rows left out, the first: {errors.first}"
        task = dataclasses.replace(task, notes=(*task.notes, note))
    if not task.train:
        raise UserError(f"{config.path} has no usable row to train on (config.data.path)")
    return task


def _shuffle(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _build_all(
    rows: Iterable[SourceRow], build: Callable[[SourceRow], dict[str, Any]], errors: RowErrors
) -> Iterator[dict[str, Any]]:
    for row in rows:
        try:
            yield build(row)
        except RowError as error:
            errors.report(row.place, str(error))


def _split(rows: Sequence[dict[str, Any]], config: TaskConfig) -> Task:
    """Splits off the last `eval_problems` rows; training rows with a held-out prompt (duplicates) are dropped."""
    if config.eval_problems >= len(rows):
        raise UserError(
            f"config.data.eval_problems={config.eval_problems} leaves none of the {len(rows)} usable rows of "
            f"{config.path} to train on: lower it, or name a held-out file with config.data.eval_path"
        )
    border = len(rows) - config.eval_problems
    held_out = rows[border:]
    keys = {_key(row) for row in held_out}
    learnt = [place for place in range(border) if _key(rows[place]) not in keys] if keys else range(border)
    train = choose_rows(rows, learnt)
    dropped = border - len(train)
    notes = (f"{dropped} training rows repeat a held-out prompt and are left out",) if dropped else ()
    return Task(train, held_out, notes)


def _note_overlap(rows: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> Task:
    """Notes rows that are in both files without removing them: two files are the user's own split."""
    keys = {_key(row) for row in held_out}
    shared = sum(_key(row) in keys for row in rows) if keys else 0
    notes = (f"{shared} training rows have a prompt that is also held out",) if shared else ()
    return Task(rows, held_out, notes)


def _key(row: dict[str, Any]) -> str:
    return str(row["prompt"])


def leave_out_long(
    task: Task, measure: Callable[[Prompt], int], limit: int, config: TaskConfig, *, rule: str
) -> tuple[Task, int]:
    """The task without prompts of more than `limit` tokens (0: no limit), with a note, and the longest that is left.

    measure: number of tokens of a prompt. rule: what sets the limit, in words. Raises UserError for a long prompt
    unless config.long_prompts is "skip", and if none is left to train on.
    """
    kept, longest, counts = [], 0, []
    for rows in (task.train, task.held_out):
        sizes = np.fromiter((measure(row["prompt"]) for row in rows), np.int64, len(rows))
        fits = sizes <= limit if limit else np.ones(len(sizes), bool)
        if not fits.all() and config.long_prompts == "raise":
            raise UserError(
                f"{rule} = {limit}, but a prompt of config.data has {sizes.max()} tokens; 0 uses the longest prompt of "
                "the data, and config.data.long_prompts=skip leaves such rows out"
            )
        kept.append(rows if fits.all() else choose_rows(rows, np.flatnonzero(fits)))
        longest = max(longest, int(sizes[fits].max(initial=0)))
        counts.append(int((~fits).sum()))
    if not kept[0]:
        raise UserError(f"no prompt of config.data has at most {limit} tokens ({rule})")
    notes = (f"{counts[0]} training and {counts[1]} held-out prompts of more than {limit} tokens are left out",)
    return dataclasses.replace(task, train=kept[0], held_out=kept[1], notes=notes if any(counts) else ()), int(longest)


# --- One row ---


class RowError(UserError):
    """A fault of one row, without its place."""


def make_builder(config: TaskConfig) -> Callable[[SourceRow], dict[str, Any]]:
    """Function from a source row to a task row, by the config's columns, extractor and template.

    The task row has all source columns, the columns named in `config.columns` under our names, `prompt` from the
    template (messages are kept), and `question`, the bare question, unless the source has that column.

    Raises:
      UserError: for an unknown template or extractor. The function raises `RowError` for a malformed row.
    """
    render = choose_template(config.template, config.shown_example)
    if config.extractor is not None and config.extractor not in EXTRACTORS:
        raise UserError(
            f'config.data.extractor must be one of {", ".join(EXTRACTORS)} or none, got "{config.extractor}"'
        )
    extract = EXTRACTORS[config.extractor] if config.extractor else to_text
    columns = config.columns if config.source in FILES else {"prompt": "question", **config.columns}

    def build(row: SourceRow) -> dict[str, Any]:
        built = dict(row.columns)
        for ours, theirs in {"prompt": "prompt", **columns}.items():
            if theirs not in row.columns:
                raise RowError(
                    f'no column "{theirs}" for {ours} (config.data.columns); it has {", ".join(row.columns)}'
                )
            built[ours] = row.columns[theirs]
        if "solution" in built:
            built["solution"] = extract(built["solution"])
        prompt = check_prompt(built["prompt"])
        if isinstance(prompt, str):
            built.setdefault("question", prompt)
            built["prompt"] = render(prompt)
        elif config.template != "chat":
            raise RowError(f'messages need config.data.template=chat, got "{config.template}"')
        return built

    return build


def check_prompt(value: Any) -> Prompt:
    """Returns the prompt of a row. Raises RowError if it is neither text nor messages."""
    if isinstance(value, str) and value.strip():
        return value
    is_messages = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
    if is_messages and all(
        isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str) for turn in value
    ):
        return value
    raise RowError(f"the prompt must be a text or a list of role and content messages, got {str(value)[:60]!r}")


# --- Answers ---


def extract_gsm8k(solution: Any) -> str:
    """GSM8K's final answer: the text after `####`, without thousands separators."""
    if not isinstance(solution, str) or "####" not in solution:
        raise RowError(f'no "####" before the answer in {str(solution)[-60:]!r} (config.data.extractor=gsm8k)')
    return solution.rpartition("####")[2].strip().replace(",", "")


def to_text(solution: Any) -> Any:
    """Numbers as text (145.0 as "145"), because rewards compare texts; other values unchanged."""
    if solution is None:
        raise RowError("the solution is null")
    if isinstance(solution, float) and solution.is_integer():
        return str(int(solution))
    return str(solution) if isinstance(solution, (int, float)) else solution


EXTRACTORS: dict[str, Callable[[Any], str]] = {"gsm8k": extract_gsm8k}


# --- Templates ---


def choose_template(name: str, example: Example | None = None) -> Callable[[str], Prompt]:
    """Function from a question to its prompt. Raises UserError for an unknown template."""
    if name in RAW_TEMPLATES or "{question}" in name:
        template = _show(RAW_TEMPLATES.get(name, name), example)
        return lambda question: fill(template, question)
    if name != "chat":
        known = ", ".join(["chat", *RAW_TEMPLATES])
        raise UserError(f'config.data.template must be one of {known} or a text with {{question}}, got "{name}"')
    if example is not None:
        raise UserError(f"config.data.example goes with a raw template ({', '.join(RAW_TEMPLATES)}), not with chat")
    return lambda question: [{"role": "user", "content": question}]


def _show(template: str, example: Example | None) -> str:
    """The template with the worked example before its question; R1-Zero's instruction appears once, before both."""
    if template.count("{question}") != 1:
        raise UserError(f'config.data.template must contain {{question}} exactly once, got "{template}"')
    if example is None:
        return template
    solved = dataclasses.asdict(example)
    ending, _ = solved.pop("ending"), solved.pop("source")
    if template != R1_ZERO:
        return show_example(template, **solved, separator=f"{ending}\n\n")
    instruction, user, turn = template.rpartition("User:")
    return instruction + show_example(user + turn, **solved, separator=f"{ending}\n")


RAW_TEMPLATES = {"r1": R1_ZERO, "question_reply": QUESTION_REPLY, "plain": PLAIN}
