"""Packed batches: every document whole and once an epoch, nearly full rows, restarts, mixtures, and the same loss."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.distributed import my_share
from r1jax.core.errors import UserError
from r1jax.data.examples import Example
from r1jax.data.sequences import Batch, PackingConfig, SequenceLoader, pack_best_fit, utilisation
from r1jax.models.transformer import Params, merge
from tests.core.test_distributed import start_two
from tests.models import toy

T = 32


def make_example(size: int, mark: int, vocab: int = 10_000) -> Example:
    """A document that tells its source and number by `mark`, its first token."""
    ids = np.random.default_rng(mark).integers(1, vocab, size + 1).astype(np.int32)
    ids[0] = mark
    weights = np.ones(size, np.float32)
    weights[: size // 3] = 0
    return Example(ids[:-1], ids[1:], weights)


def make_source(count: int, first: int = 1, seed: int = 0, longest: int = T, vocab: int = 10_000) -> list[Example]:
    sizes = np.random.default_rng(seed).integers(1, longest + 1, count)
    return [make_example(int(size), first + i, vocab) for i, size in enumerate(sizes)]


def load(sources: Sequence[Sequence[Example]], rows: int = 4, **options: Any) -> SequenceLoader:
    packing = {name: options.pop(name) for name in ("bins", "packed", "read_ahead") if name in options}
    return SequenceLoader(sources, rows, PackingConfig(options.pop("length", T), **packing), **options)


def take(loader: SequenceLoader, count: int) -> list[Batch]:
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def read_documents(batches: Sequence[Batch]) -> list[Example]:
    """Every segment of every row, checked to be in one piece at positions from 0."""
    found = []
    for batch in batches:
        for row in range(len(batch["tokens"])):
            segments = batch["segments"][row]
            for segment in range(1, segments.max(initial=0) + 1):
                places = np.flatnonzero(segments == segment)
                assert (np.diff(places) == 1).all()
                assert (batch["positions"][row, places] == np.arange(len(places))).all()
                found.append(Example(*(batch[name][row, places] for name in Example._fields)))
    return found


def marks(batches: Sequence[Batch]) -> list[int]:
    return [int(document.tokens[0]) for document in read_documents(batches)]


def assert_same(found: Batch, expected: Batch) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], name)


# --- Packing ---


@pytest.mark.parametrize("packed", [True, False])
def test_every_document_is_whole_and_once_an_epoch(packed: bool) -> None:
    source = make_source(101)
    loader = load([source[:50], source[50:]], epochs=2, packed=packed, bins=5)
    count = loader.count_batches()
    batches = list(loader)
    loader.close()
    assert len(batches) == count
    documents = read_documents(batches)
    assert Counter(marks(batches)) == Counter({mark: 2 for mark in range(1, 102)})
    for document in documents:
        for found, expected in zip(document, source[int(document.tokens[0]) - 1], strict=True):
            np.testing.assert_array_equal(found, expected)
    for batch in batches:
        assert {array.shape for array in batch.values()} == {(4, T)}
        padding = batch["segments"] == 0
        assert not any(batch[name][padding].any() for name in batch)
        assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.int32) | {
            "weights": np.float32
        }
        assert packed or batch["segments"].max() == 1


TWO_PROCESSES = """
import jax, numpy as np
from r1jax.core import distributed
from r1jax.core.sharding import MeshConfig, make_mesh, sharding, use_mesh
from tests.data.test_sequences import load, make_source, marks
distributed.start()
mine = []
with use_mesh(make_mesh(MeshConfig(data=4))):
    for batch in load([make_source(101)], epochs=1):
        place = {name: sharding(("batch", None), array.shape) for name, array in batch.items()}
        held = {name: array.addressable_shards for name, array in distributed.put_global(batch, place).items()}
        mine += marks([{name: np.concatenate([s.data for s in shards]) for name, shards in held.items()}])
