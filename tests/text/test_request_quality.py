"""The true quality of replies to the synthetic requests: those of the data, and what a policy may make of them."""

import pytest

from r1jax.data.bilingual import REQUESTS
from r1jax.text.request_quality import rate_request

VALUES = {"name": "Ann", "gift": "book", "time": "trip"}


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_the_qualities_of_the_data_are_in_order(number: int):
    asked, thought, good, curt, foreign = (text.format(**VALUES) for text in REQUESTS[number])
    wrong = REQUESTS[number - 1][2].format(**VALUES)
    tag = lambda reply: f" <think> {thought} </think> <answer> {reply} </answer>"
    found = [rate_request(asked, tag(reply)) for reply in (good, curt, foreign, wrong)]
    assert found == pytest.approx([1.0, 0.5, 0.3, 0.1])
    assert rate_request(f"Question: {asked}\nReply:", tag(good)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("reply", "quality"),
    [
        ("", 0.1),
        ("<think> hello Ann, hello", 0.1),  # nothing is said behind the thought
        ("Hello hello hello hello Ann Ann.", 0.6),
        ("Hello, Ann! It is good to see", 0.6),  # cut off
        ("Hello, Ben! It is good to see you.", 0.5),
    ],
)
def test_a_reply_that_is_not_quite_one_gets_a_part(reply: str, quality: float):
    assert rate_request("Say hello to Ann.", reply) == pytest.approx(quality)


def test_what_is_no_request_is_not_rated():
    assert rate_request("What is 1 + 1?", "Hello, Ann!") is None
