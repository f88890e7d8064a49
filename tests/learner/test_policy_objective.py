"""The GRPO loss of packed rows: against a naive Llama and the formula, under any cut and on any mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.distributed import put_global
from r1jax.core.sharding import MeshConfig, make_mesh, sharding, use_mesh
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.policy_objective import Scoring, make_loss, score_rows, summarize
from r1jax.learner.step import Learner
from r1jax.losses.advantage import group_advantages
from r1jax.losses.aggregation import token_weights
from r1jax.losses.policy import PRESETS, PolicyLossConfig
from r1jax.models.families import llama
from r1jax.models.transformer import Params, logical_axes, split, stack
from tests.learner import rows
from tests.losses.formulas import CONSTANT, CORRECTION, Completions, loss_and_gradient
from tests.models import toy

SCORING = Scoring(temperature=rows.TEMPERATURE, prefix=rows.PREFIX)
OFF_POLICY = PolicyLossConfig(clip_low=0.1, clip_high=0.2, kl_coefficient=0.1)
OLD = ("old_logprobs", "reference_logprobs")


def run(
    size: int,
    *names: str,
    config: PolicyLossConfig = OFF_POLICY,
    scoring: Scoring = SCORING,
    model: Any = None,
    **other: np.ndarray,
) -> tuple[float, Params, dict[str, float]]:
    """(loss, gradient, metrics) of the whole update from micro-batches of `size` rows."""
    graph, params = model or rows.model()
    loss_fn = make_loss(graph, config, scoring, on_policy="old_logprobs" not in names)
    learner = Learner(loss_fn, make_optimizer(OptimizerConfig(), 1))
    gradient, losses, sums = jax.tree.map(jnp.zeros_like, params), [], []
    for batch in rows.batches(size, *names, **other):
        gradient, loss, part = learner.accumulate(params, gradient, {}, batch)
        losses.append(float(loss))
        sums.append(part)
    return sum(losses), jax.device_get(gradient), summarize([sums])


@functools.cache
def on_one_device() -> tuple[float, Params, dict[str, float]]:
    return run(8, *OLD)


def assert_metrics(found: dict[str, float], expected: dict[str, float]) -> None:
    """Means agree closely; the extreme of a token, a difference of two log-probs, to eight of their float32 steps."""
    step = float(np.spacing(np.abs(rows.update().logprobs).max().astype(np.float32)))
    for name, value in expected.items():
        extreme = name.endswith(("/max", "/min"))
        assert found[name] == pytest.approx(value, rel=1e-5, abs=8 * step if extreme else 1e-6), name
    assert found.keys() == expected.keys()


# --- Against the formula ---


@pytest.mark.parametrize("chunk", [0, 4])
def test_packed_rows_have_the_logprobs_of_a_naive_llama(chunk: int) -> None:
    graph, params = rows.model()
    scoring = Scoring(rows.TEMPERATURE, chunk, rows.PREFIX)
    (batch,) = rows.batches(8)
    logprobs, entropy = jax.jit(lambda params: score_rows(graph, params, batch, scoring))(params)
    assert np.isfinite(logprobs).all() and np.isfinite(entropy).all()  # also where nothing is
    np.testing.assert_allclose(rows.unfold(logprobs), rows.update().logprobs, rtol=0, atol=2e-5)
    np.testing.assert_allclose(rows.unfold(entropy), rows.update().entropy, rtol=0, atol=2e-5)


def test_loss_and_metrics_of_several_updates_a_step_follow_the_formula() -> None:
    loss, _, metrics = on_one_device()
    update = rows.update()
    A, weights, sampler, old, reference = (
        update.arrays[k].astype(np.float64) for k in ("advantages", "weights", "sampler_logprobs", *OLD)
    )
    ratio = np.exp(update.logprobs - old)
    gap = reference - update.logprobs
    k3 = np.exp(gap) - gap - 1
    per_token = -np.minimum(ratio * A, np.clip(ratio, 0.9, 1.2) * A) + 0.1 * k3
    assert loss == pytest.approx((weights * per_token).sum(), rel=1e-4)
    low, high = (A < 0) & (ratio < 0.9), (A > 0) & (ratio > 1.2)
    difference = update.logprobs - sampler  # of the first update's own log-probs
    expected = {
        "entropy": update.entropy.mean(),
        "kl": k3.mean(),
        "clip_ratio/low_mean": low.mean(),
        "clip_ratio/high_mean": high.mean(),
        "clip_ratio/region_mean": (low | high).mean(),
        "sampling/sampling_logp_difference/mean": np.abs(difference).mean(),
        "sampling/sampling_logp_difference/max": np.abs(difference).max(),
        "sampling/importance_sampling_ratio/min": np.exp(difference).min(),
        "sampling/importance_sampling_ratio/mean": np.exp(difference).mean(),
        "sampling/importance_sampling_ratio/max": np.exp(difference).max(),
    }
    assert metrics == pytest.approx(expected, rel=1e-3)


def test_on_policy_the_loss_is_the_weighted_advantage() -> None:
    loss, gradient, metrics = run(8, config=PolicyLossConfig())
    arrays = rows.update().arrays
    assert loss == pytest.approx(-float((arrays["weights"] * arrays["advantages"]).sum()), abs=1e-6)
    assert metrics["clip_ratio/region_mean"] == 0 and "kl" not in metrics
    difference = rows.update().logprobs - arrays["sampler_logprobs"]
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(np.abs(difference).mean(), abs=2e-6)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient))


def test_the_sampler_is_compared_with_the_first_update_whatever_the_old_logprobs_are() -> None:
    """Also where they are the sampler's own, which a comparison with themselves would find perfect."""
    graph, params = rows.model()
    loss_fn = make_loss(graph, OFF_POLICY, SCORING, on_policy=False)
    (batch,) = rows.batches(8)
    loss, sums = jax.jit(loss_fn)(params, {}, batch)
    later = {name: value + 1 for name, value in sums.items()}
    metrics = summarize([[sums], [later]])
    arrays = rows.update().arrays
    difference = np.abs(rows.update().logprobs - arrays["sampler_logprobs"])
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(difference.mean(), abs=2e-6)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(difference.max(), abs=2e-5)
    old = jax.jit(loss_fn)(params, {}, {**batch, "old_logprobs": batch["sampler_logprobs"]})
    assert loss == old[0]  # the sampler's are the old ones


