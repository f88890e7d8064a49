"""A server on loopback in threads of this process, and a client of plain sockets."""

from __future__ import annotations

import http.client
import json
import pathlib
import threading
import time
from typing import Any

import uvicorn

from r1jax.eval.prompting import Prompting
from r1jax.models.adapters.adapter_bank import AdapterBank
from r1jax.models.transformer import merge
from r1jax.rollout.continuous import ContinuousConfig
from r1jax.runs.sampler import load_sampler
from r1jax.serving.app import make_app
from r1jax.serving.listening import make_run, open_socket
from r1jax.serving.model_host import ModelHost
from r1jax.serving.worker import Worker
from r1jax.tuning.service import TrainingService
from r1jax.tuning.trainer import Trainer

CONFIG = ContinuousConfig(slots=8, max_tokens=160, chunk=16, feed_rows=2, burst=8, max_stop_ids=18)


class Server:
    """Context with a running server of a model folder; `port` is its port."""

    def __init__(
        self,
        model: pathlib.Path,
        *,
        prompting: Prompting | None = None,
        queue: int = 64,
        workdir: pathlib.Path | None = None,
        places: int = 8,
        **options: Any,
    ):
        self.sampler = load_sampler(model)
        structure = merge(self.sampler.graph, self.sampler.params)
        self.bank = None if workdir is None else AdapterBank(structure, places=places, rank=8)
        self.host = ModelHost("tiny", self.sampler, prompting, CONFIG, self.bank)
        self.worker = Worker(self.host.engine, queue=queue, adapters=self.host.adapters)
        self.service: TrainingService | None = None
        if workdir is not None and self.bank is not None:
            trainer, limits = Trainer(self.bank, self.sampler.params), {"vocab_size": 304, "max_tokens": 160}
            self.service = TrainingService(trainer, workdir, run=make_run(self.worker), **limits)
        self._socket = open_socket("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        app = make_app(self.host, self.worker, service=self.service, **options)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Server:
        self.worker.start()
        if self.service is not None:
            self.service.start()
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        if self.service is not None:
            self.service.stop()
        self.worker.stop()
        self._socket.close()

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """(status, body) of a request; a JSON body is parsed."""
        status, kind, raw = self._exchange(method, path, body, headers)
        return status, json.loads(raw) if kind == "application/json" else raw.decode()

    def fetch(self, method: str, path: str, body: Any = None) -> bytes:
        """The bytes of the answer to a request that must succeed."""
        status, _, raw = self._exchange(method, path, body, None)
        assert status == 200, raw
        return raw

    def _exchange(self, method: str, path: str, body: Any, headers: dict[str, str] | None) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.getheader("content-type") or "", answer.read()
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer to a request that must succeed; `model` is filled in."""
        status, answer = self.send("POST", path, {"model": "tiny", **body} if path.startswith("/v1") else body)
        assert status == 200, answer
        return answer

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream."""
        status, text = self.send("POST", path, {"model": "tiny", "stream": True, **body})
        assert status == 200, text
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]
