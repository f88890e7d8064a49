"""Tiny models of tests/goldens/ held against what transformers computed of them."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.structs import Request, Sampling
from r1jax.models.transformer import merge, split
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from r1jax.weights import load_pretrained
from r1jax.weights.hf import load_weights
from tests.models.toy import assert_close

DENSE = Path(__file__).parents[1] / "goldens" / "dense"
LOGIT_TOLERANCE = 2e-4  # absolute, of logits that spread over about ten


def check_logits(folder: Path, *, scan_layers: bool = False) -> None:
    """One forward pass over the golden's 3 x 64 tokens."""
    expected = np.load(folder / "expected.npz")
    graph, params = split(load_pretrained(folder, scan_layers=scan_layers)[0])
    found = jax.jit(lambda params: merge(graph, params)(expected["tokens"]))(params)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=LOGIT_TOLERANCE)


def check_greedy(folder: Path) -> None:
    """Greedy tokens through the cache; two slots, so that one is filled anew while the other goes on."""
    expected = np.load(folder / "expected.npz")
    graph, params = split(load_pretrained(folder)[0])
    prompts, continuation = expected["prompts"], expected["continuation"]
    sampling = Sampling(temperature=0.0, max_new_tokens=continuation.shape[1])
    config = EngineConfig(
        slots=2, max_prompt_tokens=prompts.shape[1], max_new_tokens=continuation.shape[1], prefill_batch=1
    )
    requests = [Request(tuple(prompt.tolist()), sampling) for prompt in prompts]
    found = [completion.tokens for completion in Engine(graph, config).generate(params, requests)]
    np.testing.assert_array_equal(found, continuation)


def check_gradient(folder: Path, tolerance: float = 1e-3) -> None:
    """Loss and its gradient by tensor, each within `tolerance` of the norm of torch's."""
    tokens, expected = np.load(folder / "expected.npz")["tokens"], dict(np.load(folder / "gradient.npz"))
    model, _ = load_pretrained(folder)
    graph, params = split(model)

    def loss(params: dict) -> jax.Array:
        logits = merge(graph, params)(tokens)[:, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, expected.pop("loss"), rtol=1e-5)
    family = importlib.import_module(type(model.config).__module__)
    make = lambda: family.build(model.config, rngs=nnx.Rngs(0))
    assert_close(gradient, split(load_weights(make, family.HF_NAMES, _Arrays(expected)))[1], tolerance)


class _Arrays(dict):
    """Arrays by the hub's names, as a source of tensors."""

    path = "gradient.npz"

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        return self[name] if rows is None else self[name][slice(*rows)]

    def count_bytes(self, name: str, rows: tuple[int, int] | None = None) -> int:
        return self.read(name, rows).nbytes
