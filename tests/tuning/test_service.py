"""The service: requests in order whatever the order of arrival, nothing acknowledged lost, errors that take turns."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.models.adapters.adapter_bank import AdapterBank
from r1jax.models.transformer import merge
from r1jax.runs.sampler import load_sampler
from r1jax.tuning import messages, residents
from r1jax.tuning.adapter_files import read_arrays
from r1jax.tuning.service import TrainingService
from r1jax.tuning.store import Store
from r1jax.tuning.trainer import Trainer
from tests.tuning.wire import training_body

ADAM = {"learning_rate": 0.02, "epsilon": 1e-8}


@pytest.fixture(scope="module")
def trainer(tiny_model: Path) -> Trainer:
    """Two places."""
    sampler = load_sampler(tiny_model)
    return Trainer(AdapterBank(merge(sampler.graph, sampler.params), places=2, rank=4), sampler.params)


@pytest.fixture
def start(trainer: Trainer, tmp_path: Path) -> Iterator[Callable[[], TrainingService]]:
    """Starts the service in the workdir, after ending the one before as a kill would: without a word to its file."""
    running: list[TrainingService] = []

    def begin() -> TrainingService:
        for service in running:
            service.stop()
        for place in range(trainer.bank.places):
            trainer.close(place)
        running.append(TrainingService(trainer, tmp_path / "work", vocab_size=304, max_tokens=160))
        running[-1].start()
        return running[-1]

    yield begin
    for service in running:
        service.stop()


def create(service: TrainingService, model: str, *, rank: int = 4, seed: int = 1) -> None:
    work = {"rank": rank, "kinds": list(service.trainer.bank.kinds), "seed": seed}
    service.store.put("model", model, {**work, "user_metadata": None}, parent=model.partition(":")[0])
    assert ask(service, model, 0, "create_model", **work)["model_id"] == model


def send(service: TrainingService, model: str, number: int, kind: str, **work: Any) -> str:
    raw = training_body(model, number, **work) if kind == "forward_backward" else json.dumps(work).encode()
    return service.submit(model, number, kind, raw)


def get(service: TrainingService, id: str) -> Any:
    """The result of a request, once it is there."""
    done = threading.Event()
    service.listen(id, done.set)
    found = service.store.request(id)
    if found.status == "pending":
        assert done.wait(120)
        found = service.store.request(id)
    is_proto = found.kind == "forward_backward" and found.status == "done"
    return found.result if is_proto else json.loads(found.result)


def ask(service: TrainingService, model: str, number: int, kind: str, **work: Any) -> Any:
    return get(service, send(service, model, number, kind, **work))


def save(service: TrainingService, model: str, number: int, name: str) -> dict[str, np.ndarray]:
    """The arrays of a model's state."""
    path = ask(service, model, number, "save_weights", path=name)["path"]
    return read_arrays(service.weights.workdir / service.weights.find(path).body["file"])


def train(service: TrainingService, model: str, first: int, steps: int) -> None:
    for number in range(first, first + 2 * steps, 2):
        assert b"loss:sum" in ask(service, model, number, "forward_backward", seed=number)
        assert "grad_norm" in ask(service, model, number + 1, "optim_step", **ADAM)["metrics"]


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6, rtol=1e-5, err_msg=name)


def test_requests_are_done_in_order_and_once(start: Callable[[], TrainingService]) -> None:
    service = start()
    create(service, "a:train:0")
    create(service, "a:train:1")
    for number in (2, 1, 4, 3):  # later ones wait for those before
        kind, work = ("optim_step", ADAM) if number % 2 == 0 else ("forward_backward", {"seed": number})
        send(service, "a:train:0", number, kind, **work)
        send(service, "a:train:0", number, kind, **work)
    train(service, "a:train:1", 1, 2)
    assert_equal(save(service, "a:train:0", 5, "end"), save(service, "a:train:1", 5, "end"))


