"""Samples for clients of the Tinker API: requests are recorded, sampled in the worker's batch, and their results kept
until they are fetched; those that a killed server left are sampled again, with the same seeds.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool

from r1jax.core.errors import UserError
from r1jax.core.seeds import derive_seed
from r1jax.core.structs import Sampling
from r1jax.serving.model_host import ModelHost
from r1jax.serving.reply import Reply
from r1jax.serving.request_counts import Metrics
from r1jax.serving.tinker_requests import MOST_ALTERNATIVES, Sample, SamplingParams
from r1jax.serving.worker import BusyError, Worker
from r1jax.tuning import messages
from r1jax.tuning.sampler_bank import Adapter
from r1jax.tuning.service import SAMPLE, TrainingService, describe_failure

log = logging.getLogger(__name__)

MOST_WAITING = 4096  # requests
PAUSE_SECONDS = 0.05  # until a full queue is tried again
MASK_LOGPROB = -99999.0  # where the top k have no entry


class SampleRunner:
    """Samples the requests of samplers."""

    def __init__(self, host: ModelHost, worker: Worker, metrics: Metrics, service: TrainingService):
        self.host, self.worker, self.metrics, self.service = host, worker, metrics, service
        self._tasks: dict[str, asyncio.Task] = {}

    async def resume(self) -> None:
        """Begins the requests that were recorded and not finished."""
        for request in await run_in_threadpool(self.service.store.requests, status="pending"):
            if request.kind == SAMPLE and request.id not in self._tasks:
                self._begin(request.id, request.target, Sample.model_validate_json(request.body or b"{}"))

    async def submit(self, sampler: str, body: Sample) -> str:
        """Records a request, once, and begins it; returns its id. Raises BusyError if too many wait."""
        if len(self._tasks) >= MOST_WAITING:
            raise BusyError
        number = body.seq_id or 0
        id, raw = f"{sampler}:{number}", body.model_dump_json(exclude_none=True).encode()
        if await run_in_threadpool(self.service.store.add, id, sampler, number, SAMPLE, raw):
            self._begin(id, sampler, body)
        return id

    def cancel(self, id: str) -> None:
        """Ends a request whose client has no use for it."""
        if task := self._tasks.get(id):
            task.cancel()

    def _begin(self, id: str, sampler: str, body: Sample) -> None:
        task = asyncio.create_task(self._run(id, sampler, body))
        self._tasks[id] = task
        task.add_done_callback(lambda _: self._tasks.pop(id, None))

    async def _run(self, id: str, sampler: str, body: Sample) -> None:
        status, result = "failed", b""
        try:
            result = await self._sample(id, sampler, body)
            status = "done"
        except UserError as error:
            result = describe_failure(str(error), is_user=True)
        except asyncio.CancelledError:
            if self.service.is_over:  # the server ends: the request stays, and is begun again
                raise
            result = describe_failure("the request was cancelled", is_user=True)
        except Exception as error:
            log.exception("sampling %s failed", id)
            result = describe_failure(f"the server failed ({type(error).__name__}); see its log", is_user=False)
        await asyncio.shield(run_in_threadpool(self.service.finish, id, status, result))

    async def _sample(self, id: str, sampler: str, body: Sample) -> bytes:
        adapter = await run_in_threadpool(self._find_adapter, sampler)
        prompt, params = self.host.encode_prompt(body.prompt.tokens), body.sampling_params
        sampling, stops = self._choose_sampling(params, len(prompt))
        seed = derive_seed("sample", id) if params.seed is None else params.seed
        count = MOST_ALTERNATIVES if body.topk_sample_logprobs else 0
        options: dict[str, Any] = {"stops": stops, "alternatives": count, "adapter": adapter}
        seeds = [derive_seed("reply", seed, number) for number in range(body.num_samples)]
        replies = [Reply(self.host, self.worker, prompt, sampling, own, **options) for own in seeds]
        try:
            for reply in replies:
                await self._queue(reply)
            await asyncio.gather(*(reply.finish() for reply in replies))
        finally:
            self.worker.drop(*(reply.job for reply in replies))
            self.metrics.note(replies)
        about_prompt = await self._score_prompt(body, prompt, adapter)
        sequences = [_describe(reply, body.topk_sample_logprobs) for reply in replies]
        return messages.write_samples(sequences, **about_prompt)

    async def _queue(self, reply: Reply) -> None:
        while True:
            try:
                return self.worker.submit(reply.job)
            except BusyError:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _score_prompt(self, body: Sample, prompt: tuple[int, ...], adapter: Adapter | None) -> dict[str, Any]:
        """Log-probs of the prompt's own tokens, as far as they were asked for."""
        count, asked, found = len(prompt), body.target_prompt_logprobs, dict[str, Any]()
        if not (body.prompt_logprobs or body.topk_prompt_logprobs or asked):
            return found
        targets = None if asked is None else _read_targets(asked.model_dump(), count, self.host.vocab_size)
        call = lambda: self.host.score_with(adapter, prompt, MOST_ALTERNATIVES, targets)
        logprobs, likeliest, scored = await self._call(call)
        skipped = count - (body.prompt_logprobs_last_n or count)
        if body.prompt_logprobs:
            found["prompt_logprobs"] = [np.nan, *logprobs]
            found["prompt_logprobs"][:skipped] = [np.nan] * skipped
        if K := body.topk_prompt_logprobs:
            ids, values = np.zeros((count, K), np.int32), np.full((count, K), MASK_LOGPROB, np.float32)
            for place, pairs in enumerate(likeliest, 1):
                if place >= skipped:
                    ids[place], values[place] = list(pairs)[:K], list(pairs.values())[:K]
            found["topk"] = ids, values
        if targets is not None:
            found["targets"] = np.where(targets < 0, 0.0, scored)
        return found

    async def _call(self, function: Any) -> Any:
        while True:
            try:
                future = self.worker.call(function)
            except BusyError:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            try:
                return await asyncio.wrap_future(future)
            except BusyError:  # all places are taken by adapters of running sequences
                await asyncio.sleep(PAUSE_SECONDS)

    def _find_adapter(self, sampler: str) -> Adapter | None:
        found = self.service.store.get("sampler", sampler)
        if found is None:
            raise UserError(f"there is no sampler {sampler[:100]!r}")
        return Adapter(found.body["file"], found.body["rank"]) if found.body["file"] else None

    def _choose_sampling(self, params: SamplingParams, given: int) -> tuple[Sampling, list[str]]:
        """How a request is sampled, and the texts that end it."""
        limit, longest = params.max_tokens, self.host.config.max_tokens
        room = longest - given
        limit = room if limit is None else limit
        if room < 1 or limit > room:
            raise UserError(
                f"prompt and reply must fit into {longest} tokens (--max_tokens), got {given} of the prompt and "
                f"max_tokens={limit}"
            )
        stop = [params.stop] if isinstance(params.stop, str) else params.stop
        texts = [one for one in stop or () if isinstance(one, str)]
        ids = tuple(one for one in stop or () if isinstance(one, int))
        ids = ids if stop is not None and not texts else self.host.stop_ids
        if params.temperature == 0:
            return Sampling(temperature=0.0, max_new_tokens=limit, stop_ids=ids), texts
        knobs: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
        knobs["top_k"] = max(params.top_k, 0)
        return Sampling(**knobs, max_new_tokens=limit, stop_ids=ids), texts


