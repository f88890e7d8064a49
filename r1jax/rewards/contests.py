"""Rewards for contest problems: IOI subtasks in C++, Codeforces problems in C++ or Python. open-r1's, on this machine.

The columns are those of open-r1's data sets: `open-r1/ioi` (id, subtask, test_names, test_cases, grader_files,
time_limit, memory_limit, score_precision, …) and `open-r1/codeforces` (official_tests, time_limit, memory_limit,
input_mode, generated_checker, language, …); generated tests are read from the folder CF_TESTS_FOLDER, if it is set.

The work of open-r1's judge image is done here: a submission is compiled with the problem's grader files and run on a
test's input; a C++ checker (a grader file with "checker" in its name) or a Python one gives the score, else the lines
are compared. Fixed: a batch size of -1 runs all tests at once. Left out: IOI problems with a manager process, whose
rows get None; the services e2b, morph and piston.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from r1jax.core.errors import UserError
from r1jax.core.extras import require
from r1jax.rewards.code import extract_code, same_output
from r1jax.rewards.completions import Completion
from r1jax.rewards.protocol import declare_reward
from r1jax.sandbox.box import FILES
from r1jax.sandbox.execution import Limits, Program, Provider, Test, make_provider, run_in_parallel, warm_up

NO_SUBMISSION, NO_COMPILE = -1.0, -0.1
_SCORE = re.compile(rb"\s*([+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?)(?=\s|\Z)")
_MODES = ("pass_fail", "partial", "weighted_sum")


@declare_reward(by_row=True, warm_up=warm_up)
def ioi_code_reward(
    completions: Sequence[Completion],
    test_batch_size: int = 1,
    provider_type: str = "local",
    isolation: str = "bubblewrap",
    num_parallel: int = 2,
    seconds_per_program: float = 120.0,
    **columns: Any,
) -> list[float | None]:
    """The score of a row's subtask: the minimum over its tests, rounded to `score_precision`; 0.0 without a submission.

    Tests run `test_batch_size` at a time (-1: all), and stop after a batch in which one scored 0.
    """
    provider = make_provider(provider_type, isolation)
    rows = _rows(columns, len(completions), ("id", "test_names", "grader_files"))
    sources = [
        add_includes(extract_code(completion, "cpp"), row["id"])
        for completion, row in zip(completions, rows, strict=True)
    ]
    return [
        _score_subtask(provider, row, source, test_batch_size, num_parallel, seconds_per_program)
        for row, source in zip(rows, sources, strict=True)
    ]


@declare_reward(by_row=True, warm_up=warm_up)
def cf_code_reward(
    completions: Sequence[Completion],
    test_batch_size: int = 1,
    patch_code: bool = False,
    scoring_mode: Literal["pass_fail", "partial", "weighted_sum"] = "weighted_sum",
    provider_type: str = "local",
    isolation: str = "bubblewrap",
    num_parallel: int = 2,
    seconds_per_program: float = 120.0,
    **columns: Any,
) -> list[float | None]:
    """The score of a submission: `pass_fail` 1 or 0; `partial` the share of passed tests; `weighted_sum` 1 or 0 plus a
    tenth of the share.

    None for a problem without tests, -1.0 without a submission, -0.1 if it does not compile. `patch_code` adds includes
    that a C++ program lacks (open-r1 also fixes Python 2's imports). Tests run `test_batch_size` at a time (-1: all);
    `pass_fail` stops after a batch with a failure. Tests not begun within `seconds_per_program` count as failed.
    """
    if scoring_mode not in _MODES:
        raise UserError(f"cf_code_reward: scoring_mode must be one of {', '.join(_MODES)}, got {scoring_mode!r}")
    provider = make_provider(provider_type, isolation)
    rows = _rows(columns, len(completions), ("official_tests",))
    values = []
    for completion, row in zip(completions, rows, strict=True):
        language = row.get("language")
        source = extract_code(completion, language)
        if patch_code and language == "cpp":
            source = add_includes(source)
        values.append(
            _score_submission(provider, row, source, test_batch_size, scoring_mode, num_parallel, seconds_per_program)
        )
    return values


def add_includes(source: str, problem_id: str = "") -> str:
    """A C++ submission after commonly forgotten headers and the problem's own; "" stays ""."""
    if not source:
        return source
    lines = ["#include <bits/stdc++.h>"]
    if problem_id and f'#include "{problem_id}.h"' not in source:
        lines.append(f'#include "{problem_id}.h"')
    if "using namespace std;" not in source and "std::" not in source:
        lines.append("using namespace std;")
    return "\n".join([*lines, source])


def _rows(columns: Mapping[str, Any], count: int, needed: Sequence[str]) -> list[dict[str, Any]]:
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"the reward needs a data column {missing[0]!r}, got {', '.join(sorted(columns))}")
    return [{name: values[row] for name, values in columns.items() if len(values) == count} for row in range(count)]


