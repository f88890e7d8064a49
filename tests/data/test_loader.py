"""The loader's order: complete epochs, reshuffled, exactly resumed, and blind to batch size and process count."""

import collections
import json

import pytest

from r1jax.core.errors import UserError
from r1jax.data.loader import PromptLoader


def make_rows(count: int) -> list[dict]:
    return [{"prompt": f"p{number}", "number": number} for number in range(count)]


def read(loader: PromptLoader, batches: int) -> list[int]:
    return [row["number"] for _ in range(batches) for row in next(loader)]


def test_batches_are_whole_rows_of_the_global_size():
    loader = PromptLoader(make_rows(10), 4, seed=0)
    batch = next(loader)
    assert len(batch) == 4 and all(row["prompt"] == f"p{row['number']}" for row in batch)
    assert iter(loader) is loader


@pytest.mark.parametrize(("rows", "batch_size"), [(10, 5), (10, 3), (7, 16), (1, 1), (1, 4), (5, 5)])
def test_every_row_comes_once_an_epoch(rows: int, batch_size: int):
    order = read(PromptLoader(make_rows(rows), batch_size, seed=1), 4 * rows)
    for start in range(0, 3 * rows, rows):
        assert sorted(order[start : start + rows]) == list(range(rows))


def test_each_epoch_has_its_own_order():
    order = read(PromptLoader(make_rows(50), 50, seed=1), 3)
    epochs = [order[start : start + 50] for start in (0, 50, 100)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != list(range(50))


def test_the_order_is_a_function_of_seed_and_position():
    rows = make_rows(30)
    assert read(PromptLoader(rows, 4, seed=7), 30) == read(PromptLoader(rows, 8, seed=7), 15)
    assert read(PromptLoader(rows, 4, seed=7), 7) != read(PromptLoader(rows, 4, seed=8), 7)
    # Neighbouring seeds must not be one another's later epochs either.
    assert read(PromptLoader(rows, 30, seed=7), 2)[30:] != read(PromptLoader(rows, 30, seed=8), 1)


@pytest.mark.parametrize("consumed", [0, 1, 2, 3, 10])
def test_resume_is_exact_at_every_position(consumed: int):
    rows = make_rows(10)
    through = PromptLoader(rows, 4, seed=3)
    order = [[row["number"] for row in next(through)] for _ in range(16)]
    stopped = PromptLoader(rows, 4, seed=3)
    read(stopped, consumed)
    state = json.loads(json.dumps(stopped.get_state()))
    resumed = PromptLoader(rows, 4, seed=3)
    resumed.set_state(state)
    assert [[row["number"] for row in next(resumed)] for _ in range(16 - consumed)] == order[consumed:]
    assert resumed.get_state() == through.get_state()


def test_resume_with_another_batch_size_goes_on_at_the_same_row():
    rows = make_rows(10)
    whole = read(PromptLoader(rows, 1, seed=3), 24)
    first, second = PromptLoader(rows, 4, seed=3), PromptLoader(rows, 6, seed=3)
    head = read(first, 3)
    second.set_state(first.get_state())
    assert head + read(second, 2) == whole


def test_a_state_of_other_data_is_refused():
    state = PromptLoader(make_rows(10), 4, seed=3).get_state()
    with pytest.raises(UserError, match="rows=10, this run's has rows=11"):
        PromptLoader(make_rows(11), 4, seed=3).set_state(state)
    with pytest.raises(UserError, match="seed=3, this run's has seed=4"):
        PromptLoader(make_rows(10), 4, seed=4).set_state(state)
    with pytest.raises(UserError, match="fingerprint"):
        PromptLoader([*make_rows(9), {"prompt": "another"}], 4, seed=3).set_state(state)


def test_epochs_end_the_iterator_without_losing_a_row():
    batches = list(PromptLoader(make_rows(10), 4, seed=0, epochs=2))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4]
    batches = list(PromptLoader(make_rows(10), 4, seed=0, epochs=1))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert collections.Counter(row["number"] for batch in batches for row in batch) == collections.Counter(range(10))


def test_the_epoch_is_counted():
    loader = PromptLoader(make_rows(8), 4, seed=0)
    read(loader, 3)
    assert loader.epoch == 1.5


def test_changing_a_row_leaves_the_data_alone():
    rows = make_rows(1)
    loader = PromptLoader(rows, 1, seed=0)
    next(loader)[0]["prompt"] = "changed"
    assert next(loader)[0]["prompt"] == "p0" == rows[0]["prompt"]


@pytest.mark.parametrize(
    "kwargs", [{"rows": []}, {"batch_size": 0}, {"epochs": 0}, {"seed": -1}, {"seed": 2**32}], ids=str
)
def test_what_cannot_be_is_a_user_error(kwargs: dict):
    with pytest.raises(UserError):
        PromptLoader(**({"rows": make_rows(3), "batch_size": 2} | kwargs))


def test_the_order_is_pinned():
    """A checkpoint of today must find its rows tomorrow: a new grain or Python may not change the order."""
    assert read(PromptLoader(make_rows(6), 6, seed=0), 2) == [1, 2, 4, 5, 3, 0, 5, 3, 1, 4, 2, 0]
