"""Programs by which fences, stdin, asserts or checkers were too strict or fooled (`cases/program_cases.jsonl`)."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from r1jax.rewards import cf_code_reward, code_reward, ioi_code_reward
from r1jax.rewards.code import extract_code
from tests.rewards.boxes import needs_box

CASES = [json.loads(line) for line in Path(__file__).with_name("cases").joinpath("program_cases.jsonl").open()]
CONTESTS = {"cf_code_reward": cf_code_reward, "ioi_code_reward": ioi_code_reward}


def score(case):
    if case["function"] == "code_reward":
        return code_reward([case["completion"]], [case["gold"]], seconds_per_test=30.0)[0]
    columns = {name: [value] for name, value in case["gold"].items()}
    return CONTESTS[case["function"]]([case["completion"]], **columns)[0]


def check(cases):
    with ThreadPoolExecutor(2) as pool:
        values = list(pool.map(score, cases))
    wrong = {
        case["completion"]: (value, case["expected"])
        for case, value in zip(cases, values, strict=True)
        if value != pytest.approx(case["expected"])
    }
    assert wrong == {}


def test_there_are_enough_of_them():
    assert len({case["completion"] + str(case["gold"]) for case in CASES}) == len(CASES) >= 100


@needs_box
@pytest.mark.parametrize("klass", ["stdin", "fence", "assert, right", "assert, wrong"])
def test_programs_get_what_they_deserve(klass):
    check([case for case in CASES if case["function"] == "code_reward" and case["klass"] == klass])


@needs_box
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
@pytest.mark.parametrize("function", CONTESTS)
@pytest.mark.parametrize("some", [2, pytest.param(100, marks=pytest.mark.slow)])  # compilers take seconds each
def test_submissions_get_what_they_deserve(function, some):
    check([case for case in CASES if case["function"] == function][-some:])


def test_hostile_texts_are_searched_in_linear_time():
    for part in ("```python\n", "```\n", "~~~py\nx\n~~~\n", "<think>", "</think>```py\n(\n```\n"):
        extract_code(part * (1_000_000 // len(part)))
