"""OpenAI's routes: replies are those of the sampler, streams add up to them, log-probs are the model's."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.core.structs import Request, Sampling
from r1jax.eval.prompting import Prompting
from r1jax.runs.likelihood import Likelihood
from r1jax.text.encoding import encode_prompt
from tests.serving.server import Server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "what is it?"}]
WARM = {"temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    with Server(tiny_model) as server:
        yield server


def sample(server: Server, tokens: tuple[int, ...], **sampling: Any) -> str:
    """What the command `generate` would sample."""
    request = Request(tokens, Sampling(stop_ids=server.host.stop_ids, **sampling))
    (completion,) = server.sampler.generate([request])
    return server.host.tokenizer.decode(completion.tokens)


def test_greedy_texts_are_those_of_the_sampler(server: Server) -> None:
    tokenizer = server.host.tokenizer
    expected = sample(server, encode_prompt(tokenizer, "once"), temperature=0.0, max_new_tokens=12)
    answer = server.post(COMPLETIONS, prompt="once", temperature=0, max_tokens=12)
    (choice,) = answer["choices"]
    assert choice["text"] == expected and choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["prompt_tokens"] == len(encode_prompt(tokenizer, "once"))
    expected = sample(server, encode_prompt(tokenizer, MESSAGES), temperature=0.0, max_new_tokens=12)
    (choice,) = server.post(CHAT, messages=MESSAGES, temperature=0, max_tokens=12)["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected}


def test_the_page_is_whole_and_asks_for_routes_that_exist(server: Server) -> None:
    status, page = server.send("GET", "/", None)
    assert status == 200 and "<title>r1jax</title>" in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(""", page)  # nothing from elsewhere
    asked = {f"/{path}" for path in re.findall(r'fetch\("([^"]+)"', page)}
    told = server.send("GET", "/openapi.json", None)[1]
    assert asked == {CHAT, "/v1/models"} and asked <= set(told["paths"])
    body = told["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = told["components"]["schemas"][body.rpartition("/")[2]]["properties"]
    assert set(re.findall(r'input id="(\w+)"', page)) - {"key"} <= set(fields)


def test_a_seed_gives_one_reply_whatever_stands_beside_it(server: Server) -> None:
    ids = list(encode_prompt(server.host.tokenizer, "once"))
    ask = lambda **more: server.post(COMPLETIONS, prompt=ids, max_tokens=10, return_token_ids=True, **WARM, **more)
    alone = ask()["choices"][0]
    several = ask(n=3)["choices"]
    assert several[0]["token_ids"] == alone["token_ids"] and several[0]["text"] == alone["text"]
    assert len({tuple(choice["token_ids"]) for choice in several}) == 3  # and each has a seed of its own
    assert [choice["index"] for choice in several] == [0, 1, 2]
    assert several[0]["prompt_token_ids"] == ids
    other = server.post(COMPLETIONS, prompt=ids, max_tokens=10, return_token_ids=True, temperature=1.0, seed=6)
    assert other["choices"][0]["token_ids"] != alone["token_ids"]


def test_prompts_of_a_batch_are_answered_in_order(server: Server) -> None:
    asked = {"max_tokens": 6, "temperature": 0}
    together = server.post(COMPLETIONS, prompt=["one", "two"], n=2, **asked)["choices"]
    apart = [server.post(COMPLETIONS, prompt=prompt, **asked)["choices"][0]["text"] for prompt in ("one", "two")]
    assert [choice["text"] for choice in together] == [apart[0], apart[0], apart[1], apart[1]]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_the_pieces_of_a_stream_add_up_to_the_reply(server: Server, path: str) -> None:
    asked = {"max_tokens": 14, "n": 2, **WARM} | ({"prompt": "a"} if path == COMPLETIONS else {"messages": MESSAGES})
    asked |= {"logprobs": 2} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 2}
    whole = server.post(path, **asked)
    *events, usage = server.stream(path, stream_options={"include_usage": True}, **asked)
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert len(parts) > 1 and all(part["finish_reason"] is None for part in parts[:-1])
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        if path == COMPLETIONS:
            assert "".join(part["text"] for part in parts) == choice["text"]
            found = [value for part in parts for value in part["logprobs"]["token_logprobs"]]
            assert found == choice["logprobs"]["token_logprobs"]
        else:
            assert parts[0]["delta"]["role"] == "assistant"
            assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
            assert [entry for part in parts for entry in part["logprobs"]["content"]] == choice["logprobs"]["content"]


