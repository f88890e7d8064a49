"""Which groups a step trains on: never one that is too old, and no waiting where none need be."""

import numpy as np
import pytest

from r1jax.core.structs import Request, Sampling
from r1jax.rl.live_groups import LiveGroup, Member, choose_groups


def make_group(begun: int, left: int) -> LiveGroup:
    """A group that ends after `left` more units of decoding."""
    return LiveGroup({"left": left}, begun, 0, [Member(Request((1,), Sampling()))])


def end(group: LiveGroup) -> None:
    group.members[0].finish_reason = "stop"


def test_the_first_complete_ones_are_taken():
    groups = [make_group(1, 0) for _ in range(6)]
    for place in (1, 3, 4):
        end(groups[place])
    assert choose_groups(groups, 2, 1, 2) == [1, 3]
    assert choose_groups(groups, 4, 1, 2) == []
    assert (
        choose_groups(groups, 2, 3, 2) == []
    )  # six groups of step 1 and two a step: the first two have to be taken now


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_ever_older_than_allowed(seed: int):
    """Twelve steps with lengths of a heavy tail, decoded a unit at a time in as many slots as there are groups."""
    generator = np.random.default_rng(seed)
    count, staleness, steps = int(generator.integers(1, 5)), int(generator.integers(1, 4)), 12
    groups: list[LiveGroup] = []
    waited = 0
    for step in range(1, steps + 1):
        most = count * min(staleness + 1, steps - step + 1)
        while not (chosen := choose_groups(groups, count, step, staleness)):
            groups += [make_group(step, int(generator.geometric(0.1))) for _ in range(most - len(groups))]
            for group in groups:
                group.row["left"] -= 1
                if group.row["left"] <= 0:
                    end(group)
            waited += 1
            assert waited < 10_000
        assert len(chosen) == count
        assert all(step - groups[place].begun <= staleness for place in chosen)
        groups = [group for place, group in enumerate(groups) if place not in chosen]
    assert not groups


def test_a_member_remembers_who_sampled_each_token():
    member = Member(Request((1, 2), Sampling()), [7, 8, 9], [-1.0, -2.0, -3.0], [3, 3, 5], "length")
    completion = member.complete(5)
    assert (completion.tokens, completion.logprobs) == ((7, 8, 9), (-1.0, -2.0, -3.0))
    assert completion.ages is not None and completion.ages.tolist() == [2, 2, 0]
