"""Sequences that arrive, pause, go on and leave at random, against each by itself: a forward pass for every token."""

import collections
import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.sharding import MeshConfig, make_mesh, use_mesh
from r1jax.core.structs import Sampling
from r1jax.models.transformer import merge, split
from r1jax.rollout.continuous import Burst, ContinuousConfig, ContinuousEngine
from r1jax.weights import load_pretrained
from tests.models import test_mla
from tests.rollout.naive import draw, draw_uniform, scaled

CONFIG = ContinuousConfig(slots=4, max_tokens=48, chunk=5, feed_rows=2, burst=4)
STOPS = (114, 89, 171, 154, 169, 97, 263, 17)  # the ids that the tiny model likes best, and one of the latent model
WAYS = [
    Sampling(),
    Sampling(temperature=0.0),
    Sampling(temperature=0.6, stop_ids=STOPS),
    Sampling(temperature=1.2, top_k=40, top_p=0.9, min_p=0.02),
]


@pytest.fixture(scope="module", params=["plain", "scanned", "latent"])
def model(tiny_model: Path, request: pytest.FixtureRequest) -> tuple[Any, Any]:
    if request.param == "latent":
        return test_mla.build("auto", scan_layers=True)
    return split(load_pretrained(tiny_model, scan_layers=request.param == "scanned")[0])


@functools.cache
def compile_forward(graph: Any) -> Callable[..., jax.Array]:
    return jax.jit(lambda params, tokens: merge(graph, params)(tokens))


