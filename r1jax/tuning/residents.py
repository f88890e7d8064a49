"""Models in the places of a bank: put there when they are needed, computed again from their last snapshot and the
requests after it.
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.tuning import messages
from r1jax.tuning.adapter_files import read_arrays, write_arrays
from r1jax.tuning.datums import Datum, make_datum
from r1jax.tuning.named_weights import NamedWeights
from r1jax.tuning.store import Request, Store, Thing
from r1jax.tuning.trainer import AdamSettings, Scored, Trainer

SNAPSHOT_SECONDS = 15.0  # of computing between two snapshots of a model, which a restart repeats
Run = Callable[[Callable[[], Any]], Any]


class Residents:
    """The models that are in memory. run: calls a function in the thread of the device."""

    def __init__(
        self, trainer: Trainer, store: Store, weights: NamedWeights, *, vocab_size: int, max_tokens: int, run: Run
    ):
        self.trainer, self.store, self.weights, self.run = trainer, store, weights, run
        self.vocab_size, self.max_tokens = vocab_size, max_tokens
        self._places: collections.OrderedDict[str, int] = collections.OrderedDict()  # least recently used first
        self._seconds: dict[str, float] = {}  # of computing since a model's snapshot

    def model(self, id: str) -> Thing:
        """A model as it is recorded. Raises UserError if there is none."""
        found = self.store.get("model", id)
        if found is None:
            raise UserError(f"there is no model {id[:100]!r}")
        return found

    def create(self, request: Request, *, rank: int, seed: int, kinds: Sequence[str]) -> Callable[[], None]:
        """Makes a fresh adapter; returns what records it."""
        place = self._take_place(request.target, [request.target])
        make = lambda: self.trainer.bank.init_adapter(rank=rank, seed=seed, kinds=kinds)
        self.run(lambda: self.trainer.open(place, rank, make()))
        return self._snapshot(request)

    def load(self, request: Request, checkpoint: Thing, *, moments: bool) -> Callable[[], None]:
        """Gives a model, or a new one, the weights of a checkpoint; returns what records it."""
        model, rank = request.target, checkpoint.body["rank"]
        own = self.model(model).body["rank"]
        if own != rank:
            raise UserError(f"{checkpoint.id} has rank {rank}, the model has {own}: create a model of that rank")
        if moments and not checkpoint.body["has_moments"]:
            raise UserError(f"{checkpoint.id} holds weights for sampling alone, without the optimizer's state")
        place = self.ensure(model, [model]) if request.number else self._take_place(model, [model])
        self._open_file(place, checkpoint.body["file"], rank, moments=moments)
        return self._snapshot(request)

    def score(self, work: Sequence[tuple[str, Sequence[Datum]]], *, backward: bool) -> list[list[Scored]]:
        """Scores data of models that are in places (`Trainer.score`). After an error their gradients are not known, and
        they are computed again.
        """
        begun, models = time.monotonic(), [model for model, _ in work]
        try:
            places = [(self._places[model], data) for model, data in work]
            found = self.trainer.score(places, backward=backward, run=self.run)
        except BaseException:
            for model in models:
                self._forget(model)
            raise
        for model in models:
            self._note(model, (time.monotonic() - begun) / len(models))
        return found

    def update(self, request: Request, settings: AdamSettings) -> tuple[dict[str, float], Callable[[], None]]:
        """Makes an update; returns its metrics, and what records a snapshot if it is time for one."""
        place, begun = self.ensure(request.target, [request.target]), time.monotonic()
        metrics = self.run(lambda: self.trainer.update(place, settings))
        self._note(request.target, time.monotonic() - begun)
        is_due = self._seconds[request.target] > SNAPSHOT_SECONDS
        return metrics, self._snapshot(request) if is_due else lambda: None

    def write(self, model: str, file: str, *, moments: bool) -> int:
        """Writes a model's weights into a file of the workdir; returns its size."""
        place = self.ensure(model, [model])
        return write_arrays(self.weights.workdir / file, self.run(lambda: self.trainer.export(place, moments=moments)))

    def ensure(self, model: str, busy: Sequence[str]) -> int:
        """The place of a model, which is put into one if need be; none of the busy models leaves for it."""
        if model in self._places:
            self._places.move_to_end(model)
            return self._places[model]
        body = self.model(model).body
        if body.get("snapshot") is None:
            raise UserError(f"the model {model} could not be made: see the answer to its creation")
        place = self._take_place(model, busy)
        try:
            self._open_file(place, body["file"], body["rank"], moments=True)
            for request in self.store.requests(model, after=body["snapshot"]):
                if request.status == "done":
                    self._repeat(place, request)
        except BaseException:
            self._forget(model)
            raise
        return place

    def read_data(self, request: Request) -> list[Datum]:
        """The data of a training request. Raises UserError for what is wrong with them."""
        message = messages.read_training(request.body or b"")
        numbers = messages.read_numbers(message)
        limits: dict[str, Any] = {"vocab_size": self.vocab_size, "max_tokens": self.max_tokens}
        if not message.data:
            raise UserError("data is empty: at least one datum is needed")
        return [make_datum(*messages.read_datum(datum), message.loss_fn, numbers, **limits) for datum in message.data]

    def _repeat(self, place: int, request: Request) -> None:
        """Makes the effect of a request once more; those of other kinds have none, or made a snapshot."""
        if request.kind == "forward_backward":
            self.trainer.score([(place, self.read_data(request))], backward=True, run=self.run)
        elif request.kind == "optim_step":
            settings = AdamSettings(**json.loads(request.body or b"{}"))
            self.run(lambda: self.trainer.update(place, settings))

    def _note(self, model: str, seconds: float) -> None:
        self._seconds[model] = self._seconds.get(model, 0.0) + seconds

    def _snapshot(self, request: Request) -> Callable[[], None]:
        """Writes the state of a model after a request that leaves no gradient; returns what records it."""
        model, file = request.target, self.weights.new_file(request.target, "state")
        place = self._places[model]
        write_arrays(self.weights.workdir / file, self.run(lambda: self.trainer.export(place, moments=True)))
        self._seconds[model] = 0.0

        def record() -> None:
            body = self.model(model).body
            if body.get("file"):
                self.weights.discard(body["file"])
            self.store.put("model", model, {**body, "snapshot": request.number, "file": file})
            self.store.forget_bodies(model, request.number - 1)

        return record

    def _take_place(self, model: str, busy: Sequence[str]) -> int:
        self._forget(model)
        taken = set(self._places.values())
        place = next((place for place in range(self.trainer.bank.places) if place not in taken), None)
        if place is None:
            other = next(other for other in self._places if other not in busy)
            place = self._places[other]
            self._forget(other)
        self._places[model] = place
        return place

    def _forget(self, model: str) -> None:
        if (place := self._places.pop(model, None)) is not None:
            self.trainer.close(place)

    def _open_file(self, place: int, file: str, rank: int, *, moments: bool) -> None:
        arrays = read_arrays(self.weights.workdir / file)
        self.run(lambda: self.trainer.open(place, rank, *self.trainer.restore(arrays, moments=moments)))
