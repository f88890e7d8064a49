"""The Tinker API: sessions, training of adapters, futures, samplers and checkpoints over HTTP, as its SDK speaks it.

Requests of a model are numbered by the client and answered by a future, which the client asks for until it is there.
A request that is refused takes its turn too, and its future fails with the reason; otherwise all later ones of the
model would wait for it.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from r1jax.serving import tinker_requests as bodies
from r1jax.serving.model_host import ModelHost
from r1jax.serving.request_errors import ApiError
from r1jax.serving.tinker_sampling import SampleRunner
from r1jax.tuning import messages
from r1jax.tuning.service import GRADIENT_KINDS, SAMPLE, TrainingService

POLL_SECONDS = 25.0  # a client waits 45 for an answer
PROTO = "application/x-protobuf"
KINDS = {"attention": "train_attn", "mlp": "train_mlp", "unembed": "train_unembed"}
Body = TypeVar("Body", bound=BaseModel)


class TinkerApi:
    """The work of the routes that train and sample."""

    def __init__(self, host: ModelHost, service: TrainingService, runner: SampleRunner):
        self.host, self.service, self.runner, self.store = host, service, runner, service.store

    def check_base(self, name: str | None) -> None:
        """Raises ApiError for another base model than the one served."""
        if name is not None and name != self.host.name:
            raise ApiError(404, f"base_model must be {self.host.name!r}, which is served, got {name[:100]!r}")

    def check_session(self, id: str) -> None:
        """Raises ApiError for a session that is not known."""
        if self.store.get("session", id) is None:
            raise ApiError(404, f"there is no session {id[:100]!r}: create one with ServiceClient")

    def create_session(self, body: bodies.CreateSession) -> dict[str, Any]:
        """A new session."""
        id = f"session-{uuid.uuid4().hex[:16]}"
        self.store.put("session", id, {**body.model_dump(), "finished": None})
        return {"type": "create_session", "session_id": id}

    def create_model(self, body: bodies.CreateModel) -> dict[str, Any]:
        """A new adapter."""
        self.check_session(body.session_id)
        self.check_base(body.base_model)
        bank, lora = self.service.trainer.bank, body.lora_config
        if lora is None:
            raise ApiError(400, "lora_config is missing: this server trains adapters, not all parameters")
        if lora.rank > bank.rank:
            raise ApiError(400, f"rank must be at most {bank.rank} (--rank of the server), got {lora.rank}")
        if (optimizer := body.optimizer_config.get("type")) != "adamw":
            raise ApiError(400, f"optimizer must be adamw, got {str(optimizer)[:60]!r}")
        if bank.has_router and lora.train_mlp:
            raise ApiError(400, "train_mlp must be False: adapters of routed experts are not supported")
        kinds = [kind for kind, flag in KINDS.items() if getattr(lora, flag) and kind in bank.kinds]
        if not kinds:
            raise ApiError(400, "at least one of train_attn, train_mlp and train_unembed must be true")
        settings = {"rank": lora.rank, "kinds": kinds, "seed": lora.seed}
        return self._make_model(body, settings, "create_model", settings)

    def load(self, body: bodies.LoadWeights) -> dict[str, Any]:
        """Loads a checkpoint into a model, or into a new one."""
        work = {"path": body.path, "optimizer": body.optimizer}
        if body.model_id is not None and body.seq_id is not None:
            return self.submit(body.model_id, body.seq_id, "load_weights", work)
        self.check_session(body.session_id or "")
        self.check_base(body.base_model)
        checkpoint = self.service.weights.find(body.path)
        settings = {"rank": checkpoint.body["rank"], "kinds": checkpoint.body["kinds"], "seed": None}
        return self._make_model(body, settings, "load_weights", work)

    def _make_model(self, body: Any, settings: dict[str, Any], kind: str, work: dict[str, Any]) -> dict[str, Any]:
        id = f"{body.session_id}:train:{body.model_seq_id}"
        if self.store.get("model", id) is None:
            described = {**settings, "user_metadata": body.user_metadata}
            self.store.put("model", id, described, parent=body.session_id)
        return self.submit(id, 0, kind, work)

    def train(self, raw: bytes) -> dict[str, Any]:
        """Gradients, or log-probs alone, of data in protocol buffers."""
        message = messages.read_training(raw)
        kind = "forward" if message.forward_only else "forward_backward"
        return self._submit_raw(message.model_id, message.seq_id, kind, raw)

    def submit(self, model: str, number: int, kind: str, work: dict[str, Any]) -> dict[str, Any]:
        """Queues a request of a model; returns its future."""
        return self._submit_raw(model, number, kind, json.dumps(work).encode())

    def _submit_raw(self, model: str, number: int, kind: str, raw: bytes) -> dict[str, Any]:
        if self.store.get("model", model) is None:
            raise ApiError(404, f"there is no model {model[:100]!r}")
        if number < 0 or (number == 0) != (kind in ("create_model", "load_weights") and number == 0):
            raise ApiError(400, f"seq_id must be at least 1, got {number}")
        return {"request_id": self.service.submit(model, number, kind, raw), "model_id": model}

    def take(self, form: type[Body], raw: bytes, work: Callable[[Body], tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        """Queues what `work` makes of a model's request. One that is not right is queued as refused, so that it takes
        its turn. Raises ApiError if it says no model and number.
        """
        try:
            given = json.loads(raw)
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is no JSON") from None
        try:
            body: Any = form.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            text = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
            model, number = (given.get("model_id"), given.get("seq_id")) if isinstance(given, dict) else (None, None)
            if not isinstance(model, str) or type(number) is not int or number < 1:
                raise ApiError(400, text) from None
            return self.submit(model, number, "refused", {"reason": text})
        kind, made = work(body)
        return self.submit(body.model_id, body.seq_id, kind, made)

    def create_sampler(self, body: bodies.CreateSampler) -> dict[str, Any]:
        """A sampler over a checkpoint or the base model."""
        self.check_session(body.session_id)
        self.check_base(body.base_model)
        id = self.service.make_sampler(body.session_id, body.sampling_session_seq_id, body.model_path)
        return {"type": "create_sampling_session", "sampling_session_id": id}

    async def sample(self, body: bodies.Sample) -> dict[str, Any]:
        """Queues a request for samples; returns its future."""
        self.check_base(body.base_model)
        sampler = body.sampling_session_id
        if sampler is None:  # a sampler of this request alone
            make = lambda: self.service.make_sampler(f"direct-{uuid.uuid4().hex[:16]}", 0, body.model_path)
            sampler, body.seq_id = await run_in_threadpool(make), 0
        elif await run_in_threadpool(self.store.get, "sampler", sampler) is None:
            raise ApiError(404, f"there is no sampler {sampler[:100]!r}")
        id = await self.runner.submit(sampler, body)
        return {"request_id": id, "sample_sequence_ids": [f"{id}:{number}" for number in range(body.num_samples)]}

    async def retrieve(self, body: bodies.RetrieveFuture) -> Response:
        """The result of a request, or the advice to ask again."""
        done, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(done.set)

        self.service.listen(body.request_id, wake)
        try:
            find: Callable[[], Awaitable[Any]] = lambda: run_in_threadpool(self.store.request, body.request_id)
            found = await find()
            if found is None:
                raise ApiError(404, f"there is no request {body.request_id[:100]!r}")
            if found.status == "pending":
                try:
                    await asyncio.wait_for(done.wait(), POLL_SECONDS)
                except TimeoutError:
                    waits = {"type": "try_again", "request_id": found.id, "queue_state": "active"}
                    return JSONResponse(waits, 408)
                found = await find()
        finally:
            self.service.ignore(body.request_id, wake)
        await run_in_threadpool(self.store.note_fetched, found.id)
        is_proto = found.status == "done" and found.kind in (*GRADIENT_KINDS, SAMPLE)
        return Response(found.result, media_type=PROTO if is_proto else "application/json")

    def describe_model(self, id: str) -> dict[str, Any]:
        """The answer of get_info."""
        model = self.store.get("model", id)
        if model is None:
            raise ApiError(404, f"there is no model {id[:100]!r}")
        name = self.host.name
        described = {"type": "get_info", "model_id": id, "model_name": name, "is_lora": True}
        described |= {"lora_rank": model.body["rank"], "optimizer_config": {"type": "adamw"}}
        return {**described, "model_data": {"arch": "decoder", "model_name": name, "tokenizer_id": name}}


def make_router(api: TinkerApi) -> APIRouter:
    """Routes of training, sampling and futures below /api/v1."""
    router = APIRouter(prefix="/api/v1", tags=["tinker"])

    @router.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.post("/client/config")
    async def config() -> dict[str, Any]:
        return {"pjwt_auth_enabled": False, "parallel_fwdbwd_chunks": True, "proto_compress_fwdbwd": False}

    @router.post("/client/dynamic_config")
    async def dynamic_config() -> dict[str, Any]:
        return {"sample_cancel_enabled": True}

    @router.post("/telemetry")
    async def telemetry() -> dict[str, str]:
        return {"status": "accepted"}  # and forgotten

    @router.get("/get_server_capabilities")
    async def capabilities() -> dict[str, Any]:
        length = api.host.config.max_tokens
        model = {"model_name": api.host.name, "max_context_length": length, "trainable": True, "sampleable": True}
        return {"supported_models": [model]}

    @router.post("/create_session")
    def create_session(body: bodies.CreateSession) -> dict[str, Any]:
        return api.create_session(body)

    @router.post("/session_heartbeat")
    def heartbeat(body: bodies.SessionId) -> dict[str, Any]:
        api.check_session(body.session_id)
        if api.store.get("session", body.session_id).body["finished"]:  # type: ignore[union-attr]
            raise ApiError(410, "the session has finished")
        return {"type": "session_heartbeat"}

    @router.post("/sessions/{id}/finish")
    def finish(id: str, body: bodies.FinishSession) -> Response:
        api.check_session(id)
        session = api.store.get("session", id)
        api.store.put("session", id, {**session.body, "finished": {**body.model_dump(), "time": time.time()}})  # type: ignore[union-attr]
        return Response(status_code=204)

    @router.post("/create_model")
    def create_model(body: bodies.CreateModel) -> dict[str, Any]:
        return api.create_model(body)

    @router.post("/get_info")
    def info(body: bodies.ModelId) -> dict[str, Any]:
        return api.describe_model(body.model_id)

    @router.post("/forward_backward")
    async def forward_backward(request: Request) -> dict[str, Any]:
        if request.headers.get("content-type") != PROTO or "content-encoding" in request.headers:
            raise ApiError(415, f"the body must be {PROTO} as it is")
        return await run_in_threadpool(api.train, await request.body())

    @router.post("/optim_step")
    async def optim_step(request: Request) -> dict[str, Any]:
        def work(body: bodies.OptimStep) -> tuple[str, dict[str, Any]]:
            adam = body.adam_params
            assert adam is not None
            names = ("learning_rate", "beta1", "beta2", "weight_decay")
            settings = {name: getattr(adam, name) for name in names}
            return "optim_step", {**settings, "epsilon": adam.eps, "clip_norm": max(adam.grad_clip_norm, 0.0)}

        return await run_in_threadpool(api.take, bodies.OptimStep, await request.body(), work)

    async def save(request: Request, kind: str) -> dict[str, Any]:
        def work(body: bodies.SaveWeights) -> tuple[str, dict[str, Any]]:
            if body.kind == "inflight":
                return "refused", {"reason": "kind inflight is not supported: sample from a snapshot"}
            return kind, body.model_dump(exclude={"model_id", "seq_id", "kind"})

        return await run_in_threadpool(api.take, bodies.SaveWeights, await request.body(), work)

    @router.post("/save_weights")
    async def save_weights(request: Request) -> dict[str, Any]:
        return await save(request, "save_weights")

    @router.post("/save_weights_for_sampler")
    async def save_for_sampler(request: Request) -> dict[str, Any]:
        return await save(request, "save_weights_for_sampler")

    @router.post("/save_weights_external")
    async def save_external(request: Request) -> dict[str, Any]:
        reason = {"reason": "save_weights_external is not supported: export a checkpoint of the workdir instead"}
        return await run_in_threadpool(
            api.take, bodies.SaveWeights, await request.body(), lambda _: ("refused", reason)
        )

    @router.post("/load_weights")
    def load(body: bodies.LoadWeights) -> dict[str, Any]:
        return api.load(body)

    @router.post("/create_sampling_session")
    def create_sampler(body: bodies.CreateSampler) -> dict[str, Any]:
        return api.create_sampler(body)

    @router.post("/asample")
    async def sample(body: bodies.Sample) -> dict[str, Any]:
        return await api.sample(body)

    @router.post("/retrieve_future")
    async def retrieve(body: bodies.RetrieveFuture) -> Response:
        return await api.retrieve(body)

    @router.post("/cancel_future")
    async def cancel(body: bodies.RetrieveFuture) -> Response:
        api.runner.cancel(body.request_id)
        return Response(status_code=204)

    return router
