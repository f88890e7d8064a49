"""The small parts against numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r1jax.core.sharding import MeshConfig, make_mesh, sharding, use_mesh
from r1jax.models.layers import Dtypes, Embedding, GatedMLP, Head, Linear, RMSNorm
from r1jax.models.transformer import merge, split
from tests.models import naive, toy

FLOAT, MIXED = Dtypes(), Dtypes("float32", "bfloat16")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("inputs", "outputs"), [((6,), (4,)), ((6,), (2, 3)), ((2, 3), (5,)), ((2, 3), (4, 2))])
def test_linear_contracts_all_its_input_axes(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    axes = ("embed",) * (len(inputs) + len(outputs))
    linear = Linear(inputs, outputs, axes, dtypes=FLOAT, rngs=nnx.Rngs(0), std=1.0)
    x = normal(2, 3, *inputs)
    expected = np.tensordot(x, np.asarray(linear.kernel[...]), len(inputs))
    assert linear.kernel.get_metadata("axes") == axes
    np.testing.assert_allclose(linear(jnp.asarray(x)), expected, rtol=0, atol=1e-5)


MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("inputs", "outputs", "axes"),
    [
        ((8,), (4, 2), ("embed", "heads", "head_dim")),
        ((4, 2), (8,), ("heads", "head_dim", "embed")),
        ((8,), (4,), ("embed", "norm")),
    ],
)
@pytest.mark.parametrize("rows", [1, 16])
def test_a_kernel_is_gathered_for_many_rows_and_kept_in_shards(
    inputs: tuple[int, ...], outputs: tuple[int, ...], axes: tuple[str, ...], rows: int
) -> None:
    """Output and gradients are those of one device; rows are added up with no other device's but over `tensor`."""
    linear = Linear(inputs, outputs, axes, dtypes=Dtypes(), rngs=nnx.Rngs(0), std=1.0)
    graph, params = split(linear)
    x = normal(4, rows, *inputs)
    loss = lambda params, x: (merge(graph, params)(x) ** 2).sum()
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
    with use_mesh(make_mesh(MESH)):
        place = lambda array, axes: jax.device_put(array, sharding(axes, array.shape))
        shards = {"kernel": place(params["kernel"], axes)}
        spread = place(x, ("batch", *(None,) * (x.ndim - 1)))
        assert (linear._find_places(x.size // 8) is None) == (rows == 1)
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        toy.assert_close(step(shards, spread), expected, 1e-5)
        if rows > 1:
            text = jax.jit(lambda params, x: merge(graph, params)(x)).lower(shards, spread).compile().as_text()
            assert re.search(r" all-gather\(", text)


def test_norm_is_computed_in_float32_whatever_the_compute_dtype() -> None:
    x, scale = normal(3, 16) * 40, normal(16, seed=1)
    norm = RMSNorm(16, epsilon=1e-5, dtypes=MIXED, rngs=nnx.Rngs(0))
    assert (np.asarray(norm.scale[...]) == 1).all()
    norm.scale[...] = jnp.asarray(scale)
    found = norm(jnp.asarray(x, jnp.bfloat16))
    exact = naive.normalize(np.asarray(x.astype(jnp.bfloat16), np.float64), scale, 1e-5)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), exact.astype(np.float32).astype(jnp.bfloat16))


@pytest.mark.parametrize("dtypes", [FLOAT, MIXED])
def test_logits_are_float32_and_the_tied_head_is_the_table(dtypes: Dtypes) -> None:
    embedding = Embedding(11, 8, dtypes=dtypes, rngs=nnx.Rngs(0), std=1.0)
    head = Head(8, 11, dtypes=dtypes, rngs=nnx.Rngs(0), std=1.0)
    table, x = np.asarray(embedding.embedding[...]), normal(2, 3, 8)
    head.kernel[...] = jnp.asarray(table.T)
    tokens = np.array([[0, 10], [3, 3]])
    np.testing.assert_array_equal(embedding(jnp.asarray(tokens)), table[tokens].astype(dtypes.compute))
    for logits in (embedding.attend(jnp.asarray(x)), head(jnp.asarray(x))):
        rounded = [array.astype(dtypes.compute).astype(np.float64) for array in (x, table)]
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, rounded[0] @ rounded[1].T, rtol=0, atol=1e-5)


def test_gated_mlp() -> None:
    mlp = GatedMLP(6, 10, dtypes=FLOAT, rngs=nnx.Rngs(0), std=1.0)
    gate, up, down = (np.asarray(part.kernel[...], np.float64) for part in (mlp.gate, mlp.up, mlp.down))
    x = normal(2, 3, 6)
    z = x @ gate
    np.testing.assert_allclose(mlp(jnp.asarray(x))[0], (z / (1 + np.exp(-z)) * (x @ up)) @ down, rtol=1e-4, atol=1e-5)
