r"""Rewards for programs, run in a sandbox against the tests of the column `verification_info`. open-r1's, on this
machine.

A row's `verification_info` is a dict (or its JSON) with `language` and `test_cases`, a list of two kinds:

    {"type": "stdin_stdout", "input": "1 2\n", "output": "3\n"}     the program's output is compared, line by line
    {"type": "assert", "code": "assert add(1, 2) == 3"}             the program's functions are called; see below

The program is the last fenced Python block after the reply's reasoning (`r1jax/text/fences.py`). It never sees
expected values: outputs are compared outside, and asserts run in another process (`assert_checker.py`). A test fails on
an exit code other than 0, on an exceeded limit, and on any line that differs; white space at the ends of lines and
around the whole is ignored.

Fixed against open-r1, and nothing else: a fence may be named `py` or `Python`; a program inside the reasoning does not
count; all lines are compared, not only as many as the shorter text has; a test that times out costs that test only; the
`local` provider works, and is the default (e2b and morph are not included).
"""

import functools
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.completions import Completion, read_text
from r1jax.rewards.protocol import declare_reward
from r1jax.sandbox.execution import Limits, Program, Provider, Test, make_provider, run_in_parallel, warm_up
from r1jax.text.fences import find_program

SECONDS_PER_TEST = 5.0
_BINARY_THRESHOLD = 0.99
_MAX_VERDICTS = 50_000
# Verdicts by (program, test): groups repeat programs, and steps repeat prompts. Without verdicts that depend on time.
_verdicts: OrderedDict[bytes, bool] = OrderedDict()
_verdicts_lock = threading.Lock()


@declare_reward(by_row=True, warm_up=warm_up)
def code_reward(
    completions: Sequence[Completion],
    verification_info: Sequence[Any],
    num_parallel: int = 2,
    provider_type: str = "local",
    enforce_same_language: bool = False,
    isolation: str = "bubblewrap",
    seconds_per_test: float = SECONDS_PER_TEST,
    seconds_per_program: float = 60.0,
    memory_megabytes: int = 512,
    **columns: Any,
) -> list[float | None]:
    """The share of tests that the reply's program passes; 0.0 without a program or tests; None if the provider failed.

    `num_parallel` programs run at once. After `seconds_per_program` the remaining tests count as failed. Raises
    UserError if the sandbox is missing, and ValueError if the languages must agree and do not.
    """
    infos = [json.loads(info) if isinstance(info, str) else info for info in verification_info]
    if enforce_same_language and len({info["language"] for info in infos}) > 1:
        raise ValueError("All verification_info must have the same language", infos)
    provider = make_provider(provider_type, isolation)
    limits = Limits(seconds_per_test, seconds_per_test, memory_megabytes << 20)
    rows = [
        (extract_code(completion), json.dumps(info["test_cases"]))
        for completion, info in zip(completions, infos, strict=True)
    ]
    distinct = list(dict.fromkeys(rows))
    judge = functools.partial(_judge, provider, limits, seconds_per_program)
    values = dict(zip(distinct, run_in_parallel(judge, distinct, num_parallel), strict=True))
    return [values[row] for row in rows]


@declare_reward(by_row=True, warm_up=warm_up)
def binary_code_reward(
    completions: Sequence[Completion],
    verification_info: Sequence[Any],
    num_parallel: int = 2,
    provider_type: str = "local",
    enforce_same_language: bool = False,
    isolation: str = "bubblewrap",
    seconds_per_test: float = SECONDS_PER_TEST,
    seconds_per_program: float = 60.0,
    memory_megabytes: int = 512,
    **columns: Any,
) -> list[float | None]:
    """1.0 if more than 0.99 of the tests pass, else 0.0; None and arguments as in `code_reward`."""
    values = code_reward(
        completions,
        verification_info,
        num_parallel,
        provider_type,
        enforce_same_language,
        isolation,
        seconds_per_test,
        seconds_per_program,
        memory_megabytes,
    )
    return [None if value is None else float(value > _BINARY_THRESHOLD) for value in values]


def extract_code(completion: Completion, language: str | None = "python") -> str:
    """The program of a language in the last message (`r1jax/text/fences.py`); "" if there is none, or for no
    language.
    """
    text = completion if isinstance(completion, str) else read_text(completion[-1:])
    return find_program(text, language) if language else ""


def same_output(output: str, expected: str) -> bool:
    """Whether two outputs agree in every line, ignoring white space at the ends of lines and around the whole."""
    lines, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (output, expected))
    return lines == wanted


def _judge(provider: Provider, limits: Limits, seconds: float, row: tuple[str, str]) -> float | None:
    source, cases = row[0], json.loads(row[1])
    cases = json.loads(cases) if isinstance(cases, str) else cases
    if not source.strip() or not cases:
        return 0.0
    deadline = time.monotonic() + seconds
    passed = 0
    for case in cases:
        verdict = _passes(provider, limits, source, case) if time.monotonic() < deadline else False
        if verdict is None:
            return None
        passed += verdict
    return passed / len(cases)


def _passes(provider: Provider, limits: Limits, source: str, case: Mapping[str, Any]) -> bool | None:
    """Whether a program passes one test; None if that could not be determined."""
    key = hashlib.sha256(repr((source, sorted(case.items()), limits)).encode(errors="replace")).digest()
    with _verdicts_lock:
        if key in _verdicts:
            _verdicts.move_to_end(key)
            return _verdicts[key]
    kind = case.get("type", "stdin_stdout")
    if kind == "assert":
        test = Test(asserts=str(case["code"]), limits=limits)
    elif kind in ("stdin_stdout", "stdin"):
        test = Test(stdin=str(case["input"]), limits=limits)
    else:
        raise UserError(f"verification_info: the type of a test case must be stdin_stdout or assert, got {kind!r}")
    outcome = provider.run(Program(source), test)
    if outcome is None:
        return None
    passes = outcome.status == "ok"
    if passes and kind != "assert":
        passes = same_output(outcome.stdout.decode(errors="replace"), str(case["output"]))
    if outcome.status != "time":
        with _verdicts_lock:
            _verdicts[key] = passes
            while len(_verdicts) > _MAX_VERDICTS:
                _verdicts.popitem(last=False)
    return passes
