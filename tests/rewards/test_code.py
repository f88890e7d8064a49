"""Code rewards: fractions, all-pass, asserts across processes, mended and kept behaviour, caching, providers."""

import json
import sys
import types

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards import code, load_rewards
from r1jax.rewards.code import binary_code_reward, code_reward, extract_code, same_output
from r1jax.sandbox.box import RISK_ACCEPTED, Outcome
from tests.rewards.boxes import needs_box

ADD = "a, b = map(int, input().split())\nprint(a + b)"
CASES = [{"type": "stdin_stdout", "input": f"{a} {b}\n", "output": f"{a + b}\n"} for a, b in ((1, 2), (3, 4), (0, 0))]


def in_fence(source, language="python"):
    return f"<think>\nx\n</think>\n<answer>\n```{language}\n{source}\n```\n</answer>"


def info(*cases, language="python"):
    return {"language": language, "test_cases": list(cases)}


def asserts(*texts):
    return info(*({"type": "assert", "code": text} for text in texts))


@pytest.fixture(autouse=True)
def no_cache():
    code._verdicts.clear()


@pytest.fixture
def counting_provider(monkeypatch):
    """A provider that runs nothing: it echoes the input, or does what the source says."""
    runs = []

    class Echo:
        def run(self, program, test):
            runs.append(test)
            status = {"slow": "time", "gone": None}.get(program.source.strip(), "ok")
            return status and Outcome(status, 0, test.stdin.encode(), b"", 0.0)

    monkeypatch.setitem(sys.modules, "my_provider", types.SimpleNamespace(make=lambda isolation: Echo()))
    return runs


@needs_box
def test_code_reward_is_the_share_of_tests_passed():
    texts = [
        ADD,
        "print(3)",
        "print(sum(map(int, input().split())), '')",
        "raise SystemExit(1)",
        "print(",
        "import sys",
    ]
    completions = [[{"role": "assistant", "content": in_fence(text)}] for text in texts]
    infos = [info(*CASES)] * len(texts)
    assert code_reward(completions, verification_info=infos, prompts=["?"] * 6) == pytest.approx(
        [1.0, 1 / 3, 1.0, 0.0, 0.0, 0.0]
    )
    assert binary_code_reward(completions[:2], verification_info=infos[:2]) == [1.0, 0.0]
    assert code_reward(["no code", in_fence(ADD)], [json.dumps(infos[0])] * 2) == [0.0, 1.0]
    assert code_reward([in_fence(ADD)], [info()]) == [0.0]


@needs_box
def test_one_tests_timeout_costs_that_test_only():
    source = "n = int(input())\nwhile n == 2: pass\nprint(n)"
    cases = [{"input": str(n), "output": str(n)} for n in (1, 2, 3, 4)]
    assert code_reward([in_fence(source)], [info(*cases)], seconds_per_test=1.0) == [0.75]


NESTED = "[1, (2.5, None), {3}, {'a': [True]}]"
RAISES = "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass"
STACK = """
class Stack:
    def __init__(self): self.x = []
    def push(self, x): self.x.append(x)
    def pop(self): return self.x.pop()
"""
STACK_TEST = "s = Stack()\ns.push(7)\ns.push(8)\nassert s.pop() == 8 and s.x == [7] and len(s.x) == 1"


@needs_box
@pytest.mark.parametrize(
    ("source", "test", "value"),
    [
        ("def add(a, b): return a + b", "assert add(1, 2) == 3\nassert add('a', b='b') == 'ab'", 1.0),
        ("def add(a, b): return a - b", "assert add(1, 2) == 3", 0.0),
        ("def add(a, b): return a + b", "def check(f):\n    assert f(1, 2) == 3\ncheck(add)", 1.0),
        (f"def parts(): return {NESTED}", f"assert parts() == {NESTED}", 1.0),
        ("def parts(): return [1, 2]", "assert parts() == (1, 2)", 0.0),
        ("def sort(xs): xs.sort()", "xs = [3, 1, 2]\nsort(xs)\nassert xs == [1, 2, 3]", 1.0),
        ("def f(x):\n    if x < 0: raise ValueError('no')\n    return x", RAISES, 1.0),
        ("def f(x): return x", RAISES, 0.0),
        (STACK, STACK_TEST, 1.0),
        ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6", 1.0),
        ("def f(x): return x ** 0.5", "assert math.isclose(f(2), 1.41421356, abs_tol=1e-6)", 1.0),
        ("LIMIT = 7", "assert LIMIT == 7", 1.0),
        ("print('hello')\ndef f(): print('noise'); return 1", "assert f() == 1", 1.0),
        ("def f(): return 1", "assert g() == 1", 0.0),
        ("def f(:", "assert f() == 1", 0.0),
        ("def f(): return 10 ** 1000", "assert f() == 10 ** 1000", 1.0),
        ("def f(): return float('nan')", "assert f() != f()", 1.0),
    ],
)  # fmt: skip
def test_asserts(source, test, value):
    assert code_reward([in_fence(source)], [asserts(test)], seconds_per_test=30.0) == [value]


