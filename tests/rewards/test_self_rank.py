"""The self-ranking reward with scripted judges: ranks, ties, shuffled order, rows out of the loss, recorded calls."""

import re

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.protocol import OutOfLoss
from r1jax.rewards.self_rank import get_self_rank_reward, is_non_answer


def responses_of(prompt):
    """The numbered responses that a judge's prompt shows, in the order shown."""
    return re.findall(r'^[0-9]+\. "(.*)"$', prompt, re.MULTILINE)


class Judge:
    """Ranks by a key, best first; remembers what it was asked."""

    def __init__(self, key):
        self.key, self.prompts = key, []

    def __call__(self, prompts):
        self.prompts += prompts
        return [self.rank(prompt if isinstance(prompt, str) else prompt[0]["content"]) for prompt in prompts]

    def rank(self, prompt):
        shown = responses_of(prompt)
        order = sorted(range(len(shown)), key=lambda i: self.key(shown[i]))
        return "Ranking: " + " > ".join(str(i + 1) for i in order)


def test_ranks_become_rewards_within_each_group():
    judge = Judge(len)
    reward = get_self_rank_reward(judge)
    assert reward.__name__ == "self_rank_reward"
    texts = ["ccc", "a", "bb", "dddd", "eeeee", "f"]
    values = reward(texts, prompts=["q1"] * 3 + ["q2"] * 3, group_ids=[0, 0, 0, 1, 1, 1])
    assert values == [0.0, 1.0, 0.5, 0.5, 0.0, 1.0]
    assert reward(texts, prompts=["q1"] * 3 + ["q2"] * 3) == values
    assert '"q1"' in judge.prompts[0] and "Rank them from best to worst" in judge.prompts[0]


def test_equal_texts_share_a_place_and_lone_ones_need_no_judge():
    judge = Judge(len)
    assert get_self_rank_reward(judge)(["a", "bb", "a"], prompts=["q"] * 3) == [1.0, 0.0, 1.0]
    judge.prompts.clear()
    assert get_self_rank_reward(judge)(["a", "a"], prompts=["q"] * 2) == [None, None]
    assert judge.prompts == []


def test_every_second_judgement_reverses_the_order_so_that_a_liking_for_places_cancels():
    judge = Judge(lambda text: 0)  # the first shown is always the best
    reward = get_self_rank_reward(judge, judgements=4)
    assert reward(["a", "b", "c", "d"], prompts=["q"] * 4) == [0.5] * 4
    first, second, third, fourth = map(responses_of, judge.prompts)
    assert first == second[::-1] and third == fourth[::-1]
    assert sorted(first) == ["a", "b", "c", "d"]
    again = Judge(lambda text: 0)
    get_self_rank_reward(again, judgements=4)(["a", "b", "c", "d"], prompts=["q"] * 4)
    assert again.prompts == judge.prompts


def test_many_responses_are_shown_in_parts():
    judge = Judge(len)
    texts = ["x" * (i + 1) for i in range(7)]
    values = get_self_rank_reward(judge, judgements=40, at_once=3)(texts, prompts=["q"] * 7)
    assert max(len(responses_of(prompt)) for prompt in judge.prompts) == 3
    assert values == sorted(values, reverse=True) and values[0] == 1.0 and values[-1] == 0.0


def test_unreadable_judgements_are_left_out_and_none_at_all_means_no_reward():
    replies = iter(["no idea", "Ranking: 1 > 2", "still none", None, ""])
    reward = get_self_rank_reward(lambda prompts: [next(replies) for _ in prompts])
    assert sorted(reward(["a", "b"], prompts=["q"] * 2)) == [0.0, 1.0]
    assert reward(["a", "b"], prompts=["q"] * 2) == [None, None]
    calls = reward.take_calls()
    assert [call["places"] is None for call in calls] == [True, False, True, True]
    assert {"kind", "group", "prompt", "completion", "responses", "places"} <= set(calls[0])
    assert reward.take_calls() == []


