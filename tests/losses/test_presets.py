"""Every preset, with every correction of the sampler, against its formulas in float64: loss and gradient."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.core.sharding import MeshConfig, make_mesh
from r1jax.losses.advantage import group_advantages
from r1jax.losses.aggregation import token_weights
from r1jax.losses.policy import PRESETS as ALL_PRESETS
from r1jax.losses.policy import PolicyLossConfig, policy_loss
from tests.losses import formulas
from tests.losses.formulas import CONSTANT, CORRECTION, Completions

PRESETS = {
    name: row for name, row in ALL_PRESETS.items() if name != "ppo"
}  # its advantages: tests/losses/test_value.py
ROWS, WIDTH = 16, 12  # a row holds one completion or several; the last ones hold none
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
ARRAYS = ("logprobs", "old_logprobs", "reference_logprobs", "sampler_logprobs")


def make_config(preset: str, correction: str = "none", **knobs: Any) -> PolicyLossConfig:
    bounds = {"importance_correction_low": CORRECTION[0], "importance_correction_high": CORRECTION[1]}
    return PolicyLossConfig(
        **{"preset": preset, **PRESETS[preset], "importance_correction": correction, **bounds, **knobs}
    )


def lay_out(completions: Completions, config: PolicyLossConfig) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
    """(rows of float64, garbage at their ends; where each completion begins: row, place)."""
    lengths = np.array([len(x) for x in completions.logprobs])
    excluded = completions.excluded
    advantages, _ = group_advantages(completions.rewards, baseline=config.baseline, scale=config.scale)
    weights = token_weights(lengths, config.aggregation, constant=CONSTANT, excluded=excluded)
    places, row, end = [], 0, 0
    for length in lengths:
        if end + length > WIDTH:
            row, end = row + 1, 0
        places.append((row, end))
        end += length
    assert row < ROWS - 1
    rows = {name: np.full((ROWS, WIDTH), np.nan) for name in (*ARRAYS, "advantages")}
    rows |= {"weights": np.zeros((ROWS, WIDTH)), "sequences": np.zeros((ROWS, WIDTH), np.int32)}
    values = (completions.logprobs, completions.old, completions.reference, completions.sampler)
    for i, (row, start) in enumerate(places):
        at = row, slice(start, start + lengths[i])
        for name, ragged in zip(ARRAYS, values, strict=True):
            rows[name][at] = ragged[i]
        rows["advantages"][at], rows["weights"][at] = advantages.ravel()[i], weights[i]
        rows["sequences"][at] = sum(place[0] == row for place in places[:i])
    return rows, places


def run(rows: dict[str, np.ndarray], config: PolicyLossConfig, dtype: Any) -> tuple[float, np.ndarray, dict[str, Any]]:
    """(loss, gradient by the log-probs, sums) of rows."""
    rows = {name: v if name == "sequences" else v.astype(dtype) for name, v in rows.items()}
    if not config.kl_coefficient:
        rows.pop("reference_logprobs")
    logprobs = jnp.asarray(rows.pop("logprobs"))
    loss = lambda logprobs: policy_loss(logprobs, config=config, **{k: jnp.asarray(v) for k, v in rows.items()})
    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(logprobs)
    assert value.dtype == gradient.dtype == dtype
    return float(value), np.asarray(gradient), sums


def spread_out(ragged: list[np.ndarray], places: list[tuple[int, int]], shape: tuple[int, ...]) -> np.ndarray:
    laid_out = np.zeros(shape)
    for values, (row, start) in zip(ragged, places, strict=True):
        laid_out[row, start : start + len(values)] = values
    return laid_out


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_gradient_follow_the_formulas(preset: str, correction: str) -> None:
    if preset == "vespo" and correction.startswith("sequence"):
        pytest.skip("its weight of a sequence takes corrections of tokens")
    config = make_config(preset, correction)
    for seed in range(2):
        spread = 3e-4 if preset in ("gspo", "luspo") and seed else 0.3  # its bounds are narrow
        completions = formulas.draw(seed, spread=spread)
        completions.excluded[seed] = True
        expected, ragged = formulas.loss_and_gradient(preset, completions, correction)
        rows, places = lay_out(completions, config)
        expected_gradient = spread_out(ragged, places, rows["weights"].shape)
        for dtype, tolerance in ((np.float64, 1e-6), (np.float32, 1e-5)):
            with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
                loss, gradient, _ = run(rows, config, dtype)
            size = np.linalg.norm(expected_gradient)
            assert size > 0 and np.linalg.norm(gradient - expected_gradient) <= tolerance * size
            assert abs(loss - expected) <= tolerance * max(abs(expected), size)
            assert (gradient[rows["weights"] == 0] == 0).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_cut_into_micro_batches_changes_nothing(preset: str) -> None:
    config = make_config(preset, "token_truncate" if preset == "vespo" else "sequence_truncate")
    rows, _ = lay_out(formulas.draw(4), config)
    loss, gradient, sums = run(rows, config, np.float32)
    for size in (2, 8):
        cut = range(0, len(rows["weights"]), size)
        parts = [run({name: v[at : at + size] for name, v in rows.items()}, config, np.float32) for at in cut]
        assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-5, abs=1e-7)
        np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), gradient, rtol=1e-5, atol=1e-9)
        for name, total in sums.items():
            assert sum(float(part[2][name]) for part in parts) == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_eight_devices_are_one(preset: str) -> None:
    """Rows spread over devices; a completion lies in one row, so its ratio is a matter of one device."""
    config = make_config(preset, "token_mask" if preset == "vespo" else "sequence_mask")
    rows, _ = lay_out(formulas.draw(4), config)
    expected_loss, expected, _ = run(rows, config, np.float32)
    if not config.kl_coefficient:
        rows.pop("reference_logprobs")
    spread = NamedSharding(make_mesh(MeshConfig(data=8)), PartitionSpec("data"))
    arrays = {k: jax.device_put(v if k == "sequences" else np.float32(v), spread) for k, v in rows.items()}
    logprobs = arrays.pop("logprobs")
    loss = lambda logprobs, arrays: policy_loss(logprobs, config=config, **arrays)[0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(logprobs, arrays)
    assert len(gradient.sharding.device_set) == 8
    assert float(value) == pytest.approx(expected_loss, rel=1e-5, abs=1e-7)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("preset", PRESETS)
def test_on_policy_the_ratio_is_exactly_one(preset: str) -> None:
    """So nothing is clipped, and without KL the gradient is -w A to the last bit but of means over sequences."""
    config = make_config(preset, kl_coefficient=0.0)
    completions = formulas.draw(5)
    completions.old = completions.logprobs
    rows, _ = lay_out(completions, config)
    _, gradient, sums = run(rows, config, np.float32)
    assert all(float(sums[name]) == 0 for name in sums if name.startswith("clip_ratio/"))
    expected = np.where(rows["weights"] > 0, -np.float32(rows["weights"]) * np.float32(rows["advantages"]), 0)
    if config.ratio == "token" and config.surrogate != "sapo":
        np.testing.assert_array_equal(gradient, expected)
    else:
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_groups_without_spread_have_no_gradient(preset: str) -> None:
    """Where neither KL nor entropy asks for one; the baseline of the batch sees more than the group."""
    config = make_config(preset, kl_coefficient=0.0)
    completions = formulas.draw(6)
    completions.rewards[1] = 0.7
    rows, places = lay_out(completions, config)
    _, gradient, _ = run(rows, config, np.float32)
    size = completions.rewards.shape[1]
    flat = [np.full(len(x), float(i // size == 1)) for i, x in enumerate(completions.logprobs)]
    inside = spread_out(flat, places, gradient.shape) > 0
    assert (gradient[~inside] != 0).any()
    assert (gradient[inside] != 0).any() if preset == "reinforce++" else (gradient[inside] == 0).all()


def test_dr_grpo_is_independent_of_completion_length() -> None:
    """On-policy a token's gradient is -A / (completions x constant) whatever the lengths are; that of grpo is not."""
    completions = formulas.draw(7)
    completions.old = completions.logprobs
    longer = dataclasses.replace(
        completions,
        **{
            name: [np.concatenate([x, x[:1]]) for x in getattr(completions, name)]
            for name in ("logprobs", "old", "reference", "sampler")
        },
    )
    firsts = {}
    for preset in ("dr_grpo", "grpo"):
        config = make_config(preset, kl_coefficient=0.0)
        firsts[preset] = []
        for drawn in (completions, longer):
            rows, places = lay_out(drawn, config)
            _, gradient, _ = run(rows, config, np.float32)
            firsts[preset].append([float(gradient[place]) for place in places])
    count = len(completions.logprobs)
    A = formulas.advantages("dr_grpo", completions.rewards).ravel()
    np.testing.assert_array_equal(*firsts["dr_grpo"])
    np.testing.assert_allclose(firsts["dr_grpo"][0], -A / (count * CONSTANT), rtol=1e-5)
    assert not np.allclose(*firsts["grpo"], rtol=1e-2)


