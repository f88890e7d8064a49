"""The supervised loss of packed rows: against a naive Llama, under any cut and on any mesh, and with experts."""

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
from r1jax.learner.step import Learner
from r1jax.learner.supervised import Batch, SupervisedConfig, make_loss, share_weights, split_batch, summarize
from r1jax.models.families import deepseek_v3
from r1jax.models.layers import Dtypes
from r1jax.models.mtp import predict_ahead
from r1jax.models.transformer import Params, logical_axes, merge, split
from tests.models import naive, toy

ROWS, LENGTH = 8, 12
LOSS = SupervisedConfig(mtp_weight=0.3, balance_weight=0.01)


@functools.cache
def batch() -> Batch:
    """Documents of 2 to 6 places packed in 8 rows; the last row is empty, and padding holds garbage."""
    random = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    rows = {name: random.integers(0, 64, shape).astype(np.int32) for name in ("tokens", "targets")}
    rows |= {name: np.zeros(shape, np.int32) for name in ("segments", "positions")}
    rows["weights"] = np.zeros(shape, np.float32)
    for row in range(ROWS - 1):
        start = 0
        for segment in (1, 2, 3):
            size = int(random.integers(2, 7))
            if start + size > LENGTH:
                break
            at = slice(start, start + size)
            rows["segments"][row, at], rows["positions"][row, at] = segment, np.arange(size)
            rows["targets"][row, start : start + size - 1] = rows["tokens"][row, start + 1 : start + size]
            rows["weights"][row, at] = random.choice([0, 1, 0.5], size, p=[0.3, 0.6, 0.1])
            start += size
    return rows


def place(piece: Batch) -> Batch:
    return put_global(piece, jax.tree.map(lambda x: sharding(("batch", None)[: np.ndim(x)], np.shape(x)), piece))


def run(graph: Any, params: Params, size: int, chunk: int = 0) -> tuple[Params, float, dict[str, float]]:
    """(gradient, loss, metrics) of the whole update from micro-batches of `size` rows."""
    learner = Learner(make_loss(graph, LOSS, chunk=chunk), make_optimizer(OptimizerConfig(), 1))
    gradient, losses, sums = jax.tree.map(jnp.zeros_like, params), [], []
    for piece in share_weights(split_batch(batch(), size)):
        gradient, loss, part = learner.accumulate(params, gradient, {}, place(piece))
        losses.append(float(loss))
        sums.append(part)
    return jax.device_get(gradient), sum(losses), summarize(sums)


@functools.cache
def llama() -> tuple[nnx.GraphDef, Params]:
    return toy.build()


@functools.cache
def deepseek() -> tuple[nnx.GraphDef, Params]:
    config = dataclasses.replace(deepseek_v3.VARIANTS["tiny_deepseek_v3"], vocab_size=64, initializer_std=0.1)
    return split(deepseek_v3.build(config, rngs=nnx.Rngs(0)))


@functools.cache
def whole(family: str) -> tuple[Params, float, dict[str, float]]:
    return run(*{"llama": llama, "deepseek": deepseek}[family](), ROWS)


def test_loss_and_accuracy_are_those_of_a_naive_llama_document_by_document() -> None:
    rows, total, right, counted = batch(), 0.0, 0, 0
    for row, segment in {(r, int(s)) for r in range(ROWS) for s in set(rows["segments"][r]) - {0}}:
        at = rows["segments"][row] == segment
        logits = naive.forward(llama()[1], toy.CONFIG, rows["tokens"][row, at])
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        targets, weights = rows["targets"][row, at], rows["weights"][row, at]
        total -= (weights * logprobs[np.arange(len(targets)), targets]).sum()
        right += int(((logits.argmax(-1) == targets) & (weights > 0)).sum())
        counted += int((weights > 0).sum())
    _, loss, metrics = whole("llama")
    assert loss == pytest.approx(total / rows["weights"].sum(), rel=1e-5)
    assert metrics == {"loss": pytest.approx(loss), "token_accuracy": pytest.approx(right / counted)}