def _run_in_batches(
    judge: Callable[[Any], Any],
    tests: Sequence[Any],
    size: int,
    parallel: int,
    seconds: float,
    goes_on: Callable[[list[Any]], bool],
) -> list[Any]:
    """Results of the tests, batch by batch while `goes_on` of the last batch is True."""
    size = len(tests) if size < 1 else size
    deadline = time.monotonic() + seconds
    results: list[Any] = []
    for start in range(0, len(tests), size):
        batch = run_in_parallel(judge, tests[start : start + size], parallel)
        results += batch
        if not goes_on(batch) or time.monotonic() >= deadline:
            break
    return results


# --- IOI ---


def _score_subtask(
    provider: Provider, row: Mapping[str, Any], source: str, batch_size: int, parallel: int, seconds: float
) -> float | None:
    names, cases = row["test_names"], row["test_cases"]
    if not source or not names:
        return 0.0
    if not isinstance(cases, Mapping):
        cases = dict(zip(names, cases, strict=True))
    graders = {name.split("/")[-1]: content for name, content in row["grader_files"] if content}
    if any("manager" in name for name in graders):
        return None
    apart = {name: content for name, content in graders.items() if "checker" in name and name.endswith(".cpp")}
    shared = tuple((name, content) for name, content in graders.items() if name not in apart)
    program = Program(source, "cpp", shared)
    headers = tuple((name, content) for name, content in shared if name.endswith((".h", ".hpp")))
    checker = Program(next(iter(apart.values())), "cpp", headers) if apart else None
    limits = _limits(row)
    judge = functools.partial(_score_ioi_test, provider, program, checker, limits)
    tests = [tuple(cases[name][:2]) for name in names]
    scores = _run_in_batches(judge, tests, batch_size, parallel, seconds, lambda batch: all(batch))
    if None in scores:
        return None
    if len(scores) < len(tests):
        scores.append(0.0)  # skipped, as open-r1 counts it
    return round(min(scores), row.get("score_precision", 2))


def _score_ioi_test(
    provider: Provider, program: Program, checker: Program | None, limits: Limits, test: tuple[str, str]
) -> float | None:
    stdin, expected = test
    outcome = provider.run(program, Test(stdin, limits=limits))
    if outcome is None:
        return None
    if outcome.status != "ok":
        return 0.0
    output = outcome.stdout.decode(errors="replace")
    if checker is None:
        return float(same_output(output, expected))
    verdict = _ask_checker(provider, checker, stdin, expected, output)
    return None if verdict is None else max(0.0, min(1.0, verdict))


# --- Codeforces ---