# --- Knobs that no preset turns ---


def finite_differences(rows: dict[str, np.ndarray], config: PolicyLossConfig) -> np.ndarray:
    gradient = np.zeros(rows["weights"].shape)
    for at in zip(*np.nonzero(rows["weights"]), strict=True):
        step = np.zeros(gradient.shape)
        step[at] = 1e-6
        up, down = (run({**rows, "logprobs": rows["logprobs"] + s}, config, np.float64)[0] for s in (step, -step))
        gradient[at] = (up - down) / 2e-6
    return gradient


@pytest.mark.parametrize(
    "knobs",
    [
        {"clip_delta": 3.0},
        {"kl_coefficient": 0.5, "kl_estimator": "k1"},
        {"kl_coefficient": 0.5, "kl_estimator": "k2"},
        {"kl_coefficient": 0.5, "kl_unbiased": True, "ratio": "sequence", "aggregation": "sequence"},
    ],
    ids=["delta", "k1", "k2", "unbiased-on-sequences"],
)
def test_other_knobs_follow_their_formulas(knobs: dict[str, Any]) -> None:
    """The loss token by token, and the gradient as the slope of that loss."""
    config = make_config("dapo", **knobs)
    completions = formulas.draw(8, groups=2, size=2, longest=4)
    rows, _ = lay_out(completions, config)
    A = formulas.advantages("dapo", completions.rewards).ravel()
    expected, lengths = 0.0, [len(x) for x in completions.logprobs]
    for i, (logp, old, ref) in enumerate(
        zip(completions.logprobs, completions.old, completions.reference, strict=True)
    ):
        token = np.exp(logp - old)
        ratio = np.full(lengths[i], np.exp((logp - old).mean())) if config.ratio == "sequence" else token
        ratio = np.minimum(ratio, config.clip_delta or np.inf)
        k = {"k1": logp - ref, "k2": (logp - ref) ** 2 / 2, "k3": np.exp(ref - logp) - (ref - logp) - 1}
        kl = k[config.kl_estimator] * (token if config.kl_unbiased else 1.0)
        terms = -np.minimum(ratio * A[i], np.clip(ratio, 0.8, 1.28) * A[i]) + config.kl_coefficient * kl
        share = 1 / (4 * lengths[i]) if config.aggregation == "sequence" else 1 / sum(lengths)
        expected += terms.sum() * share
    with jax.enable_x64(True):
        loss, gradient, _ = run(rows, config, np.float64)
        slope = finite_differences(rows, config)
    assert loss == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-8)
    if config.clip_delta:
        assert (np.exp(np.concatenate(completions.logprobs) - np.concatenate(completions.old)) > 3).any()


