"""The sampling half of a GRPO step whose trajectories are external programs.

Each member of a group is one run of the program, which asks the policy through an endpoint of the run. All programs
share the slots of one engine. A reply is a function of weights, prompt and seed, and a call's seed one of (seed of the
run, step, place of the task, member, number of the call), so a program that asks the same in the same order gets the
same replies, whatever runs beside it. One that fails has no reward and is out of the loss, as with environments.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import types
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.core.console import Progress
from r1jax.core.seeds import derive_seed
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Completion, Request, Sampling
from r1jax.core.watchdog import beat
from r1jax.environments.harness_config import HarnessConfig
from r1jax.models.transformer import Params
from r1jax.rl.rollout_batch import Groups
from r1jax.rollout.continuous import ContinuousEngine
from r1jax.runs.episodes.episode_metrics import describe_episodes
from r1jax.runs.episodes.trajectory import Episode
from r1jax.serving.harness.external_programs import End, Programs
from r1jax.serving.harness.policy_endpoint import Endpoint
from r1jax.serving.harness.session import MODEL, Session
from r1jax.serving.harness.transcript import Limits, Played
from r1jax.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0  # between two looks at programs and engine


class Start(NamedTuple):
    """A program to run: its task, how replies are sampled, and the seed of its calls."""

    task: dict[str, Any]
    sampling: Sampling
    seed: int


class Play(NamedTuple):
    """A program at its end: its episode, and the sequences that are trained on."""

    episode: Episode
    played: list[Played]


class ProgramRollouts:
    """Samples groups of programs (`Trajectories`). limits: their `turn` is bounded by the sampling's.

    pays: whether a program's result must hold a reward. seed: of the run.
    """

    def __init__(
        self,
        config: HarnessConfig,
        make_engine: Callable[[Params], ContinuousEngine],
        tokenizer: Tokenizer,
        limits: Limits,
        *,
        pays: bool,
        seed: int,
    ):
        self.config, self.tokenizer, self.limits, self.seed = config, tokenizer, limits, seed
        self.endpoint = Endpoint(make_engine, config.timeout)
        self.programs = Programs(config, self.endpoint.address, self.endpoint.file, pays=pays)
        self._plays: list[Play] = []

    def sample(
        self,
        params: Params,
        rows: list[dict[str, Any]],
        sampling: Sampling,
        group_size: int,
        step: int,
        *,
        first: int,
    ) -> Groups:
        """Groups of trajectories for rows; `first` is the index of the first row in the step."""
        starts = [
            Start(row, sampling, derive_seed("harness", self.seed, step, p, g))
            for p, row in enumerate(rows, start=first)
            for g in range(group_size)
        ]
        with activity(f"step {step}: running {len(starts)} programs"):
            plays = self._play(params, starts)
        self._plays += plays
        prompts = []
        for p in range(len(rows)):
            told = [prompt for each in plays[p * group_size : (p + 1) * group_size] for prompt, _ in each.played]
            prompts.append(told[0] if told else ())
        completions = [each.episode.completion for each in plays]
        texts = [self.tokenizer.decode(completion.tokens) for completion in completions]
        return Groups(rows, prompts, completions, texts, [each.played for each in plays])

    def answer(
        self, params: Params, requests: Sequence[Request], rows: Sequence[dict[str, Any]], progress: Progress
    ) -> list[Completion]:
        """Completions of an evaluation, whose requests go through the rows, in order, once or several times."""
        starts = [
            Start(rows[i % len(rows)], each.sampling, derive_seed("harness", each.seed))
            for i, each in enumerate(requests)
        ]
        plays = self._play(params, starts, lambda done: progress.update(done, {}))
        return [each.episode.completion for each in plays]

    def release(self) -> None:
        """Ends nothing: programs have ended."""

    def take_metrics(self) -> dict[str, float]:
        """Metrics of the programs since the last call: those of episodes, and `env/trajectories/mean`, the sequences
        that a program's calls made.
        """
        plays, self._plays = self._plays, []
        metrics = describe_episodes([each.episode for each in plays], 0.0)
        del metrics["time/parked"]  # no slot waits for a program
        return metrics | {"env/trajectories/mean": float(np.mean([len(each.played) for each in plays]))}

    def close(self) -> None:
        """Ends the endpoint."""
        self.endpoint.stop()

    def _play(
        self, params: Params, starts: Sequence[Start], report: Callable[[int], None] = lambda done: None
    ) -> list[Play]:
        """Runs programs to their end, `workers` at once."""
        self.endpoint.load(params, starts[0].sampling)
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[int, Play | BaseException]] = queue.SimpleQueue()
        for number in range(len(starts)):
            waiting.put(number)
        is_over = threading.Event()

        def work() -> None:
            while not is_over.is_set():
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    ended.put((number, self._run(starts[number])))
                except BaseException as error:
                    ended.put((number, error))

        for _ in range(min(self.config.workers, len(starts))):
            threading.Thread(target=work, name="program", daemon=True).start()
        found: dict[int, Play] = {}
        try:
            while len(found) < len(starts):
                if (error := self.endpoint.worker.error) is not None:
                    raise error
                beat()  # each program has its deadline
                try:
                    number, play = ended.get(timeout=WAIT_SECONDS)
                except queue.Empty:
                    continue
                if isinstance(play, BaseException):
                    raise play
                found[number] = play
                report(len(found))
        finally:
            is_over.set()
            self.programs.kill()
            if self.endpoint.worker.error is None:
                self.endpoint.unload()
        return [found[number] for number in range(len(starts))]

    def _run(self, start: Start) -> Play:
        """Runs one program."""
        turn = min(self.limits.turn or start.sampling.max_new_tokens, self.limits.behind)
        limits = dataclasses.replace(self.limits, turn=turn)
        config = self.endpoint.engine.config
        session = Session(self.tokenizer, config, start.sampling, limits, start.seed, self.config.max_calls)
        self.endpoint.open(session)
        try:
            end = self.programs.run(start.task, session.key, MODEL)
        finally:
            self.endpoint.close(session)
        return _make_play(session, end)


def _make_play(session: Session, end: End) -> Play:
    transcript, fault = session.transcript, end.fault
    if not (fault or transcript.strands):
        fault, end = "no calls", dataclasses.replace(end, words="it asked the policy nothing")
    if fault:
        log.warning("the program failed (%s): %s", fault, " ".join(end.words.split()))
    reward = end.result.get("reward")
    environment = types.SimpleNamespace(**end.result)
    payment = None if reward is None else float(reward)
    completion, played = transcript.finish("fault" if fault else None, environment=environment, payment=payment)
    prompt = played[0][0] if played else ()
    events = Counter({fault: 1} if fault else {})
    return Play(Episode(prompt, completion, transcript.calls, {}, {}, events, end.seconds), played)
