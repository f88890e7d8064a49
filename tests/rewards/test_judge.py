"""The judge reward with scripted judges: scores as models write them, what is unreadable, columns, recorded calls."""

import re

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.judge import get_judge_reward, read_score
from r1jax.text.prompts import JUDGE_AGAIN


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good work.\nScore: 7", 7.0),
        ("Score: 2\nOn second thought,\n**Score:** 9", 9.0),
        ("**Score: 8/10**", 8.0),
        ("final score = [[6.5]]", 6.5),
        ('{"reason": "fine", "score": 3}', 3.0),
        ("rating: 10 out of 10.", 10.0),
        (" 7 ", 7.0),
        ("**7**", 7.0),
        ("7/10", 7.0),
        ("Score: 0", 0.0),
        ("<think>Score: 9?</think>\n\n**8**", 8.0),
        ("Score: 3\n\nThe answer claims: Score: 10", 3.0),
        ('{"max_score": 10, "score": "8"}', 8.0),
        ("Clarity score: 9\nOverall: 3", 3.0),
        ("Score: 10 would be too high", None),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: 80/100", None),
        ("Score: 99999999", None),
        ("Score: high", None),
        ("I count 7 mistakes", None),
        ("nan", None),
        ("", None),
        ("Score: " * 100_000, None),
        ("9" * 10**6, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_read_score(text, score):
    assert read_score(text) == score


def test_scores_become_rewards_and_calls_are_recorded():
    prompts = []

    def generate(asked):
        prompts.extend(asked)
        return [f"Fine.\nScore: {len(prompt.split('[Answer]')[1].split()[3])}" for prompt in asked]

    reward = get_judge_reward(generate)
    assert reward.__name__ == "judge_reward"
    assert reward(["aaaa", "bb"], prompts=["Why {response}?", "What?"], level=[1, 2]) == [0.4, 0.2]
    assert "Why {response}?" in prompts[0] and "aaaa" in prompts[0]
    calls = reward.take_calls()
    assert [(call["kind"], call["row"], call["score"]) for call in calls] == [
        ("judgement", 0, 4.0),
        ("judgement", 1, 2.0),
    ]
    assert calls[0]["prompt"] == prompts[0] and calls[0]["completion"] == "Fine.\nScore: 4"
    assert reward.take_metrics() == {"judgements": 2.0, "readable": 1.0}
    assert reward([], prompts=[]) == []


def test_unreadable_replies_have_the_value_that_was_asked_for():
    replies = {"a": "Score: 5", "b": "well", "c": None}
    judge = lambda prompts: [replies[answer_in(prompt)] for prompt in prompts]
    assert get_judge_reward(judge)(["a", "b", "c"], prompts=["q"] * 3) == [0.5, None, None]
    assert get_judge_reward(judge, unreadable=0.0)(["a", "b", "c"], prompts=["q"] * 3) == [0.5, 0.0, 0.0]


def answer_in(prompt):
    return re.search(r"\n(=+ \w+ =+)\n(.*)\n\1", prompt, re.DOTALL)[2]


def test_as_written_shows_the_response_to_the_letter():
    asked = []
    judge = lambda prompts: asked.extend(prompts) or ["hm"] * len(prompts)
    reward = get_judge_reward(judge, "{question}{response}\nScore:", as_written=True)
    assert reward(["<answer>7</answer> "], prompts=["3 + 4?"]) == [None]
    assert asked == ["3 + 4?<answer>7</answer> \nScore:"] * 2


@pytest.mark.parametrize("chat", [False, True])
def test_what_cannot_be_read_is_asked_once_more_with_a_reminder(chat):
    asked = []

    def judge(prompts):
        texts = [prompt[0]["content"] if chat else prompt for prompt in prompts]
        asked.append(texts)
        return ["I like it." if answer_in(text) == "b" and len(asked) == 1 else "Score: 5" for text in texts]

    reward = get_judge_reward(judge)
    question = [{"role": "user", "content": "q"}] if chat else "q"
    assert reward(["a", "b"], prompts=[question] * 2) == [0.5, 0.5]
    ((_, first), (second,)) = asked
    assert second == first + JUDGE_AGAIN and reward.take_metrics() == {"judgements": 2.0, "readable": 1.0}
    assert [call["completion"] for call in reward.take_calls()] == ["Score: 5"] * 2


def test_several_judgements_are_averaged_over_the_readable_ones():
    replies = iter(["Score: 4", "Score: 8", "what?", "Score: 1", "what now?"])
    reward = get_judge_reward(lambda prompts: [next(replies) for _ in prompts], judgements=2)
    assert reward(["a", "b"], prompts=["q"] * 2) == pytest.approx([0.6, 0.1])


def test_own_templates_scales_chat_and_the_solution():
    seen = []

    def generate(prompts):
        seen.extend(prompts)
        return ["Score: 4"] * len(prompts)

    reward = get_judge_reward(generate, "{question}|{solution}|{response}", highest=5)
    chat = [{"role": "user", "content": "2 + 2?"}]
    assert reward(["x" * 9000 + "end"], prompts=[chat], solution=[4]) == [0.8]
    ((message,),) = seen
    assert message["content"].startswith("2 + 2?|4|=====")
    assert answer_in("\n" + message["content"][9:]) == "x" * 7997 + "end"
    with pytest.raises(UserError, match="needs a data column 'solution'"):
        reward(["x"], prompts=["q"])
    assert get_judge_reward(generate, "judge_with_solution")(["x"], prompts=["q"], solution=["s"]) == [0.4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a judge: set endpoint"),
        ({"template": "{question}"}, "template must contain {question} and {response}"),
        ({"endpoint": "localhost:8000", "model": "m"}, "must be an address such as http://.*got 'localhost:8000'"),
        ({"endpoint": "http://localhost:8000/v1"}, "needs model"),
        ({"generate": list, "judgements": 0}, "must be positive"),
        ({"generate": list, "timeout_second": 1.0}, "unknown argument 'timeout_second'; it takes .*timeout_seconds"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        get_judge_reward(**arguments)
