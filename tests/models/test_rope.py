"""Rotary positions and their scalings against numpy formulas, written pair by pair."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.families.hf_config import read_rope, write_scaling
from r1jax.models.rope import (
    Rope,
    RopeScaling,
    YaRN,
    attention_factor,
    make_tables,
    rope_frequencies,
    rope_tables,
    rotate,
    rotate_pairs,
    score_factor,
)
from tests.models import naive


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "scaling", [None, RopeScaling("linear", 4.0), RopeScaling(), RopeScaling("llama3", 32.0, 1.0, 4.0, 64)]
)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope_frequencies_equal_the_formula(theta: float, scaling: RopeScaling | None) -> None:
    expected = naive.frequencies(64, theta, scaling)
    np.testing.assert_allclose(rope_frequencies(64, theta, scaling), expected, rtol=2e-5)


def test_llama3_scaling_has_all_three_ranges() -> None:
    """The formula test above would be idle if no frequency fell in the middle range."""
    ratio = naive.frequencies(64, 500_000.0, RopeScaling()) / naive.frequencies(64, 500_000.0)
    assert (ratio == 1).any() and np.isclose(ratio, 1 / 8).any() and ((ratio > 0.13) & (ratio < 0.99)).any()


def test_rotation_is_that_of_complex_numbers() -> None:
    x, positions = normal(2, 5, 3, 8), np.array([[0, 1, 2, 3, 4], [7, 100, 3, 3, 4095]])
    turns = naive.frequencies(8, 10_000.0)
    found = rotate(jnp.asarray(x), rope_tables(jnp.asarray(positions), rope_frequencies(8, 10_000.0, None)))
    expected = np.stack([naive.rotate(*pair, turns) for pair in zip(x, positions, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=2e-6)


def test_neighbours_turn_as_complex_numbers() -> None:
    x, positions = normal(2, 5, 3, 8), np.array([[0, 1, 2, 3, 4], [7, 100, 3, 3, 40]])
    turns = naive.frequencies(8, 10_000.0)
    found = rotate_pairs(jnp.asarray(x), rope_tables(jnp.asarray(positions), rope_frequencies(8, 10_000.0, None)))
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * positions[..., None, None] * turns)
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], axis=-1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("theta", [10_000.0, 50_000.0])
def test_yarn_keeps_what_turns_fast_and_stretches_what_turns_slowly(theta: float, truncate: bool) -> None:
    scaling, width = YaRN(40.0, 4096, 32.0, 1.0, truncate=truncate), 64
    pair = lambda turns: width / 2 * math.log(4096 / (2 * math.pi * turns), theta)
    low, high = pair(32), pair(1)
    low, high = (math.floor(low), math.ceil(high)) if truncate else (low, high)
    plain = naive.frequencies(width, theta)
    expected = [f / 40 + (f - f / 40) * min(max((high - i) / (high - low), 0), 1) for i, f in enumerate(plain)]
    found = np.asarray(rope_frequencies(width, theta, scaling))
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert np.isclose(found[0], plain[0]) and np.isclose(found[-1], plain[-1] / 40)


def test_factors_of_yarn() -> None:
    """V3's published pair: nothing on what is rotated, 1.3689 squared on the scores."""
    grown = 0.1 * math.log(40) + 1
    assert attention_factor(YaRN(mscale=1.0, mscale_all_dim=1.0)) == 1.0
    assert score_factor(YaRN(mscale=1.0, mscale_all_dim=1.0)) == pytest.approx(1.3689**2, rel=1e-4)
    assert (attention_factor(YaRN()), score_factor(YaRN())) == (pytest.approx(grown), 1.0)
    assert attention_factor(YaRN(mscale=0.5, mscale_all_dim=1.0)) == pytest.approx((0.05 * math.log(40) + 1) / grown)
    assert attention_factor(YaRN(attention_factor=1.25)) == 1.25
    assert attention_factor(None) == attention_factor(RopeScaling()) == score_factor(RopeScaling()) == 1.0
    cos, sin = rope_tables(jnp.array([[3]]), jnp.array([0.5]), 1.25)
    assert (float(cos[0, 0, 0, 0]), float(sin[0, 0, 0, 0])) == pytest.approx(
        (1.25 * math.cos(1.5), 1.25 * math.sin(1.5))
    )


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling("linear", 4.0),
        RopeScaling("llama3", 32.0, 1.0, 4.0, 64),
        RopeScaling("proportional", 2.0, share=0.25),
        YaRN(),
        YaRN(8.0, 128, 16.0, 2.0, 0.7, 1.0, 1.1, False),
    ],
)
def test_scalings_are_written_as_they_are_read(scaling: RopeScaling | YaRN | None) -> None:
    assert read_rope({"rope_theta": 5.0, "rope_scaling": write_scaling(scaling)}) == (5.0, scaling)
    newer = {"rope_parameters": {"rope_theta": 5.0, **(write_scaling(scaling) or {"rope_type": "default"})}}
    assert read_rope(newer) == (5.0, scaling)


ROPE = np.load(Path(__file__).parents[1] / "goldens" / "rope.npz")


@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in ROPE.files}))
def test_tables_are_those_of_transformers_at_four_times_the_original_length(name: str) -> None:
    hf = json.loads(str(ROPE[f"{name}/config"]))
    theta, scaling = read_rope(hf)
    cos, sin = make_tables(jnp.asarray(ROPE[f"{name}/positions"])[None], Rope(16, theta, scaling))
    np.testing.assert_allclose(cos[0, :, 0], ROPE[f"{name}/cos"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(sin[0, :, 0], ROPE[f"{name}/sin"], rtol=0, atol=2e-5)


def test_ntk_is_a_larger_theta_at_every_length() -> None:
    found = rope_frequencies(16, 500.0, RopeScaling("ntk", 4.0))
    base = 500.0 * 4.0 ** (16 / 14)
    np.testing.assert_allclose(found, base ** -(np.arange(0, 16, 2) / 16), rtol=1e-6)
