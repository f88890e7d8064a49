"""The written-out gradients of the matrix products against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.ops.matmul import multiply, multiply_table
from tests.models.toy import assert_close


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("rows", [(6,), (2, 3)])
def test_gradient_of_the_product_is_that_of_autodiff(rows: tuple[int, ...], dtype: str, tolerance: float) -> None:
    x, kernel, probe = normal(*rows, 5), normal(5, 4, seed=1), normal(*rows, 4, seed=2)
    ours = lambda x, kernel: (multiply(x, kernel).astype(jnp.float32) * probe).sum()
    found = jax.jit(jax.grad(ours, (0, 1)))(x.astype(dtype), kernel.astype(dtype))
    assert all(g.dtype == dtype for g in found)
    assert_close(found, jax.grad(lambda x, kernel: (x @ kernel * probe).sum(), (0, 1))(x, kernel), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_gradient_of_the_product_with_a_table_is_that_of_autodiff(dtype: str, tolerance: float) -> None:
    x, table, probe = normal(2, 3, 5), normal(7, 5, seed=1), normal(2, 3, 7, seed=2)
    ours = lambda x, table: (multiply_table(x, table) * probe).sum()
    found = jax.jit(jax.grad(ours, (0, 1)))(x.astype(dtype), table.astype(dtype))
    assert multiply_table(x.astype(dtype), table.astype(dtype)).dtype == jnp.float32
    assert all(g.dtype == dtype for g in found)
    assert_close(found, jax.grad(lambda x, table: (x @ table.T * probe).sum(), (0, 1))(x, table), tolerance)
