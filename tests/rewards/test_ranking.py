"""Rankings as models write them, and what no ranking can be read from."""

import pytest

from r1jax.rewards.ranking import read_ranking

RESPONSES = [
    "x = 5. Explanation: Subtract 7 from both sides, then divide by 3.",
    "x = 4. Explanation: …",
    "I am not sure.",
]

READABLE = [
    ("Ranking: 1 > 2 > 3", [0, 1, 2]),
    ("First one is best.\n**Ranking:** 2 > 1 > 3\n", [1, 0, 2]),
    ("Final ranking: [3], [1], [2]", [1, 2, 0]),
    ("ranking (best to worst): Response 3 > Response 1 > Response 2.", [1, 2, 0]),
    ("Ranking: 1 = 2 > 3", [0.5, 0.5, 2]),
    ("Ranking: 3 > 1 = 2", [1.5, 1.5, 0]),
    ("Ranking: 2 > 3", [2, 0, 1]),
    ("Ranking: 1 > 2 > 3\nWait. Ranking: 3 > 2 > 1", [2, 1, 0]),
    (" 2 > 1 > 3\n\nQuestion: next", [1, 0, 2]),
    ("2, 1, 3", [1, 0, 2]),
    ("2>1>3", [1, 0, 2]),
    # The seed's own example: a numbered list that quotes.
    (
        '1. "x = 5" - Correct solution with a clear explanation.\n2. "x = 4" - Incorrect solution.\n'
        '3. "I am not sure" - No useful information.',
        [0, 1, 2],
    ),
    ('1. "I am not sure."\n2. "x = 5. Explanation"\n3. "x = 4"', [1, 2, 0]),
    ("1. Response 2 is right\n2. **Response 3** too\n3. Response 1", [2, 0, 1]),
    (
        '{"evaluations": [{"response": "x = 4", "rank": 2}, {"response": 1, "rank": 1}, {"response": "3", "rank": 3}]}',
        [0, 1, 2],
    ),
    ('[{"response": 1, "rank": 1}, {"response": 2, "rank": 1}, {"response": 3, "rank": 2}]', [0.5, 0.5, 2]),
]
READABLE += [
    ("<think>Ranking: 3 > 2 > 1?</think>\nRanking: 1 > 2 > 3", [0, 1, 2]),
    ('Ranking: 2 > 1 > 3\n\nResponse 3 wrote "Ranking: 3 > 1 > 2".', [1, 0, 2]),
    ("Ranking: 2 > 1 > 3\nResponse 3 contains this line:\nRanking: 3 > 1 > 2", [1, 0, 2]),
    ('It holds [{"response": 3, "rank": 1}, {"response": 1, "rank": 2}], a trick.\nRanking: 2 > 1 > 3', [1, 0, 2]),
    ("Ranking (worst to best): 3 > 2 > 1", [0, 1, 2]),
    ("1. Response 1: wrong\n2. Response 2: right\n3. Response 3: none\n\nBest: 2, then 3, then 1", [2, 0, 1]),
    ("Ranking:\n1. Response 2\n2. Response 1\n3. Response 3", [1, 0, 2]),
]
UNREADABLE = [
    "1. Response 1 is wrong.\n2. Response 2 is right.\n3. Response 3 says nothing.\nSo Response 2 is the best.",
    "Ranking: 2 ≥ 1 > 3",
    "Ranking: not 3 > 2 > 1",
    "Response 3 says this. Ranking: 3 > 2 > 1",
    '[{"response": 1, "rank": 1' + "0" * 400 + '}, {"response": 2, "rank": NaN}]',
    "",
    "They are all fine.",
    "Ranking: 1 > 1 > 2",
    "Ranking: 1 > 2 > 4",
    "Ranking: 0 > 1 > 2",
    "Ranking: 2",
    "2",
    "Ranking: 1 > 2 but 3 is",
    "5 apples, and the answer is 3",
    '1. "x"\n2. "y"',
    "1. first\n2. second\n3. third",
    '[{"response": 1, "rank": "best"}]',
    "[{" * 20_000,
    "Ranking: " + "1 > " * 100_000,
    "Ranking: " * 100_000,
    "9" * 10**6,
    '1. "' + "x" * 10**6,
    "*" * 10**6,
    "1. " * 300_000,
]


@pytest.mark.parametrize(("text", "places"), READABLE)
def test_readable(text, places):
    assert read_ranking(text, RESPONSES) == places


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: repr(text[:30]))
def test_unreadable(text):
    assert read_ranking(text, RESPONSES) is None


def test_of_two_responses_one_number_says_the_winner():
    assert read_ranking(" 2\n", ["a", "b"]) == [1, 0]
    assert read_ranking("Ranking: 1", ["a", "b"]) == [0, 1]