def test_an_update_without_tokens_is_no_comparison() -> None:
    """The first with tokens is compared; what nothing measured is no number, for 0 would look like a collapse."""
    graph, params = rows.model()
    (batch,) = rows.batches(8)
    _, sums = jax.jit(make_loss(graph, OFF_POLICY, SCORING, on_policy=False))(params, {}, batch)
    _, none = jax.jit(make_loss(graph, OFF_POLICY, SCORING, on_policy=False))(
        params, {}, {**batch, "weights": np.zeros_like(batch["weights"])}
    )
    alone, behind, nothing = summarize([[sums]]), summarize([[none], [sums]]), summarize([[none]])
    names = [name for name in alone if name.startswith("sampling/")]
    assert [behind[name] for name in names] == [alone[name] for name in names]
    assert all(np.isnan(nothing[name]) for name in ("entropy", "sampling/sampling_logp_difference/mean"))


def test_padding_has_no_entropy() -> None:
    """Rows without completions, and the empty ends of others, count for nothing."""
    graph, params = rows.model()
    loss_fn = jax.jit(make_loss(graph, OFF_POLICY, SCORING, on_policy=True))
    (batch,) = rows.batches(8)
    _, whole = loss_fn(params, {}, batch)
    inside = np.asarray(batch["weights"]) > 0
    filled = {name: value[inside.any(1)] for name, value in batch.items()}
    filled["targets"] = jnp.where(inside[inside.any(1)], filled["targets"], 7)
    assert len(filled["tokens"]) < 8 and not inside.all(1)[inside.any(1)].all()
    _, parts = loss_fn(params, {}, filled)
    assert int(whole["tokens"]) == inside.sum() == len(rows.update().entropy)
    assert float(whole["entropy"]) == pytest.approx(rows.update().entropy.sum(), rel=1e-5)
    assert float(parts["entropy"]) == pytest.approx(float(whole["entropy"]), rel=1e-6)


# --- Presets, on sequences and with corrections, through the model ---


def preset_config(preset: str) -> PolicyLossConfig:
    bounds = {
        "importance_correction": "sequence_truncate",
        "importance_correction_low": CORRECTION[0],
        "importance_correction_high": CORRECTION[1],
    }
    return PolicyLossConfig(**{**PRESETS[preset], **bounds})


@functools.cache
def preset_arrays(preset: str) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """(the loss by the formulas, the values per token that make it, its slope by each log-prob)."""
    config, (packed, arrays, _, _, lengths) = preset_config(preset), rows.update()
    graph, params = rows.model()
    (batch,) = rows.batches(8)
    mine = rows.unfold(jax.jit(lambda params: score_rows(graph, params, batch, SCORING)[0])(params))
    cut = lambda flat: np.split(np.asarray(flat, np.float64), np.cumsum(lengths)[:-1])
    # Of these rewards no preset's loss nearly cancels; float32 could not give a small rest to 1e-5 of itself.
    rewards = np.random.default_rng(4).normal(size=(4, rows.GROUP))
    completions = Completions(
        cut(mine),
        *(cut(arrays[f"{name}_logprobs"]) for name in ("old", "reference", "sampler")),
        rewards,
        np.zeros(len(lengths), bool),
    )
    loss, gradients = loss_and_gradient(preset, completions, config.importance_correction)
    advantages, _ = group_advantages(rewards, baseline=config.baseline, scale=config.scale)
    weights = token_weights(lengths, config.aggregation, constant=CONSTANT)
    values = {"advantages": np.repeat(advantages.ravel(), lengths), "weights": np.repeat(weights, lengths)}
    return loss, {k: v.astype(np.float32) for k, v in values.items()}, packed.lay_out(np.concatenate(gradients))


