"""The Tinker API's listings: training runs, checkpoints, sessions and samplers; and what is refused, by name."""

from __future__ import annotations

import datetime
import time
from typing import Any

from fastapi import APIRouter, Query, Request, Response

from r1jax.serving import tinker_requests as bodies
from r1jax.serving.request_errors import ApiError
from r1jax.serving.tinker_api import KINDS, TinkerApi
from r1jax.tuning.store import Thing

OWNER = "local"
# Last words of paths that are not supported, with the reason.
REFUSED = {
    "publish": "checkpoints are not published: copy files of the workdir",
    "archive": "there are no archives: copy files of the workdir",
    "external_weights_urls": "there are no external weights",
    "project": "there are no projects",
    "trace_export": "there are no traces",
    "create_custom_loss": "custom losses are computed by the client",
    "token": "keys are sent as they are",
    "join_sampling_session": "a copied sampler chooses a number of its own",
    "retrieve_futures": "futures are asked for one by one",
}


class Listing:
    """Descriptions of what the service keeps."""

    def __init__(self, api: TinkerApi):
        self.api, self.store, self.weights = api, api.store, api.service.weights

    def checkpoint(self, found: Thing) -> dict[str, Any]:
        """A checkpoint."""
        body = found.body
        return {
            "checkpoint_id": found.id.rpartition(f"{found.parent}/")[2],
            "checkpoint_type": body["kind"],
            "time": _show(found.created),
            "tinker_path": found.id,
            "size_bytes": body["size"],
            "public": False,
            "user_metadata": body["metadata"],
            "expires_at": _show(body["expires"]) if body["expires"] else None,
        }

    def run(self, model: Thing) -> dict[str, Any]:
        """A training run: a model."""
        saved = self.weights.list(model.id)
        newest = lambda kind: next((self.checkpoint(one) for one in saved if one.body["kind"] == kind), None)
        metadata = model.body.get("user_metadata")
        return {
            "training_run_id": model.id,
            "base_model": self.api.host.name,
            "model_owner": OWNER,
            "is_lora": True,
            "lora_rank": model.body["rank"],
            "corrupted": False,
            "last_request_time": _show(max([model.created, *(one.created for one in saved)])),
            "last_checkpoint": newest("training"),
            "last_sampler_checkpoint": newest("sampler"),
            "user_metadata": None if metadata is None else {key: str(value) for key, value in metadata.items()},
        }

    def find_run(self, id: str) -> Thing:
        """A model. Raises ApiError if there is none."""
        if (found := self.store.get("model", id)) is None:
            raise ApiError(404, f"there is no training run {id[:100]!r}")
        return found

    def find_checkpoint(self, model: str, id: str) -> Thing:
        """A checkpoint of a model by its short name."""
        return self.weights.find(f"tinker://{model}/{id}")


def make_listing(api: TinkerApi) -> APIRouter:
    """Routes of the listings below /api/v1, and one that says what else is not there."""
    router, listing = APIRouter(prefix="/api/v1", tags=["tinker"]), Listing(api)

    @router.get("/training_runs")
    def list_runs(limit: int = Query(20, ge=0), offset: int = Query(0, ge=0)) -> dict[str, Any]:
        found = listing.store.things("model")
        cursor = {"offset": offset, "limit": limit, "total_count": len(found)}
        return {"training_runs": [listing.run(model) for model in found[offset : offset + limit]], "cursor": cursor}

    @router.get("/training_runs/{id}")
    def show_run(id: str) -> dict[str, Any]:
        return listing.run(listing.find_run(id))

    @router.get("/training_runs/{id}/checkpoints")
    def list_checkpoints(id: str) -> dict[str, Any]:
        listing.find_run(id)
        return {"checkpoints": [listing.checkpoint(one) for one in listing.weights.list(id)], "cursor": None}

    @router.delete("/training_runs/{id}/checkpoints/{folder}/{name}")
    def delete(id: str, folder: str, name: str) -> Response:
        listing.weights.delete(listing.find_checkpoint(id, f"{folder}/{name}"))
        listing.weights.sweep()
        return Response(status_code=204)

    @router.put("/training_runs/{id}/checkpoints/{folder}/{name}/ttl")
    def set_ttl(id: str, folder: str, name: str, body: bodies.TimeToLive) -> Response:
        found = listing.find_checkpoint(id, f"{folder}/{name}")
        expires = None if body.ttl_seconds is None else time.time() + body.ttl_seconds
        listing.store.put("checkpoint", found.id, {**found.body, "expires": expires}, parent=found.parent)
        return Response(status_code=204)

    @router.get("/checkpoints")
    def list_all(limit: int = Query(100, ge=0), offset: int = Query(0, ge=0)) -> dict[str, Any]:
        found = listing.weights.list()
        cursor = {"offset": offset, "limit": limit, "total_count": len(found)}
        return {"checkpoints": [listing.checkpoint(one) for one in found[offset : offset + limit]], "cursor": cursor}

    @router.post("/weights_info")
    def weights_info(body: bodies.TinkerPath) -> dict[str, Any]:
        found = listing.weights.find(body.tinker_path).body
        flags = {flag: kind in found["kinds"] for kind, flag in KINDS.items()}
        return {"base_model": api.host.name, "is_lora": True, "lora_rank": found["rank"], **flags}

    @router.post("/copy_weights")
    def copy(body: bodies.CopyWeights) -> dict[str, Any]:
        source = listing.weights.find(body.source_path)
        number = 0 if body.model_seq_id is None else body.model_seq_id
        model = source.parent if body.session_id is None else f"{body.session_id}:train:{number}"
        taken = {one.id.rpartition("/")[2] for one in listing.store.things("checkpoint", model)}
        name = source.id.rpartition("/")[2]
        names = (f"{name}-copy{count or ''}" for count in range(len(taken) + 1))
        expires = time.time() + body.ttl_seconds if body.ttl_seconds else None
        free = next(one for one in names if one not in taken)
        return {"tinker_path": listing.weights.copy(source, model, free, expires=expires)}

    @router.get("/sessions")
    def list_sessions(limit: int = Query(20, ge=0), offset: int = Query(0, ge=0)) -> dict[str, Any]:
        return {"sessions": [one.id for one in listing.store.things("session")[offset : offset + limit]]}

    @router.get("/sessions/{id}")
    def show_session(id: str) -> dict[str, Any]:
        api.check_session(id)
        body = listing.store.get("session", id).body  # type: ignore[union-attr]
        return {
            "training_run_ids": [one.id for one in listing.store.things("model", id)],
            "sampler_ids": [one.id for one in listing.store.things("sampler", id)],
            "user_metadata": body["user_metadata"],
            "display_name": body["display_name"],
        }

    @router.get("/samplers/{id}")
    def show_sampler(id: str) -> dict[str, Any]:
        if (found := listing.store.get("sampler", id)) is None:
            raise ApiError(404, f"there is no sampler {id[:100]!r}")
        return {"sampler_id": id, "base_model": api.host.name, "model_path": found.body["path"]}

    @router.api_route("/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    async def refuse(rest: str, request: Request) -> Response:
        reason = REFUSED.get(rest.rpartition("/")[2], "it is not built")
        raise ApiError(400 if reason != "it is not built" else 404, f"{rest[:100]} is not supported here: {reason}")

    return router


def _show(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
