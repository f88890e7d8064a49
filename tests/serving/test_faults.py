"""Requests that are wrong, huge, unauthorized or left: a status in OpenAI's form, and nothing else is disturbed."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.structs import Sampling
from r1jax.rollout.continuous import ContinuousEngine
from r1jax.serving.body_limit import MOST_BYTES
from r1jax.serving.worker import BusyError, Job, Worker
from tests.serving.server import Server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SAY = {"prompt": "a", "max_tokens": 2}
ASK = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
KEY = {"Authorization": "Bearer secret"}

# (path, body without `model`, part of the message)
WRONG: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {}, "prompt"),
    (COMPLETIONS, {**SAY, "prompt": ""}, "prompt must have at least one token"),
    (COMPLETIONS, {**SAY, "prompt": []}, "prompt"),
    (COMPLETIONS, {**SAY, "prompt": [[]]}, "prompt"),
    (COMPLETIONS, {**SAY, "prompt": 3}, "prompt"),
    (COMPLETIONS, {**SAY, "prompt": ["a", 3]}, "prompt"),
    (COMPLETIONS, {**SAY, "prompt": [304]}, "ids must be below 304, got 304"),
    (COMPLETIONS, {**SAY, "prompt": [-1]}, "prompt"),
    (COMPLETIONS, {**SAY, "prompt": "a" * 200}, "must fit into 160 tokens"),
    (COMPLETIONS, {**SAY, "prompt": "\ud800"}, ""),
    (COMPLETIONS, {**SAY, "max_tokens": 0}, "max_tokens must be at least 1 unless echo is true"),
    (COMPLETIONS, {**SAY, "max_tokens": -1}, "max_tokens"),
    (COMPLETIONS, {**SAY, "max_tokens": 161}, "must fit into 160 tokens"),
    (COMPLETIONS, {**SAY, "max_tokens": "2"}, "max_tokens"),
    (COMPLETIONS, {**SAY, "max_tokens": 1e400}, "max_tokens"),
    (COMPLETIONS, {**SAY, "n": 0}, "n: "),
    (COMPLETIONS, {**SAY, "n": 1000}, "n: "),
    (COMPLETIONS, {**SAY, "temperature": -0.1}, "temperature"),
    (COMPLETIONS, {**SAY, "temperature": float("nan")}, "temperature"),
    (COMPLETIONS, {**SAY, "temperature": float("inf")}, "temperature"),
    (COMPLETIONS, {**SAY, "top_p": 0}, "top_p"),
    (COMPLETIONS, {**SAY, "top_p": 1.1}, "top_p"),
    (COMPLETIONS, {**SAY, "top_k": -2}, "top_k"),
    (COMPLETIONS, {**SAY, "min_p": 2}, "min_p"),
    (COMPLETIONS, {**SAY, "seed": "x"}, "seed"),
    (COMPLETIONS, {**SAY, "seed": 2**64}, "seed"),
    (COMPLETIONS, {**SAY, "stop": [""]}, "stop must be at most 16 texts"),
    (COMPLETIONS, {**SAY, "stop": ["x"] * 17}, "stop must be at most 16 texts"),
    (COMPLETIONS, {**SAY, "stop": 3}, "stop"),
    (COMPLETIONS, {**SAY, "stop_token_ids": [1] * 17}, "stop_token_ids"),
    (COMPLETIONS, {**SAY, "logprobs": 21}, "logprobs"),
    (COMPLETIONS, {**SAY, "logit_bias": {"5": 1}}, "logit_bias is not supported"),
    (COMPLETIONS, {**SAY, "frequency_penalty": 0.5}, "frequency_penalty is not supported"),
    (COMPLETIONS, {**SAY, "best_of": 3}, "best_of is not supported"),
    (COMPLETIONS, {**SAY, "echo": True, "stream": True}, "echo is not supported in a stream"),
    (COMPLETIONS, {**SAY, "prompt": ["a"] * 257}, "at most 256 prompts, got 257"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [{"content": "a"}]}, "each message needs a role"),
    (CHAT, {**ASK, "top_logprobs": 2}, "top_logprobs needs logprobs=true"),
    (CHAT, {**ASK, "tool_choice": "required"}, "tool_choice must be auto or none"),
    (CHAT, {**ASK, "response_format": {"type": "xml"}}, "response_format.type must be"),
    (
        CHAT,
        {**ASK, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
        "response_format",
    ),
    (CHAT, {**ASK, "response_format": {"type": "json_object"}, "stream": True}, "response_format needs stream=false"),
    (CHAT, {**ASK, "functions": [{"name": "f"}]}, "functions is not supported"),
    (CHAT, {**ASK, "max_completion_tokens": 0}, "max_completion_tokens"),
    ("/tokenize", {}, "either prompt or messages"),
    ("/detokenize", {"tokens": [-4]}, "tokens"),
    ("/detokenize", {"tokens": "x"}, "tokens"),
]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    with Server(tiny_model, key="secret", queue=8) as server:
        yield server


@pytest.fixture
def is_well(server: Server) -> Iterator[None]:
    """Afterwards nothing is left in the engine, and a request is answered."""
    yield
    for _ in range(200):
        if not server.worker.active and not server.worker.waiting:
            break
        time.sleep(0.05)
    assert server.host.engine.free == server.host.config.slots
    assert server.send("POST", COMPLETIONS, {"model": "tiny", **SAY}, KEY)[0] == 200


def test_wrong_requests_name_what_is_wrong(server: Server, is_well: None) -> None:
    for path, body, part in WRONG:
        status, answer = server.send("POST", path, {"model": "tiny", **body}, KEY)
        assert status == 400, (path, body, answer)
        error = answer["error"]
        assert error["type"] == "invalid_request_error" and part in error["message"], (body, error)
        assert len(error["message"]) < 500 and "\n" not in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_json_are_refused(server: Server, is_well: None, body: bytes) -> None:
    status, answer = server.send("POST", COMPLETIONS, body, KEY)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"


def test_keys_paths_methods_and_models(server: Server, is_well: None) -> None:
    asked = {"model": "tiny", **SAY}
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer \xe9"},
    ):
        status, answer = server.send("POST", COMPLETIONS, asked, headers)
        assert status == 401 and answer["error"]["type"] == "authentication_error" and "secret" not in str(answer)
    assert server.send("GET", "/health")[0] == 200
    assert server.send("GET", "/v1/models")[0] == 401
    status, answer = server.send("POST", COMPLETIONS, {**asked, "model": "gpt"}, KEY)
    assert status == 404 and answer["error"]["code"] == "model_not_found" and "'tiny'" in answer["error"]["message"]
    assert server.send("GET", "/nothing", None, KEY)[0] == 404
    status, answer = server.send("GET", COMPLETIONS, None, KEY)
    assert status == 405 and answer["error"]["message"]


def test_huge_bodies_are_refused_before_they_are_read(server: Server, is_well: None) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", COMPLETIONS)
    for name, value in {**KEY, "Content-Type": "application/json", "Content-Length": str(MOST_BYTES + 1)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:  # in chunks, whose sum nobody said
        head = (
            "POST /v1/completions HTTP/1.1",
            "Host: x",
            "Authorization: Bearer secret",
            "Transfer-Encoding: chunked",
        )
        raw.sendall("\r\n".join([*head, "", ""]).encode())
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        with contextlib.suppress(OSError):  # the server closes its side before it has read all
            for _ in range(2 + MOST_BYTES // (1 << 20)):
                raw.sendall(chunk)
        assert b" 413 " in raw.recv(200)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_frees_its_slots(server: Server, is_well: None, is_stream: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 150, "n": 4, "stream": is_stream, "stop_token_ids": []}
    connection.request("POST", COMPLETIONS, json.dumps(body), {"Content-Type": "application/json", **KEY})
    while not server.worker.active:
        time.sleep(0.002)
    connection.close()


def test_a_queue_that_is_full_refuses_and_takes_again(server: Server, is_well: None) -> None:
    status, answer = server.send("POST", COMPLETIONS, {"model": "tiny", **SAY, "n": 9}, KEY)
    assert status == 429 and answer["error"]["type"] == "rate_limit_error"


def test_slow_requests_end_at_their_time(tiny_model: Path) -> None:
    with Server(tiny_model, seconds=0.05) as server:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 150, "n": 8}
        status, answer = server.send("POST", COMPLETIONS, body)
        assert status == 504 and "--request_seconds" in answer["error"]["message"]
        _, text = server.send("POST", COMPLETIONS, {**body, "stream": True})
        assert '"server_error"' in text.strip().split("\n\n")[-1]


def test_an_engine_that_fails_is_told_to_all(tiny_model: Path) -> None:
    with Server(tiny_model) as server:
        step, calls = server.host.engine.step, []

        def fail(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError("the device is gone")
            return step(*arguments, **named)

        server.host.engine.step = fail  # type: ignore[method-assign]
        status, answer = server.send(
            "POST", COMPLETIONS, {"model": "tiny", "prompt": "a", "max_tokens": 100, "seed": 1}
        )
        assert status == 500 and answer["error"]["type"] == "server_error" and "device" not in str(answer)
        assert server.send("GET", "/health")[0] == 503
        assert server.send("POST", COMPLETIONS, {"model": "tiny", **SAY})[0] == 500


def test_a_worker_that_ends_finishes_what_it_has(tiny_model: Path) -> None:
    with Server(tiny_model) as server:
        engine: ContinuousEngine = server.host.engine
    worker, found, done = Worker(engine, queue=4), [], threading.Event()

    def deliver(burst: Any) -> None:
        found.append(burst)
        if burst.finish_reason:
            done.set()

    worker.start()
    worker.submit(Job((1, 2), Sampling(max_new_tokens=20), 0, deliver))
    worker.stop()
    assert done.is_set() and sum(len(burst.tokens) for burst in found) <= 20
    with pytest.raises(BusyError):
        worker.submit(Job((1,), Sampling(max_new_tokens=1), 0, deliver))
