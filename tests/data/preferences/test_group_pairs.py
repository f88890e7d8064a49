"""Pairs of the best and the worst sample of a prompt."""

import pytest

from r1jax.core.errors import UserError
from r1jax.data.filters import Trace
from r1jax.data.preferences.group_pairs import GroupPairConfig, pair_samples
from r1jax.data.preferences.pairs import read_margin, read_pair


def make(*samples: tuple[int, str, float, str]) -> tuple[list[Trace], list[str]]:
    """Samples of (prompt, text, reward, why it was dropped)."""
    return [Trace(g, f"prompt {g}", text, reward, 3) for g, text, reward, _ in samples], [why for *_, why in samples]


def test_the_best_stands_against_the_worst_of_its_prompt():
    samples = make((0, "a", 0.5, ""), (0, "b", 1.0, ""), (0, "c", 0.0, "reward"), (1, "d", 0.0, ""), (1, "e", 2.0, ""))
    rows = pair_samples(*samples, GroupPairConfig(per_prompt=1))
    assert [read_pair(row) for row in rows] == [("prompt 0", "b", "c"), ("prompt 1", "e", "d")]
    assert [read_margin(row) for row in rows] == [1.0, 2.0]


def test_a_second_pair_is_of_other_samples_and_gaps_are_kept():
    samples = make((0, "a", 3, ""), (0, "b", 2, ""), (0, "c", 1, ""), (0, "d", 0, ""), (0, "e", 1.5, ""))
    found = lambda **config: [(r["chosen"], r["rejected"]) for r in pair_samples(*samples, GroupPairConfig(**config))]
    assert found(per_prompt=9) == [("a", "d"), ("b", "c")]
    assert found(per_prompt=9, min_gap=2.0) == [("a", "d")]
    assert found(per_prompt=9, min_gap=4.0) == []


def test_only_what_passed_is_chosen_and_what_was_cut_off_is_not_rejected_either():
    samples = make((0, "best", 9, "language"), (0, "good", 2, ""), (0, "long", 0, "cut_off"), (0, "bad", 1, "reward"))
    (row,) = pair_samples(*samples, GroupPairConfig(per_prompt=2))
    assert (row["chosen"], row["rejected"]) == ("good", "bad")


def test_equal_rewards_and_equal_texts_make_no_pair():
    config = GroupPairConfig(per_prompt=2)
    assert pair_samples(*make((0, "a", 1, ""), (0, "b", 1, "")), config) == []
    assert pair_samples(*make((0, "a", 1, ""), (0, "a", 0, "duplicate")), config) == []


@pytest.mark.parametrize("change", [{"per_prompt": -1}, {"min_gap": -0.1}, {"min_gap": float("inf")}])
def test_a_mistake_is_named(change: dict):
    with pytest.raises(UserError, match=f"config.pairs.{next(iter(change))} must be at least 0"):
        GroupPairConfig(**change)