def find_logits(model: tuple[Any, Any], tokens: Sequence[int]) -> np.ndarray:
    """Logits [V] of what follows the tokens, by the whole forward pass without a cache."""
    padded = np.zeros((1, CONFIG.max_tokens), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(compile_forward(model[0])(model[1], padded))[0, len(tokens) - 1]


@dataclasses.dataclass
class Naive:
    """A sequence as the naive loop knows it: all tokens, the sampling of its last part, and how many were sampled."""

    tokens: list[int]
    sampling: Sampling
    seed: int
    uncomputed: int  # tokens that the engine has not fed, but the last, which is fed with the next sampled one
    sampled: int = 0
    part: int = 0  # sampled since the limit began to count
    is_over: bool = False
    burst: int = 0  # tokens of the last burst that can still be cut

    def check(self, model: tuple[Any, Any], burst: Burst) -> int:
        """Compares a burst token by token; returns the number of tokens that had to be computed for it."""
        computed, self.uncomputed = self.uncomputed + len(burst.tokens), 0
        self.burst = len(burst.tokens)
        for found, logprob in zip(burst.tokens, burst.logprobs, strict=True):
            assert not self.is_over
            uniform = draw_uniform(self.seed, self.sampled)
            token, expected = draw(find_logits(model, self.tokens), self.sampling, uniform)
            assert found == token
            assert logprob == pytest.approx(expected, abs=1e-5)
            self.tokens.append(token)
            self.sampled, self.part = self.sampled + 1, self.part + 1
            self.is_over = token in self.sampling.stop_ids or self.part == self.sampling.max_new_tokens
        reason = "stop" if self.tokens[-1] in self.sampling.stop_ids else "length"
        assert burst.finish_reason == (reason if self.is_over else "")
        return computed


class Mixture:
    """Random calls of an engine, each beside the naive loop."""

    def __init__(self, model: tuple[Any, Any], seed: int):
        self.model, self.draw = model, random.Random(seed)
        self.engine = ContinuousEngine(*model, CONFIG)
        self.live: dict[int, Naive] = {}
        self.computed = self.opened = 0
        self.done = collections.Counter[str]()

    def run(self, calls: int) -> None:
        for _ in range(calls):
            name = self.draw.choice(
                ["open", "open", "extend", "extend", "step", "step", "step", "close", "preempt", "cut"]
            )
            self.done[name] += getattr(self, name)()
        assert self.engine.computed == self.computed

    def open(self) -> bool:
        if not self.engine.free:
            with pytest.raises(UserError, match="all 4 slots are taken"):
                self.engine.open([4], WAYS[0], 0)
            return False
        tokens, sampling = self._draw_tokens(1), self._draw_sampling()
        self.live[self.engine.open(tokens, sampling, self.opened)] = Naive(
            tokens, sampling, self.opened, len(tokens) - 1
        )
        self.opened += 1
        return True

    def extend(self) -> bool:
        parked = [slot for slot, one in self.live.items() if one.is_over]
        if not parked:
            return False
        one, tokens, sampling = self.live[slot := self.draw.choice(parked)], self._draw_tokens(0), self._draw_sampling()
        if len(one.tokens) + len(tokens) + sampling.max_new_tokens > CONFIG.max_tokens:
            with pytest.raises(UserError, match="a sequence must have at most 48 tokens"):
                self.engine.extend(slot, tokens, sampling)
            return False
        self.engine.extend(slot, tokens, sampling)
        one.tokens += tokens
        one.burst = 0
        one.sampling, one.part, one.is_over, one.uncomputed = sampling, 0, False, len(tokens)
        return True

    def step(self) -> bool:
        expected = {slot for slot, one in self.live.items() if not one.is_over}
        assert self.engine.is_idle == (not expected)
        bursts = self.engine.step(self.draw.randint(0, 5), ends=self.draw.randint(0, 2))
        assert {burst.slot for burst in bursts} == expected
        self.computed += sum(self.live[burst.slot].check(self.model, burst) for burst in bursts)
        return bool(bursts)

    def cut(self) -> bool:
        """Parks a slot within its last burst, as where a text ends a turn."""
        burst = {slot: one for slot, one in self.live.items() if one.burst}
        if not burst:
            return False
        one = burst[slot := self.draw.choice(sorted(burst))]
        kept = self.draw.randint(1, one.burst)
        self.engine.cut(slot, kept)
        gone = one.burst - kept
        del one.tokens[len(one.tokens) - gone :]
        one.sampled, one.burst, one.is_over = one.sampled - gone, kept, True
        return True

    def close(self) -> bool:
        """Frees a slot at any moment."""
        if not self.live:
            return False
        slot = self.draw.choice(sorted(self.live))
        self.engine.close(slot)
        del self.live[slot]
        return True

    def preempt(self) -> bool:
        """Frees a slot and computes its sequence anew in another."""
        going = [slot for slot, one in self.live.items() if not one.is_over]
        if not going:
            return False
        one = self.live.pop(slot := self.draw.choice(going))
        self.engine.close(slot)
        one.sampling = dataclasses.replace(one.sampling, max_new_tokens=one.sampling.max_new_tokens - one.part)
        one.part, one.burst, one.uncomputed = 0, 0, len(one.tokens) - 1
        self.live[self.engine.open(one.tokens, one.sampling, one.seed, done=one.sampled)] = one
        return True

    def _draw_tokens(self, least: int) -> list[int]:
        return [self.draw.randrange(4, 64) for _ in range(self.draw.randint(least, 13))]

    def _draw_sampling(self) -> Sampling:
        return dataclasses.replace(self.draw.choice(WAYS), max_new_tokens=self.draw.randint(1, 9))


@pytest.mark.parametrize("seed", range(2))
def test_any_mixture_gives_what_each_sequence_gives_by_itself(model: tuple[Any, Any], seed: int) -> None:
    mixture = Mixture(model, seed)
    mixture.run(80)
    assert min(mixture.done[name] for name in ("open", "extend", "step", "close", "preempt", "cut")) >= 2


def test_neighbours_and_times_of_arrival_change_no_bit(model: tuple[Any, Any]) -> None:
    """In the same slot; another slot's number may round differently, and gives the same tokens."""
    engine, sampling = ContinuousEngine(*model, CONFIG), Sampling(max_new_tokens=12)
    prompt, other = [5, 6, 7, 8, 9, 10, 11, 12], [30, 40, 50]

    def run(before: int, after: int) -> tuple[list[int], list[float]]:
        neighbours = [engine.open(other[: number + 1], sampling, number) for number in range(before)]
        engine.step(before)
        slot, found = engine.open(prompt, sampling, 7), list[Burst]()
        for number in range(6):
            if number < after:
                neighbours.append(engine.open(other, sampling, number))
            found += [burst for burst in engine.step(3) if burst.slot == slot]
        for each in (slot, *neighbours):
            engine.close(each)
        return [t for burst in found for t in burst.tokens], [p for burst in found for p in burst.logprobs]

    alone = run(0, 0)
    assert len(alone[0]) == 12 and run(0, 3) == run(0, 1) == alone
    for before in (1, 3):
        moved = run(before, 0)
        assert moved[0] == alone[0]
        np.testing.assert_allclose(moved[1], alone[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mesh", [{"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["data", "fsdp"])
def test_rows_on_several_devices_give_the_same(tiny_model: Path, mesh: dict[str, int]) -> None:
    with use_mesh(make_mesh(MeshConfig(**mesh))):
        mixture = Mixture(split(load_pretrained(tiny_model)[0]), seed=5)
        mixture.run(30)
        assert mixture.done["extend"]


def test_the_likeliest_ids_come_with_each_token_and_change_nothing(model: tuple[Any, Any]) -> None:
    engine, prompt = ContinuousEngine(*model, CONFIG), [5, 6, 7, 8]
    ways = [Sampling(max_new_tokens=6, temperature=0.7), Sampling(max_new_tokens=6, temperature=0.0)]
    plain, told = [], []
    for alternatives, found in ((0, plain), (4, told)):
        slots = [engine.open(prompt, way, 3) for way in ways]
        bursts = [burst for _ in range(2) for burst in engine.step(alternatives=alternatives)]
        for slot in slots:
            found.append([burst for burst in bursts if burst.slot == slot])
            engine.close(slot)
    for way, before, after in zip(ways, plain, told, strict=True):
        assert [(b.tokens, b.logprobs) for b in before] == [(b.tokens, b.logprobs) for b in after]
        tokens = list(prompt)
        for burst in after:
            for token, likeliest in zip(burst.tokens, burst.alternatives, strict=True):
                expected = scaled(find_logits(model, tokens), way)
                assert list(likeliest) == np.argsort(-expected, kind="stable")[:4].tolist()
                np.testing.assert_allclose(list(likeliest.values()), expected[list(likeliest)], rtol=0, atol=1e-5)
                tokens.append(token)


def test_what_sequences_begin_with_in_common_is_computed_once(model: tuple[Any, Any]) -> None:
    """Two prompts with a template in common and three replies each, and one with tokens of its own behind a prompt; two
    come later, when the others run or have left. Whole chunks are shared, which changes no bit.
    """
    config = dataclasses.replace(CONFIG, slots=8, feed_rows=8, share=True)
    template, sampling = [5, 6, 7, 8, 9, 10, 11], Sampling(max_new_tokens=9)
    prompts = [[*template, 12, 13, 14], [*template, 40, 41, 42, 43, 44, 45, 46]]
    given = [(prompt, seed) for prompt in prompts for seed in range(3)] + [([*prompts[1], 50, 51, 52], 9)]
    later = [(prompts[1], 7), (prompts[0], 8)]

    def run(config: ContinuousConfig, opened: Sequence[tuple[list[int], int]]) -> tuple[list[Any], int]:
        engine, bursts, slots = ContinuousEngine(*model, config), [], []
        slots += [engine.open(tokens, sampling, seed) for tokens, seed in opened]
        bursts += engine.step()
        slots.append(engine.open(later[0][0], sampling, later[0][1]))
        bursts += [burst for _ in range(4) for burst in engine.step()]
        for slot in slots:
            engine.close(slot)
        last = engine.open(later[1][0], sampling, later[1][1])
        final = [burst for _ in range(3) for burst in engine.step()]
        mine = [[burst for burst in bursts if burst.slot == slot] for slot in slots] + [final]
        assert {burst.slot for burst in final} == {last}
        joined = [([t for b in each for t in b.tokens], [p for b in each for p in b.logprobs]) for each in mine]
        return joined, engine.computed

    found, computed = run(config, given)
    expected, anew = run(dataclasses.replace(config, share=False), given)
    assert found == expected and all(len(tokens) == 9 for tokens, _ in found)
    fed = (9 + 2 * 4) + (8 + 2 * 3) + 6  # the first of each prompt, then the others without the chunks that they share
    fed += 3 + 4  # later ones: one beside the first, and one behind them all
    assert computed == fed + 9 * len(found) < anew


def test_a_beginning_that_a_free_slot_holds_outlives_what_others_are_given(model: tuple[Any, Any]) -> None:
    sampling, prompt = Sampling(max_new_tokens=4), [5, 6, 7, 8, 9, 10, 11, 12, 13]

    def run(*, share: bool) -> Burst:
        engine = ContinuousEngine(*model, dataclasses.replace(CONFIG, slots=3, feed_rows=3, share=share))
        first = [engine.open(tokens, sampling, 0) for tokens in ([3] * 9, prompt)]
        engine.step()
        engine.close(first[1])
        engine.extend(first[0], [4] * 7, sampling)  # all rows are fed at once
        engine.step()
        engine.close(first[0])
        last = engine.open(prompt, sampling, 1)
        (burst,) = engine.step()
        assert burst.slot == last != first[1]
        return burst

    found, expected = run(share=True), run(share=False)
    assert found.tokens == expected.tokens and found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
