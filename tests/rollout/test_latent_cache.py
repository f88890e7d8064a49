"""The engine on latent attention: its cache of latents is filled, copied and refilled as that of keys and values is."""

from collections.abc import Sequence

import jax
import numpy as np
import pytest

from r1jax.core.structs import Request, Sampling
from r1jax.models.transformer import merge
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from tests.models import test_mla
from tests.rollout import naive

PROMPT, NEW, PREFIX = 9, 6, (9, 8, 7)


@pytest.mark.parametrize(("prefix", "scan_layers"), [((), False), (PREFIX, True)])
def test_refilled_slots_give_what_each_request_gives_by_itself(prefix: tuple[int, ...], scan_layers: bool) -> None:
    graph, params = test_mla.build("auto", scan_layers=scan_layers)
    forward = jax.jit(lambda tokens: merge(graph, params)(tokens))

    def next_logits(tokens: Sequence[int]) -> np.ndarray:
        padded = np.zeros((1, PROMPT + NEW), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(forward(padded))[0, len(tokens) - 1]

    random = np.random.default_rng(0)
    prompts = [(*prefix, *random.integers(1, 64, size).tolist()) for size in (6, 1, 3)]
    limits = [6, 2, 5, 6, 1, 6, 3]
    requests = [
        Request(prompts[i % 3], Sampling(temperature=i % 2, max_new_tokens=limit), seed=i)
        for i, limit in enumerate(limits)
    ]
    config = EngineConfig(
        slots=3, max_prompt_tokens=PROMPT, max_new_tokens=NEW, prefill_batch=2, refill_share=0.0, prefix=prefix
    )
    for found, request in zip(Engine(graph, config).generate(params, requests), requests, strict=True):
        expected = naive.continue_alone(next_logits, request)
        assert found.tokens == expected.tokens
        np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=1e-5)
