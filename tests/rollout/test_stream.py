"""Tokens one by one are those that a sampler without a cache would take, whatever the stream held before."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from r1jax.core.structs import Request, Sampling
from r1jax.models.transformer import merge, split
from r1jax.rollout.stream import CHUNK, Stream
from r1jax.weights import load_pretrained
from tests.rollout.naive import continue_alone


def test_a_conversation_gets_the_tokens_of_prompts_computed_from_the_start(tiny_model: Path) -> None:
    graph, params = split(load_pretrained(tiny_model)[0])
    forward = jax.jit(lambda params, tokens: merge(graph, params)(tokens))

    def next_logits(tokens: tuple[int, ...]) -> np.ndarray:
        padded = np.zeros((1, 3 * CHUNK), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(forward(params, padded))[0, len(tokens) - 1]

    stream = Stream(graph, params)
    draw = np.random.default_rng(0).integers(4, 304, 3 * CHUNK).tolist()
    first, second = tuple(draw[: CHUNK + 7]), tuple(draw[:5])
    ways = [Sampling(top_k=5, top_p=0.8), Sampling(temperature=0.0, stop_ids=(2, 3)), Sampling(temperature=1.3)]
    for number, prompt in enumerate([first, (*first, 9, 9, 9), second, draw[2 * CHUNK : 2 * CHUNK + 1], first, first]):
        sampling = dataclasses.replace(ways[number % 3], max_new_tokens=6)
        expected = continue_alone(next_logits, Request(tuple(prompt), sampling, seed=number))
        taken = list(stream.generate(prompt, sampling, number))
        assert tuple(token for token, _ in taken) == expected.tokens
        assert [logprob for _, logprob in taken] == pytest.approx(expected.logprobs, abs=2e-5)
    next(stream.generate(second, ways[0], 0))  # left off after one token
    again = Request(second, dataclasses.replace(ways[1], max_new_tokens=6), seed=0)
    taken = [token for token, _ in stream.generate(second, again.sampling, again.seed)]
    assert tuple(taken) == continue_alone(next_logits, again).tokens