def test_the_metrics_tell_how_many_rankings_could_be_read():
    replies = iter(["no idea", "Ranking: 1 > 2", "still none"])
    reward = get_self_rank_reward(lambda prompts: [next(replies) for _ in prompts])
    reward(["a", "b"], prompts=["q"] * 2)
    assert reward.take_metrics() == {"readable": 0.5, "judgements": 2.0}


def test_a_ranking_that_cannot_be_read_is_asked_for_once_more():
    asked = []

    def judge(prompts):
        asked.append(len(prompts))
        return ["no idea" if len(asked) == 1 else "Ranking: 1 > 2" for _ in prompts]

    reward = get_self_rank_reward(judge, judgements=1)
    assert sorted(reward(["a", "b"], prompts=["q"] * 2)) == [0.0, 1.0] and asked == [1, 1]
    assert reward.take_metrics() == {"readable": 1.0, "judgements": 1.0}


def test_the_bottom_and_non_answers_leave_the_loss():
    texts = ["x = 6", "x = 5", "I am not sure."]
    judge = Judge(texts.index)
    values = get_self_rank_reward(judge, drop_bottom=True)(texts, prompts=["q"] * 3)
    assert values == [1.0, 0.5, 0.0]
    assert [isinstance(value, OutOfLoss) for value in values] == [False, False, True]
    texts = ["I am not sure.", "x = 6", "x = 5"]
    values = get_self_rank_reward(Judge(texts.index), drop_non_answers=True)(texts, prompts=["q"] * 3)
    assert [isinstance(value, OutOfLoss) for value in values] == [True, False, False]
    # Two rows have to stay: one alone cannot be compared.
    values = get_self_rank_reward(Judge(len), drop_bottom=True)(["a", "bb"], prompts=["q"] * 2)
    assert values == [1.0, 0.0] and not any(isinstance(value, OutOfLoss) for value in values)


def test_chat_questions_are_judged_in_chat():
    judge = Judge(len)
    question = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "{responses}?"}]
    completions = [[{"role": "assistant", "content": text}] for text in ("a", "bb")]
    assert get_self_rank_reward(judge, "rank_brief")(completions, prompts=[question] * 2) == [1.0, 0.0]
    (message,) = judge.prompts[0]
    assert message["role"] == "user" and message["content"].startswith("Question: {responses}?")


def test_long_responses_are_shown_by_their_ends():
    judge = Judge(len)
    get_self_rank_reward(judge, max_characters=5)(["a" * 9 + "12345", "67890"], prompts=["q"] * 2)
    assert sorted(responses_of(judge.prompts[0])) == ["12345", "67890"]


@pytest.mark.parametrize(
    ("text", "is_none"),
    [
        ("", True),
        ("I am not sure.", True),
        ("<think>hm</think><answer>I don't know</answer>", True),
        (r"\boxed{}", True),
        ("Let me see.\nI’m not sure", True),
        ("None", True),
        ("I am not sure about the sign, so let us see.\nThe answer is 7", False),
        ("7", False),
        ("<answer>I</answer>", False),
    ],
)
def test_non_answers(text, is_none):
    assert is_non_answer(text) is is_none


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "{question}"}, "must contain {question} and {responses}"),
        ({"judgements": 0}, "judgements must be at least 1, got 0"),
        ({"at_once": 1}, "at_once must be at least 2, got 1"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        get_self_rank_reward(Judge(len), **arguments)


def test_worked_rankings_are_continued_as_plain_text_also_in_a_chat():
    asked = []

    def continue_text(prompts):
        asked.extend(prompts)
        return [" 2 > 1\n\nQuestion:" if '1. "wrong"' in prompt else " 1 > 2\n\nQuestion:" for prompt in prompts]

    reward = get_self_rank_reward(continue_text, "rank_shots", as_text=True, at_once=2)
    question = [{"role": "user", "content": "What is {3} + 4?"}]
    assert reward(["wrong", "right"], prompts=[question] * 2) == [0.0, 1.0]
    assert all(prompt.endswith("Ranking:") and "Question: What is {3} + 4?\n1. " in prompt for prompt in asked)
