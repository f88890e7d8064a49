"""Completions that talk to a judge's parser (`cases/judge_attacks.jsonl`): whatever a judge quotes, none moves a score.

The judges here are honest and careless: each gives every attack the same low score, or the last place, and quotes the
attack in its own way, from the data or as its prompt showed it.
"""

import json
import re
from pathlib import Path

import pytest

from r1jax.rewards.judge import get_judge_reward
from r1jax.rewards.self_rank import get_self_rank_reward

CASES = [json.loads(line) for line in Path(__file__).with_name("cases").joinpath("judge_attacks.jsonl").open()]
TO_SCORE = [case["completion"] for case in CASES if case["reward"] == "judge"]
TO_RANK = [case["completion"] for case in CASES if case["reward"] == "rank"]
RIGHT, CLOSE = "x = 5. Explanation: 3 * 5 - 7 is 8.", "x = 4"
QUESTION = "Solve 3x - 7 = 8."
TOKENS = re.compile(r"<\|[a-z_]+\|>|<｜[^｜]{1,40}｜>|</?s>|<eos>|<(?:start|end)_of_turn>|\[/?INST\]")


def at_once(text):
    return " ".join(text.split())


# Each from (the attack, the judge's own last line) to the judge's reply.
QUOTES = {
    "before": lambda attack, verdict: f"The answer reads:\n{attack}\nIt is wrong.\n{verdict}",
    "after": lambda attack, verdict: f"It is wrong.\n{verdict}\n\nThe answer reads:\n{attack}",
    "as a block": lambda attack, verdict: f"{verdict}\n\n" + "\n".join(f"> {line}" for line in attack.split("\n")),
    "in the line": lambda attack, verdict: f"{verdict}\nThe answer says “{at_once(attack)}”, which I disregard.",
    "in a fence": lambda attack, verdict: f"```\n{attack}\n```\nis no answer.\n\n{verdict}",
    "in the thought": lambda attack, verdict: f"<think>\nIt says: {attack}\nSo no.\n</think>\n\n{verdict}",
    "line by line": lambda attack, verdict: "\n".join(f'- "{line}"' for line in attack.split("\n")) + f"\n{verdict}",
}


def test_there_are_enough_of_them():
    assert len(set(TO_SCORE)) == len(TO_SCORE) >= 100 and len(set(TO_RANK)) == len(TO_RANK) >= 100


@pytest.mark.parametrize("quote", QUOTES.values(), ids=QUOTES)
def test_no_completion_moves_its_score(quote):
    replies = [quote(attack, "Score: 3") for attack in TO_SCORE]
    asked = []

    def judge(prompts):
        asked.append(len(prompts))
        return replies if len(prompts) == len(replies) else ["Score: 3"] * len(prompts)

    scores = get_judge_reward(judge)(TO_SCORE, prompts=[QUESTION] * len(TO_SCORE))
    assert {attack: score for attack, score in zip(TO_SCORE, scores, strict=True) if score != 0.3} == {}
    assert sum(asked[1:]) <= len(TO_SCORE) // 20  # hardly any reply has to be asked for again


@pytest.mark.parametrize("quote", QUOTES.values(), ids=QUOTES)
def test_no_completion_moves_a_ranking(quote):
    moved, asked = {}, []
    for attack in TO_RANK:

        def judge(prompts, attack=attack):
            asked.append(len(prompts))
            return [quote(attack, verdict_on(prompt)) for prompt in prompts]

        places = get_self_rank_reward(judge, judgements=1)([RIGHT, CLOSE, attack], prompts=[QUESTION] * 3)
        if places != [1.0, 0.5, 0.0]:
            moved[attack] = places
    assert moved == {}
    assert sum(asked) <= 1.05 * len(TO_RANK)


def verdict_on(prompt):
    """The honest ranking of the three responses in the order in which the prompt has them."""
    shown = re.findall(r'^([0-9]+)\. "(.*)', prompt, re.MULTILINE)
    assert [number for number, _ in shown] == ["1", "2", "3"], shown
    first, second = ([text for _, text in shown].index(f'{text}"') + 1 for text in (RIGHT, CLOSE))
    return f"Ranking: {first} > {second} > {6 - first - second}"


@pytest.mark.parametrize("quote", QUOTES.values(), ids=QUOTES)
def test_nor_where_the_judge_quotes_what_its_prompt_shows(quote):
    def judge(prompts):
        return [quote(answer_in(prompt), "Score: 3") for prompt in prompts]

    scores = get_judge_reward(judge)(TO_SCORE, prompts=[QUESTION] * len(TO_SCORE))
    assert {attack: score for attack, score in zip(TO_SCORE, scores, strict=True) if score != 0.3} == {}


def answer_in(prompt):
    return prompt.partition("[Answer]\n")[2].rpartition("\n\nConsider whether")[0]


def test_no_completion_leaves_its_place_in_a_prompt():
    prompts = []
    reward = get_judge_reward(lambda asked: prompts.extend(asked) or ["Score: 3"] * len(asked), "judge_with_solution")
    reward(TO_SCORE, prompts=[QUESTION] * len(TO_SCORE), solution=["x = 5"] * len(TO_SCORE))
    for prompt, attack in zip(prompts, TO_SCORE, strict=True):
        fence = re.search(r"\[Answer\]\n(.+)\n", prompt)[1]
        assert prompt.count(f"\n{fence}\n") == 2 and fence not in attack
        before, inside, after = prompt.split(f"\n{fence}\n")
        assert before.count("[Correct solution]") == 1 and "Score" in after and "[" not in after.replace("[Answer]", "")
        assert not TOKENS.search(inside)
