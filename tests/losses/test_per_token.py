"""Losses of single targets against their formulas in float64, and their gradients worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.per_token import LOSSES, target_losses
from tests.losses.target_formulas import BETA, HIGH, LOW, draw, formula


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_are_those_of_the_formulas(loss: str) -> None:
    x = draw()
    full = lambda value: jnp.full(x["logprobs"].shape, value)
    others = {"weights": jnp.float32(x["weights"]), "advantages": jnp.float32(x["advantages"])}
    others |= {
        "sampled": jnp.float32(x["logprobs"] - x["gap"]),
        "low": full(LOW),
        "high": full(HIGH),
        "beta": full(BETA),
    }
    kinds = full(LOSSES.index(loss)).astype(jnp.int32)
    measure = lambda logprobs: target_losses(logprobs, kinds, **others)
    losses = measure(jnp.float32(x["logprobs"]))
    gradient = jax.grad(lambda logprobs: measure(logprobs).sum())(jnp.float32(x["logprobs"]))
    for got, expected in zip((losses, gradient), formula(loss, x), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6, rtol=2e-5)


def test_each_target_has_its_own_loss() -> None:
    x, count = draw(len(LOSSES)), len(LOSSES)
    given = {"weights": x["weights"], "sampled": x["logprobs"] - x["gap"], "advantages": x["advantages"]}
    given |= {"low": np.full((1, count), LOW), "high": np.full((1, count), HIGH), "beta": np.full((1, count), BETA)}
    losses = target_losses(x["logprobs"], np.arange(count)[None], **given)
    expected = [formula(loss, x)[0][0, place] for place, loss in enumerate(LOSSES)]
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)


def test_padding_has_neither_loss_nor_gradient() -> None:
    zeros = jnp.zeros((1, 4))
    others = {name: zeros for name in ("weights", "sampled", "advantages", "low", "high", "beta")}
    for kind in range(len(LOSSES)):
        measure = lambda x, kind=kind: target_losses(x, jnp.full((1, 4), kind), **others).sum()
        value, gradient = jax.value_and_grad(measure)(jnp.full((1, 4), -3.0))
        assert value == 0 and not gradient.any()
