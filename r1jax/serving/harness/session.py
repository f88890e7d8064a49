"""One program's access to the policy: a key, the sampling of the run, and the record of its calls."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from r1jax.core.errors import UserError
from r1jax.core.seeds import derive_seed
from r1jax.core.structs import Sampling
from r1jax.rollout.continuous import ContinuousConfig
from r1jax.serving.harness.transcript import Limits, Transcript
from r1jax.serving.openai_api import OpenAIApi
from r1jax.serving.reply import Reply
from r1jax.serving.request_errors import ApiError
from r1jax.serving.requests import ChatRequest, CompletionRequest, SamplingRequest
from r1jax.serving.worker import Worker
from r1jax.text.chat_template import render
from r1jax.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MODEL = "policy"


class Session:
    """The policy as one program sees it (`Host`). key: that its requests carry. seed: of its replies.

    sampling: of the run, whatever a request says of temperature, top_p, top_k and min_p: what is recorded must follow
    the distribution that is trained.
    """

    name = MODEL

    def __init__(
        self, tokenizer: Tokenizer, config: ContinuousConfig, sampling: Sampling, limits: Limits, seed: int, calls: int
    ):
        self.tokenizer, self.config, self.sampling, self.seed = tokenizer, config, sampling, seed
        self.stop_ids = sampling.stop_ids
        self.key = f"sk-{secrets.token_hex(16)}"
        self.transcript = Transcript(tokenizer, limits)
        self.lock = threading.Lock()
        self.replies: list[Reply] = []
        self.is_over = False
        self._asked, self._most = 0, calls

    def close(self, worker: Worker) -> None:
        """Takes no further request, and ends those that run."""
        with self.lock:
            self.is_over = True
        worker.drop(*(reply.job for reply in self.replies))

    def score(self, tokens: Sequence[int], alternatives: int) -> tuple[list[float], list[dict[int, float]]]:
        """Refuses: prompts are not scored in a rollout."""
        raise UserError("echo with logprobs is not available in a harness")

    def encode_messages(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> tuple[int, ...]:
        """Ids of a conversation through the chat template, those that were sampled as they were."""
        text = render(self.tokenizer, messages, **variables)
        with self.lock:
            return self.transcript.encode(text, self.tokenizer.encode)

    def encode_prompt(self, prompt: str | Sequence[int], *, add_special: bool = True) -> tuple[int, ...]:
        """Ids of a text as it is, those that were sampled as they were; or the ids themselves."""
        if isinstance(prompt, str):
            encode = lambda text: self.tokenizer.encode(text, add_special=add_special)
            with self.lock:
                return self.transcript.encode(prompt, encode)
        if any(token >= self.tokenizer.vocab_size for token in prompt):
            raise UserError(f"prompt: ids must be below {self.tokenizer.vocab_size}, got {max(prompt)}")
        return tuple(prompt)

    def choose_sampling(self, request: SamplingRequest, limit: int | None, prompt: Sequence[int]) -> Sampling:
        """The run's sampling, with up to as many tokens as have room. Raises ApiError if none have."""
        room, limits = self.transcript.find_room(tuple(prompt)), self.transcript.limits
        if room < 1:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens, which leave no room for a reply: a trajectory has up to "
                f"{limits.longest} of its first prompt (config.rollout.max_prompt_tokens) and {limits.behind} behind "
                "it (config.episode.max_tokens, or config.rollout.max_new_tokens)",
                code="context_length_exceeded",
            )
        stops = tuple(dict.fromkeys((*self.stop_ids, *(request.stop_token_ids or ()))))
        return dataclasses.replace(self.sampling, max_new_tokens=min(limit or room, room), stop_ids=stops)

    def choose_seed(self, request: SamplingRequest) -> int:
        """The seed that a request names, else one of the number of the call. Raises ApiError after too many calls."""
        self._asked += 1
        if self._asked > self._most:
            raise ApiError(400, f"a program may make {self._most} calls (config.harness.max_calls)")
        return derive_seed("call", self.seed, self._asked) if request.seed is None else request.seed

    def show(self, token: int) -> str:
        """Text of one id, special tokens included."""
        return self.tokenizer.decode([token], skip_special=False)


class RecordedApi(OpenAIApi):
    """OpenAI's routes for one request of a session, whose replies are recorded as they end."""

    attempts = 1  # a reply that is sampled anew would be trained on too

    def __init__(self, session: Session, worker: Worker, seconds: float):
        super().__init__(session, worker, self, seconds)
        self.session, self._asked = session, list[Any]()

    def check_model(self, name: str) -> None:
        """Accepts any name, so that a program may say that of the model it was written for."""

    async def complete(self, body: CompletionRequest, request: Request) -> Any:
        """/v1/completions."""
        self._asked = body.prompts
        return await super().complete(body, request)

    async def chat(self, body: ChatRequest, request: Request) -> Any:
        """/v1/chat/completions."""
        self._asked = [body.messages]
        return await super().chat(body, request)

    def note(self, replies: Sequence[Reply]) -> None:
        """Records replies that have come to their end."""
        with self.session.lock:
            for number, reply in enumerate(replies):
                if reply.finish_reason and not self.session.is_over:
                    asked = self._asked[number * len(self._asked) // len(replies)]
                    job = reply.job
                    cut_at = job.sampling.max_new_tokens if reply.finish_reason == "length" else 0
                    told = {"text": reply.text, "asked": asked, "stop_ids": job.sampling.stop_ids, "cut_at": cut_at}
                    self.session.transcript.add(job.tokens, reply.tokens, reply.logprobs, **told)

    def _begin(self, *arguments: Any) -> list[Reply]:
        with self.session.lock:
            if self.session.is_over:
                raise ApiError(401, "the program of this key has ended")
            replies = super()._begin(*arguments)
            self.session.replies += replies
        return replies
