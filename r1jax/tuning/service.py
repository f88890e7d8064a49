"""The training service: requests of many clients, each model's in order, the gradients of several models in one batch.

A request is recorded before it is acknowledged (store.py). A model's state is its last snapshot and the requests after
it (residents.py). So nothing that was acknowledged is lost when the server is killed, and the number of models is not
that of places.
"""

from __future__ import annotations

import json
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.seeds import derive_seed
from r1jax.tuning import messages
from r1jax.tuning.datums import Datum
from r1jax.tuning.named_weights import NamedWeights
from r1jax.tuning.residents import Residents, Run
from r1jax.tuning.store import Request, Store
from r1jax.tuning.trainer import AdamSettings, Trainer

log = logging.getLogger(__name__)

GRADIENT_KINDS = ("forward", "forward_backward")
SAMPLE = "sample"  # requests that others answer
Work = tuple[dict[str, Any], Callable[[], None]]  # an answer, and what is recorded with it


class TrainingService:
    """Models, their requests and their checkpoints in `workdir`. run: calls a function in the thread of the device."""

    def __init__(
        self,
        trainer: Trainer,
        workdir: pathlib.Path,
        *,
        vocab_size: int,
        max_tokens: int,
        run: Run = lambda function: function(),
    ):
        self.trainer, self.store = trainer, Store(workdir)
        self.weights = NamedWeights(self.store, workdir)
        limits: dict[str, Any] = {"vocab_size": vocab_size, "max_tokens": max_tokens}
        self.residents = Residents(trainer, self.store, self.weights, run=run, **limits)
        self._changed = threading.Condition()
        self._waiting: dict[str, dict[int, Request]] = {}  # by model; those that waited longest first
        self._next: dict[str, int] = {}
        self._listeners: dict[str, list[Callable[[], None]]] = {}
        self._is_over = False
        for request in self.store.requests(status="pending"):
            if request.kind != SAMPLE:
                self._enqueue(request)
        self._thread = threading.Thread(target=self._loop, name="trainer", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, seconds: float = 30.0) -> None:
        """Ends after the request that is being computed; the others are found again at the next start."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self.store.close()

    def submit(self, model: str, number: int, kind: str, body: bytes) -> str:
        """Records request `number` of a model, once, and queues it; returns its id."""
        id = f"{model}:{number}"
        if self.store.add(id, model, number, kind, body):
            with self._changed:
                self._enqueue(Request(id, model, number, kind, body, "pending", None))
                self._changed.notify()
        return id

    def finish(self, id: str, status: str, result: bytes) -> None:
        """Records the result of a request that others answer, and tells who waits for it."""
        self.store.finish(id, status, result)
        self._tell(id)

    def listen(self, id: str, callback: Callable[[], None]) -> None:
        """Calls back, from any thread, when a request is finished."""
        with self._changed:
            self._listeners.setdefault(id, []).append(callback)

    def ignore(self, id: str, callback: Callable[[], None]) -> None:
        """Ends `listen`."""
        with self._changed:
            callbacks = self._listeners.get(id, [])
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks:
                self._listeners.pop(id, None)

    @property
    def is_over(self) -> bool:
        """Whether the service has been stopped."""
        return self._is_over

    def end(self) -> None:
        """Begins no further request."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Number of requests that are not finished."""
        return sum(map(len, self._waiting.values()))

    def make_sampler(self, session: str, number: int, path: str | None) -> str:
        """Records a sampler over a checkpoint (None: the base model), once; returns its id."""
        id = f"{session}:sample:{number}"
        if self.store.get("sampler", id) is None:
            body: dict[str, Any] = {"path": path, "file": None, "rank": 0}
            if path is not None:
                checkpoint = self.weights.find(path)
                body |= {"file": str(self.weights.workdir / checkpoint.body["file"]), "rank": checkpoint.body["rank"]}
            self.store.put("sampler", id, body, parent=session)
        return id

    def _enqueue(self, request: Request) -> None:
        if request.target not in self._next:
            self._next[request.target] = self.store.last_number(request.target) + 1
        self._waiting.setdefault(request.target, {})[request.number] = request

    def _tell(self, id: str) -> None:
        with self._changed:
            callbacks = self._listeners.pop(id, [])
        for callback in callbacks:
            callback()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or self._find_ready())
                if self._is_over:
                    return
                ready = self._find_ready()
            try:
                if ready[0].kind in GRADIENT_KINDS:
                    same = [request for request in ready if request.kind == ready[0].kind]
                    self._score(same[: self.trainer.bank.places])
                else:
                    self._work(ready[0])
            except Exception:  # the store failed, say on a full disk: requests stay pending, and are tried again
                log.exception("the training service failed; it tries again")
                time.sleep(1)

    def _find_ready(self) -> list[Request]:
        """The request of each model whose turn has come."""
        turns = ((requests, self._next[model]) for model, requests in self._waiting.items())
        return [requests[number] for requests, number in turns if number in requests]

    def _end(self, request: Request, status: str, result: bytes, record: Callable[[], None] = lambda: None) -> None:
        """Records the result of a model's request together with what `record` records, and goes on to its next."""
        with self.store.transaction():
            self.store.finish(request.id, status, result)
            record()
        self.weights.sweep()
        with self._changed:
            self._next[request.target] = request.number + 1
            rest = self._waiting.pop(request.target)
            del rest[request.number]
            if rest:
                self._waiting[request.target] = rest  # behind the others
        self._tell(request.id)

    def _fail(self, request: Request, error: Exception) -> None:
        is_user = isinstance(error, UserError)
        if not is_user:
            log.error("request %s failed", request.id, exc_info=error)
        text = str(error) if is_user else f"the server failed ({type(error).__name__}); see its log"
        self._end(request, "failed", describe_failure(text, is_user=is_user))

    def _score(self, requests: Sequence[Request]) -> None:
        """Computes the gradients, or the log-probs alone, of several models together."""
        models, work = [request.target for request in requests], list[tuple[Request, list[Datum]]]()
        for request in requests:
            try:
                data = self.residents.read_data(request)
                self.residents.ensure(request.target, models)
                work.append((request, data))
            except Exception as error:
                self._fail(request, error)
        if not work:
            return
        try:
            pairs = [(request.target, data) for request, data in work]
            found = self.residents.score(pairs, backward=work[0][0].kind == "forward_backward")
        except Exception as error:
            for request, _ in work:
                self._fail(request, error)
            return
        for (request, _), scored in zip(work, found, strict=True):
            total = sum(float(one.losses.sum(dtype="float64")) for one in scored)
            self._end(request, "done", messages.write_scores(scored, {"loss:sum": total}))

    def _work(self, request: Request) -> None:
        """Does one request of another kind."""
        try:
            kind = "save_weights" if request.kind == "save_weights_for_sampler" else request.kind
            answer, record = getattr(self, f"_{kind}")(request, json.loads(request.body or b"{}"))
        except Exception as error:
            self._fail(request, error)
            return
        self._end(request, "done", json.dumps(answer).encode(), record)

    def _create_model(self, request: Request, body: dict[str, Any]) -> Work:
        seed = derive_seed("adapter", request.target) if body["seed"] is None else body["seed"] % 2**32
        record = self.residents.create(request, rank=body["rank"], seed=seed, kinds=body["kinds"])
        return {"type": "create_model", "model_id": request.target}, record

    def _optim_step(self, request: Request, body: dict[str, Any]) -> Work:
        metrics, record = self.residents.update(request, AdamSettings(**body))
        return {"metrics": metrics}, record

    def _load_weights(self, request: Request, body: dict[str, Any]) -> Work:
        record = self.residents.load(request, self.weights.find(body["path"]), moments=body["optimizer"])
        return {"type": "load_weights", "path": body["path"], "model_id": request.target}, record

    def _refused(self, request: Request, body: dict[str, Any]) -> Work:
        raise UserError(body["reason"])

    def _save_weights(self, request: Request, body: dict[str, Any]) -> Work:
        model, kind = request.target, "training" if request.kind == "save_weights" else "sampler"
        path = self.weights.address(model, kind, body.get("path") or f"unnamed-{request.number:06d}")
        old = self.store.get("checkpoint", path)
        if old is not None and not body.get("overwrite"):
            raise UserError(f"{path} exists: choose another name, or overwrite=True where a state is saved")
        file = self.weights.new_file(model, "saved")
        described = {
            "kind": kind,
            "file": file,
            "size": self.residents.write(model, file, moments=kind == "training"),
            "rank": self.residents.model(model).body["rank"],
            "kinds": self.residents.model(model).body["kinds"],
            "has_moments": kind == "training",
            "is_named": bool(body.get("path")),
            "expires": time.time() + body["ttl_seconds"] if body.get("ttl_seconds") else None,
            "metadata": body.get("user_metadata"),
        }
        session, number = model.partition(":")[0], body.get("sampling_session_seq_id")
        answer: dict[str, Any] = {"type": request.kind, "path": path}
        if number is not None:
            answer |= {"path": None, "sampling_session_id": f"{session}:sample:{number}"}

        def record() -> None:
            self.weights.record(path, model, described, old)
            if number is not None:
                self.make_sampler(session, number, path)

        return answer, record


def describe_failure(text: str, *, is_user: bool) -> bytes:
    """The result of a request that failed, by the client's mistake or the server's."""
    return json.dumps({"error": text, "category": "user" if is_user else "server"}).encode()
