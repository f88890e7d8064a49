"""Texts of models: no parser of answers, rankings, scores or programs raises, and its results are in range."""

import math

from hypothesis import example, given
from hypothesis import strategies as st

from r1jax.eval.extraction import find_kind, find_strict, find_vote, is_lenient
from r1jax.rewards.judge import read_score
from r1jax.rewards.ranking import read_ranking
from r1jax.rewards.reader.comparing import compare_answer
from r1jax.rewards.reader.golds import read_gold, write_latex
from r1jax.rewards.reader.kinds import read_answer
from r1jax.rewards.reader.places import find_answer
from r1jax.text.fences import find_program
from r1jax.text.language import count_scripts
from r1jax.text.quoting import disarm, fence
from r1jax.text.reasoning import after_closed_thought
from tests.fuzz.budget import FUZZ

_PIECES = (
    *(r"\boxed{", "}", "{", r"\frac{1}{", r"\text{", "$", "$$", r"\(", r"\)", "<answer>", "</answer>", "<think>"),
    *("</think>", "Answer: ", "####", "7", "1,234", "-", "/", "^", "10^", "e9", "%", " or ", "=", "x", "C", "(", ")"),
    *(".", ",", "\n", "Ranking: ", "2 > 1", " = ", "Response 2", '[{"response": 1, "rank": ', "9" * 400, "}]"),
    *("Score: ", "/10", '"score": ', "```python\n", "```", "~~~", "\ud83d", "\u2028", "\x00", "٧", "½", "\u202e"),
    *("\U0001f600", "nan", "inf", "1e999", "\\"),
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(_PIECES) | st.text(st.characters(codec=None), max_size=6), max_size=25).map("".join)


@FUZZ
@example(text=r"\boxed{" + "9" * 5000 + "}", gold="1e999")
@example(text="\ud83d", gold="\ud83d")
@given(text=TEXTS, gold=TEXTS | st.sampled_from(["7", "C", r"\frac{1}{2}", "x^2+1", "12 cm", "50%", "(1, 2)"]))
def test_answers(text, gold):
    read_answer(text)
    read_gold(gold)
    write_latex(gold)
    find_answer(text)
    assert compare_answer(text, gold).same in (True, False, None)
    kind = find_kind(gold)
    answer = find_strict(text, kind)
    assert is_lenient(text, gold, kind, False) in (True, False)
    hash(find_vote(answer or text, gold))
    after_closed_thought(text)


@FUZZ
@example(text='[{"response": 1, "rank": ' + "9" * 400 + "}]", responses=["a", "b"])
@given(text=TEXTS, responses=st.lists(TEXTS, min_size=1, max_size=4))
def test_rankings(text, responses):
    places = read_ranking(text, responses)
    if places is not None:
        assert len(places) == len(responses) and all(0 <= place <= len(responses) - 1 for place in places)
        assert math.isclose(sum(places), sum(range(len(responses))))
    shown = fence(disarm(text))
    assert isinstance(shown, str)


@FUZZ
@example(text="Score: 1e999", answer="")
@given(text=TEXTS, answer=TEXTS)
def test_scores(text, answer):
    score = read_score(text, 10.0, answer)
    assert score is None or 0 <= score <= 10


@FUZZ
@given(text=TEXTS)
def test_programs_and_languages(text):
    program = find_program(text, "python")
    assert program == "" or program.strip() in text
    assert all(count > 0 for count in count_scripts(text).values())
