"""The last rows of a call go on in smaller batches: the same tokens, and no row changes its device."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.models.flops import Work
from r1jax.models.transformer import split
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from r1jax.weights import load_pretrained

CONFIG = EngineConfig(slots=64, max_prompt_tokens=8, max_new_tokens=96, prefill_batch=8, cache_pieces=2)


def make_requests(count: int) -> list[Request]:
    """Limits of which most are short: one in eight goes on to 60 to 96 tokens."""
    generator = np.random.default_rng(3)
    limits = np.where(np.arange(count) % 8 == 3, generator.integers(60, 97, count), generator.integers(1, 30, count))
    return [
        Request(tuple(generator.integers(4, 300, 5).tolist()), Sampling(max_new_tokens=int(limit)), seed)
        for seed, limit in enumerate(limits)
    ]


def assert_same(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    assert [(c.tokens, c.finish_reason) for c in found] == [(c.tokens, c.finish_reason) for c in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


def test_sizes_are_quarters_in_eights_of_each_shard():
    assert EngineConfig(slots=64).tail_slots(1) == [16]
    assert EngineConfig(slots=256, tails=3).tail_slots(1) == [64, 16, 8]
    assert EngineConfig(slots=100).tail_slots(1) == [32]
    assert EngineConfig(slots=64).tail_slots(8) == []
    assert EngineConfig(slots=256).tail_slots(8) == [64]
    assert EngineConfig(slots=64, tails=0).tail_slots(1) == []
    assert EngineConfig(slots=64, max_new_tokens=63).tail_slots(1) == []


@pytest.mark.parametrize("scan_layers", [False, True], ids=["layers", "scanned"])
def test_the_tail_gives_the_same_completions(tiny_model: Path, scan_layers: bool):
    graph, params = split(load_pretrained(tiny_model, scan_layers=scan_layers)[0])
    requests = make_requests(200)
    whole = Engine(graph, dataclasses.replace(CONFIG, tails=0)).generate(params, requests)
    engine = Engine(graph, CONFIG)
    assert_same(engine.generate(params, requests), whole)
    assert_same(engine.generate(params, requests[:64]), whole[:64])
    assert engine._shrink._cache_size() == 2  # while the cache could still grow, and when it was whole


def test_on_eight_devices_rows_stay_where_they_are(tiny_model: Path):
    requests = make_requests(270)
    config = dataclasses.replace(CONFIG, slots=256, cache_pieces=1)
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        graph, params = split(load_pretrained(tiny_model, scan_layers=True)[0])
        whole = Engine(graph, dataclasses.replace(config, tails=0)).generate(params, requests)
        engine = Engine(graph, config)
        found = engine.generate(params, requests)
        assert engine._shrink._cache_size() == 1
        (program,) = (p for p in engine.programs(params, requests[0].sampling, Work()) if p.name == "shrink")
        text = program.function.lower(*program.arguments).compile().as_text()
    assert_same(found, whole)
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