@pytest.mark.parametrize(
    ("family", "size", "chunk"),
    [("llama", 2, 0), ("llama", 1, 4), pytest.param("deepseek", 2, 0, marks=pytest.mark.slow)],
)
def test_the_cut_changes_nothing(family: str, size: int, chunk: int) -> None:
    gradient, loss, metrics = run(*{"llama": llama, "deepseek": deepseek}[family](), size, chunk)
    expected, expected_loss, expected_metrics = whole(family)
    toy.assert_close(gradient, expected)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "rows"), [({"data": 8}, 8), ({"data": 2, "fsdp": 4}, 8), ({"fsdp": 2, "tensor": 4}, 4)]
)
def test_the_mesh_changes_nothing(sizes: dict[str, int], rows: int) -> None:
    config = toy.change(num_heads=8, num_kv_heads=4)
    graph, params = toy.build(config)
    expected, loss, metrics = run(graph, params, ROWS)
    with use_mesh(make_mesh(MeshConfig(**sizes))):
        axes = logical_axes(merge(graph, params))
        placed = jax.tree.map(lambda x, axes: jax.device_put(x, sharding(axes, x.shape)), params, axes)
        found = run(graph, placed, rows)
    toy.assert_close(found[0], expected)
    assert found[1] == pytest.approx(loss, rel=1e-6) and found[2] == pytest.approx(metrics, rel=1e-5)


def test_depths_and_balance_add_up_to_the_loss() -> None:
    _, loss, metrics = whole("deepseek")
    together = metrics["loss"] + 0.3 * metrics["mtp_loss"] + 0.01 * metrics["balance_loss"]
    assert loss == pytest.approx(together, rel=1e-6)
    rows = batch()
    graph, params = deepseek()
    places = {"positions": rows["positions"], "segment_ids": rows["segments"]}

    @jax.jit  # one program compiles sooner than two hundred operations
    def predict(params: Params) -> jax.Array:
        model = merge(graph, params)
        states = model.hidden(rows["tokens"], **places)
        depths, _ = predict_ahead(model, states.hidden, rows["tokens"], **places)
        return jax.nn.log_softmax(model.unembed(depths[0]))

    # What the depth predicts at a place is the target of the next place, where that is of the same document.
    logprobs = np.asarray(predict(params), np.float64)
    total = 0.0
    for row, place in np.ndindex(ROWS, LENGTH - 1):
        if rows["segments"][row, place] == rows["segments"][row, place + 1] != 0:
            total -= rows["weights"][row, place + 1] * logprobs[row, place, rows["targets"][row, place + 1]]
    assert metrics["mtp_loss"] == pytest.approx(total / rows["weights"].sum(), rel=1e-4)
    # Three layers that route (two, and the depth's), each about 1 where its experts are in balance.
    assert 2.5 < metrics["balance_loss"] < 6


def test_rows_of_padding_alone_make_no_nan() -> None:
    empty = {name: np.zeros_like(array) for name, array in batch().items()}
    for graph, params in (llama(), deepseek()):
        learner = Learner(make_loss(graph, LOSS), make_optimizer(OptimizerConfig(), 1))
        zeros = jax.tree.map(jnp.zeros_like, params)
        gradient, loss, sums = learner.accumulate(params, zeros, {}, share_weights([empty])[0])
        assert float(loss) == 0 and summarize([sums])["token_accuracy"] == 0
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_bfloat16_computes_near_float32_and_keeps_float32_gradients() -> None:
    low, params = toy.build(dtypes=Dtypes("float32", "bfloat16"))
    gradient, loss, _ = run(low, params, ROWS)
    expected, expected_loss, _ = whole("llama")
    assert loss == pytest.approx(expected_loss, rel=0.02) and loss != expected_loss
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(gradient))
    toy.assert_close(gradient, expected, 0.1)
