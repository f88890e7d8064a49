"""Text in two languages: what is right is right, held-out sums stay out, the same seed gives the same rows."""

import re

from r1jax.data.bilingual import MARKS, REQUESTS, draw_preferences, draw_requests, draw_texts, draw_worked
from r1jax.data.sources import draw_addition
from r1jax.text.language import language_share
from r1jax.text.prompts import QUESTION_REPLY
from r1jax.text.request_quality import rate_request

DRAW = draw_addition(200, 0)
SUMS = [row.columns for row in DRAW.train]
TEXTS = [row["text"] for row in draw_texts(SUMS, 2000, seed=0)]
REPLY = re.compile(r" <think> (.+) </think> <answer> (.+) </answer>", re.DOTALL)


def read_sum(text: str) -> tuple[int, int] | None:
    numbers = re.findall(r"\d+", text.partition("Reply:")[0])
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None


def test_a_row_is_a_function_of_seed_and_number():
    assert draw_texts(SUMS, 50, seed=0) == [{"text": text} for text in TEXTS[:50]]
    assert draw_texts(SUMS, 50, seed=1) != draw_texts(SUMS, 50, seed=0)
    assert len({row["text"] for row in draw_texts(SUMS, 2000, seed=0)}) > 1200


def test_no_text_holds_a_held_out_sum():
    held_out = {frozenset((row.columns["a"], row.columns["b"])) for row in DRAW.held_out}
    sums = [read_sum(text) for text in TEXTS]
    assert sum(pair is not None for pair in sums) > 1300
    assert not held_out & {frozenset(pair) for pair in sums if pair}


def test_some_replies_are_right_and_in_form_and_they_mix_languages_more_than_the_others():
    right, others = [], []
    for text in TEXTS:
        reply, pair = text.partition("Reply:")[2], read_sum(text)
        match = REPLY.fullmatch(reply)
        if pair is None:
            continue
        worked = match is not None and "+" in match[1] and match[2] == str(sum(pair))
        (right if worked else others).append(language_share(reply, "en"))
    assert 0.15 < len(right) / (len(right) + len(others)) < 0.3

    def mixed(shares: list[float | None]) -> float:
        return sum(share is not None and 0 < share < 1 for share in shares) / len(shares)

    assert mixed(right) > 0.35 > mixed(others)
    assert sum(share == 1 for share in right) > 20, "a cold start needs some in one language"


def test_worked_sums_are_right_in_every_step_and_in_english():
    for row in draw_worked(SUMS, 200, seed=0):
        a, b = map(int, re.findall(r"\d+", row["prompt"]))
        match = REPLY.fullmatch(row["completion"])
        assert match is not None and match[2] == str(a + b) and language_share(row["completion"], "en") == 1
        steps = re.findall(r"((?:\d+[+-])+\d+)=(\d+)", match[1])
        assert len(steps) == 3, "ones, tens, check"
        for left, right in steps:
            assert eval(left) == int(right)


def test_requests_have_replies_of_every_quality_and_marks():
    rows = draw_requests(300, seed=0)
    best = [rate_request(row["prompt"], row["completion"]) == 1.0 for row in rows]
    assert 0.3 < sum(best) / len(best) < 0.5
    unseen = {row["prompt"] for row in draw_requests(100, seed=0, held_out=True)}
    assert len(unseen) > 10 and not unseen & {row["prompt"] for row in rows}
    assert all(REPLY.fullmatch(row["completion"]) for row in rows)
    assert len({row["prompt"] for row in rows}) > 40
    assert {row["prompt"].split()[0] for row in rows} == {request[0].split()[0] for request in REQUESTS}
    marked = [text for text in TEXTS if "\nScore: " in text]
    assert {int(text.rpartition(" ")[2]) for text in marked} == {*MARKS.values()}
    written = [QUESTION_REPLY.replace("{question}", row["prompt"]) + row["completion"] for row in rows]
    good = {text for text, is_best in zip(written, best, strict=True) if is_best}
    for text in marked:
        body, _, score = text.rpartition("\nScore: ")
        assert body not in good or int(score) == MARKS["good"]


def test_the_better_reply_is_mostly_preferred():
    """As Bradley and Terry say by the true qualities: about one pair in twenty is the wrong way round."""
    rows = draw_preferences(2000, seed=0)
    assert draw_preferences(20, seed=0) == rows[:20]
    gaps = [rate_request(row["prompt"], row["chosen"]) - rate_request(row["prompt"], row["rejected"]) for row in rows]
    assert 0.93 < sum(gap > 0 for gap in gaps) / len(gaps) < 0.97
    equal = sum(gap == 0 for gap in gaps) / len(gaps)  # a greeting that is "good to" somebody passes for a wish
    assert 0 < equal < 0.05 and {round(abs(gap), 1) for gap in gaps} == {0.0, 0.2, 0.4, 0.5, 0.7, 0.9}
    assert all(row["chosen"] == row["chosen"].strip() and "<" not in row["chosen"] for row in rows)