def _describe(reply: Reply, K: int) -> dict[str, Any]:
    described: dict[str, Any] = {"tokens": reply.tokens, "logprobs": reply.logprobs}
    described["stopped"] = reply.finish_reason == "stop"
    if K:
        ids = np.array([list(pairs)[:K] for pairs in reply.alternatives], np.int32).reshape(-1, K)
        values = np.array([list(pairs.values())[:K] for pairs in reply.alternatives], np.float32).reshape(-1, K)
        described["topk"] = ids, values
    return described


def _read_targets(tensor: dict[str, Any], count: int, vocab_size: int) -> np.ndarray:
    """Ids to score [P - 1, K], -1 where nothing is asked. Raises UserError for another shape."""
    shape, values = tensor["shape"], np.asarray(tensor["data"], np.int64)
    starts, columns = tensor["sparse_crow_indices"], tensor["sparse_col_indices"]
    is_right = isinstance(shape, list) and len(shape) == 2 and shape[0] == count - 1 and 0 < shape[1] <= vocab_size
    if is_right and starts is None:
        is_right = values.size == shape[0] * shape[1]
    elif is_right:
        is_right = len(starts) == count and len(columns or ()) == values.size == starts[-1]
    if not is_right or values.size and not (values.min() >= -1 and values.max() < vocab_size):
        raise UserError(
            f"target_prompt_logprobs must be ids below {vocab_size} of shape [{count - 1}, K], got {json.dumps(shape)}"
        )
    if starts is None:
        return values.reshape(shape)
    dense = np.full(shape, -1, np.int64)
    dense[np.repeat(np.arange(count - 1), np.diff(starts)), columns] = values
    return dense
