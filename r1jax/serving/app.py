"""The HTTP application: routes, an API key, errors, and metrics for Prometheus."""

from __future__ import annotations

import contextlib
import hmac
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from r1jax.core.errors import UserError
from r1jax.serving.body_limit import BodyLimit
from r1jax.serving.model_host import ModelHost
from r1jax.serving.openai_api import OpenAIApi
from r1jax.serving.request_counts import Metrics
from r1jax.serving.request_errors import ApiError, answer_error, read_mistake
from r1jax.serving.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from r1jax.serving.tinker_api import TinkerApi, make_router
from r1jax.serving.tinker_listing import make_listing
from r1jax.serving.tinker_sampling import SampleRunner
from r1jax.serving.worker import BusyError, Worker
from r1jax.tuning.service import TrainingService

OPEN = {"/", "/health"}  # paths that need no key
PAGE = pathlib.Path(__file__).parent / "page" / "chat.html"


def make_app(
    host: ModelHost,
    worker: Worker,
    *,
    key: str = "",
    seconds: float = 600.0,
    service: TrainingService | None = None,
) -> FastAPI:
    """The application. key: that clients must send; "" for none. seconds: longest time of a request. service: that
    trains, for the Tinker API.
    """
    metrics = Metrics(worker)
    runner = None if service is None else SampleRunner(host, worker, metrics, service)

    @contextlib.asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        if runner is not None:
            await runner.resume()
        yield
        if service is not None:
            service.end()

    app = FastAPI(title="r1jax", description="Routes over a model of r1jax.", version="1", lifespan=live)
    api = OpenAIApi(host, worker, metrics, seconds)
    app.add_middleware(BodyLimit)

    @app.middleware("http")
    async def admit(request: Request, call: Callable[[Request], Any]) -> Response:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = (bearer or request.headers.get("x-api-key", "")).encode()
        if key and request.url.path not in OPEN and not hmac.compare_digest(given, key.encode()):
            answer: Response = answer_error(ApiError(401, "the key in the Authorization header is missing or wrong"))
        else:
            answer = await call(request)
        metrics.count(_find_path(request), answer.status_code)
        return answer

    add_error_answers(app)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if worker.error is None else 503)

    @app.get("/", include_in_schema=False)
    async def talk() -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.render(), media_type=Metrics.media_type)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [api.describe_model()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        api.check_model(name)
        return api.describe_model()

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Any:
        return await api.complete(body, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        return await api.chat(body, request)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        if body.messages is not None:
            encode = lambda: host.encode_messages(body.messages or [], add_generation_prompt=body.add_generation_prompt)
        else:
            encode = lambda: host.encode_prompt(body.prompt or "", add_special=body.add_special_tokens)
        ids = list(await run_in_threadpool(encode))
        return {"tokens": ids, "count": len(ids), "max_model_len": host.config.max_tokens}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        return {"prompt": host.tokenizer.decode(body.tokens, skip_special=False)}

    @app.get("/tokenizer_info")
    async def describe_tokenizer() -> dict[str, Any]:
        return host.describe_tokenizer()

    if service is not None and runner is not None:
        tinker = TinkerApi(host, service, runner)
        app.include_router(make_router(tinker))
        app.include_router(make_listing(tinker))
    return app


def add_error_answers(app: FastAPI) -> None:
    """Lets an application answer errors in OpenAI's form."""
    app.add_exception_handler(ApiError, lambda _, error: answer_error(error))
    app.add_exception_handler(UserError, lambda _, error: answer_error(ApiError(400, str(error))))
    app.add_exception_handler(RequestValidationError, lambda _, error: answer_error(read_mistake(error)))
    app.add_exception_handler(HTTPException, lambda _, e: answer_error(ApiError(e.status_code, str(e.detail))))
    app.add_exception_handler(BusyError, lambda *_: answer_error(ApiError(429, "the queue is full: try again later")))
    app.add_exception_handler(Exception, lambda *_: answer_error(ApiError(500, "the server failed; see its log")))


def _find_path(request: Request) -> str:
    """The route of a request for the metrics; clients choose paths, so others share one name."""
    return getattr(request.scope.get("route"), "path", "other")
