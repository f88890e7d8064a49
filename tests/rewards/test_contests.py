"""Contest rewards on toy problems: scoring, batches, graders, checkers, and what has no reward."""

import shutil

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.contests import add_includes, cf_code_reward, ioi_code_reward
from r1jax.sandbox.box import Outcome
from tests.rewards.boxes import needs_box

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")

TESTS = [{"input": f"{n}\n", "output": f"{2 * n}\n"} for n in (1, 2, 3, 4)]
DOUBLE = "print(2 * int(input()))"
CF_ROW = {
    "id": "9999/Z",
    "official_tests": TESTS,
    "generated_checker": None,
    "time_limit": 10.0,
    "memory_limit": 256,
    "input_mode": "stdio",
    "language": "python",
}


def fence(source, language="python"):
    return f"```{language}\n{source}\n```"


def score_cf(sources, *, language="python", row=None, **arguments):
    rows = [CF_ROW | {"language": language} | (row or {})] * len(sources)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return cf_code_reward([fence(source, language) if source else "none" for source in sources], **arguments, **columns)


@needs_box
def test_cf_code_reward_in_its_three_modes():
    sources = [DOUBLE, "print(4)", "", "print("]
    assert score_cf(sources, test_batch_size=-1) == pytest.approx([1.1, 0.025, -1.0, 0.0])
    assert score_cf(sources[:2], scoring_mode="partial") == [1.0, 0.25]
    assert score_cf(sources[:2], scoring_mode="pass_fail", test_batch_size=3) == [1.0, 0.0]
    assert score_cf(sources[:1], row={"official_tests": []}) == [None]


@needs_box
def test_cf_problems_with_files_and_with_a_checker():
    in_files = "open('output.txt', 'w').write(str(2 * int(open('input.txt').read())))"
    assert score_cf([in_files], row={"input_mode": "file"}, scoring_mode="partial") == [1.0]
    checker = (
        "import sys\nasked, expected, given = (open(path).read().split() for path in sys.argv[1:])\n"
        "print(int(abs(float(given[0]) - float(expected[0])) < 0.5))"
    )
    nearly = "print(2 * int(input()) + 0.25)"
    assert score_cf([nearly], row={"generated_checker": checker}, scoring_mode="pass_fail") == [1.0]
    assert score_cf(["print(0)"], row={"generated_checker": checker}, scoring_mode="partial") == [0.0]


@needs_box
@needs_compiler
def test_cf_in_cpp():
    right = "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << 2 * n; }"
    bare = "int main() { int n; cin >> n; cout << 2 * n; }"
    assert score_cf([right, bare], language="cpp") == [1.1, -0.1]
    assert score_cf([bare], language="cpp", patch_code=True) == [1.1]


class Scripted:
    """A provider whose program passes the inputs listed in its source; remembers what it ran."""

    def __init__(self):
        self.ran = []

    def run(self, program, test):
        self.ran.append(test.stdin.strip())
        passes = test.stdin.strip() in program.source.split("\n")[-2].split()
        return Outcome("ok", 0, str(2 * int(test.stdin) if passes else 0).encode(), b"", 0.0)


@pytest.fixture
def scripted(monkeypatch):
    provider = Scripted()
    monkeypatch.setattr("r1jax.rewards.contests.make_provider", lambda *_: provider)
    return provider


def score_ioi(sources, **changes):
    row = {
        "id": "double",
        "subtask": "01",
        "score": 10.0,
        "score_precision": 2,
        "test_names": ["a", "b", "c", "d"],
        "test_cases": [(test["input"], test["output"]) for test in TESTS],
        "grader_files": [],
        "time_limit": 5.0,
        "memory_limit": 256 << 20,
    } | changes.pop("row", {})
    columns = {name: [value] * len(sources) for name, value in row.items()}
    return ioi_code_reward([fence(source, "cpp") if source else "none" for source in sources], **changes, **columns)


def test_ioi_stops_after_the_first_batch_with_a_failure(scripted):
    assert score_ioi(["1 2 3 4", ""]) == [1.0, 0.0]
    scripted.ran.clear()
    assert score_ioi(["1 3 4"]) == [0.0] and scripted.ran == ["1", "2"]
    scripted.ran.clear()
    assert score_ioi(["1 3 4"], test_batch_size=3, num_parallel=1) == [0.0] and scripted.ran == ["1", "2", "3"]
    scripted.ran.clear()
    assert score_ioi(["1 2 3 4"], test_batch_size=-1) == [1.0] and sorted(scripted.ran) == ["1", "2", "3", "4"]


def test_cf_pass_fail_stops_and_the_other_modes_do_not(scripted):
    assert score_cf(["1 2"], scoring_mode="pass_fail") == [0.0] and scripted.ran == ["1", "2", "3"]
    scripted.ran.clear()
    assert score_cf(["1 2"], scoring_mode="partial", num_parallel=1) == [0.5]
    assert scripted.ran == ["1", "2", "3", "4"]


@needs_box
@needs_compiler
def test_ioi_with_a_grader_and_a_checker():
    header = "int twice(int n);"
    grader = '#include "double.h"\n#include <cstdio>\nint main() { int n; scanf("%d", &n); printf("%d\\n", twice(n)); }'
    files = [["graders/double.h", header], ["graders/grader.cpp", grader], ["graders/empty", ""]]
    right, wrong = "int twice(int n) { return 2 * n; }", "int twice(int n) { return n; }"
    assert score_ioi([right, wrong, "int"], row={"grader_files": files}) == [1.0, 0.0, 0.0]
    checker = (
        "#include <cstdio>\n#include <fstream>\nint main(int, char** v) { int e, g; std::ifstream(v[2]) >> e; "
        'std::ifstream(v[3]) >> g; printf("%.2f\\n", e == g ? 1.0 : 2 * g == e ? 0.456 : 0.0); }'
    )
    files.append(["checker/checker.cpp", checker])
    assert score_ioi([right, wrong], row={"grader_files": files, "score_precision": 1}) == [1.0, 0.5]


def test_problems_with_a_manager_have_no_reward(scripted):
    assert score_ioi(["1 2 3 4"], row={"grader_files": [["graders/manager.cpp", "x"]]}) == [None]


def test_add_includes():
    assert add_includes("", "nile") == ""
    assert add_includes("int x;", "nile").splitlines() == [
        "#include <bits/stdc++.h>",
        '#include "nile.h"',
        "using namespace std;",
        "int x;",
    ]
    assert add_includes('#include "nile.h"\nstd::string s;', "nile").count("nile.h") == 1


def test_mistakes(scripted):
    with pytest.raises(UserError, match="scoring_mode must be one of pass_fail, partial, weighted_sum, got 'half'"):
        score_cf([DOUBLE], scoring_mode="half")
    with pytest.raises(UserError, match="language must be python or cpp, got 'cobol'"):
        score_cf([DOUBLE], language="cobol")
    with pytest.raises(UserError, match="needs a data column 'official_tests'"):
        cf_code_reward(["x"], language=["cpp"])


def test_tests_behind_the_deadline_count_as_failed(scripted):
    assert score_cf(["1 2 3 4"], scoring_mode="partial", seconds_per_program=0.0) == [0.25] and scripted.ran == ["1"]
    assert score_ioi(["1 2 3 4"], seconds_per_program=0.0) == [0.0] and scripted.ran == ["1", "1"]
