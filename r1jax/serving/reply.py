"""A reply while it arrives: bursts of one job become text, with stop texts cut, and log-probs token by token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jsonschema

from r1jax.core.structs import Sampling
from r1jax.rollout.continuous import Burst
from r1jax.serving.host import Host
from r1jax.serving.worker import Job, Worker
from r1jax.text.increments import TextIncrements
from r1jax.text.stop_texts import StopTexts
from r1jax.tuning.sampler_bank import Adapter


class Reply:
    """One sampled sequence. Iterating gives pieces of text as they are certain.

    tokens, logprobs, alternatives: as sampled, the stop id included. text: what was given out so far.
    finish_reason: "" while it goes on. first_seconds: time to the first token.
    """

    def __init__(
        self,
        host: Host,
        worker: Worker,
        prompt: tuple[int, ...],
        sampling: Sampling,
        seed: int,
        *,
        stops: list[str],
        alternatives: int = 0,
        adapter: Adapter | None = None,
    ):
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.alternatives: list[dict[int, float]] = []
        self.text, self.finish_reason, self.first_seconds = "", "", 0.0
        self._worker, self._increments, self._stops = worker, TextIncrements(host.tokenizer), StopTexts(stops)
        self._bursts: asyncio.Queue[Burst | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(burst: Burst | Exception) -> None:
            loop.call_soon_threadsafe(self._bursts.put_nowait, burst)

        self.job = Job(prompt, sampling, seed, deliver, alternatives, adapter)

    async def __aiter__(self) -> AsyncIterator[str]:
        begun = time.perf_counter()
        while not self.finish_reason:
            burst = await self._bursts.get()
            if isinstance(burst, Exception):
                raise burst
            self.first_seconds = self.first_seconds or time.perf_counter() - begun
            pieces = []
            for place, token in enumerate(burst.tokens):
                self.tokens.append(token)
                self.logprobs.append(burst.logprobs[place])
                self.alternatives += burst.alternatives[place : place + 1]
                pieces.append(self._stops.push(self._increments.push(token)))
                if self._stops.is_found:
                    break
            if self._stops.is_found:
                self.finish_reason = "stop"
                self._worker.drop(self.job)
            elif burst.finish_reason:
                self.finish_reason = burst.finish_reason
                pieces += [self._stops.push(self._increments.end()), self._stops.end()]
            piece = "".join(pieces)
            self.text += piece
            yield piece

    async def finish(self) -> None:
        """Waits for the end."""
        async for _ in self:
            pass


def describe_completion_logprobs(
    host: Host, tokens: list[int], logprobs: list[float | None], alternatives: list[dict[int, float]], count: int
) -> dict[str, Any]:
    """`logprobs` of a completion: tokens as texts, log-probs, the `count` likeliest by text, offsets in the text."""
    texts, offset, offsets = [host.show(token) for token in tokens], 0, []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops: list[dict[str, float] | None] = []
    for token, logprob, likeliest in zip(tokens, logprobs, alternatives, strict=True):
        if logprob is None:
            tops.append(None)
            continue
        shown: dict[str, float] = {}
        for other, value in [*list(likeliest.items())[:count], (token, logprob)]:
            shown.setdefault(host.show(other), value)
        tops.append(shown)
    return {
        "tokens": texts,
        "token_logprobs": logprobs,
        "top_logprobs": tops if count else None,
        "text_offset": offsets,
    }


def describe_chat_logprobs(host: Host, reply: Reply, first: int, count: int) -> dict[str, Any]:
    """`logprobs` of a chat reply's tokens from number `first` on, with the `count` likeliest."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = host.show(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}

    content = []
    for place in range(first, len(reply.tokens)):
        likeliest = reply.alternatives[place] if count else {}
        tops = [entry(*pair) for pair in list(likeliest.items())[:count]]
        content.append({**entry(reply.tokens[place], reply.logprobs[place]), "top_logprobs": tops})
    return {"content": content}


def find_flaw(text: str, schema: dict[str, Any] | None) -> str:
    """Why a text is not the JSON that was asked for; "" if it is. schema: of `response_format`; None: any object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({error})"
    if schema is None:
        return "" if isinstance(value, dict) else "it is no JSON object"
    try:
        jsonschema.validate(value, schema)
    except jsonschema.ValidationError as error:
        return f"it does not fit the schema ({error.message[:200]})"
    return ""
