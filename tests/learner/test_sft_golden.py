"""The same supervised steps as a plain torch loop takes (tests/goldens/make_sft.py), loss by loss."""

import pathlib

import numpy as np
import pytest

from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.state import init_state
from r1jax.learner.step import Learner
from r1jax.learner.supervised import Batch, SupervisedConfig, make_loss, share_weights, split_batch, summarize
from r1jax.models.transformer import logical_axes, split
from r1jax.weights.pretrained import load_pretrained
from tests.goldens.make_sft import SETTINGS, STEPS

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "sft.npz"


def shift(tokens_BT: np.ndarray, weights_BT: np.ndarray) -> Batch:
    """What stands in the file as our batches have it: each place with its target."""
    fed = tokens_BT[:, :-1].astype(np.int32)
    return {
        "tokens": fed,
        "targets": tokens_BT[:, 1:].astype(np.int32),
        "weights": weights_BT[:, 1:].astype(np.float32),
        "segments": (fed != 0).astype(np.int32),
        "positions": np.broadcast_to(np.arange(fed.shape[1], dtype=np.int32), fed.shape),
    }


def test_twenty_steps_have_the_losses_of_torch(tiny_model: pathlib.Path) -> None:
    golden = np.load(GOLDEN)
    model, _ = load_pretrained(tiny_model)
    graph, params = split(model)
    optimizer = make_optimizer(OptimizerConfig(**SETTINGS), STEPS)
    learner = Learner(make_loss(graph, SupervisedConfig()), optimizer)
    state, losses = init_state(params, logical_axes(model), optimizer), []
    for tokens, weights in zip(golden["tokens"], golden["weights"], strict=True):
        batches = share_weights(split_batch(shift(tokens, weights), 2))
        state, _, sums = learner.update(state, {}, batches)
        losses.append(summarize(sums)["loss"])
    assert losses[-1] < losses[0] / 2
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-3)
    norm = np.linalg.norm(np.asarray(state.params["layers"][1]["mlp"]["down"]["kernel"], np.float64))
    assert norm == pytest.approx(float(golden["norm"]), rel=1e-4)
