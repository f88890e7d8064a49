"""The Tinker API on the wire: what the SDK sends and reads, and the answers to what is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.core.seeds import derive_seed
from r1jax.models.transformer import merge
from r1jax.tuning.messages import message_class
from tests.serving.server import Server
from tests.tuning.wire import add_datum, training_body

PROTO = {"Content-Type": "application/x-protobuf"}
IDS = [40, 41, 42, 43, 44, 45]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tiny_model, workdir=tmp_path_factory.mktemp("work")) as server:
        yield server


def post(server: Server, path: str, /, **body: Any) -> dict[str, Any]:
    status, answer = server.send("POST", f"/api/v1/{path}", body)
    assert status == 200, answer
    return answer


def get(server: Server, path: str) -> dict[str, Any]:
    status, answer = server.send("GET", f"/api/v1/{path}")
    assert status == 200, answer
    return answer


def wait(server: Server, future: dict[str, Any], form: str = "") -> Any:
    """The result of a future: a message of `form`, or JSON."""
    raw = server.fetch("POST", "/api/v1/retrieve_future", {"request_id": future["request_id"]})
    return message_class(form).FromString(raw) if form else json.loads(raw)


def train(server: Server, model: str, number: int, **work: Any) -> Any:
    raw = training_body(model, number, **work)
    status, future = server.send("POST", "/api/v1/forward_backward", raw, PROTO)
    assert status == 200, future
    return wait(server, future, "ForwardBackwardOutput")


@pytest.fixture(scope="module")
def session(server: Server) -> str:
    body = {"tags": [], "user_metadata": {"who": "me"}, "sdk_version": "1", "display_name": "try"}
    return post(server, "create_session", **body)["session_id"]


@pytest.fixture
def model(server: Server, session: str, request: pytest.FixtureRequest) -> str:
    """A model with one step behind it; the next number is 3."""
    number = derive_seed(request.node.name) % 10**6
    body = {"session_id": session, "model_seq_id": number, "base_model": "tiny", "lora_config": {"rank": 4, "seed": 1}}
    future = post(server, "create_model", **body)
    assert wait(server, future)["model_id"] == f"{session}:train:{number}" == future["model_id"]
    train(server, future["model_id"], 1)
    future = post(server, "optim_step", model_id=future["model_id"], seq_id=2, adam_params={"learning_rate": 0.1})
    assert wait(server, future)["metrics"]["grad_norm"] > 0
    return future["model_id"]


def test_results_of_training_are_arrays_of_bytes(server: Server, model: str) -> None:
    output = train(server, model, 3, loss="ppo", clip_low_threshold=0.9)
    (record,) = output.loss_fn_outputs
    (field,) = record.fields
    offsets = np.frombuffer(field.value.offsets, "<i8")
    assert field.key == "logprobs" and record.num_datums == 2 and offsets.tolist() == [0, 40, 80]
    assert (np.frombuffer(field.value.data, "<f4") < 0).all()
    assert {entry.key for entry in output.metrics} == {"loss:sum"}


def test_a_sampler_gives_what_the_adapter_gives(server: Server, session: str, model: str) -> None:
    future = post(server, "save_weights_for_sampler", model_id=model, seq_id=3, sampling_session_seq_id=7)
    answer = wait(server, future)
    sampler = answer["sampling_session_id"]
    assert answer["path"] is None and get(server, f"samplers/{sampler}")["base_model"] == "tiny"
    prompt = {"chunks": [{"type": "encoded_text", "tokens": IDS[:2]}, {"tokens": IDS[2:]}]}
    asked = {"prompt_logprobs": True, "topk_prompt_logprobs": 2, "topk_sample_logprobs": 3, "num_samples": 3}
    target = {"data": [*IDS[1:], -1, 7, 8, 9, 10], "dtype": "int64", "shape": [5, 2]}
    body = {"prompt": prompt, "sampling_params": {"max_tokens": 4, "seed": 3}, "sampling_session_id": sampler, **asked}
    future = post(server, "asample", seq_id=0, target_prompt_logprobs=target, **body)
    assert len(set(future["sample_sequence_ids"])) == 3
    found = wait(server, future, "SampleResponse")
    weights, params = server.host.adapters, None
    place = next(reversed(weights._held.values()))
    gates = weights.bank.gates([(place.place, place.rank)])
    params = weights.bank.join(server.sampler.params, weights._params, gates)
    logits = merge(weights.bank.graph, params)(np.array([IDS]))[0]
    logprobs = np.asarray(logits) - np.logaddexp.reduce(np.asarray(logits), -1)[:, None]
    scored = np.frombuffer(found.prompt_logprobs, "<f4")
    assert np.isnan(scored[0])
    np.testing.assert_allclose(scored[1:], logprobs[np.arange(5), IDS[1:]], atol=1e-5)
    topk = np.frombuffer(found.topk_prompt_logprobs.logprobs, "<f4").reshape(6, 2)
    np.testing.assert_allclose(topk[1:], -np.sort(-logprobs[:5], -1)[:, :2], atol=1e-5)
    asked_for = np.frombuffer(found.target_prompt_logprobs.dense, "<f4").reshape(5, 2)
    ids = np.array(target["data"]).reshape(5, 2)
    expected = np.where(ids < 0, 0.0, np.take_along_axis(logprobs[:5], np.maximum(ids, 0), 1))
    np.testing.assert_allclose(asked_for, expected, atol=1e-5)
    for sequence in found.sequences:
        tokens = np.frombuffer(sequence.tokens, "<i4")
        assert 1 <= len(tokens) <= 4 and len(np.frombuffer(sequence.logprobs, "<f4")) == len(tokens)
        best = np.frombuffer(sequence.topk_sampled_logprobs.logprobs, "<f4").reshape(-1, 3)
        assert len(best) == len(tokens) and (np.diff(best, axis=1) <= 0).all()
    again = wait(server, post(server, "asample", seq_id=1, **body), "SampleResponse")  # the same seed
    assert [one.tokens for one in again.sequences] == [one.tokens for one in found.sequences]


def test_stops_are_what_the_request_says(server: Server, session: str) -> None:
    sampler = post(server, "create_sampling_session", session_id=session, sampling_session_seq_id=99, base_model="tiny")

    def sample(number: int, **params: Any) -> tuple[list[int], int]:
        params = {"max_tokens": 12, "seed": 1, **params}
        body = {"sampling_session_id": sampler["sampling_session_id"], "seq_id": number, "sampling_params": params}
        future = post(server, "asample", prompt={"chunks": [{"tokens": IDS}]}, **body)
        (sequence,) = wait(server, future, "SampleResponse").sequences
        return np.frombuffer(sequence.tokens, "<i4").tolist(), sequence.stop_reason

    free, reason = sample(0, stop=[])
    assert len(free) == 12 and reason == 1
    assert sample(1, stop=[free[3]]) == (free[: free.index(free[3]) + 1], 0)
    text = server.host.show(free[2])
    if text.isprintable():
        assert sample(2, stop=text)[0] == free[: len(sample(2, stop=text)[0])]


def test_checkpoints_are_listed_and_loaded(server: Server, session: str, model: str) -> None:
    saved = wait(server, post(server, "save_weights", model_id=model, seq_id=3, path="one", ttl_seconds=3600))
    assert saved["path"] == f"tinker://{model}/weights/one"
    wait(server, post(server, "save_weights_for_sampler", model_id=model, seq_id=4, path="two"))
    listed = get(server, f"training_runs/{model}/checkpoints")["checkpoints"]
    assert [one["checkpoint_id"] for one in listed] == ["sampler_weights/two", "weights/one"]
    assert [one["checkpoint_type"] for one in listed] == ["sampler", "training"]
    assert listed[1]["expires_at"] and listed[1]["size_bytes"] > listed[0]["size_bytes"] > 1000
    run = get(server, f"training_runs/{model}")
    assert run["last_checkpoint"]["tinker_path"] == saved["path"] and run["lora_rank"] == 4
    info = post(server, "weights_info", tinker_path=saved["path"])
    assert info["lora_rank"] == 4 and info["train_unembed"] and info["base_model"] == "tiny"
    body = {"session_id": session, "model_seq_id": 10**7, "path": saved["path"], "optimizer": True}
    other = wait(server, post(server, "load_weights", **body))["model_id"]
    first, second = (train(server, name, number, seed=5) for name, number in ((model, 5), (other, 1)))
    assert first.loss_fn_outputs == second.loss_fn_outputs
    assert model in [run["training_run_id"] for run in get(server, "training_runs?limit=100")["training_runs"]]
    assert saved["path"] in [one["tinker_path"] for one in get(server, "checkpoints")["checkpoints"]]
    assert (
        other in get(server, f"sessions/{session}")["training_run_ids"]
        and session in get(server, "sessions")["sessions"]
    )
    path = f"/api/v1/training_runs/{model}/checkpoints/weights/one"
    assert server.send("PUT", f"{path}/ttl", {"ttl_seconds": None})[0] == 204
    assert get(server, f"training_runs/{model}/checkpoints")["checkpoints"][1]["expires_at"] is None
    assert server.send("DELETE", path)[0] == 204 and server.send("DELETE", path)[0] == 400


def test_refused_requests_take_their_turn(server: Server, model: str) -> None:
    future = post(server, "optim_step", model_id=model, seq_id=3, adam_params={"beta1": 7.0})
    assert "beta1" in wait(server, future)["error"]
    future = post(server, "optim_step", model_id=model, seq_id=4, optimizer_params={"type": "dimuon"})
    assert "AdamW" in wait(server, future)["error"]
    future = post(server, "save_weights_external", model_id=model, seq_id=5, path="x")
    assert wait(server, future) == {"error": wait(server, future)["error"], "category": "user"}
    train(server, model, 6)


def test_sessions_live_and_finish(server: Server) -> None:
    id = post(server, "create_session", tags=["a"], user_metadata=None, sdk_version="1")["session_id"]
    post(server, "session_heartbeat", session_id=id)
    assert server.send("POST", f"/api/v1/sessions/{id}/finish", {"reason": {"type": "success"}})[0] == 204
    assert server.send("POST", "/api/v1/session_heartbeat", {"session_id": id})[0] == 410


def test_config_and_capabilities(server: Server) -> None:
    assert get(server, "healthz") == {"status": "ok"}
    assert post(server, "client/config", sdk_version="1")["proto_compress_fwdbwd"] is False
    assert post(server, "client/dynamic_config", sdk_version="1")["sample_cancel_enabled"] is True
    (found,) = get(server, "get_server_capabilities")["supported_models"]
    assert found["model_name"] == "tiny" and found["max_context_length"] == 160
    assert post(server, "telemetry", events=[])["status"] == "accepted"


def malformed() -> list[tuple[str, str, Any, int]]:
    """(method, path, body, expected status)."""
    lora = {"lora_config": {"rank": 4}, "base_model": "tiny", "model_seq_id": 1}
    sample = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {}, "base_model": "tiny"}
    params = lambda **values: {**sample, "sampling_params": values}
    return [
        ("POST", "create_session", b"{", 400),
        ("POST", "create_session", b"\xff\xfe", 400),
        ("POST", "create_session", {"tags": 3}, 400),
        ("POST", "session_heartbeat", {}, 400),
        ("POST", "session_heartbeat", {"session_id": "none"}, 404),
        ("POST", "sessions/none/finish", {}, 404),
        ("POST", "create_model", {**lora, "session_id": "none"}, 404),
        ("POST", "create_model", {**lora}, 400),
        ("POST", "create_model", {**lora, "session_id": "SESSION", "base_model": "gpt"}, 404),
        ("POST", "create_model", {**lora, "session_id": "SESSION", "lora_config": {"rank": 0}}, 400),
        ("POST", "create_model", {**lora, "session_id": "SESSION", "lora_config": {"rank": 999}}, 400),
        ("POST", "create_model", {**lora, "session_id": "SESSION", "lora_config": None}, 400),
        ("POST", "create_model", {**lora, "session_id": "SESSION", "optimizer_config": {"type": "dimuon"}}, 400),
        ("POST", "create_model", {**lora, "session_id": "SESSION", "model_seq_id": -1}, 400),
        ("POST", "get_info", {"model_id": "none"}, 404),
        ("POST", "forward_backward", b"\xff\xff", 400),
        ("POST", "forward_backward", training_body("none", 1), 404),
        ("POST", "forward_backward", b"", 404),
        ("POST", "forward_backward", {"json": 1}, 415),
        ("POST", "optim_step", {}, 400),
        ("POST", "optim_step", b"[1]", 400),
        ("POST", "optim_step", {"model_id": "none", "seq_id": 1, "adam_params": {}}, 404),
        ("POST", "save_weights", {"model_id": "none", "seq_id": 1}, 404),
        ("POST", "save_weights", {"model_id": 3, "seq_id": "x"}, 400),
        ("POST", "load_weights", {"path": "tinker://x", "optimizer": False}, 400),
        ("POST", "load_weights", {"session_id": "SESSION", "model_seq_id": 2, "path": "x", "optimizer": False}, 400),
        ("POST", "create_sampling_session", {"session_id": "none", "sampling_session_seq_id": 0}, 404),
        (
            "POST",
            "create_sampling_session",
            {"session_id": "SESSION", "sampling_session_seq_id": 0, "model_path": "tinker://x"},
            400,
        ),
        ("POST", "asample", {**sample, "prompt": {"chunks": []}}, 400),
        ("POST", "asample", {**sample, "prompt": {"chunks": [{"type": "image"}]}}, 400),
        ("POST", "asample", {**sample, "prompt": {"chunks": [{"tokens": [-1]}]}}, 400),
        ("POST", "asample", {**sample, "sampling_session_id": "none", "seq_id": 1}, 404),
        ("POST", "asample", {**sample, "sampling_session_id": "none"}, 400),
        ("POST", "asample", {**sample, "base_model": "gpt"}, 404),
        ("POST", "asample", {**sample, "num_samples": 0}, 400),
        ("POST", "asample", {**sample, "num_samples": 10**9}, 400),
        ("POST", "asample", {**sample, "topk_prompt_logprobs": 99}, 400),
        ("POST", "asample", {**sample, "prompt_alt_tokens_k": 2}, 400),
        ("POST", "asample", {**sample, "prompt_logprobs_last_n": 1}, 400),
        ("POST", "asample", params(temperature=-1), 400),
        ("POST", "asample", params(top_p=0), 400),
        ("POST", "asample", params(max_tokens=0), 400),
        ("POST", "asample", params(stop=[1.5]), 400),
        ("POST", "retrieve_future", {"request_id": "none"}, 404),
        ("POST", "retrieve_future", {}, 400),
        ("POST", "weights_info", {"tinker_path": "tinker://x"}, 400),
        ("POST", "copy_weights", {"source_path": "tinker://x"}, 400),
        ("GET", "training_runs/none", None, 404),
        ("GET", "training_runs/none/checkpoints", None, 404),
        ("GET", "training_runs?limit=-1", None, 400),
        ("DELETE", "training_runs/none/checkpoints/weights/x", None, 400),
        ("DELETE", "training_runs/none/checkpoints/..%2f..%2fetc/passwd", None, 404),
        ("POST", "training_runs/none/checkpoints/weights/x/publish", {}, 400),
        ("GET", "sessions/none", None, 404),
        ("GET", "samplers/none", None, 404),
        ("POST", "create_custom_loss", {}, 400),
        ("POST", "auth/token", {}, 400),
        ("GET", "nothing", None, 404),
    ]


def test_malformed_requests_get_their_status_and_disturb_nothing(server: Server, session: str, model: str) -> None:
    cases = malformed()
    assert len(cases) >= 40
    for method, path, body, expected in cases:
        if isinstance(body, dict) and body.get("session_id") == "SESSION":
            body = {**body, "session_id": session}
        headers = PROTO if path == "forward_backward" and isinstance(body, bytes) else None
        status, answer = server.send(method, f"/api/v1/{path}", body, headers)
        assert status == expected and answer["error"]["message"], (path, body, status, answer)
    assert server.send("POST", "/api/v1/forward_backward", b"", {**PROTO, "Content-Length": str(9 << 20)})[0] == 413
    train(server, model, 3)
    assert server.send("GET", "/health")[0] == 200


def test_data_that_do_not_fit_fail_their_future_alone(server: Server, model: str) -> None:
    message = message_class("ForwardBackwardRequest")(model_id=model, seq_id=3, loss_fn="cross_entropy")
    add_datum(message, np.array([1, 2]), {"target_tokens": np.array([3, 999])})
    status, future = server.send("POST", "/api/v1/forward_backward", message.SerializeToString(), PROTO)
    assert status == 200 and "ids below 304" in wait(server, future)["error"]
    train(server, model, 4)


def test_a_key_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    with Server(tiny_model, workdir=tmp_path, key="secret") as server:
        assert server.send("GET", "/api/v1/get_server_capabilities")[0] == 401
        assert server.send("GET", "/api/v1/get_server_capabilities", headers={"X-API-Key": "wrong"})[0] == 401
        assert server.send("GET", "/api/v1/get_server_capabilities", headers={"X-API-Key": "secret"})[0] == 200
