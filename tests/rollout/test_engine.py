"""The engine against each request by itself: a whole forward pass for every token, the same noise, plain sampling."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.data.packing import RowShape, pack_completions
from r1jax.learner.policy_objective import Scoring, score_rows
from r1jax.models.transformer import Params, merge, split
from r1jax.rollout import engine as engine_module
from r1jax.rollout import slots as slots_module
from r1jax.rollout.engine import Engine
from r1jax.rollout.slots import EngineConfig
from r1jax.weights import load_pretrained
from tests.rollout import naive
from tests.threads import run_in_thread
from tests.traces import limit_traces

TOLERANCE = 1e-5
PROMPT, NEW = 20, 14  # the engine's limits
PREFIX = (9, 8, 7, 6, 5)
STOPS = (114, 89, 171, 154, 169, 97, 263, 281)  # the ids that the tiny model likes best
CONFIG = EngineConfig(slots=4, max_prompt_tokens=PROMPT, max_new_tokens=NEW, prefill_batch=2, refill_share=0.25)


@functools.cache
def load(folder: Path, scan_layers: bool = False) -> tuple[Any, Params]:
    return split(load_pretrained(folder, scan_layers=scan_layers)[0])


@pytest.fixture(scope="module")
def next_logits(tiny_model: Path) -> Any:
    """tokens -> logits [V] of what follows, by the whole forward pass without a cache."""
    graph, params = load(tiny_model)
    forward = jax.jit(lambda params, tokens: merge(graph, params)(tokens))

    def run(tokens: Sequence[int]) -> np.ndarray:
        padded = np.zeros((1, PROMPT + NEW), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(forward(params, padded))[0, len(tokens) - 1]

    return run


def make_requests(prefix: Sequence[int] = ()) -> list[Request]:
    """More than any engine here has slots: groups, prompts and limits of all lengths, every way to sample."""
    generator = np.random.default_rng(0)
    ways = [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(temperature=0.0),
        Sampling(top_k=4),
        Sampling(temperature=1.5, top_p=0.7),
        Sampling(min_p=0.3),
        Sampling(temperature=1.2, top_k=40, top_p=0.9, min_p=0.02),
    ]
    sizes = [1, 2, 7, 13, PROMPT - len(prefix)]
    prompts = [(*prefix, *generator.integers(4, 304, size).tolist()) for size in sizes]
    order = [0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 1, 0, 3, 2]  # groups stand together, and come again later
    limits = [NEW, 1, 5, NEW, 2, 9, NEW, 3, NEW, NEW, 1, NEW, 7, NEW, NEW]
    return [
        Request(
            prompts[prompt],
            dataclasses.replace(ways[i % len(ways)], max_new_tokens=limit, stop_ids=STOPS if i % 2 else ()),
            seed=1000 + 7 * i,
        )
        for i, (prompt, limit) in enumerate(zip(order, limits, strict=True))
    ]


def assert_same(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=TOLERANCE)


# --- Against the naive loop ---


@pytest.mark.parametrize(
    ("prefix", "scan_layers", "changes"),
    [
        ((), False, {}),
        (PREFIX, False, {"slots": 3, "refill_share": 0.0}),
        (PREFIX, True, {"slots": 5, "prefill_batch": 1, "refill_share": 1.0}),
        ((), True, {"slots": 1, "prefill_batch": 4}),
    ],
    ids=["plain", "prefix", "prefix-scanned", "scanned-one-slot"],
)
def test_refilled_slots_give_what_each_request_gives_by_itself(
    tiny_model: Path, next_logits: Any, prefix: tuple[int, ...], scan_layers: bool, changes: dict[str, Any]
):
    requests = make_requests(prefix)
    graph, params = load(tiny_model, scan_layers)
    found = Engine(graph, dataclasses.replace(CONFIG, prefix=prefix, **changes)).generate(params, requests)
    assert_same(found, [naive.continue_alone(next_logits, request) for request in requests])
    assert {completion.finish_reason for completion in found} == {"stop", "length"}


@pytest.mark.parametrize(("prefix", "scan_layers"), [((), True), (PREFIX, False)], ids=["scanned", "prefix"])
def test_a_cache_that_grows_changes_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, prefix: tuple[int, ...], scan_layers: bool
):
    requests = make_requests(prefix)
    graph, params = load(tiny_model, scan_layers)
    config = dataclasses.replace(CONFIG, prefix=prefix)
    whole = Engine(graph, dataclasses.replace(config, cache_pieces=1)).generate(params, requests)
    monkeypatch.setattr(slots_module, "_SHORTEST_PIECE", 4)
    start = PROMPT - len(prefix)
    assert config.cache_lengths == [start + 5, start + 10, start + NEW]
    engine = Engine(graph, config)
    assert_same(engine.generate(params, requests), whole)
    assert_same(engine.generate(params, requests), whole)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[tuple[Engine, Params]]:
    """One engine for all the tests below, so that it is compiled once; each call must not care what came before."""
    graph, params = load(tiny_model)
    yield Engine(graph, CONFIG), params


def test_every_stop_id_stops_and_is_the_last_token(engine: tuple[Engine, Params]):
    requests = [Request((5, 6, 7), Sampling(max_new_tokens=NEW, stop_ids=STOPS), seed) for seed in range(40)]
    found = engine[0].generate(engine[1], requests)
    stopped = [c for c in found if c.finish_reason == "stop"]
    assert len({c.tokens[-1] for c in stopped}) > 2
    for completion in found:
        assert len(completion.tokens) == len(completion.logprobs) <= NEW
        assert not set(completion.tokens[:-1]) & set(STOPS)
        assert (completion.tokens[-1] in STOPS) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(completion.tokens) == NEW


def test_a_stop_at_the_limit_is_a_stop(engine: tuple[Engine, Params]):
    request = Request((5, 6, 7), Sampling(temperature=0.0, max_new_tokens=3))
    (cut,) = engine[0].generate(engine[1], [request])
    assert cut.finish_reason == "length"
    stopping = dataclasses.replace(request.sampling, stop_ids=(1, cut.tokens[-1]))
    (ended,) = engine[0].generate(engine[1], [dataclasses.replace(request, sampling=stopping)])
    assert ended.tokens == cut.tokens[: cut.tokens.index(cut.tokens[-1]) + 1] and ended.finish_reason == "stop"


def test_greedy_has_logprobs_at_temperature_one(engine: tuple[Engine, Params], next_logits: Any):
    (found,) = engine[0].generate(engine[1], [Request((40, 41), Sampling(temperature=0.0, max_new_tokens=1))])
    logits_V = next_logits([40, 41])
    assert found.tokens == (logits_V.argmax(),)
    assert found.logprobs[0] == pytest.approx(naive.log_softmax(logits_V.astype(np.float64)).max(), abs=TOLERANCE)


def test_no_requests_no_completions(engine: tuple[Engine, Params]):
    assert engine[0].generate(engine[1], []) == []


# --- What must not matter ---


def test_one_prefill_a_prompt(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, engine: tuple[Engine, Params]):
    """Groups share it, also where they do not fit the slots or stand apart in the list."""
    prompts: list[tuple[int, ...]] = []
    prefill = engine[0]._prefill

    def count(params: Params, prefix: Any, tokens: jax.Array) -> Any:
        prompts.extend(tuple(row) for row in np.asarray(tokens).tolist() if any(row))
        return prefill(params, prefix, tokens)

    monkeypatch.setattr(engine[0], "_prefill", count)
    groups = [[Request((60 + p, 5), Sampling(max_new_tokens=4), seed) for seed in range(7)] for p in range(5)]
    engine[0].generate(engine[1], [request for group in groups for request in group])
    assert len(prompts) == len(set(prompts)) == 5
    prompts.clear()
    engine[0].generate(engine[1], [request for round in zip(*groups, strict=True) for request in round])
    assert len(prompts) == len(set(prompts)) == 5


def test_members_of_a_group_differ_by_their_seeds_alone(engine: tuple[Engine, Params]):
    requests = [Request((50, 51, 52), Sampling(max_new_tokens=6), seed) for seed in (3, 4, 3, 2**32 + 3, 5)]
    a, b, c, wrapped, d = engine[0].generate(engine[1], requests)
    assert a.tokens == c.tokens == wrapped.tokens
    assert len({a.tokens, b.tokens, d.tokens}) == 3


def test_the_batch_around_a_request_does_not_matter(engine: tuple[Engine, Params]):
    requests = make_requests()
    together = engine[0].generate(engine[1], requests)
    backwards = engine[0].generate(engine[1], requests[::-1])[::-1]
    assert_same(backwards, together)
    few = engine[0].generate(engine[1], requests[3:9:2])
    assert_same(few, together[3:9:2])


def test_a_second_call_gives_the_same_bits_as_a_fresh_engine(tiny_model: Path, engine: tuple[Engine, Params]):
    requests = make_requests()
    graph, params = load(tiny_model)
    fresh = Engine(graph, CONFIG).generate(params, requests)
    engine[0].generate(engine[1], make_requests()[4:11])
    again = engine[0].generate(engine[1], requests)
    assert again == fresh
    assert engine[0].generate(engine[1], requests) == fresh


def test_new_weights_leave_nothing_of_the_old_ones_behind(tiny_model: Path):
    graph, params = load(tiny_model)
    other = jax.tree.map(lambda x: x * 0.9, params)
    requests = make_requests(PREFIX)
    config = dataclasses.replace(CONFIG, prefix=PREFIX)
    kept = Engine(graph, config)
    kept.generate(params, requests)
    changed = kept.generate(other, requests)
    assert changed == Engine(graph, config).generate(other, requests)
    assert changed != kept.generate(params, requests)


def test_log_probs_are_those_of_the_trainer(tiny_model: Path, engine: tuple[Engine, Params]):
    """Packed rows through the trainer's program, at the temperature of the rollout."""
    graph, params = load(tiny_model)
    sampling = Sampling(temperature=0.8, max_new_tokens=NEW, stop_ids=STOPS[:2])
    requests = [
        Request(tuple(range(20 + p, 25 + 3 * p)), sampling, seed=10 * p + g) for p in range(4) for g in range(3)
    ]
    found = engine[0].generate(engine[1], requests)
    packed = pack_completions(
        [request.tokens for request in requests[::3]],
        [completion.tokens for completion in found],
        [i // 3 for i in range(len(found))],
        RowShape(PROMPT, NEW, 2),
    )
    fields = ("tokens", "positions", "segments", "prefixes", "index", "targets")
    batch = {name: jnp.asarray(getattr(packed, name)) for name in fields}
    logprobs, _ = score_rows(graph, params, batch, Scoring(temperature=0.8))
    sampled = packed.lay_out(np.concatenate([np.array(c.logprobs, np.float32) for c in found]))
    inside = packed.source >= 0
    assert inside.sum() == sum(len(c.tokens) for c in found)
    np.testing.assert_allclose(np.asarray(logprobs)[inside], sampled[inside], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("mesh", "prefix"),
    [(MeshConfig(data=8), PREFIX), (MeshConfig(data=2, fsdp=2, tensor=2), PREFIX), (MeshConfig(data=1, tensor=8), ())],
    ids=["data8", "data2-fsdp2-tensor2", "tensor8"],
)
def test_eight_devices_give_the_tokens_of_one(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, mesh: MeshConfig, prefix: tuple[int, ...]
):
    """Also from a thread that has entered no mesh: there to the bit, by the same programs."""
    requests = make_requests(prefix)
    graph, params = load(tiny_model)
    config = dataclasses.replace(CONFIG, slots=8, prefill_batch=8, prefix=prefix)
    expected = Engine(graph, dataclasses.replace(CONFIG, prefix=prefix)).generate(params, requests)
    limit_traces(monkeypatch, engine_module, _init=1, _prefill=1, _prefix=1, _decode=1, insert=1)
    with use_mesh(make_mesh(mesh)):
        graph, params = split(load_pretrained(tiny_model)[0])
        sharded = Engine(graph, config)
        found = sharded.generate(params, requests)
        elsewhere = run_in_thread(lambda: sharded.generate(params, requests))
    assert_same(found, expected)
    for one, other in zip(elsewhere, found, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


# --- Mistakes ---


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((5,) * (PROMPT + 1), Sampling(max_new_tokens=2)), "config.rollout.max_prompt_tokens"),
        (Request((), Sampling(max_new_tokens=2)), f"a prompt must have 1 to {PROMPT} tokens, got 0"),
        (Request((5,), Sampling(max_new_tokens=NEW + 1)), "config.rollout.max_new_tokens"),
        (Request((5,), Sampling(max_new_tokens=0)), f"a limit of 1 to {NEW} tokens, got 0"),
        (Request((5,), Sampling(max_new_tokens=2, stop_ids=tuple(range(9)))), "at most 8 stop ids, got 9"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_runs(
    engine: tuple[Engine, Params], request_: Request, message: str
):
    good = Request((5, 6), Sampling(max_new_tokens=2))
    with pytest.raises(UserError, match=message):
        engine[0].generate(engine[1], [good, request_])
    assert len(engine[0].generate(engine[1], [good])) == 1


@pytest.mark.parametrize("tokens", [(9, 8, 7), PREFIX, (1, *PREFIX, 4)])
def test_a_prompt_must_go_on_from_the_prefix(tiny_model: Path, tokens: tuple[int, ...]):
    graph, params = load(tiny_model)
    engine = Engine(graph, dataclasses.replace(CONFIG, prefix=PREFIX))
    with pytest.raises(UserError, match="prefix"):
        engine.generate(params, [Request(tokens, Sampling(max_new_tokens=2))])


@pytest.mark.parametrize("key", ["slots", "prefill_batch"])
def test_slots_and_prefills_divide_over_the_mesh(tiny_model: Path, key: str):
    config = dataclasses.replace(CONFIG, **{"slots": 8, "prefill_batch": 8, key: 6})
    graph, _ = load(tiny_model)
    with (
        use_mesh(make_mesh(MeshConfig(data=4, tensor=2))),
        pytest.raises(
            UserError, match=f"config.rollout.{key} must be divisible by the 4 shards of the batch axes, got 6"
        ),
    ):
        Engine(graph, config)
