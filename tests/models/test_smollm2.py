"""The demo model is what transformers computes: weights, logits, greedy tokens (tests/goldens/make_smollm2.py)."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from r1jax.core.structs import Completion, Request, Sampling
from r1jax.models.families.llama import HF_NAMES
from r1jax.models.transformer import Transformer, merge, split
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights import load_pretrained

GOLDENS = Path(__file__).parents[1] / "goldens"
LOGIT_TOLERANCE = 2e-3
PROMPT, NEW = 64, 48
SAMPLED = 4

Loaded = tuple[Transformer, Tokenizer]


@pytest.fixture(scope="module")
def loaded(demo_model: Path) -> Loaded:
    model, tokenizer = load_pretrained(demo_model)
    assert tokenizer is not None
    return model, tokenizer


@pytest.fixture(scope="module")
def forward(loaded: Loaded) -> Callable[[list[list[int]]], list[np.ndarray]]:
    """Logits [T, V] of each row; short rows go four at once at one width (causal: what follows changes nothing)."""
    graph, params = split(loaded[0])
    run = jax.jit(lambda params, tokens: merge(graph, params)(tokens))

    def forward(rows: list[list[int]]) -> list[np.ndarray]:
        if len(rows) == 1:
            return [np.asarray(run(params, np.array(rows)))[0]]
        assert len(rows) == SAMPLED
        padded = np.stack([np.pad(row, (0, PROMPT + NEW - len(row))) for row in rows])
        return [logits[: len(row)] for row, logits in zip(rows, np.asarray(run(params, padded)), strict=True)]

    return forward


@pytest.fixture(scope="module")
def goldens() -> list[dict]:
    return json.loads((GOLDENS / "greedy.json").read_text())


@pytest.fixture(scope="module")
def completions(loaded: Loaded, goldens: list[dict]) -> list[Completion]:
    """All greedy continuations, then some sampled ones of the first prompt: in one batch, from one cache."""
    graph, params = split(loaded[0])
    greedy, random = (Sampling(temperature=t, max_new_tokens=NEW) for t in (0.0, 1.0))  # no stop ids, as in the goldens
    requests = [Request(tuple(golden["tokens"]), greedy) for golden in goldens]
    requests += [Request(tuple(goldens[0]["tokens"]), random, seed) for seed in range(SAMPLED)]
    config = EngineConfig(slots=len(requests), max_prompt_tokens=PROMPT, max_new_tokens=NEW, prefill_batch=5)
    return Engine(graph, config).generate(params, requests)


def test_weights_are_those_of_transformers(loaded: Loaded) -> None:
    expected = json.loads((GOLDENS / "weights.json").read_text())
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(split(loaded[0])[1]):
        keys = [entry.key for entry in path]
        name, inputs = HF_NAMES[".".join("{}" if isinstance(key, int) else key for key in keys)]
        array = np.asarray(leaf)
        if inputs is not None:
            array = array.reshape(int(np.prod(array.shape[:inputs])), -1).T
        found[name.format(*[key for key in keys if isinstance(key, int)])] = {
            "shape": list(array.shape),
            "sha256": hashlib.sha256(np.ascontiguousarray(array, np.float32).data).hexdigest(),
        }
    assert found == expected


def test_logits_are_those_of_transformers(forward: Callable[[list[list[int]]], list[np.ndarray]]) -> None:
    golden = np.load(GOLDENS / "logits.npz")
    rows = [golden[f"tokens_{i}"].tolist() for i in range(golden["count"])]
    short = [i for i, row in enumerate(rows) if len(row) <= PROMPT]
    logits = dict(zip(short, forward([rows[i] for i in short]), strict=True))
    logits |= {i: forward([row])[0] for i, row in enumerate(rows) if i not in short}
    for i, ours in logits.items():
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours[:, golden["columns"]], golden[f"logits_{i}"], rtol=0, atol=LOGIT_TOLERANCE)
        total = np.logaddexp.reduce(ours.astype(np.float64), axis=-1)
        np.testing.assert_allclose(total, golden[f"logsumexp_{i}"], rtol=0, atol=LOGIT_TOLERANCE)
        # A near tie may fall the other way, but then the golden's choice is within the tolerance of the best.
        chosen = np.take_along_axis(ours, golden[f"argmax_{i}"][:, None], axis=-1)[:, 0]
        assert (chosen >= ours.max(-1) - 2 * LOGIT_TOLERANCE).all()


def test_prompts_are_encoded_as_by_transformers(loaded: Loaded, goldens: list[dict]) -> None:
    assert [loaded[1].encode(golden["text"]) for golden in goldens] == [golden["tokens"] for golden in goldens]


def test_greedy_continuations_with_the_cache_are_those_of_transformers(
    goldens: list[dict], completions: list[Completion]
) -> None:
    assert len(goldens) == 10
    for golden, completion in zip(goldens, completions[: len(goldens)], strict=True):
        assert list(completion.tokens) == golden["continuation"], golden["text"]
        assert completion.finish_reason == "length"


def test_sampled_logprobs_are_those_of_a_pass_without_cache(
    goldens: list[dict], completions: list[Completion], forward: Callable[[list[list[int]]], list[np.ndarray]]
) -> None:
    prompt, sampled = goldens[0]["tokens"], completions[-SAMPLED:]
    rows = [[*prompt, *completion.tokens] for completion in sampled]
    at = np.arange(len(prompt) - 1, len(rows[0]) - 1)
    differences = []
    for logits, completion in zip(forward(rows), sampled, strict=True):
        logits = logits[at].astype(np.float64)
        chosen = logits[np.arange(NEW), completion.tokens]
        differences.append(np.abs(chosen - np.logaddexp.reduce(logits, axis=-1) - completion.logprobs))
    assert np.mean(differences) < 1e-5 and np.max(differences) < 1e-3