def test_texts_that_stop_a_reply_are_cut(server: Server) -> None:
    asked = {"prompt": "once", "temperature": 0, "max_tokens": 20}
    whole = server.post(COMPLETIONS, **asked)["choices"][0]["text"]
    assert len(whole) > 8
    stop = whole[5:7]
    (choice,) = server.post(COMPLETIONS, stop=["never", stop], **asked)["choices"]
    assert choice["text"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"
    pieces = server.stream(COMPLETIONS, stop=stop, **asked)
    assert "".join(event["choices"][0]["text"] for event in pieces) == choice["text"]
    (choice,) = server.post(COMPLETIONS, return_token_ids=True, stop_token_ids=[], **asked)["choices"]
    (cut,) = server.post(COMPLETIONS, stop_token_ids=[choice["token_ids"][3]], return_token_ids=True, **asked)[
        "choices"
    ]
    assert cut["finish_reason"] == "stop" and cut["token_ids"] == choice["token_ids"][: len(cut["token_ids"])]


def test_log_probs_of_prompt_and_reply_are_the_models(server: Server) -> None:
    """As lm-eval asks for a log-likelihood: echo, with one token or none."""
    tokens = list(encode_prompt(server.host.tokenizer, "the end of it"))
    asked = {"prompt": tokens, "echo": True, "logprobs": 2, "temperature": 0}
    for limit in (0, 3):
        (choice,) = server.post(COMPLETIONS, max_tokens=limit, return_token_ids=True, **asked)["choices"]
        shown, reply = choice["logprobs"], choice["token_ids"]
        assert shown["token_logprobs"][0] is None and shown["top_logprobs"][0] is None
        likelihood = Likelihood(server.sampler.graph, server.sampler.params)
        (expected,) = likelihood.score([tokens[:1]], [[*tokens[1:], *reply]])
        np.testing.assert_allclose(shown["token_logprobs"][1:], expected, rtol=0, atol=1e-5)
        assert shown["tokens"] == [server.host.show(token) for token in (*tokens, *reply)]
        for text, logprob, likeliest in list(
            zip(*(shown[k] for k in ("tokens", "token_logprobs", "top_logprobs")), strict=True)
        )[1:]:
            assert 1 <= len(likeliest) <= 3 and max(likeliest.values()) >= logprob - 1e-5  # bytes share one text
            assert likeliest[text] >= logprob - 1e-5
        assert choice["text"].startswith(server.host.tokenizer.decode(tokens)) and len(reply) == limit


def test_tools_reach_the_template_and_calls_are_parsed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply itself is put in, for the tiny model writes no calls."""
    from r1jax.serving import openai_api

    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    monkeypatch.setattr(openai_api, "_decode_whole", lambda host, tokens: call)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    with Server(tiny_model) as server:
        seen: list[Any] = []
        inner = server.host.encode_messages
        server.host.encode_messages = lambda messages, **v: seen.append(v) or inner(messages, **v)  # type: ignore[method-assign,func-returns-value]
        (choice,) = server.post(CHAT, messages=MESSAGES, tools=tools, max_tokens=3)["choices"]
        events = server.stream(CHAT, messages=MESSAGES, tools=tools, max_tokens=3)
        (plain,) = server.post(CHAT, messages=MESSAGES, tools=tools, tool_choice="none", max_tokens=3)["choices"]
    assert seen[0]["tools"] == tools and "tools" not in seen[2]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    function = choice["message"]["tool_calls"][0]["function"]
    assert function == {"name": "add", "arguments": '{"a": 1}'} and "tool_calls" not in plain["message"]
    delta = events[0]["choices"][0]["delta"]
    assert delta["tool_calls"][0]["index"] == 0 and delta["tool_calls"][0]["function"] == function


def test_json_is_checked(server: Server) -> None:
    status, answer = server.send(
        "POST",
        CHAT,
        {"model": "tiny", "messages": MESSAGES, "max_tokens": 4, "response_format": {"type": "json_object"}},
    )
    assert status == 422 and "none of 3 replies has the response_format: it is not JSON" in answer["error"]["message"]


def test_a_run_that_asked_one_question_is_asked_as_it_was(tiny_model: Path) -> None:
    with Server(tiny_model, prompting=Prompting("Q: {question}\nA:", sampling={"max_new_tokens": 5})) as server:
        answer = server.post(CHAT, messages=MESSAGES, temperature=0)
        expected = server.post(COMPLETIONS, prompt="Q: what is it?\nA:", temperature=0, max_tokens=5)
        status, refused = server.send("POST", CHAT, {"model": "tiny", "messages": [*MESSAGES, *MESSAGES]})
    assert answer["choices"][0]["message"]["content"] == expected["choices"][0]["text"]
    assert status == 400 and "holds one question" in refused["error"]["message"]


def test_other_routes(server: Server) -> None:
    status, models = server.send("GET", "/v1/models")
    assert status == 200 and models["data"][0]["id"] == "tiny" and models["data"][0]["max_model_len"] == 160
    assert server.send("GET", "/v1/models/tiny")[1]["id"] == "tiny"
    told = server.post("/tokenize", prompt="hi there")
    assert told["tokens"] == list(encode_prompt(server.host.tokenizer, "hi there")) and told["count"] == len(
        told["tokens"]
    )
    assert server.post("/detokenize", tokens=told["tokens"])["prompt"].endswith("hi there")
    asked = server.post("/tokenize", messages=MESSAGES)["tokens"]
    assert asked == list(encode_prompt(server.host.tokenizer, MESSAGES))
    told = server.send("GET", "/tokenizer_info")[1]
    assert told["eos_token"] == "<|im_end|>" and told["chat_template"] == server.host.tokenizer.chat_template
    assert server.send("GET", "/health")[0] == 200
    status, text = server.send("GET", "/metrics")
    assert status == 200 and re.search(r'r1jax_requests_total\{path="/v1/completions",status="200"\} [1-9]', text)
    assert float(re.search(r"^r1jax_sampled_tokens_total (\S+)$", text, re.MULTILINE)[1]) > 50  # type: ignore[index]
    assert json.loads(json.dumps(server.send("GET", "/openapi.json")[1]))["paths"].keys() >= {COMPLETIONS, CHAT}
