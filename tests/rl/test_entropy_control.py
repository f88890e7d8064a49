"""The weight of the entropy bonus against the rule of Skywork-OR1, step by step."""

import json

import pytest

from r1jax.losses.policy import PolicyLossConfig
from r1jax.rl.entropy_control import EntropyControl


def test_the_weight_moves_towards_its_target_within_its_bounds():
    config = PolicyLossConfig(entropy_coefficient=0.004, entropy_target=0.5, entropy_coefficient_max=0.01)
    control, weights, applied = EntropyControl(config), [], []
    for entropy in (0.6, 0.4, 0.5, 0.2, 0.9, 0.9, 0.9):
        applied.append(control.applied)
        control.observe(entropy)
        weights.append(control.coefficient)
    assert weights == pytest.approx([0.0, 0.005, 0.01, 0.01, 0.005, 0.0, 0.0])
    assert applied == pytest.approx([0.0, 0.0, 0.005, 0.01, 0.01, 0.0, 0.0])


def test_a_state_goes_through_json_and_back():
    config = PolicyLossConfig(entropy_target=0.5)
    first, second = EntropyControl(config), EntropyControl(config)
    assert second.get_state()["last"] is None
    first.observe(0.3)
    second.set_state(json.loads(json.dumps(first.get_state())))
    second.set_state(None)
    assert (second.applied, second.get_state()) == (first.applied, first.get_state())
    assert second.applied == 0.005


def test_without_a_target_it_is_constant():
    assert EntropyControl(PolicyLossConfig(entropy_coefficient=0.01)).applied == 0.01
