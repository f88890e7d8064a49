"""Requests of the Tinker API, checked; those for gradients travel as protocol buffers (tuning/messages.py)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_SEQUENCES = 1024  # of one request
MOST_ALTERNATIVES = 20
Seconds = Annotated[int, Field(gt=0)]


class _Body(BaseModel):
    """Fields that are not known are ignored: clients are newer than servers."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class CreateSession(_Body):
    """POST create_session."""

    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None
    sdk_version: str = ""


class SessionId(_Body):
    """POST session_heartbeat."""

    session_id: str


class FinishSession(_Body):
    """POST sessions/ID/finish."""

    reason: dict[str, Any] = {}
    detail: str | None = None


class LoraSettings(_Body):
    """Adapters that a client asks for."""

    rank: int = Field(ge=1)
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModel(_Body):
    """POST create_model."""

    session_id: str
    model_seq_id: int = Field(ge=0)
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraSettings | None = None
    optimizer_config: dict[str, Any] = {"type": "adamw"}


class ModelId(_Body):
    """POST get_info, unload_model."""

    model_id: str


class Adam(_Body):
    """Hyperparameters of an update."""

    learning_rate: float = Field(1e-4, ge=0, allow_inf_nan=False)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-12, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    grad_clip_norm: float = Field(0.0, allow_inf_nan=False)


class OptimStep(_Body):
    """POST optim_step."""

    model_id: str
    seq_id: int = Field(ge=1)
    adam_params: Adam | None = None

    @model_validator(mode="after")
    def _check(self) -> OptimStep:
        if self.adam_params is None:
            raise ValueError("adam_params is missing: AdamW is the only optimizer here")
        return self


class SaveWeights(_Body):
    """POST save_weights, save_weights_for_sampler."""

    model_id: str
    seq_id: int = Field(ge=1)
    path: str | None = None
    ttl_seconds: Seconds | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None
    sampling_session_seq_id: int | None = Field(None, ge=0)
    kind: Literal["snapshot", "inflight"] = "snapshot"


class LoadWeights(_Body):
    """POST load_weights: into a model, or (with a session) a new model."""

    path: str
    optimizer: bool
    model_id: str | None = None
    seq_id: int | None = Field(None, ge=1)
    session_id: str | None = None
    model_seq_id: int | None = Field(None, ge=0)
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> LoadWeights:
        known = self.model_id is not None and self.seq_id is not None
        new = self.session_id is not None and self.model_seq_id is not None
        if known == new:
            raise ValueError("either model_id with seq_id or session_id with model_seq_id must be given")
        return self


class CreateSampler(_Body):
    """POST create_sampling_session."""

    session_id: str
    sampling_session_seq_id: int = Field(ge=0)
    base_model: str | None = None
    model_path: str | None = None


class JoinSampler(_Body):
    """POST join_sampling_session."""

    sampling_session_id: str


class Chunk(_Body):
    """A piece of a prompt."""

    type: str = "encoded_text"
    tokens: list[Annotated[int, Field(ge=0)]] | None = None


class Prompt(_Body):
    """A prompt of pieces."""

    chunks: list[Chunk]

    @property
    def tokens(self) -> list[int]:
        """All ids."""
        return [token for chunk in self.chunks for token in chunk.tokens or ()]

    @model_validator(mode="after")
    def _check(self) -> Prompt:
        for chunk in self.chunks:
            if chunk.tokens is None:
                raise ValueError(f"chunks must be encoded_text with tokens, got {chunk.type[:60]!r}")
        return self


class SamplingParams(_Body):
    """How replies are sampled."""

    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: str | list[str] | list[int] | None = None
    temperature: float = Field(1.0, ge=0, le=100)
    top_k: int = Field(-1, ge=-1, lt=2**31)
    top_p: float = Field(1.0, gt=0, le=1)


class Tensor(_Body):
    """An array in JSON, whole or in sparse rows."""

    data: list[float | int]
    dtype: str
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class Sample(_Body):
    """POST asample."""

    num_samples: int = Field(1, ge=1, le=MOST_SEQUENCES)
    prompt: Prompt
    sampling_params: SamplingParams
    sampling_session_id: str | None = None
    seq_id: int | None = Field(None, ge=0)
    base_model: str | None = None
    model_path: str | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = Field(0, ge=0, le=MOST_ALTERNATIVES)
    topk_sample_logprobs: int = Field(0, ge=0, le=MOST_ALTERNATIVES)
    target_prompt_logprobs: Tensor | None = None
    prompt_alt_tokens_k: int = Field(0, ge=0, le=0)
    prompt_logprobs_last_n: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Sample:
        if not self.prompt.tokens:
            raise ValueError("prompt must have at least one token, got an empty one")
        last = self.prompt_logprobs_last_n
        if last is not None and (not self.prompt_logprobs or last > len(self.prompt.tokens) - 1):
            raise ValueError("prompt_logprobs_last_n needs prompt_logprobs and must be below the prompt's length")
        if self.sampling_session_id is not None and self.seq_id is None:
            raise ValueError("seq_id is missing, which a sampling session needs")
        return self


class RetrieveFuture(_Body):
    """POST retrieve_future."""

    request_id: str
    allow_metadata_only: bool = False


class TinkerPath(_Body):
    """POST weights_info."""

    tinker_path: str


class CopyWeights(_Body):
    """POST copy_weights."""

    source_path: str
    session_id: str | None = None
    model_seq_id: int | None = None
    destination_project_id: str | None = None
    ttl_seconds: Seconds | None = None


class TimeToLive(_Body):
    """PUT …/ttl."""

    ttl_seconds: Seconds | None = None
