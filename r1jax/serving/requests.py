"""Requests of OpenAI's API, checked: completions, chat completions, tokenize and detokenize.

Fields that change a reply are obeyed or refused; others (`user`, `store`, `metadata`, …) are ignored. Beside OpenAI's
fields stand those that other servers have under the same names: top_k, min_p, prompt as ids, stop_token_ids,
return_token_ids, add_generation_prompt, chat_template_kwargs.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_SEQUENCES = 128  # n, of one request
MOST_PROMPTS = 256
MOST_ALTERNATIVES = 20
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
# Fields that would change a reply and are not built, with the values at which they change nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
}


class StreamOptions(BaseModel):
    """Options of a stream: a last chunk with the usage."""

    include_usage: bool = False


class SamplingRequest(BaseModel):
    """Fields that completions and chat completions share."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    n: int = Field(1, ge=1, le=MOST_SEQUENCES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | int | None = Field(None, ge=0, le=100)
    top_p: float | int | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | int | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=16)
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _refuse(self) -> SamplingRequest:
        for name, harmless in REFUSED.items():
            value = (self.model_extra or {}).get(name)
            if value not in harmless:
                raise ValueError(f"{name} is not supported, got {str(value)[:60]!r}: leave it out")
        if len(self.stops) > 16 or not all(self.stops):
            raise ValueError("stop must be at most 16 texts that are not empty")
        return self

    @property
    def stops(self) -> list[str]:
        """Texts that end a reply."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    prompt: str | Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)]
    max_tokens: int | None = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if len(self.prompts) > MOST_PROMPTS:
            raise ValueError(f"prompt must be at most {MOST_PROMPTS} prompts, got {len(self.prompts)}")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1 unless echo is true, got 0")
        if self.stream and self.echo:
            raise ValueError("echo is not supported in a stream: leave one of them out")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)  # type: ignore[list-item]


class ResponseFormat(BaseModel):
    """The form that a chat reply must have."""

    type: str = "text"
    json_schema: dict[str, Any] | None = None


class ChatRequest(SamplingRequest):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.tool_choice not in (None, "auto", "none"):
            raise ValueError(f"tool_choice must be auto or none, got {str(self.tool_choice)[:60]!r}")
        for message in self.messages:
            if not isinstance(message.get("role"), str):
                raise ValueError("each message needs a role, a text")
        if self.response_format is not None and self.response_format.type not in ("text", "json_object", "json_schema"):
            raise ValueError(
                f"response_format.type must be text, json_object or json_schema, got {self.response_format.type!r}"
            )
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of a reply, if the request says so."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class TokenizeRequest(BaseModel):
    """POST /tokenize: a text, or messages for the chat template."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages must be given")
        return self


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]
