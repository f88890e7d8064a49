"""Trajectories with environments, sampled by a continuous engine: a slot keeps its cache while its environment answers.

A conversation is never encoded again and no token computed twice: what was sampled stays in the slot, and what an
environment answers is fed behind it. While one slot is parked the others go on. What is sampled is a function of
weights, tokens and seed, so the results do not depend on how long an environment took, as far as those of a row do not
depend on its number: the slots are a multiple of 8.

Of several processes the first has the environments and decides; the others hear its orders and do the same with their
part of the engine.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from r1jax.core import distributed
from r1jax.core.errors import UserError
from r1jax.core.sharding import batch_parts
from r1jax.core.structs import Completion, Sampling
from r1jax.core.watchdog import beat
from r1jax.environments.contract import Contract
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.environments.workers import Workers
from r1jax.models.transformer import Params
from r1jax.rollout.continuous import ContinuousConfig, ContinuousEngine
from r1jax.runs.episodes.conductor import Conductor, Heard, Order
from r1jax.runs.episodes.trajectory import Episode, Start, Trajectory
from r1jax.text.tokenizer import Tokenizer
from r1jax.text.tools.dialogue import Dialogue

log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0  # for environments where no slot can go on, before the processes hear of each other again
BURST, HURRIED = 16, 4  # tokens that are sampled at once: while no environment is asked, and while one may answer
CHUNK, CPU_CHUNK = 64, 16  # tokens of a sequence that are fed at once, and shared with others that begin alike
MULTIPLE = 8  # of the slots

Report = Callable[[int], None]


def make_dialogues(
    tokenizer: Tokenizer, contracts: Mapping[str, Contract], config: EpisodeConfig
) -> dict[str, Dialogue]:
    """The format of conversations with each environment, noting what the chat template does not show."""
    found = {}
    for name, contract in contracts.items():
        found[name] = dialogue = Dialogue(tokenizer, contract.tools, format=config.format)
        if dialogue.is_tagged:
            log.info("tools are called in the tagged format%s", _explain(tokenizer, config))
        elif tokenizer.chat_template is not None and not dialogue.shown.thoughts:
            log.info("the chat template drops thoughts of earlier turns; trajectories keep them as they were sampled")
    return found


def _explain(tokenizer: Tokenizer, config: EpisodeConfig) -> str:
    if config.format == "tagged":
        return ""
    return (
        ": the model has no chat template" if tokenizer.chat_template is None else ": the chat template shows no tools"
    )


def make_continuous(
    graph: nnx.GraphDef, params: Params | None, *, slots: int, tokens: int, stop_ids: int = 0
) -> ContinuousEngine:
    """An engine for so many trajectories at once, and so many tokens in each, in the layout in use. params: None for
    one without weights, until `load`.
    """
    rows = math.lcm(MULTIPLE, batch_parts())
    config = ContinuousConfig(
        slots=-(-slots // rows) * rows,
        max_tokens=tokens,
        chunk=CPU_CHUNK if jax.default_backend() == "cpu" else CHUNK,
        feed_rows=MULTIPLE,
        share=True,
        burst=BURST,
        max_stop_ids=max(ContinuousConfig.max_stop_ids, stop_ids),
    )
    return ContinuousEngine(graph, params, config)


class Driver:
    """Runs trajectories of one model with environments by name, and their dialogues.

    longest: tokens of a prompt; what `reset` adds beyond counts as tokens of the trajectory. Between calls of `run` the
    engine holds neither weights nor slots.
    """

    def __init__(
        self,
        make_engine: Callable[[Params], ContinuousEngine],
        dialogues: Mapping[str, Dialogue],
        contracts: Mapping[str, Contract],
        config: EpisodeConfig,
        *,
        longest: int,
    ):
        self.dialogues, self.contracts, self.config, self.longest = dialogues, contracts, config, longest
        self.workers = Workers(config)
        self._make_engine = make_engine
        self._engine: ContinuousEngine | None = None
        self._shares: list[float] = []

    def run(self, params: Params, starts: Sequence[Start], report: Report = lambda done: None) -> list[Episode]:
        """One episode for each start, in order; `report(number of those at their end)` is called now and then.

        Environments are kept until `release`, for rewards to read them.
        """
        engine = self._load(params)
        conductor = None
        if distributed.is_writer():
            conductor = Conductor(
                [self._make(start) for start in starts],
                self.workers,
                self.config,
                engine.config.slots,
                self.longest,
            )
        slots: dict[int, int] = {}
        computed, parked, looks = engine.computed, 0, 0
        orders: list[Order] = []
        while True:
            if conductor is not None:
                orders += conductor.plan(WAIT_SECONDS if engine.is_idle and not orders else 0.0)
                report(len(starts) - conductor.left)
            hurried = conductor is not None and conductor.waits
            is_over, hurried, orders = _share(conductor is None or conductor.is_over, hurried, orders)
            for order in orders:
                self._obey(engine, slots, order, starts)
            orders = []
            beat()
            if is_over:
                break
            if engine.is_idle:
                continue
            numbers = {slot: number for number, slot in slots.items()}
            bursts = engine.step(HURRIED if hurried else BURST, ends=max(1, len(slots) // 8))
            heard = [Heard(numbers[b.slot], b.tokens, b.logprobs, b.finish_reason) for b in bursts]
            if conductor is not None:
                parked, looks = parked + conductor.parked, looks + engine.config.slots
                orders = conductor.hear(heard)
        self.computed = engine.computed - computed
        self._shares.append(parked / max(looks, 1))
        engine.unload()
        return _share_episodes([one.finish() for one in conductor.trajectories] if conductor else [])

    def release(self) -> None:
        """Ends the environments of the last run."""
        self.workers.close_all()

    def take_parked(self) -> float:
        """Share of slots that waited for an environment, since the last call."""
        shares, self._shares = self._shares, []
        return float(np.mean(shares)) if shares else 0.0

    def _load(self, params: Params) -> ContinuousEngine:
        if self._engine is None:
            self._engine = self._make_engine(params)
        else:
            self._engine.load(params)
        return self._engine

    def _make(self, start: Start) -> Trajectory:
        if start.kind not in self.contracts:
            raise UserError(
                f"a row names the environment {start.kind!r} (column {self.config.column!r}), config.environment has "
                f"{', '.join(self.contracts)}"
            )
        limit = start.sampling.max_new_tokens
        turn = min(self.config.turn_tokens or limit, self.config.max_tokens or limit)
        sampling = dataclasses.replace(start.sampling, max_new_tokens=turn)
        room = self.config.max_tokens or limit
        start = dataclasses.replace(start, sampling=sampling)
        return Trajectory(start, self.contracts[start.kind], self.dialogues[start.kind], room)

    def _obey(self, engine: ContinuousEngine, slots: dict[int, int], order: Order, starts: Sequence[Start]) -> None:
        start = starts[order.number]
        if order.kind == "cut":
            engine.cut(slots[order.number], order.limit)
        elif order.kind == "close":
            engine.close(slots.pop(order.number))
        else:
            sampling: Sampling = dataclasses.replace(start.sampling, max_new_tokens=order.limit)
            if order.kind == "open":
                slots[order.number] = engine.open(order.tokens, sampling, start.seed)
            else:
                engine.extend(slots[order.number], order.tokens, sampling)


def _share(is_over: bool, hurried: bool, orders: list[Order]) -> tuple[bool, bool, list[Order]]:
    """The first process's flags and orders in every process."""
    if jax.process_count() == 1:
        return is_over, hurried, orders
    is_over, hurried, told = json.loads(distributed.text_from_first(json.dumps([is_over, hurried, orders])))
    return is_over, hurried, [Order(kind, number, tuple(tokens), limit) for kind, number, tokens, limit in told]


def _share_episodes(episodes: list[Episode]) -> list[Episode]:
    """The first process's episodes in every process; the environments themselves are in the first alone."""
    if jax.process_count() == 1:
        return episodes
    told = [dataclasses.asdict(_without_environment(episode)) for episode in episodes]
    found = json.loads(distributed.text_from_first(json.dumps(told)))
    if distributed.is_writer():
        return episodes
    return [_read_episode(values) for values in found]


def _without_environment(episode: Episode) -> Episode:
    return dataclasses.replace(episode, completion=dataclasses.replace(episode.completion, environment=None))


def _read_episode(values: dict[str, Any]) -> Episode:
    completion = values["completion"]
    for name in ("tokens", "logprobs", "sampled", "messages"):
        completion[name] = tuple(completion[name])
    values["prompt_tokens"] = tuple(values["prompt_tokens"])
    return Episode(**{**values, "completion": Completion(**completion)})
