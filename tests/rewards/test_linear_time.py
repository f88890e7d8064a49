r"""Texts of a megabyte cost each reward and score about a second at most; a hang would fail by the guard's deadline."""

import faulthandler

import pytest

from r1jax.eval.score import Answered, grade
from r1jax.rewards.answers import accuracy_reward, answer_reward, number_reward
from tests.rewards.hostile_texts import make_texts

TEXTS = make_texts()
# Those that cost most when they were measured, one of each family; the slow test takes all.
SAMPLE = ("'}' in a box", "'²' repeated", "'Answer: ' in tags", "nested boxes", "boxes joined", "answer and space")


@pytest.fixture(autouse=True)
def hang_guard():
    """Kills the test run, with all stacks shown, if a test takes minutes."""
    faulthandler.dump_traceback_later(900, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def read_all(texts):
    answer_reward(texts, ["7"] * len(texts))
    answer_reward(texts, ["x^2+1"] * len(texts))
    answer_reward([r"\boxed{7}"] * len(texts), texts)
    number_reward(texts, ["7"] * len(texts))
    accuracy_reward(texts, ["7"] * len(texts))
    for gold in ("7", "C", "x^2+1"):
        grade([Answered(None, gold, [text]) for text in texts])


def test_a_sample():
    assert len(TEXTS) > 200
    read_all([TEXTS[name] for name in SAMPLE])


@pytest.mark.parametrize("words", ["a" * 400, "5 (" + "a" * 400, "abc " * 100, "5 (" + "abc-" * 100 + ")"])
def test_long_words_in_an_answer(words: str):
    """A pattern that may split a word anywhere tries all ways to do so, in texts too short for the bound on length."""
    read_all([rf"\boxed{{{words}}}", f"<answer>{words}</answer>"])


@pytest.mark.slow
def test_all_of_them():
    read_all(list(TEXTS.values()))