@pytest.mark.parametrize("preset", ["gspo", "cispo", "rloo"])
def test_gradients_of_the_weights_are_those_of_the_formulas(preset: str) -> None:
    loss, values, slope = preset_arrays(preset)
    found, gradient, metrics = run(8, *OLD, config=preset_config(preset), **values)
    graph, params = rows.model()
    (batch,) = rows.batches(8)
    pull = jax.jit(lambda params: jax.vjp(lambda p: score_rows(graph, p, batch, SCORING)[0], params)[1](slope)[0])
    slope = jnp.float32(slope)
    assert found == pytest.approx(loss, rel=1e-5)
    toy.assert_close(gradient, jax.device_get(pull(params)))
    assert 0 < metrics["correction/outside_mean"] < 1


@pytest.mark.parametrize("mesh", [None, "all"])
def test_ratios_of_sequences_survive_cuts_and_meshes(mesh: str | None) -> None:
    _, values, _ = preset_arrays("gspo")
    config = dataclasses.replace(preset_config("gspo"), entropy_coefficient=0.01)
    expected_loss, expected, expected_metrics = run(8, *OLD, config=config, **values)
    if mesh is None:
        loss, gradient, metrics = run(2, *OLD, config=config, **values)
    else:
        graph, params = rows.model()
        with use_mesh(make_mesh(MESHES[mesh])):
            loss, gradient, metrics = run(8, *OLD, config=config, model=(graph, place(params)), **values)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    toy.assert_close(gradient, expected)
    assert_metrics(metrics, expected_metrics)


# --- Under any cut and on any mesh ---


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_cut_into_micro_batches_changes_nothing(size: int) -> None:
    loss, gradient, metrics = run(size, *OLD)
    expected_loss, expected, expected_metrics = on_one_device()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    toy.assert_close(gradient, expected)
    assert_metrics(metrics, expected_metrics)


def test_chunked_recomputed_and_scanned_give_the_same_gradient() -> None:
    graph, _ = split(llama.build(toy.CONFIG, rngs=nnx.Rngs(0), scan_layers=True, remat="full"))
    scanned = graph, stack(rows.model()[1])
    loss, gradient, _ = run(4, *OLD, scoring=Scoring(rows.TEMPERATURE, 4, rows.PREFIX), model=scanned)
    expected_loss, expected, _ = on_one_device()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    toy.assert_close(gradient, jax.device_get(stack(expected)))


MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
}


def place(params: Params, **options: Any) -> Params:
    """The parameters on the current mesh, each by its axes."""
    axes = logical_axes(nnx.eval_shape(lambda: llama.build(toy.CONFIG, rngs=nnx.Rngs(0), **options)))
    return put_global(jax.device_get(params), jax.tree.map(lambda x, a: sharding(a, x.shape), params, axes))


@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_give_the_loss_and_gradient_of_one_device(mesh: str) -> None:
    graph, params = rows.model()
    with use_mesh(make_mesh(MESHES[mesh])):
        placed = place(params)
        kernel = placed["layers"][0]["mlp"]["gate"]["kernel"]  # [D, F] over (fsdp, tensor)
        share = {"data": (32, 64), "fsdp": (4, 64), "all": (16, 32)}[mesh]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {share}
        loss, gradient, metrics = run(8, *OLD, model=(graph, placed))
    expected_loss, expected, expected_metrics = on_one_device()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    toy.assert_close(gradient, expected)
    assert_metrics(metrics, expected_metrics)


def test_scanned_chunked_and_recomputed_on_a_mesh_of_some_devices() -> None:
    graph, _ = split(llama.build(toy.CONFIG, rngs=nnx.Rngs(0), scan_layers=True, remat="full"))
    with use_mesh(make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])):
        placed = place(stack(rows.model()[1]), scan_layers=True)
        scoring = Scoring(rows.TEMPERATURE, 4, rows.PREFIX)
        loss, gradient, _ = run(4, *OLD, scoring=scoring, model=(graph, placed))
    expected_loss, expected, _ = on_one_device()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    toy.assert_close(gradient, jax.device_get(stack(expected)))
