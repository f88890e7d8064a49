"""Sources of rows: JSONL files, reasoning-gym's procedural tasks by name, addition, and arithmetic of two numbers.

A source yields `SourceRow`s: columns and the place they came from, so that later errors can name file and line.
Procedural sources draw held-out and training problems together and guarantee that no problem is in both; for addition,
34 + 25 and 25 + 34 are the same problem. A draw is a function of its seed alone.

Left out: prompts and answers (`tasks.py` makes them from columns), order and batches (`loader.py`), and scoring:
reasoning-gym's own scorers may `eval` a model's answer, so only its questions and answers are used.
"""

import difflib
import itertools
import json
import operator
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from r1jax.core.errors import UserError
from r1jax.core.extras import check_installed, require
from r1jax.core.startup.helper_process import minimal_environment


class SourceRow(NamedTuple):
    """One row of a source; `place` is `FILE:LINE` or `SOURCE:NUMBER`."""

    place: str
    columns: dict[str, Any]


class Draw(NamedTuple):
    """Training problems and held-out problems."""

    train: list[SourceRow]
    held_out: list[SourceRow]


class RowErrors:
    """Policy for malformed rows: raise a `UserError`, or skip and count them."""

    def __init__(self, on_error: Literal["raise", "skip"] = "raise", hint: str = ""):
        self.on_error = on_error
        self.hint = hint
        self.count = 0
        self.first = ""

    def report(self, row_place: str, message: str) -> None:
        """Raises `PLACE: message` with the hint, or counts it (the first message is kept for the log)."""
        text = f"{row_place}: {message}"
        if self.on_error == "raise":
            raise UserError(text + self.hint)
        self.count += 1
        self.first = self.first or text


# --- Files ---


def read_jsonl(
    path: str | pathlib.Path, errors: RowErrors | None = None, *, key: str = "config.data.path"
) -> list[SourceRow]:
    """All rows of a JSONL file in order, blank lines skipped. `key` names the config key in errors.

    Raises:
      UserError: for a missing file, and for a line that is not a JSON object, as `FILE:LINE: ...`, unless `errors`
        skips it.
    """
    errors = errors or RowErrors()
    if not pathlib.Path(path).is_file():
        raise UserError(f"no such file: {path} ({key})")
    with open(path, "rb") as file:
        return list(parse_lines(file, str(path), errors))


def parse_lines(lines: Iterable[bytes], path: str, errors: RowErrors, *, first: int = 1) -> Iterator[SourceRow]:
    """Rows of JSONL lines, which are bytes, so that one with invalid UTF-8 has a number too; `first` is the number of
    the first line.
    """
    for number, line in enumerate(lines, first):
        place = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            columns = json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            errors.report(place, f"not a JSON object: {error}")
            continue
        if isinstance(columns, dict) and (broken := find_half_character(text)):
            errors.report(place, f"half of a surrogate pair ({broken}) is no character: write the pair or neither")
        elif isinstance(columns, dict):
            yield SourceRow(place, columns)
        elif text:
            errors.report(place, f"not a JSON object: got {type(columns).__name__}, {text[:60]}")


