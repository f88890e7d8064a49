"""Evaluation of a model, or of existing completions, on benchmarks: one JSON of scores, and all completions
beside it.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.core import console, distributed
from r1jax.core.errors import UserError
from r1jax.core.outputs.ownership import check_output, has_keys, write_output
from r1jax.core.processes.agreement import agree_on_data
from r1jax.core.structs import Completion
from r1jax.data.files import read_rows
from r1jax.data.sources import SourceRow
from r1jax.eval.benchmarks import Problem
from r1jax.eval.extraction import read_gold
from r1jax.eval.headline import format_value
from r1jax.eval.payouts import compare_graders, pay, render_payouts, summarize
from r1jax.eval.prompting import Prompting
from r1jax.eval.report import check_page, name_subject, write_page
from r1jax.eval.reward_grading import make_grader
from r1jax.eval.score import Answered, score
from r1jax.rewards.completions import read_text
from r1jax.runs.generate import SHOW_SECONDS, Generation, encode_rows, sample_prompts
from r1jax.runs.sampler import Sampler

Scores = dict[str, Any]
SHOWN = ("pass@1", "pass@k", "cons@k", "lenient_pass@1", "format_rate", "truncated")


Play = Callable[[Sequence[SourceRow]], Any]


def answer_problems(
    sampler: Sampler, problems: Sequence[Problem], config: Generation, play: Play | None = None
) -> list[Answered]:
    """`num_samples` completions of the model for every problem. play: as of `generate_file`; of a trajectory the last
    message of the assistant is the answer.
    """
    agree_on_data((problem.prompt, problem.gold) for problem in problems)
    prompts = encode_rows([SourceRow(problem.place, {"prompt": problem.prompt}) for problem in problems], sampler)
    done = 0
    with console.Progress(len(problems), title="problems", every=SHOW_SECONDS) as progress:

        def show(number: int, completions: list[Completion]) -> None:
            nonlocal done
            done += 1
            progress.update(done, {})

        if play is None:
            found = sample_prompts(sampler, prompts, config, few_shapes=True, on_row=show)
        else:
            rows = [SourceRow(one.place, {**(one.columns or {}), "prompt": one.prompt}) for one in problems]
            player = play(rows)
            found = []
            for first in range(0, len(rows), player.size):
                found += player.sample(range(len(rows))[first : first + player.size], show)
    return [
        Answered(
            problem.prompt,
            problem.gold,
            [sampler.decode(c.tokens) if c.sampled is None else read_text(c.messages) for c in completions],
            [c.length for c in completions],
            [c.finish_reason for c in completions],
            problem.columns,
            [c.tokens for c in completions],
        )
        for problem, completions in zip(problems, found, strict=True)
    ]


def read_samples(path: str, *, limit: int = 0) -> list[Answered]:
    """Existing completions: rows of `completions` and `solution`, as written by `generate`.

    Raises UserError for a missing file or a row without these columns, naming file and line.
    """
    problems = []
    for place, columns in read_rows(path, key="--samples")[: limit or None]:
        completions, solution = columns.get("completions"), columns.get("solution")
        if not (isinstance(completions, list) and completions and all(isinstance(c, str) for c in completions)):
            raise UserError(f"{place}: completions must be a list of texts, got {str(completions)[:60]} (--samples)")
        if isinstance(solution, float) and solution.is_integer():
            solution = int(solution)
        gold = "" if solution is None or isinstance(solution, (list, dict)) else read_gold(str(solution))
        if not gold:
            raise UserError(f"{place}: no solution to compare with (--samples)")
        tokens, reasons = columns.get("completion_tokens"), columns.get("finish_reasons")
        if not (tokens is None or _fits(tokens, completions, list)):
            raise UserError(f"{place}: completion_tokens must be a list of ids for each completion (--samples)")
        if not (reasons is None or _fits(reasons, completions, str)):
            raise UserError(f"{place}: finish_reasons must be a text for each completion (--samples)")
        problem = columns.get("prompt", columns.get("problem"))
        problems.append(Answered(problem, gold, completions, tokens and [len(ids) for ids in tokens], reasons))
    if not problems:
        raise UserError(f"{path} has no rows (--samples)")
    return problems


def _fits(values: Any, completions: Sequence[str], kind: type) -> bool:
    is_whole = isinstance(values, list) and len(values) == len(completions)
    return is_whole and all(isinstance(value, kind) for value in values)


def ask_rewards(samples: pathlib.Path, names: Sequence[str], output: pathlib.Path, *, limit: int = 0) -> None:
    """Asks rewards about the completions of a file: tables on the console, and a page of where they differ.

    Raises UserError for a missing file, an unknown reward, a row without completions or without a needed column.
    """
    check_page(output)
    if not names:
        raise UserError("--reward names no reward, as in --reward=answer_reward (see --help)")
    rows = [columns for _, columns in read_rows(str(samples), key="--samples")[: limit or None]]
    if not rows:
        raise UserError(f"{samples} has no row (--samples)")
    payouts = pay(rows, names)
    console.show_table("rewards", summarize(payouts))
    if len(names) > 1:
        console.show_table("where rewards differ", compare_graders(payouts))
    write_page(output, render_payouts(payouts, f"Rewards of {samples.name}", name_subject([samples])))
    console.shared_console().print(f"page: {output}")


def measure(
    sampler: Sampler,
    problems: Mapping[str, Sequence[Problem]],
    config: Generation,
    prompting: Prompting | None = None,
    play: Play | None = None,
) -> tuple[Scores, list[dict[str, Any]]]:
    """Answers the problems of all benchmarks and scores the answers: scores by benchmark, and rows for samples.jsonl.

    prompting: how the problems are put; its grading decides, if it has one.
    """
    answered = {name: answer_problems(sampler, found, config, play) for name, found in problems.items()}
    return score_benchmarks(answered, prompting=prompting)


def score_benchmarks(
    answered: Mapping[str, Sequence[Answered]], k: int = 0, *, prompting: Prompting | None = None
) -> tuple[Scores, list[dict[str, Any]]]:
    """Scores by benchmark, and the rows of all of them for samples.jsonl. prompting: its grading decides, if it has
    one.
    """
    grading = prompting.grading if prompting else None
    scores: Scores = {}
    rows = []
    for name, problems in answered.items():
        scores[name], described = score(problems, k, grader=make_grader(grading.to_config(name)) if grading else None)
        rows += [{"benchmark": name, **row} for row in described]
    return scores, rows


def check_scores(output: str | pathlib.Path) -> None:
    """Raises UserError if OUT.json or OUT.samples.jsonl cannot be written, or is a file of another hand."""
    if distributed.is_writer():
        output = pathlib.Path(output)
        check_output(output, lambda path: has_keys(path, ("model", "benchmarks")))
        check_output(samples_file(output), lambda path: has_keys(path, ("gold", "answers", "correct"), first_line=True))


def write_scores(output: str | pathlib.Path, model: str, scores: Scores, rows: Sequence[dict[str, Any]]) -> None:
    """Writes OUT.json and OUT.samples.jsonl, each atomically; other scores in their place are set aside.

    Raises UserError if that fails, or if a file of another hand is there.
    """
    output = pathlib.Path(output)
    if not distributed.is_writer():
        return
    check_scores(output)
    texts = {
        samples_file(output): "".join(json.dumps(row) + "\n" for row in rows),
        output: json.dumps({"model": model, "benchmarks": scores}, indent=2) + "\n",
    }
    write_output(texts)


def samples_file(output: pathlib.Path) -> pathlib.Path:
    """Path OUT.samples.jsonl for OUT.json."""
    return output.with_name(output.name.removesuffix(".json") + ".samples.jsonl")


def show_scores(scores: Scores) -> None:
    """Prints the scores as a table on the console."""
    rows = []
    for name, values in scores.items():
        row = {"benchmark": name, "problems": values["n"], "k": values["k"]}
        for key in SHOWN:
            row[key] = format_value(values[key], values.get(f"{key}_stderr"), is_rate=True)
        rows.append(row)
    console.show_table("scores", rows)