@pytest.mark.parametrize("snapshot_seconds", [0.0, 1e9])
def test_nothing_is_lost_by_a_kill(
    start: Callable[[], TrainingService], monkeypatch: pytest.MonkeyPatch, snapshot_seconds: float
) -> None:
    monkeypatch.setattr(residents, "SNAPSHOT_SECONDS", snapshot_seconds)
    service = start()
    create(service, "a:train:0")
    train(service, "a:train:0", 1, 3)
    expected = save(service, "a:train:0", 7, "end")
    create(service, "b:train:0")
    train(service, "b:train:0", 1, 1)
    ask(service, "b:train:0", 3, "forward_backward", seed=3)  # its gradient is in no file
    service.end()
    service._thread.join()
    late = send(service, "b:train:0", 4, "optim_step", **ADAM)  # acknowledged and not begun
    service = start()
    assert "metrics" in get(service, late)
    train(service, "b:train:0", 5, 1)
    assert_equal(save(service, "b:train:0", 7, "end"), expected)
    assert b"loss:sum" in get(service, "b:train:0:3")  # results are kept


def test_more_models_than_places(start: Callable[[], TrainingService]) -> None:
    service = start()
    names = [f"a:train:{number}" for number in range(3)]
    for name in names:
        create(service, name)
    for number in (1, 2, 3, 4):
        for name in names:  # each takes the place of another, with a gradient that is in no file
            kind, work = ("optim_step", ADAM) if number % 2 == 0 else ("forward_backward", {"seed": number})
            ask(service, name, number, kind, **work)
    first, *others = [save(service, name, 5, "end") for name in names]
    for other in others:
        assert_equal(other, first)


def test_a_refused_request_takes_its_turn(start: Callable[[], TrainingService]) -> None:
    service = start()
    create(service, "a:train:0")
    wrong = send(service, "a:train:0", 1, "forward_backward", seed=0, loss="gspo")
    assert get(service, wrong) == {"error": get(service, wrong)["error"], "category": "user"}
    assert "loss_fn must be one of" in get(service, wrong)["error"]
    assert "error" in ask(service, "a:train:0", 2, "load_weights", path="tinker://none", optimizer=False)
    assert "error" in ask(service, "a:train:0", 3, "save_weights", path="../escape")
    train(service, "a:train:0", 4, 1)


def test_states_are_saved_loaded_and_deleted(start: Callable[[], TrainingService]) -> None:
    service = start()
    create(service, "a:train:0", rank=3)
    train(service, "a:train:0", 1, 1)
    expected = save(service, "a:train:0", 3, "one")
    train(service, "a:train:0", 4, 1)
    assert "exists" in ask(service, "a:train:0", 6, "save_weights", path="one")["error"]
    path = "tinker://a:train:0/weights/one"
    assert ask(service, "a:train:0", 7, "load_weights", path=path, optimizer=True)["path"] == path
    assert_equal(save(service, "a:train:0", 8, "two"), expected)
    sampler = ask(service, "a:train:0", 9, "save_weights_for_sampler", sampling_session_seq_id=0)
    assert sampler["path"] is None and service.store.get("sampler", sampler["sampling_session_id"]).body["rank"] == 3
    assert [one.id.rpartition("/")[2] for one in service.weights.list()] == ["two", "one"]
    found = service.weights.find(path)
    service.weights.delete(found)
    service.weights.sweep()
    with pytest.raises(UserError, match="no checkpoint"):
        service.weights.find(path)
    assert not (service.weights.workdir / found.body["file"]).exists()
    work = {"path": "tinker://a:train:0/sampler_weights/unnamed-000009", "optimizer": True}
    assert "without the optimizer's state" in ask(service, "a:train:0", 10, "load_weights", **work)["error"]


def test_a_workdir_belongs_to_one_server(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UserError, match="another server may use it"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_broken_messages_are_named() -> None:
    with pytest.raises(UserError, match="no ForwardBackwardRequest"):
        messages.read_training(b"\xff\xff\xff")
    message = messages.read_training(training_body("m", 1, seed=0))
    message.data[0].loss_fn_inputs[0].value.dtype = 9
    with pytest.raises(UserError, match="dtype number 9"):
        messages.read_datum(message.data[0])
    message.data[0].loss_fn_inputs[0].value.dtype = 2
    message.data[0].loss_fn_inputs[0].value.shape.append(99)
    with pytest.raises(UserError, match="does not fit"):
        messages.read_datum(message.data[0])
    message.data[0].model_input.add().image.SetInParent()
    with pytest.raises(UserError, match="chunks of text, got image"):
        messages.read_datum(message.data[0])
