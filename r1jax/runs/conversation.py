"""A conversation with a model: its messages, and replies that arrive piece by piece.

A model of a raw template (R1-Zero's, say) gets one question at a time: the template has no place for earlier turns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.seeds import derive_seed
from r1jax.core.structs import Sampling
from r1jax.eval.prompting import Prompting
from r1jax.rollout.stream import Stream
from r1jax.runs.generate import Generation, check_length
from r1jax.runs.sampler import Sampler
from r1jax.text.encoding import encode_prompt
from r1jax.text.increments import TextIncrements, ThoughtSplitter
from r1jax.text.reasoning import THINK_CLOSE, THINK_OPEN
from r1jax.weights.pretrained import require_tokenizer


class Reply:
    """One reply while it arrives. Iterating gives (piece of text, whether it is reasoning).

    text: what has arrived, as the model wrote it. finish_reason: `stop`, `length`, or "" while it is not over.
    logprobs: of `tokens`, the sampled ids. first_token_seconds: time to the first one.
    """

    def __init__(self, stream: Stream, sampler: Sampler, prompt: Sequence[int], sampling: Sampling, seed: int):
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.text, self.finish_reason = "", ""
        self.seconds = self.first_token_seconds = 0.0
        self._tokenizer = require_tokenizer(sampler.tokenizer, "the model")
        self._prompt, self._sampling = prompt, sampling
        self._source = stream.generate(prompt, sampling, seed)

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        increments, begin = TextIncrements(self._tokenizer), time.perf_counter()
        thoughts = ThoughtSplitter(is_open=self._opens_thought())
        for token, logprob in self._source:
            self.seconds = time.perf_counter() - begin
            self.first_token_seconds = self.first_token_seconds or self.seconds
            self.tokens.append(token)
            self.logprobs.append(logprob)
            piece = increments.push(token)
            self.text += piece
            yield from thoughts.push(piece)
        stopped = bool(self.tokens) and self.tokens[-1] in self._sampling.stop_ids
        self.finish_reason = "stop" if stopped else "length"
        rest = increments.end()
        self.text += rest
        yield from thoughts.push(rest)
        yield from thoughts.end()

    def _opens_thought(self) -> bool:
        """Whether the prompt ends inside the reasoning, as R1's chat template does."""
        end = self._tokenizer.decode(self._prompt[-16:], skip_special=False)
        return end.rfind(THINK_OPEN) > end.rfind(THINK_CLOSE)


class Conversation:
    """Messages so far, and how the next one is put and answered.

    config: sampling of the replies, seed included. prompting: template (its sampling is not looked at here).
    """

    def __init__(self, sampler: Sampler, prompting: Prompting, config: Generation, *, system: str = ""):
        self.sampler, self.prompting, self.config, self.system = sampler, prompting, config, system
        self.messages: list[Mapping[str, Any]] = []
        self._stream = Stream(sampler.graph, sampler.params)

    def warm_up(self) -> None:
        """Compiles the programs of a reply."""
        sampling = self.config.sampling(())
        next(self._stream.generate([0, 0], sampling, 0))

    def ask(self, question: str) -> None:
        """Adds a user's message."""
        self.messages.append({"role": "user", "content": question})

    def reply(self, number: int = 0) -> Reply:
        """A reply to the messages so far; another `number` gives another sample. It is not added to the messages."""
        seed = derive_seed(self.config.seed, len(self.messages), number)
        sampling = self.config.sampling(self.prompting.stop_ids or self.sampler.stop_ids)
        return Reply(self._stream, self.sampler, self._encode(), sampling, seed)

    def keep(self, text: str) -> None:
        """Adds a reply to the messages."""
        self.messages.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        """Forgets all messages but the system's."""
        self.messages = []

    def _encode(self) -> tuple[int, ...]:
        tokenizer = require_tokenizer(self.sampler.tokenizer, "the model")
        system = [{"role": "system", "content": self.system}] if self.system else []
        question = self.prompting.wrap(self.messages[-1]["content"])
        try:
            tokens = encode_prompt(tokenizer, [*system, *self.messages] if self.prompting.takes_turns else question)
        except (UserError, UnicodeEncodeError, TypeError) as error:
            if all(not 0xD800 <= ord(character) < 0xE000 for character in self.messages[-1]["content"]):
                raise
            raise UserError("the prompt has half a character, which no tokenizer reads: write it anew") from error
        if not tokens:
            raise UserError("the message has no tokens")
        return check_length(tokens, self.sampler)


def choose_turns(sampler: Sampler, prompting: Prompting | None) -> Prompting:
    """The prompting of a conversation: the one given, else the chat template; a model that has none continues the
    plain text.
    """
    if prompting is not None and (not prompting.takes_turns or _has_template(sampler)):
        return prompting
    return Prompting() if _has_template(sampler) else Prompting("{question}")


def _has_template(sampler: Sampler) -> bool:
    return require_tokenizer(sampler.tokenizer, "the model").chat_template is not None