def _score_submission(
    provider: Provider, row: Mapping[str, Any], source: str, batch_size: int, mode: str, parallel: int, seconds: float
) -> float | None:
    language = row.get("language")
    if language not in ("python", "cpp"):
        raise UserError(f"cf_code_reward: the column language must be python or cpp, got {language!r}")
    tests = [*(row["official_tests"] or ()), *_generated_tests(str(row.get("id") or ""))]
    if not tests:
        return None
    if not source:
        return NO_SUBMISSION
    program, checker = Program(source, language), row.get("generated_checker")
    judge = functools.partial(_passes_cf_test, provider, program, checker and Program(checker), row)
    goes_on = lambda batch: None not in batch and "compile" not in batch and (mode != "pass_fail" or all(batch))
    results = _run_in_batches(judge, tests, batch_size, parallel, seconds, goes_on)
    if None in results:
        return None
    if "compile" in results:
        return NO_COMPILE
    passed = results.count(True)
    all_passed = float(passed == len(tests))
    return {
        "pass_fail": all_passed,
        "partial": passed / len(tests),
        "weighted_sum": all_passed + 0.1 * (passed / len(tests)),
    }[mode]


def _passes_cf_test(
    provider: Provider, program: Program, checker: Program | None, row: Mapping[str, Any], test: Mapping[str, str]
) -> bool | Literal["compile"] | None:
    in_files = row.get("input_mode") == "file"
    names = ("input.txt", "output.txt") if in_files else ("", "")
    asked = Test(test["input"], input_file=names[0], output_file=names[1], limits=_limits(row))
    outcome = provider.run(program, asked)
    if outcome is None:
        return None
    if outcome.status != "ok":
        return "compile" if outcome.status == "compile" else False
    output = outcome.stdout.decode(errors="replace")
    if checker is None:
        return same_output(output, test["output"])
    verdict = _ask_checker(provider, checker, test["input"], test["output"], output)
    return None if verdict is None else verdict == 1.0


@functools.lru_cache(maxsize=32)
def _generated_contest_tests(folder: str, contest: str) -> dict[str, list[dict[str, str]]]:
    path = Path(folder, f"test_cases_{int(contest):04d}.parquet")
    if not path.exists():
        return {}
    parquet = require("pyarrow.parquet", "hub", f"CF_TESTS_FOLDER: reading {path.name}")
    tests: dict[str, list[dict[str, str]]] = {}
    for row in parquet.read_table(path, columns=["problem_id", "input", "output"]).to_pylist():
        tests.setdefault(row["problem_id"], []).append(row)
    return tests


def _generated_tests(problem_id: str) -> list[dict[str, str]]:
    folder, contest = os.environ.get("CF_TESTS_FOLDER"), problem_id.split("/")[0]
    if not folder or not re.fullmatch(r"[0-9]{1,6}", contest):
        return []
    return _generated_contest_tests(folder, contest).get(problem_id, [])


# --- Both ---


def _limits(row: Mapping[str, Any]) -> Limits:
    """A problem's limits (seconds; megabytes, or bytes), with a margin on wall time."""
    seconds = float(row.get("time_limit") or 2.0)
    memory = float(row.get("memory_limit") or 256)
    if memory > 1 << 20:  # open-r1/ioi gives bytes
        memory /= 1 << 20
    return Limits(seconds + 3, seconds, int(max(64, memory)) << 20)


def _ask_checker(provider: Provider, checker: Program, stdin: str, expected: str, output: str) -> float | None:
    """Score from a checker: what it prints first, if that is a number from 0 to 1, else 0.0; None if the provider
    failed.
    """
    files = (("input.txt", stdin), ("correct_output.txt", expected), ("output.txt", output))
    order = ("input.txt", "correct_output.txt", "output.txt")
    arguments = tuple(f"{FILES}/{name}" for name in order)
    outcome = provider.run(checker, Test(files=files, arguments=arguments, limits=Limits(30, 30)))
    if outcome is None:
        return None
    first = _SCORE.match(outcome.stdout)
    score = float(first[1]) if first and outcome.status == "ok" else 0.0
    return score if 0 <= score <= 1 else 0.0