def test_sequences_far_from_their_sampler_are_left_out_where_the_advantage_is_negative() -> None:
    """Equation 9 of DeepSeek-V3.2: the mean of sampler's log-prob - log-prob above the threshold, and A < 0."""
    completions, threshold = formulas.draw(10, spread=0.05), 0.02
    config = make_config("dapo", off_policy_mask_threshold=threshold)
    rows, places = lay_out(completions, config)
    plain = run(rows, make_config("dapo"), np.float32)[1]
    _, gradient, sums = run(rows, config, np.float32)
    A = formulas.advantages("dapo", completions.rewards).ravel()
    far = [np.mean(s - x) > threshold for s, x in zip(completions.sampler, completions.logprobs, strict=True)]
    dropped = [np.full(len(x), float(far[i] and A[i] < 0)) for i, x in enumerate(completions.logprobs)]
    expected = np.where(spread_out(dropped, places, plain.shape) > 0, 0.0, plain)
    assert 0 < sum(map(sum, dropped)) < sum(map(len, dropped)) and not (expected == plain).all()
    np.testing.assert_array_equal(gradient, expected)
    assert float(sums["off_policy/masked_mean"]) == sum(map(sum, dropped))


def test_only_selected_tokens_have_a_surrogate() -> None:
    """The denominators stay (as in TRL), and the KL term reaches every token."""
    rows, _ = lay_out(formulas.draw(11), make_config("grpo"))
    chosen = np.random.default_rng(0).integers(0, 2, rows["weights"].shape).astype(float)
    selected = {**rows, "selected": chosen}
    without = make_config("grpo", kl_coefficient=0.0)
    whole, kl = run(rows, make_config("grpo"), np.float32)[1], run(rows, without, np.float32)[1]
    part = run(selected, make_config("grpo", top_entropy_quantile=0.5), np.float32)[1]
    np.testing.assert_allclose(part, np.where(chosen > 0, whole, whole - kl), rtol=1e-4, atol=1e-8)


def test_the_entropy_bonus_pulls_every_entropy_up() -> None:
    config = make_config("dapo", entropy_coefficient=0.1)
    rows, _ = lay_out(formulas.draw(9), config)
    arrays = {k: jnp.asarray(v if k == "sequences" else np.float32(v)) for k, v in rows.items()}
    del arrays["reference_logprobs"]
    entropy = jnp.where(arrays["weights"] > 0, 1.5, jnp.nan)
    with_bonus = lambda entropy: policy_loss(config=config, entropy=entropy, **arrays)[0]
    plain = policy_loss(config=make_config("dapo"), **arrays)[0]
    value, gradient = jax.value_and_grad(with_bonus)(entropy)
    assert float(value) == pytest.approx(float(plain) - 0.1 * 1.5, rel=1e-5)
    np.testing.assert_allclose(gradient, -0.1 * np.float32(rows["weights"]), rtol=1e-6)


@pytest.mark.parametrize(
    ("knobs", "missing"),
    [
        ({"ratio": "sequence"}, "sequences"),
        ({"importance_correction": "token_mask"}, "sampler_logprobs"),
        ({"entropy_coefficient": 0.1}, "entropy"),
        ({"surrogate": "vespo"}, "sequences"),
        ({"off_policy_mask_threshold": 0.1}, "sampler_logprobs|sequences"),
        ({"top_entropy_quantile": 0.1}, "selected"),
    ],
)
def test_what_a_knob_needs_must_be_there(knobs: dict[str, Any], missing: str) -> None:
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match=f"needs ({missing})"):
        policy_loss(x, x, x, x, PolicyLossConfig(**knobs))
