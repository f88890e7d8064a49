"""The rollout engine's scheduler against a stand-in of the device: every request ends once, with its own tokens."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.structs import Request, Sampling
from r1jax.rollout.scheduler import Scheduler
from r1jax.rollout.slots import EngineConfig
from tests.fuzz.budget import FUZZ

LIMIT, STOP = 12, 7
PROMPTS = st.lists(st.integers(10, 12), min_size=1, max_size=4).map(tuple)
REQUESTS = st.lists(
    st.tuples(PROMPTS, st.integers(1, LIMIT), st.integers(-(2**63), 2**63), st.integers(1, LIMIT)), max_size=30
)


def tokens_of(seed, limit, stop_at):
    """Tokens that the stand-in samples: numbers of the seed, and the stop id as the one of that number, if any."""
    ids = [1000 + (seed + step) % 97 for step in range(limit)]
    return (*ids[: stop_at - 1], STOP) if stop_at <= limit else tuple(ids)


@FUZZ
@given(
    drawn=REQUESTS,
    prefix=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    slots=st.integers(1, 9),
    batch=st.integers(1, 5),
    share=st.sampled_from([0.01, 0.125, 0.5, 1.0]),
    data=st.data(),
)
def test_every_request_ends_once_with_its_own_tokens(drawn, prefix, slots, batch, share, data):
    config = EngineConfig(slots, len(prefix) + 4, LIMIT, batch, refill_share=share, prefix=prefix)
    requests = [
        Request((*prefix, *prompt), Sampling(limit, stop_ids=(STOP,)), seed) for prompt, limit, seed, _ in drawn
    ]
    expected = [tokens_of(seed % 2**32, limit, stop_at) for _, limit, seed, stop_at in drawn]
    scheduler = Scheduler(requests, config)
    owners, prompts, prefilled = {}, np.zeros((batch, 4), np.int32), []
    ended = []
    for _ in range(10 * len(requests) + 10):
        if scheduler.finished:
            break
        for tokens, fill in scheduler.refill():
            if tokens is not None:
                prompts = tokens
                prefilled += [tuple(row[row > 0].tolist()) for row in tokens if row.any()]
            for n in np.flatnonzero(fill.slot < slots):
                slot, columns = int(fill.slot[n]), int(fill.columns[n])
                assert slot not in owners, "a slot is filled while it is in use"
                ids = (*prefix, *prompts[fill.prompt[n], :columns].tolist())
                assert fill.token[n] == ids[-1] and fill.position[n] == len(ids) - 1 and STOP in fill.stop[n]
                owners[slot] = (ids, int(fill.limit[n]), int(fill.seed[n]))
        assert owners and 1 <= scheduler.idle_limit <= slots
        # The device decodes until some of its rows have ended.
        stops = data.draw(st.sets(st.sampled_from(sorted(owners)), min_size=1))
        active = np.array([slot in owners and slot not in stops for slot in range(slots)])
        done, sampled = np.zeros(slots, int), np.zeros((slots, LIMIT), int)
        for slot in stops:
            ids, limit, seed = owners.pop(slot)
            open_ = [
                n
                for n, request in enumerate(requests)
                if n not in dict(ended)
                and (request.tokens, request.sampling.max_new_tokens, request.seed % 2**32) == (ids, limit, seed)
            ]
            assert open_, "a row of no request"
            number = open_[0]
            done[slot] = len(expected[number])
            sampled[slot, : done[slot]] = expected[number]
            owners_of_row = {expected[n] for n in open_}
            ended.append((number, owners_of_row))
        logprobs = -sampled.astype(np.float32)
        slots_ended = scheduler.find_ended(active)
        assert set(slots_ended) == stops
        for _, completion in scheduler.collect(
            slots_ended, done[slots_ended], sampled[slots_ended], logprobs[slots_ended]
        ):
            assert completion.finish_reason == ("stop" if completion.tokens[-1] == STOP else "length")
            assert completion.logprobs == tuple(-float(token) for token in completion.tokens)
            assert any(completion.tokens in possible for _, possible in ended)
    assert scheduler.finished and len(scheduler.completions()) == len(requests)
    assert sorted(prefilled) == sorted({request.tokens[len(prefix) :] for request in requests})
