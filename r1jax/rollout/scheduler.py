"""Host side of the engine: assignment of requests to slots.

Requests are grouped by prompt, so that each prompt is prefilled once and its whole group starts from it. Prompts are
processed in order of arrival. The scheduler sees finished rows only, as numpy arrays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from r1jax.core.structs import Completion, FinishReason, Request
from r1jax.rollout.sampling import SamplingArrays, stop_table
from r1jax.rollout.slots import EngineConfig, SlotUpdate


class Scheduler:
    """Assigns requests to free slots and collects their completions."""

    def __init__(self, requests: Sequence[Request], config: EngineConfig, *, marks_ends: bool = False):
        self._requests, self._config, self._marks_ends = requests, config, marks_ends
        groups: dict[tuple[int, ...], deque[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(tuple(request.tokens), deque()).append(index)
        self._waiting = deque(groups.items())
        self._ready: deque[tuple[int, int]] = deque()  # (request, row of the prefilled batch)
        self._slot_request = np.full(config.slots, -1)
        self._results: list[Completion | None] = [None] * len(requests)

    @property
    def finished(self) -> bool:
        """Whether all requests are complete."""
        return not (self._waiting or self._ready or (self._slot_request >= 0).any())

    @property
    def idle_limit(self) -> int:
        """Number of idle slots at which decoding returns to the host: a share while requests wait, else all slots."""
        if not self.has_waiting:
            return len(self._slot_request)
        return max(1, int(self._config.slots * self._config.refill_share))

    @property
    def has_waiting(self) -> bool:
        """Whether a request has no slot yet."""
        return bool(self._waiting or self._ready)

    @property
    def longest_limit(self) -> int:
        """The largest limit of new tokens of the requests in slots."""
        live = self._slot_request[self._slot_request >= 0]
        return max((self._requests[index].sampling.max_new_tokens for index in live), default=0)

    def keep_slots(self, places: np.ndarray) -> None:
        """Goes on with the slots at `places` alone; no others may hold a request."""
        self._slot_request = self._slot_request[places]

    def refill(self) -> Iterator[tuple[np.ndarray | None, SlotUpdate]]:
        """Yields (prompt tokens [P, Tp] to prefill, or None to continue with the last batch; the slot update)."""
        free = deque(np.flatnonzero(self._slot_request < 0).tolist())
        while free and (self._ready or self._waiting):
            tokens = None if self._ready else self._next_prompts()
            taken = [(free.popleft(), *self._ready.popleft()) for _ in range(min(len(free), len(self._ready)))]
            for slot, request, _ in taken:
                self._slot_request[slot] = request
            yield tokens, self._fill(taken)

    def find_ended(self, active: np.ndarray) -> np.ndarray:
        """The slots whose requests ended and have not been collected."""
        return np.flatnonzero((self._slot_request >= 0) & ~active)

    def collect(
        self,
        slots: np.ndarray,
        done: np.ndarray,
        tokens: np.ndarray,
        logprobs: np.ndarray,
        experts: np.ndarray | None = None,
    ) -> list[tuple[int, Completion]]:
        """Takes the rows of `slots` that ended, one each in the other arrays: (index of the request, completion)."""
        ended = []
        for row, slot in enumerate(slots):
            index, count = int(self._slot_request[slot]), done[row]
            ids = tuple(tokens[row, :count].tolist())
            stopped = ids[-1] in self._requests[index].sampling.stop_ids
            reason: FinishReason = "stop" if stopped else "length"
            chosen = None if experts is None else experts[row, :count].copy()
            completion = Completion(ids, tuple(logprobs[row, :count].tolist()), reason, chosen)
            self._results[index] = completion
            self._slot_request[slot] = -1
            ended.append((index, completion))
        return ended

    def completions(self) -> list[Completion]:
        """Results in the order of the requests; only when `finished`."""
        return [result for result in self._results if result is not None]

    def _next_prompts(self) -> np.ndarray:
        """The next prompts [P, Tp] without their prefix; their requests become ready.

        marks_ends (of the scheduler): the last token of each, which is fed when it is sampled from, and what follows
        are -1, for a model whose state every token changes.
        """
        P, start = self._config.prefill_batch, len(self._config.prefix)
        tokens = np.zeros((P, self._config.prompt_columns), np.int32)
        for row in range(min(P, len(self._waiting))):
            prompt, members = self._waiting.popleft()
            tokens[row, : len(prompt) - start] = prompt[start:]
            if self._marks_ends:
                tokens[row, len(prompt) - start - 1 :] = -1
            self._ready.extend((index, row) for index in members)
        return tokens

    def _fill(self, taken: list[tuple[int, int, int]]) -> SlotUpdate:
        B = self._config.slots
        pad = B - len(taken)
        requests = [self._requests[index] for _, index, _ in taken]
        sampling = [request.sampling for request in requests]
        ints = lambda values, fill=0: np.array([*values, *[fill] * pad], np.int32)
        return SlotUpdate(
            slot=ints((slot for slot, _, _ in taken), B),
            prompt=ints(row for _, _, row in taken),
            columns=ints((len(request.tokens) - len(self._config.prefix) for request in requests), 1),
            position=ints(len(request.tokens) - 1 for request in requests),
            token=ints(request.tokens[-1] for request in requests),
            limit=ints(s.max_new_tokens for s in sampling),
            seed=np.array([*(request.seed % 2**32 for request in requests), *[0] * pad], np.uint32),
            stop=stop_table(sampling, B, self._config.max_stop_ids),
            knobs=SamplingArrays.of(sampling, B),
        )
