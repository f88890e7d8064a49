"""Tiny models of tests/goldens/ held against what transformers computed of them."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.core.structs import Request, Sampling
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.models.rope import is_dynamic
from r1jax.models.transformer import merge, split
from r1jax.rollout.continuous import ContinuousConfig, ContinuousEngine
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from r1jax.weights import load_pretrained
from r1jax.weights.export import convert, export_model
from r1jax.weights.hf import load_weights
from r1jax.weights.pretrained import open_model
from r1jax.weights.views.fused import open_parts
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


def check_family(folder: Path) -> None:
    """Logits, loss and gradient of a scanned model, each gradient within 1e-4 of the norm of torch's."""
    expected = np.load(folder / "expected.npz")
    tokens, gradients = expected["tokens"], dict(np.load(folder / "gradient.npz"))
    model, _ = load_pretrained(folder, scan_layers=True)
    graph, params = split(model)

    def loss(params: dict) -> tuple[jax.Array, jax.Array]:
        logits = merge(graph, params)(tokens)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1).mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(value, gradients.pop("loss"), rtol=1e-5)
    opened = open_model(folder)
    family = opened.family
    make = lambda: family.build(model.config, rngs=nnx.Rngs(0), scan_layers=True)
    theirs = split(load_weights(make, family.HF_NAMES, open_parts(_Arrays(gradients), family, model.config)))[1]
    drop = lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros(()) if path[-1].key == "correction_bias" else leaf, tree
    )
    assert_close(drop(gradient), drop(theirs), 1e-4)


def check_cache(folder: Path) -> None:
    """Logits of tokens fed in pieces through a cache of whole columns, and through caches that keep windows."""
    tokens = np.load(folder / "expected.npz")["tokens"]
    graph, params = split(load_pretrained(folder)[0])
    B, T = tokens.shape
    whole = jax.jit(lambda params: merge(graph, params)(tokens))(params)

    feed = jax.jit(
        lambda params, tokens, positions, cache: merge(graph, params)(tokens, positions=positions, cache=cache)
    )
    for step, chunk in ((10, 0), (4, 5), (1, 1)):
        cache, found = merge(graph, params).init_cache(B, T, chunk), []
        for first in range(0, T, step):
            positions = np.broadcast_to(first + np.arange(step), (B, step))
            logits, cache = feed(params, tokens[:, first : first + step], positions, cache)
            found.append(np.asarray(logits))
        np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def check_packed(folder: Path) -> None:
    """Two sequences in one row against each in its own."""
    tokens = np.load(folder / "expected.npz")["tokens"][0]
    graph, params = split(load_pretrained(folder)[0])
    first, T = 17, len(tokens)
    segments = np.where(np.arange(T) < first, 1, 2)[None]
    positions = np.where(np.arange(T) < first, np.arange(T), np.arange(T) - first)[None]
    run = jax.jit(lambda params, tokens, **told: merge(graph, params)(tokens, **told))
    packed = run(params, tokens[None], positions=positions, segment_ids=segments)[0]
    for part in (slice(0, first), slice(first, T)):
        single = run(params, tokens[None, part])[0]
        np.testing.assert_allclose(packed[part], single, rtol=0, atol=1e-5 * np.abs(single).max())


def check_stacked(folder: Path, put_in_place: Callable[[], None]) -> None:
    """A prompt and two tokens after it through a scanned model, before and after `put_in_place`, which makes layers
    read and write their caches inside the stacks, as on TPUs.
    """
    tokens = np.load(folder / "expected.npz")["tokens"]
    graph, params = split(load_pretrained(folder, scan_layers=True)[0])

    def run(params: dict) -> list[jax.Array]:
        model = merge(graph, params)
        logits, cache = model(tokens[:, :20], cache=model.init_cache(len(tokens), 24))
        found = [logits]
        for at in (20, 21):
            logits, cache = model(tokens[:, at : at + 1], cache=cache, positions=np.full((len(tokens), 1), at))
            found.append(logits)
        return found

    expected = jax.jit(run)(params)
    put_in_place()
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), jax.jit(lambda p: run(p))(params), expected)


