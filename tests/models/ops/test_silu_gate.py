"""The written-out gradient of the gate against autodiff of its formula."""

import jax
import numpy as np
import pytest

from r1jax.models.ops.silu_gate import gate_silu
from tests.models.toy import assert_close


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_values_and_gradient_are_those_of_the_formula(dtype: str, tolerance: float) -> None:
    gate, up, probe = (np.random.default_rng(i).normal(size=(3, 8)).astype(np.float32) for i in range(3))
    sums = [lambda x, y, f=f: (f(x, y) * probe).sum() for f in (gate_silu, lambda x, y: jax.nn.silu(x) * y)]
    found = jax.jit(jax.grad(sums[0], (0, 1)))(gate.astype(dtype), up.astype(dtype))
    assert all(g.dtype == dtype for g in found)
    assert_close(found, jax.jit(jax.grad(sums[1], (0, 1)))(gate, up), tolerance)
    assert_close(gate_silu(gate, up), jax.nn.silu(gate) * up)