def test_outputs_are_compared_by_all_lines():
    assert same_output("1\n2\n", "1\n2") and same_output(" 1 \n2", "1\n2\n\n") and same_output("", "\n")
    assert not same_output("1", "1\n2") and not same_output("1\n2", "1") and not same_output("", "1")
    assert not same_output("1 2", "1  2")


def test_extract_code():
    assert extract_code(in_fence("x") + in_fence("y")) == "y\n"
    assert extract_code(in_fence("x") + in_fence("y", "cpp").partition("</think>")[2]) == "x\n"
    assert extract_code(in_fence("x") + in_fence("y", "cpp")) == ""  # x is behind another thought
    assert extract_code(in_fence("y", "cpp"), "cpp") == "y\n"
    assert extract_code(in_fence("x"), None) == extract_code("x") == extract_code("```python\nx") == ""
    chat = [{"role": "assistant", "content": in_fence("x")}, {"role": "assistant", "content": in_fence("y")}]
    assert extract_code(chat) == "y\n"
    assert extract_code("```python\n" * 100_000) != "x"  # in linear time


def test_equal_programs_run_once_and_timeouts_are_not_remembered(counting_provider):
    cases = [{"input": "1", "output": "1"}, {"input": "2", "output": "3"}]
    arguments = {"provider_type": "my_provider:make"}
    assert code_reward([in_fence("a")] * 4, [info(*cases)] * 4, **arguments) == [0.5] * 4
    assert len(counting_provider) == 2
    assert code_reward([in_fence("a")], [info(*cases)], **arguments) == [0.5]
    assert len(counting_provider) == 2
    for _ in range(2):
        assert code_reward([in_fence("slow")], [info(*cases)], **arguments) == [0.0]
    assert len(counting_provider) == 6


def test_a_provider_that_fails_gives_no_reward(counting_provider):
    arguments = {"verification_info": [info(*CASES)] * 2, "provider_type": "my_provider:make"}
    assert code_reward([in_fence("gone"), "no code"], **arguments) == [None, 0.0]
    assert binary_code_reward([in_fence("gone"), "no code"], **arguments) == [None, 0.0]


def test_mistakes(counting_provider):
    with pytest.raises(ValueError, match="must have the same language"):
        code_reward(["", ""], [info(), info(language="cpp")], enforce_same_language=True)
    with pytest.raises(UserError, match="provider_type of code rewards must be local or a module:function, got 'e2b'"):
        code_reward([""], [info()], provider_type="e2b")
    with pytest.raises(UserError, match="cannot import 'nowhere:f'"):
        code_reward([""], [info()], provider_type="nowhere:f")
    with pytest.raises(UserError, match="the type of a test case must be stdin_stdout or assert, got 'magic'"):
        code_reward([in_fence("x")], [info({"type": "magic"})], provider_type="my_provider:make")
    with pytest.raises(UserError, match="isolation must be"):
        code_reward([""], [info()], isolation="none")


def test_a_config_learns_at_once_what_it_must_mend():
    for name in ("code", "binary_code", "ioi_code", "cf_code"):
        with pytest.raises(UserError, match="isolation must be"):
            load_rewards({name: {"weight": 1.0, "isolation": "none"}})
        with pytest.raises(UserError, match="provider_type of code rewards must be local or a module:function"):
            load_rewards({name: {"weight": 1.0, "provider_type": "piston"}})
        load_rewards({name: {"weight": 1.0, "isolation": RISK_ACCEPTED}})


def test_the_risk_can_be_accepted():
    assert code_reward([in_fence(ADD)], [info(*CASES)], isolation=RISK_ACCEPTED, seconds_per_test=30.0) == [1.0]
