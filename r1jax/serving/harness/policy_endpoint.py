"""The HTTP server of a run: it lives as long as the run, and answers keys of programs that run."""

from __future__ import annotations

import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from r1jax.core.structs import Sampling
from r1jax.models.transformer import Params
from r1jax.rollout.continuous import ContinuousEngine
from r1jax.serving.app import add_error_answers
from r1jax.serving.body_limit import BodyLimit
from r1jax.serving.harness.session import MODEL, RecordedApi, Session
from r1jax.serving.listening import open_socket, warm_up
from r1jax.serving.request_errors import ApiError
from r1jax.serving.requests import ChatRequest, CompletionRequest
from r1jax.serving.worker import Worker

QUEUE = 1 << 16  # sequences that may wait: the number of programs bounds them


class Endpoint:
    """A server on loopback over an engine that holds weights only between `load` and `unload`.

    address: its base URL. seconds: longest time of a request. file: a socket with the same server, for the sandbox.
    """

    def __init__(self, make_engine: Callable[[Params], ContinuousEngine], seconds: float):
        self._make_engine, self._seconds = make_engine, seconds
        self._worker: Worker | None = None
        self._sessions: dict[str, Session] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="r1jax-harness-", ignore_cleanup_errors=True)
        self.file = pathlib.Path(self._folder.name, "endpoint")
        self._sockets = [open_socket("127.0.0.1", 0), socket.socket(socket.AF_UNIX)]
        self._sockets[1].bind(str(self.file))
        for path, mode in ((self.file, 0o666), (self.file.parent, 0o711)):  # a program in the sandbox is `nobody`
            path.chmod(mode)
        self.address = f"http://127.0.0.1:{self._sockets[0].getsockname()[1]}/v1"
        config = uvicorn.Config(self._make_app(), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        run = lambda: self._server.run(sockets=self._sockets)
        self._thread = threading.Thread(target=run, name="endpoint", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    @property
    def worker(self) -> Worker:
        """The thread of the engine."""
        assert self._worker is not None, "load comes first"
        return self._worker

    @property
    def engine(self) -> ContinuousEngine:
        """The engine."""
        return self.worker.engine

    def load(self, params: Params, sampling: Sampling) -> None:
        """Takes the weights of a step. sampling: of its replies; compiles their programs at first, so that no program
        waits for that.
        """
        if self._worker is None:
            engine = self._make_engine(params)
            warm_up(engine, sampling)
            self._worker = Worker(engine, queue=QUEUE)
            self._worker.start()
        else:
            self.worker.call(lambda: self.engine.load(params)).result()

    def unload(self) -> None:
        """Ends all programs' access, and gives the weights up."""
        for session in [*self._sessions.values()]:
            self.close(session)
        self.worker.call(self.engine.unload).result()

    def open(self, session: Session) -> None:
        """Answers the session's key from now on."""
        self._sessions[session.key] = session

    def close(self, session: Session) -> None:
        """Answers the session's key no more."""
        self._sessions.pop(session.key, None)
        session.close(self.worker)

    def stop(self) -> None:
        """Ends the server."""
        self._server.should_exit = True
        self._thread.join()
        if self._worker is not None:
            self._worker.stop()
        for each in self._sockets:
            each.close()
        self._folder.cleanup()

    def _make_app(self) -> FastAPI:
        app = FastAPI(title="r1jax harness", openapi_url=None)
        app.add_middleware(BodyLimit)
        add_error_answers(app)

        def find(request: Request) -> RecordedApi:
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
            session = self._sessions.get(key)
            if session is None:
                raise ApiError(401, "the key in the Authorization header is not that of a program that runs")
            return RecordedApi(session, self.worker, self._seconds)

        @app.get("/v1/models")
        async def models(request: Request) -> dict[str, Any]:
            return {"object": "list", "data": [find(request).describe_model()]}

        @app.get(f"/v1/models/{MODEL}")
        async def model(request: Request) -> dict[str, Any]:
            return find(request).describe_model()

        @app.post("/v1/completions")
        async def completions(body: CompletionRequest, request: Request) -> Any:
            return await find(request).complete(body, request)

        @app.post("/v1/chat/completions")
        async def chat(body: ChatRequest, request: Request) -> Any:
            return await find(request).chat(body, request)

        return app