_SURROGATE = re.compile(
    r"\\\\|(\\u[dD][89abAB][0-9a-fA-F]{2})(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|(\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)


def find_half_character(text: str) -> str:
    """The first escape in a JSON text that is half of a surrogate pair, which no tokenizer takes; "" if none is."""
    for match in _SURROGATE.finditer(text) if "\\u" in text else ():
        if match[3] or match[1] and not match[2]:
            return match[0]
    return ""


# --- Procedural tasks ---

MOST_PAIRS = 10_000_000


def draw_addition(
    eval_problems: int, seed: int, *, low: int = 10, high: int = 99, question: str = "What is {a} + {b}?"
) -> Draw:
    """Every unordered pair of numbers from [low, high] (inclusive), `eval_problems` of them held out.

    Columns: `question`, `solution` (text), `a`, `b`. The order of the two numbers is random.

    Raises:
      UserError: if the range is empty, or has too few pairs to hold out `eval_problems`.
    """
    if low > high:
        raise UserError(f"addition needs low <= high, got low={low}, high={high} (config.data.args)")
    if (count := (high - low + 1) * (high - low + 2) // 2) > MOST_PAIRS:
        raise UserError(
            f"addition has {count:,} pairs of numbers from low={low} to high={high}, of at most {MOST_PAIRS:,} "
            "(config.data.args): narrow the range"
        )
    if not ("{a}" in question and "{b}" in question):
        raise UserError(
            f'the question of addition must contain {{a}} and {{b}}, got "{question}" (config.data.args.question)'
        )
    generator = random.Random(f"addition {seed}")
    pairs = list(itertools.combinations_with_replacement(range(low, high + 1), 2))
    generator.shuffle(pairs)
    rows = []
    for number, pair in enumerate(pairs):
        a, b = pair if generator.random() < 0.5 else pair[::-1]
        text = question.replace("{a}", str(a)).replace("{b}", str(b))
        rows.append(SourceRow(f"addition:{number}", {"question": text, "solution": str(a + b), "a": a, "b": b}))
    return _hold_out(rows, eval_problems, key=lambda row: frozenset((row.columns["a"], row.columns["b"])))


def draw_arithmetic(
    eval_problems: int,
    seed: int,
    *,
    problems: int,
    low: int = 100,
    high: int = 999,
    signs: str = "+*",
    question: str = "What is {a} {sign} {b}?",
) -> Draw:
    """`problems` random sums, differences or products (each of `signs` equally often) of numbers from [low, high], and
    `eval_problems` others held out.

    Columns: `question`, `solution` (text), `a`, `b`, `sign`. Problems of the same two numbers and sign count once.

    Raises:
      UserError: for an unknown sign, a question that lacks a place, or a range with too few problems.
    """
    kinds = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    if not signs or not set(signs) <= kinds.keys():
        raise UserError(f"config.data.args.signs of arithmetic must be some of + - *, got {signs!r}")
    if lacking := [place for place in ("{a}", "{b}", "{sign}") if place not in question]:
        raise UserError(f'config.data.args.question of arithmetic must contain {lacking[0]}, got "{question}"')
    count, span = problems + eval_problems, high - low + 1
    if count > (possible := len(set(signs)) * max(span, 0) * (span + 1) // 4):
        raise UserError(
            f"arithmetic from low={low} to high={high} draws at most {possible:,} problems (config.data.args), got "
            f"config.data.problems + eval_problems = {count:,}"
        )
    generator, rows = random.Random(f"arithmetic {seed}"), dict[tuple[str, int, int], SourceRow]()
    while len(rows) < count:
        a, b, sign = generator.randint(low, high), generator.randint(low, high), signs[len(rows) % len(signs)]
        key = sign, min(a, b), max(a, b)
        if key not in rows:
            text = question.replace("{a}", str(a)).replace("{b}", str(b)).replace("{sign}", sign)
            columns = {"question": text, "solution": str(kinds[sign](a, b)), "a": a, "b": b, "sign": sign}
            rows[key] = SourceRow(f"arithmetic:{len(rows)}", columns)
    key_of = lambda row: (row.columns["sign"], *sorted((row.columns["a"], row.columns["b"])))
    return _hold_out([*rows.values()], eval_problems, key=key_of)


def draw_same(eval_problems: int, *, problems: int, question: str) -> Draw:
    """One question for all problems, for environments that draw what they ask from their seed. Columns: `question`."""
    rows = [SourceRow(f"same:{number}", {"question": question}) for number in range(problems + eval_problems)]
    return Draw(train=rows[eval_problems:], held_out=rows[:eval_problems])


def draw_verifiers(name: str, eval_problems: int, *, problems: int) -> Draw:
    """Problems of an environment of the package verifiers: of its data set for evaluation, if it has one, else the last
    ones of its data set. Columns: `question` (messages), `solution` (its `answer`), and its own.

    Raises:
      UserError: if the package is missing, or the environment has no data set.
    """
    place = f"config.data.source = verifiers:{name}"
    package = require("verifiers", "verifiers", place)
    name, _, arguments = name.partition(" ")
    environment = package.load_environment(name, **json.loads(arguments or "{}"))
    try:
        rows = [*environment.get_dataset(problems)]
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    if environment.build_eval_dataset() is not None:
        held_out = [*environment.get_eval_dataset(eval_problems)] if eval_problems else []
    else:
        if len(rows) <= eval_problems:
            raise UserError(f"{place} has {len(rows)} problems: lower config.data.eval_problems = {eval_problems}")
        rows, held_out = rows[: len(rows) - eval_problems], rows[len(rows) - eval_problems :]

    def build(part: str, found: list[dict[str, Any]]) -> list[SourceRow]:
        return [SourceRow(f"{name}:{part}:{i}", _read_verifiers(row)) for i, row in enumerate(found)]

    return Draw(build("train", rows), build("eval", held_out))


def _read_verifiers(row: dict[str, Any]) -> dict[str, Any]:
    messages = [{key: value for key, value in message.items() if value is not None} for message in row["prompt"]]
    return {**row, "question": messages, "solution": row.get("answer", "")}


def draw_reasoning_gym(task: str, eval_problems: int, seed: int, *, problems: int, args: Mapping[str, Any]) -> Draw:
    """At most `problems` training problems of a reasoning-gym task, and `eval_problems` others held out.

    Repeated questions count once, so a task with few distinct questions yields fewer training rows. Columns:
    `question`, `solution` (reasoning-gym's `answer`).

    Raises:
      UserError: for an unknown task or argument, a task without a plain answer, or too few distinct questions.
    """
    request = {"task": task, "size": problems + eval_problems, "seed": seed, "args": dict(args)}
    rows: dict[str, SourceRow] = {}
    for number, (question, answer) in enumerate(_ask_gym(request)):
        rows.setdefault(question, SourceRow(f"{task}:{number}", {"question": question, "solution": answer}))
    distinct = list(rows.values())
    random.Random(f"reasoning_gym {seed}").shuffle(distinct)
    return _hold_out(distinct, eval_problems, key=lambda row: row.columns["question"])


def _ask_gym(request: dict[str, Any]) -> list[tuple[str, str]]:
    """Questions and answers from `gym_worker.py`, a process with a fixed hash seed."""
    worker = pathlib.Path(__file__).with_name("gym_worker.py")
    task = f"reasoning-gym task {request['task']} (config.data.source)"
    check_installed("reasoning_gym", "reasoning-gym", task)
    environment = minimal_environment(PYTHONHASHSEED="0")
    command = [sys.executable, "-P", str(worker)]
    done = subprocess.run(command, input=repr(request), capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{task} could not be drawn: {reason}")
    result = json.loads(done.stdout)
    if "known" in result:
        similar = ", ".join(difflib.get_close_matches(request["task"], result["known"], n=3, cutoff=0.5))
        raise UserError(f"{task} is unknown{f'; similar: {similar}' if similar else ''}")
    if "error" in result:
        raise UserError(f"{task}: {result['error']}")
    return result["rows"]


def _hold_out(rows: list[SourceRow], eval_problems: int, key: Any) -> Draw:
    """The first `eval_problems` rows held out and the rest for training, checked to be disjoint by `key`."""
    if len(rows) <= eval_problems:
        raise UserError(
            f"{eval_problems} held-out problems leave none of the {len(rows)} distinct ones to train on: "
            "lower config.data.eval_problems or widen config.data.args"
        )
    draw = Draw(train=rows[eval_problems:], held_out=rows[:eval_problems])
    check_disjoint(map(key, draw.train), map(key, draw.held_out))
    return draw


def check_disjoint(train: Iterable[Any], held_out: Iterable[Any]) -> None:
    """Raises UserError if a training problem (by its hashable key) is also held out."""
    shared = set(train) & set(held_out)
    if shared:
        raise UserError(f"{len(shared)} held-out problems are also training problems, e.g. {next(iter(shared))!r}")
