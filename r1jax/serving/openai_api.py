"""OpenAI's completions and chat completions over a worker: replies as a whole, and as streams of events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import jsonschema
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from r1jax.core.seeds import derive_seed
from r1jax.serving.host import Host
from r1jax.serving.reply import Reply, describe_chat_logprobs, describe_completion_logprobs, find_flaw
from r1jax.serving.request_counts import Notes
from r1jax.serving.request_errors import ApiError, describe_error
from r1jax.serving.requests import MOST_ALTERNATIVES, ChatRequest, CompletionRequest, SamplingRequest
from r1jax.serving.worker import Worker
from r1jax.text.tool_calls import parse_tool_calls

log = logging.getLogger(__name__)

ATTEMPTS = 3  # samples of a reply that must be JSON


class OpenAIApi:
    """The work of the routes. seconds: longest time of a request."""

    attempts = ATTEMPTS

    def __init__(self, host: Host, worker: Worker, metrics: Notes, seconds: float):
        self.host, self.worker, self.metrics, self.seconds = host, worker, metrics, seconds
        self.created = int(time.time())

    def describe_model(self) -> dict[str, Any]:
        """The model, as /v1/models lists it."""
        length = self.host.config.max_tokens
        return {
            "id": self.host.name,
            "object": "model",
            "created": self.created,
            "owned_by": "r1jax",
            "max_model_len": length,
        }

    def check_model(self, name: str) -> None:
        """Raises ApiError for a model that is not served."""
        if name != self.host.name:
            raise ApiError(
                404,
                f"model must be {self.host.name!r}, which is served, got {name!r}",
                param="model",
                code="model_not_found",
            )

    async def complete(self, body: CompletionRequest, request: Request) -> Any:
        """/v1/completions."""
        self.check_model(body.model)
        encode = lambda: [self.host.encode_prompt(p, add_special=body.add_special_tokens) for p in body.prompts]
        prompts = await run_in_threadpool(encode)
        if not all(prompts):
            raise ApiError(400, "prompt must have at least one token, got an empty one", param="prompt")
        if body.echo and body.max_tokens == 0:
            replies: list[Reply] = []
        else:
            asked = [(prompt, number) for number, prompt in enumerate(prompts) for _ in range(body.n)]
            replies = self._begin(body, asked, body.max_tokens, body.logprobs or 0)
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.host.name}
        given = sum(map(len, prompts))
        if body.stream:
            chunk = lambda index, reply, piece, first: {
                "index": index,
                "text": piece,
                "finish_reason": reply.finish_reason or None,
                "logprobs": None if body.logprobs is None else self._completion_logprobs(reply, first, body.logprobs),
                **({"token_ids": reply.tokens[first:]} if body.return_token_ids else {}),
            }
            return self._stream(replies, {**head, "object": "text_completion"}, chunk, body, given)
        await self._collect(replies, request)
        choices = []
        for index in range(len(prompts) * body.n):
            prompt, reply = prompts[index // body.n], replies[index] if replies else None
            choices.append(await self._describe_completion(index, body, prompt, reply))
        return {**head, "object": "text_completion", "choices": choices, "usage": _count(given, replies)}

    async def _describe_completion(
        self, index: int, body: CompletionRequest, prompt: tuple[int, ...], reply: Reply | None
    ) -> dict[str, Any]:
        text, tokens = (reply.text, list(reply.tokens)) if reply else ("", [])
        logprobs: list[float | None] = list(reply.logprobs) if reply else []
        alternatives = list(reply.alternatives) if reply and body.logprobs else [{} for _ in tokens]
        if body.echo:
            text = self.host.tokenizer.decode(prompt) + text
            if body.logprobs is not None:
                score = lambda: self.host.score(prompt, MOST_ALTERNATIVES)
                scored, likeliest = await asyncio.wrap_future(self.worker.call(score))
                tokens, logprobs = [*prompt, *tokens], [None, *scored, *logprobs]
                alternatives = [{}, *likeliest, *alternatives]
        choice: dict[str, Any] = {"index": index, "text": text}
        choice["finish_reason"] = reply.finish_reason if reply else "length"
        choice["logprobs"] = None
        if body.logprobs is not None:
            described = describe_completion_logprobs(self.host, tokens, logprobs, alternatives, body.logprobs)
            choice["logprobs"] = described
        if body.return_token_ids:
            choice |= {"token_ids": reply.tokens if reply else [], "prompt_token_ids": list(prompt)}
        return choice

    async def chat(self, body: ChatRequest, request: Request) -> Any:
        """/v1/chat/completions."""
        self.check_model(body.model)
        tools = body.tools if body.tool_choice != "none" else None
        variables = {**(body.chat_template_kwargs or {}), "add_generation_prompt": body.add_generation_prompt}
        variables |= {"tools": tools} if tools else {}
        prompt = await run_in_threadpool(lambda: self.host.encode_messages(body.messages, **variables))
        if not prompt:
            raise ApiError(400, "the messages have no tokens", param="messages")
        count = body.top_logprobs or 0
        schema = _read_schema(body)
        if schema is not False and body.stream:
            raise ApiError(400, "response_format needs stream=false: the reply is checked as a whole", param="stream")
        replies = self._begin(body, [(prompt, 0)] * body.n, body.limit, count)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.host.name}
        if body.stream and not tools:
            chunk = lambda index, reply, piece, first: {
                "index": index,
                "delta": {"content": piece} if first or not reply.tokens else {"role": "assistant", "content": piece},
                "finish_reason": reply.finish_reason or None,
                "logprobs": describe_chat_logprobs(self.host, reply, first, count) if body.logprobs else None,
                **({"token_ids": reply.tokens[first:]} if body.return_token_ids else {}),
            }
            return self._stream(replies, {**head, "object": "chat.completion.chunk"}, chunk, body, len(prompt))
        await self._collect(replies, request)
        if schema is not False:
            replies = [
                await self._mend(body, prompt, index, reply, schema, request) for index, reply in enumerate(replies)
            ]
        choices = [self._describe_chat(index, body, reply, bool(tools)) for index, reply in enumerate(replies)]
        if body.return_token_ids:
            for choice, reply in zip(choices, replies, strict=True):
                choice |= {"token_ids": reply.tokens}
            head["prompt_token_ids"] = list(prompt)
        usage = _count(len(prompt), replies)
        if body.stream:
            return _stream_whole(
                {**head, "object": "chat.completion.chunk"}, choices, usage if body.tells_usage else None
            )
        return {**head, "object": "chat.completion", "choices": choices, "usage": usage}

    def _describe_chat(self, index: int, body: ChatRequest, reply: Reply, takes_tools: bool) -> dict[str, Any]:
        # Calls may stand in special tokens, which a text leaves out.
        raw = _decode_whole(self.host, reply.tokens) if takes_tools else ""
        rest, calls = parse_tool_calls(raw) if takes_tools else ("", [])
        message: dict[str, Any] = {"role": "assistant", "content": (rest or None) if calls else reply.text}
        if calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{uuid.uuid4().hex[:24]}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for call in calls
            ]
        choice: dict[str, Any] = {"index": index, "message": message}
        choice["finish_reason"] = "tool_calls" if calls else reply.finish_reason
        choice["logprobs"] = (
            describe_chat_logprobs(self.host, reply, 0, body.top_logprobs or 0) if body.logprobs else None
        )
        return choice

    async def _mend(
        self, body: ChatRequest, prompt: tuple[int, ...], index: int, reply: Reply, schema: Any, request: Request
    ) -> Reply:
        """The reply, or another sample if it is not the JSON that was asked for. Raises ApiError if none of them is."""
        for attempt in range(1, self.attempts + 1):
            if not (flaw := find_flaw(reply.text, schema)):
                return reply
            if attempt < self.attempts:
                (reply,) = self._begin(body, [(prompt, 0)], body.limit, body.top_logprobs or 0, index, attempt)
                await self._collect([reply], request)
        raise ApiError(422, f"none of {self.attempts} replies has the response_format: {flaw}", param="response_format")

    def _begin(
        self,
        body: SamplingRequest,
        prompts: Sequence[tuple[tuple[int, ...], int]],
        limit: int | None,
        alternatives: int,
        *seeds: int,
    ) -> list[Reply]:
        """Queues a reply to each (prompt, its number). seeds: further numbers of which a seed depends."""
        seed = self.host.choose_seed(body)
        replies = []
        for place, (prompt, number) in enumerate(prompts):
            sampling = self.host.choose_sampling(body, limit, prompt)
            own = derive_seed("reply", seed, number, place % body.n, *seeds)
            # One number of alternatives for all: each compiles the decode program anew.
            options: dict[str, Any] = {"stops": body.stops, "alternatives": MOST_ALTERNATIVES if alternatives else 0}
            replies.append(Reply(self.host, self.worker, prompt, sampling, own, **options))
        self.worker.submit(*(reply.job for reply in replies))
        return replies

    async def _collect(self, replies: Sequence[Reply], request: Request) -> None:
        """Waits for the replies; ends them if the client leaves or the time is over."""
        finished = asyncio.create_task(_finish_all(replies))
        left = asyncio.create_task(_wait_for_end(request))
        try:
            done, _ = await asyncio.wait({finished, left}, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
            if finished in done:
                finished.result()
            elif done:
                raise ApiError(499, "the client has left")
            else:
                raise ApiError(504, f"the reply took longer than {self.seconds:.0f} s (--request_seconds)")
        finally:
            left.cancel()
            finished.cancel()
            self.worker.drop(*(reply.job for reply in replies))
            self.metrics.note(replies)

    def _stream(
        self, replies: Sequence[Reply], head: dict[str, Any], chunk: Any, body: SamplingRequest, given: int
    ) -> StreamingResponse:
        """Server-sent events: a chunk for each piece of each reply as it comes."""

        async def events() -> AsyncIterator[str]:
            queue: asyncio.Queue[tuple[int, str, int] | Exception | None] = asyncio.Queue()

            async def follow(index: int, reply: Reply) -> None:
                try:
                    first = 0
                    async for piece in reply:
                        queue.put_nowait((index, piece, first))
                        first = len(reply.tokens)
                except Exception as error:
                    queue.put_nowait(error)
                queue.put_nowait(None)

            tasks = [asyncio.create_task(follow(*each)) for each in enumerate(replies)]
            try:
                async with asyncio.timeout(self.seconds):
                    left = len(tasks)
                    while left:
                        item = await queue.get()
                        if item is None:
                            left -= 1
                        elif isinstance(item, Exception):
                            raise item
                        else:
                            index, piece, first = item
                            yield _event({**head, "choices": [chunk(index, replies[index], piece, first)]})
                if body.tells_usage:
                    yield _event({**head, "choices": [], "usage": _count(given, replies)})
                yield "data: [DONE]\n\n"
            except TimeoutError:
                yield _event(describe_error(ApiError(504, f"longer than {self.seconds:.0f} s")))
            except Exception:
                log.exception("a stream failed")
                yield _event(describe_error(ApiError(500, "the server failed; see its log")))
            finally:
                for task in tasks:
                    task.cancel()
                self.worker.drop(*(reply.job for reply in replies))
                self.metrics.note(replies)

        return StreamingResponse(events(), media_type="text/event-stream")

    def _completion_logprobs(self, reply: Reply, first: int, count: int) -> dict[str, Any]:
        alternatives = reply.alternatives[first:] if count else [{} for _ in reply.tokens[first:]]
        return describe_completion_logprobs(
            self.host, reply.tokens[first:], list(reply.logprobs[first:]), alternatives, count
        )


def _read_schema(body: ChatRequest) -> Any:
    """The schema that a reply must fit, None for any object, False for any text. Raises ApiError for a wrong schema."""
    form = body.response_format
    if form is None or form.type == "text":
        return False
    if form.type == "json_object":
        return None
    schema = (form.json_schema or {}).get("schema")
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except (jsonschema.SchemaError, TypeError, AttributeError) as error:
        flaw = str(getattr(error, "message", error))[:200]
        raise ApiError(400, f"response_format.json_schema.schema: {flaw}", param="response_format") from None
    return schema


def _decode_whole(host: Host, tokens: list[int]) -> str:
    """Text of a reply with its special tokens, but the one that stopped it."""
    kept = tokens[:-1] if tokens and tokens[-1] in host.stop_ids else tokens
    return host.tokenizer.decode(kept, skip_special=False)


def _count(given: int, replies: Sequence[Reply]) -> dict[str, int]:
    sampled = sum(len(reply.tokens) for reply in replies)
    return {"prompt_tokens": given, "completion_tokens": sampled, "total_tokens": given + sampled}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _stream_whole(
    head: dict[str, Any], choices: list[dict[str, Any]], usage: dict[str, int] | None
) -> StreamingResponse:
    """A stream of replies that were known as a whole: those with tool calls."""

    async def events() -> AsyncIterator[str]:
        for choice in choices:
            delta = choice.pop("message")
            for number, call in enumerate(delta.get("tool_calls", [])):
                call["index"] = number
            yield _event({**head, "choices": [{**choice, "delta": delta}]})
        if usage is not None:
            yield _event({**head, "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def _finish_all(replies: Sequence[Reply]) -> None:
    for reply in replies:
        await reply.finish()


async def _wait_for_end(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
