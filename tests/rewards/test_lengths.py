r"""open-r1's rewards for length: its own cases, its quirks that are kept, and what is mended."""

import math

import pytest

from r1jax.rewards.lengths import get_cosine_scaled_reward, get_soft_overlong_punishment, len_reward

RIGHT, WRONG, GOLD = r"\boxed{\frac{63}{400}}", r"\boxed{\frac{64}{400}}", r"\frac{63}{400}"


def as_messages(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_len_reward():
    texts = [RIGHT, RIGHT + "  " + "x" * 10, WRONG, WRONG + "  " + "x" * 10]
    assert len_reward(as_messages(texts), [GOLD] * 4) == [0.5, -0.5, 0.0, -0.5]
    assert len_reward(texts[:3], [GOLD] * 3, level=["x"] * 3) == [0.5, -0.5, 0.0]
    assert len_reward([RIGHT, WRONG], [GOLD] * 2) == [0.0, 0.0]
    assert len_reward([], []) == []
    halfway = [RIGHT, RIGHT + "x" * 5, RIGHT + "x" * 10, WRONG + "x" * 7]
    assert len_reward(halfway, [GOLD] * 4) == pytest.approx([0.5, 0.0, -0.5, -0.2])


def test_len_reward_takes_an_unreadable_gold_for_a_right_answer():
    texts = [r"\boxed{answer}", r"\boxed{answer} " + "x" * 10]
    assert len_reward(as_messages(texts), ["unparseable_latex"] * 2) == [0.5, -0.5]
    # As in open-r1, only LaTeX is read here.
    assert len_reward([r"\boxed{8}", r"\boxed{8} xx"], ["7"] * 2) == [0.5, -0.5]
    assert len_reward([r"\boxed{8}", r"\boxed{8} xx"], ["$7$"] * 2) == [0.0, -0.5]


def test_len_reward_within_groups_if_asked():
    texts = [RIGHT, RIGHT + "xx", RIGHT + "x" * 10, RIGHT + "x" * 20]
    columns = {"solution": [GOLD] * 4, "group_ids": [0, 0, 1, 1]}
    assert len_reward(texts, **columns, per_group=True) == [0.5, -0.5, 0.5, -0.5]
    assert len_reward(texts, **columns) == [0.5, 0.4, 0.0, -0.5]


@pytest.mark.parametrize(
    ("text", "length", "value"),
    [(RIGHT, 22, 0.9432), (RIGHT, 80, 0.5477), (WRONG, 22, -0.9432), (WRONG, 80, -0.5477)],
)
def test_cosine_scaled_reward(text, length, value):
    reward = get_cosine_scaled_reward(
        min_value_wrong=-1.0, max_value_wrong=-0.5, min_value_correct=0.5, max_value_correct=1.0, max_len=100
    )
    assert reward.__name__ == "cosine_scaled_reward"
    assert reward(as_messages([text.ljust(length)]), [GOLD]) == pytest.approx([value], abs=5e-3)


def test_cosine_scaled_reward_follows_its_formula_and_stays_at_its_end():
    reward = get_cosine_scaled_reward(max_len=50)
    for text, (first, last) in {RIGHT: (1.0, 0.5), WRONG: (-1.0, -0.5)}.items():
        for length in (22, 25, 40, 50):
            expected = last + 0.5 * (first - last) * (1 + math.cos(math.pi * length / 50))
            assert reward([text.ljust(length)], [GOLD]) == pytest.approx([expected])
        assert reward([text.ljust(75), text.ljust(100)], [GOLD] * 2) == [last, last]
    assert reward([r"\boxed{7}"] * 2, ["unparseable_latex", "7"]) == [1.0, 1.0]


def test_soft_overlong_punishment():
    reward = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert reward.__name__ == "soft_overlong_punishment_reward"
    ids = [[1] * length for length in (0, 80, 85, 90, 100, 101)]
    assert reward(ids) == reward(completion_ids=ids, completions=["x"] * 6)
    assert reward(ids) == pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0, -1.0])
    assert get_soft_overlong_punishment(10, 0)([[1] * 10, [1] * 11]) == [0.0, -1.0]
    assert get_soft_overlong_punishment()([[1] * 12288, [1] * 14336]) == [0.0, -0.5]
