"""The written-out gradient of the norm against autodiff of its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.ops.rms_norm import normalize
from tests.models.toy import assert_close


@pytest.mark.parametrize("rows", [(6,), (2, 3)])
def test_values_and_gradient_are_those_of_the_formula(rows: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x, scale, probe = (random.normal(size=s).astype(np.float32) for s in ((*rows, 16), (16,), (*rows, 16)))
    formula = lambda x, scale: x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-3) * scale
    sums = [lambda x, scale, f=f: (f(x, scale) * probe).sum() for f in (lambda *xs: normalize(*xs, 1e-3), formula)]
    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, scale) for f in sums)
    assert_close(found, expected)
