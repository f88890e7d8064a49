"""Counts of the server in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from r1jax.serving.worker import Worker

BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds


class Notes(Protocol):
    """A listener to replies."""

    def note(self, replies: Sequence[Any]) -> None:
        """Takes replies that have ended, or whose client has left."""


class Metrics:
    """Requests by path and status, tokens, time to the first token, queue and slots."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, worker: Worker):
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("r1jax_requests", "Requests answered.", ["path", "status"], registry=registry)
        self._sampled = Counter("r1jax_sampled_tokens", "Tokens sampled for clients.", registry=registry)
        self._given = Counter("r1jax_prompt_tokens", "Tokens of prompts.", registry=registry)
        text = "Seconds from the queue to the first token."
        self._first = Histogram("r1jax_first_token_seconds", text, buckets=BUCKETS, registry=registry)
        gauges: dict[str, tuple[str, Any]] = {
            "r1jax_jobs_waiting": ("Sequences without a slot.", lambda: worker.waiting),
            "r1jax_jobs_active": ("Sequences in slots.", lambda: worker.active),
            "r1jax_slots_free": ("Free slots.", lambda: worker.engine.free),
        }
        for name, (meaning, read) in gauges.items():
            Gauge(name, meaning, registry=registry).set_function(read)

    def count(self, path: str, status: int) -> None:
        """Counts an answered request."""
        self._requests.labels(path, str(status)).inc()

    def note(self, replies: Sequence[Any]) -> None:
        """Counts the tokens of replies that have ended."""
        for reply in replies:
            self._sampled.inc(len(reply.tokens))
            self._given.inc(len(reply.job.tokens))
            if reply.first_seconds:
                self._first.observe(reply.first_seconds)

    def render(self) -> bytes:
        """The text."""
        return generate_latest(self._registry)