def check_samplers(folder: Path) -> None:
    """Log-probs of both engines against one forward pass; slots are fewer than requests, prompts of many lengths. Rows
    stay within the length from which on a scaling of positions looks at the whole row (docs/families.md).
    """
    tokens = np.load(folder / "expected.npz")["tokens"]
    model = load_pretrained(folder)[0]
    graph, params = split(model)
    scaling = getattr(model.config, "rope_scaling", None)
    longest = scaling.original_positions if is_dynamic(scaling) else 64
    prompts = [tuple(tokens[i % 2, : 3 + 4 * i].tolist()) for i in range(5)]
    limits = [min(12 + 7 * i, longest - len(prompt)) for i, prompt in enumerate(prompts)]
    requests = [Request(p, Sampling(temperature=1.0, max_new_tokens=limits[i]), i) for i, p in enumerate(prompts)]
    config = EngineConfig(slots=3, max_prompt_tokens=19, max_new_tokens=40, prefill_batch=2, refill_share=0.0)
    for prefix in ((), prompts[0][:2]):
        shared = [r for r in requests if r.tokens[: len(prefix)] == prefix]
        engine = Engine(graph, dataclasses.replace(config, prefix=prefix))
        for request, completion in zip(shared, engine.generate(params, shared), strict=True):
            _check_logprobs(graph, params, request.tokens, completion.tokens, completion.logprobs, longest)
    continuous = ContinuousEngine(graph, params, ContinuousConfig(slots=3, max_tokens=64, chunk=4, burst=3))
    waiting, running = list(requests), {}
    while waiting or running:
        while waiting and continuous.free:
            request = waiting.pop(0)
            running[continuous.open(request.tokens, request.sampling, request.seed)] = request, [], []
        for burst in continuous.step():
            request, ids, logprobs = running[burst.slot]
            ids += burst.tokens
            logprobs += burst.logprobs
            if burst.finish_reason:
                continuous.close(burst.slot)
                del running[burst.slot]
                _check_logprobs(graph, params, request.tokens, tuple(ids), tuple(logprobs), longest)


def _check_logprobs(graph: Any, params: dict, prompt: tuple, ids: tuple, logprobs: tuple, longest: int) -> None:
    """The mean difference is below 1e-5, as the metric of runs has it; no token's is three times as large (the logits
    of these models spread over ten, and single tokens were seen to round by 1.6e-5).
    """
    row = np.zeros((1, longest), np.int32)
    row[0, : len(prompt) + len(ids)] = (*prompt, *ids)
    logits = _forward(graph, params, row)[0, len(prompt) - 1 : len(prompt) + len(ids) - 1]
    expected = np.take_along_axis(jax.nn.log_softmax(logits), np.array(ids)[:, None], axis=-1)[:, 0]
    assert np.abs(np.array(logprobs) - expected).mean() < 1e-5
    np.testing.assert_allclose(logprobs, expected, rtol=0, atol=3e-5)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: Any, params: dict, row: jax.Array) -> jax.Array:
    return merge(graph, params)(row)


def check_files(folder: Path, out: Path) -> None:
    """Every tensor unchanged after `convert`, and after an export of the loaded parameters; config.json agrees."""
    original = load_tensors(folder)
    convert(folder, out / "converted")
    model, _ = load_pretrained(folder, scan_layers=True)
    export_model(model.config, split(model)[1], None, out / "exported", dtype="bfloat16")
    for name in ("converted", "exported"):
        again = load_tensors(out / name)
        assert set(again) == set(original)
        for tensor in original:
            np.testing.assert_array_equal(again[tensor], original[tensor], err_msg=tensor)
        assert open_model(out / name).config == model.config


def load_tensors(folder: Path) -> dict[str, np.ndarray]:
    file = open_tensors(folder)
    return {name: np.asarray(file.read(name)) for name in file.names}