distributed.wait("the end")
print("mine:", *mine, ";")
"""


def test_every_document_reaches_one_process_once_an_epoch() -> None:
    processes = start_two(TWO_PROCESSES)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    held = [[int(mark) for mark in output.partition("mine:")[2].split(";")[0].split()] for output, _ in outputs]
    assert sorted(held[0] + held[1]) == list(range(1, 102)) and min(map(len, held)) > 30


def test_rows_are_nearly_full_on_lengths_like_those_of_word_problems() -> None:
    sizes = np.random.default_rng(0).lognormal(5.18, 0.42, 2000).clip(40, 900).astype(int)  # mean 195, as GSM8K's
    source = [make_example(int(size), i + 1) for i, size in enumerate(sizes)]
    batches = take(load([source], rows=8, length=1024), 40)
    assert np.mean([utilisation(batch) for batch in batches]) >= 0.95


def test_best_fit_keeps_rows_within_their_length_and_uses_few() -> None:
    sizes = np.random.default_rng(1).integers(1, 33, 500).tolist()
    rows = pack_best_fit(sizes, 32)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert max(sum(sizes[i] for i in row) for row in rows) <= 32
    assert len(rows) <= np.ceil(sum(sizes) / 32) * 1.02
    assert pack_best_fit([3, 4, 1], 4) == [[1], [0, 2]]


def sum_loss(params: Params, graph: Any, batch: Batch) -> jax.Array:
    """The summed loss of learnt targets by the plain formula."""
    logits = merge(graph, params)(batch["tokens"], positions=batch["positions"], segment_ids=batch["segments"])
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(batch["targets"])[..., None], 2)[..., 0]
    return -(logprobs * batch["weights"]).sum()


def test_loss_and_gradient_of_packed_rows_are_those_of_the_documents_alone() -> None:
    graph, params = toy.build()
    source = make_source(24, vocab=toy.CONFIG.vocab_size)
    measure = jax.jit(jax.value_and_grad(sum_loss), static_argnums=1)
    packed = load([source], rows=16, bins=16, epochs=1)
    alone = load([source], rows=24, packed=False, epochs=1)
    (batch, *rest), (rows, *more) = list(packed), list(alone)
    packed.close(), alone.close()
    assert not rest and not more and batch["segments"].max() > 1
    toy.assert_close(measure(params, graph, batch), measure(params, graph, rows), 1e-5)


# --- Order ---


def test_order_is_a_function_of_seed_and_of_nothing_else() -> None:
    source = make_source(60)
    batches, again, other = (take(load([source], seed=seed, bins=8), 12) for seed in (3, 3, 4))
    for one, two in zip(batches, again, strict=True):
        assert_same(one, two)
    assert marks(batches) != marks(other)


def test_epochs_are_shuffled_anew_and_rows_are_not_sorted_by_length() -> None:
    source = make_source(64, longest=T // 2)
    loader = load([source], rows=1, bins=1000, epochs=2)
    first, second = [], []
    for batch in loader:
        (first if len(first) < 64 else second).extend(marks([batch]))
    loader.close()
    assert sorted(first) == sorted(second) and first != second
    longest = [
        int((take(load([source], rows=1, bins=1000, seed=seed), 1)[0]["segments"] == 1).sum()) for seed in range(8)
    ]
    assert len(set(longest)) > 1


def test_processes_take_rows_of_one_global_batch() -> None:
    source = make_source(60)
    whole = take(load([source], rows=8), 3)
    for processes in (1, 2, 4):
        parts = [
            [
                {name: array[my_share(8, index=index, processes=processes)] for name, array in batch.items()}
                for batch in take(load([source], rows=8), 3)
            ]
            for index in range(processes)
        ]
        for step, batch in enumerate(whole):
            joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
            assert_same(joined, batch)


def test_reading_ahead_changes_nothing() -> None:
    source = make_source(40)
    for one, two in zip(take(load([source], read_ahead=0), 20), take(load([source], read_ahead=7), 20), strict=True):
        assert_same(one, two)


# --- Restarts ---


@pytest.mark.parametrize("packed", [True, False])
def test_a_restart_gives_the_exact_next_batch_also_across_epochs(packed: bool) -> None:
    source = make_source(30)
    make = lambda: load([source[:20], source[20:]], rows=3, bins=6, packed=packed, mixing=[1.0, 2.0], seed=5)
    batches, states = [], []
    loader = make()
    for _ in range(40):  # several epochs
        states.append(json.loads(json.dumps(loader.get_state())))
        batches.append(next(loader))
    loader.close()
    for at in (0, 1, 7, 8, 9, 23, 39):
        resumed = make()
        next(resumed), next(resumed)  # a loader in use may go back too
        resumed.set_state(states[at])
        assert resumed.get_state() == states[at]
        for expected in batches[at:]:
            assert_same(next(resumed), expected)
        resumed.close()


def test_the_end_is_remembered() -> None:
    loader = load([make_source(10)], epochs=1)
    batches = list(loader)
    state = loader.get_state()
    with pytest.raises(StopIteration):
        next(loader)
    assert loader.get_state() == state
    resumed = load([make_source(10)], epochs=1)
    resumed.set_state(state)
    assert list(resumed) == []
    longer = load([make_source(10)], epochs=3)
    longer.set_state(state)
    assert len(list(longer)) + len(batches) >= longer.count_batches()
    for each in (loader, resumed, longer):
        each.close()


def test_a_state_of_other_data_is_refused() -> None:
    source = make_source(10)
    state = load([source]).get_state()
    others = {
        "seed": load([source], seed=1),
        "fingerprint": load([make_source(10, first=2)]),
        "length": load([source], length=T + 1),
        "packed": load([source], packed=False),
    }
    for name, loader in others.items():
        with pytest.raises(UserError, match=f"the checkpoint's data has {name}="):
            loader.set_state(state)
        loader.close()
    more_rows = load([source], rows=8)
    more_rows.set_state(state)
    more_rows.close()


# --- Mixtures ---


def test_mixtures_have_their_shares_and_sources_their_epochs() -> None:
    small, large = make_source(10, first=1), make_source(200, first=1000)
    found = marks(take(load([small, large], mixing=[1.0, 3.0], bins=4), 60))
    assert abs(sum(mark < 1000 for mark in found) / len(found) - 0.25) < 0.02
    counts = Counter(mark for mark in found if mark < 1000)
    assert len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 2  # whole passes of its own


def test_without_shares_all_documents_count_alike() -> None:
    small, large = make_source(10, first=1), make_source(200, first=1000)
    found = Counter(marks(take(load([small, large]), 120)))
    assert max(found.values()) - min(found.values()) <= 2 and len(found) == 210


def test_the_end_of_a_mixture_is_that_of_the_first_source() -> None:
    loader = load([make_source(10, first=1), make_source(50, first=1000)], mixing=[1.0, 1.0], epochs=1)
    counts = Counter(mark >= 1000 for mark in marks(list(loader)))
    loader.close()
    assert counts == {False: 10, True: 10}


# --- Mistakes ---


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([], {}, "every source of config.data needs at least one example"),
        ([make_source(3), []], {}, "every source of config.data needs at least one example"),
        ([[make_example(T + 1, 1)]], {}, f"an example of {T + 1} tokens is longer than config.data.length = {T}"),
        ([make_source(3)] * 2, {"mixing": [1.0, 0.0]}, "the weights of config.data.sources must be positive"),
        ([make_source(3)] * 2, {"mixing": [1.0]}, "one per source; got [1.0]"),
    ],
)
def test_mistakes_are_said(sources: list, options: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(sources, **options)
    assert message in str(caught.value)


def test_data_without_end_has_no_count() -> None:
    loader = load([make_source(3)])
    with pytest.raises(ValueError, match="endless data"):
        loader.count_batches()
    loader.close()
