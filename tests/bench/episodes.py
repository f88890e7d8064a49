"""Seconds of trajectories whose tools take their time, beside what they need at least, and beside a loop of turns.

64 trajectories of 4 turns in 64 slots, with replies of unequal length and answers after 0 to 2 seconds, both drawn from
the trajectory's seed. Measured, after a run that compiles:

    decoding    the same trajectories with answers at once
    longest     the trajectory that takes longest, by itself
    together    all of them
    turns       all of them in a loop that samples a turn of all, then waits for the slowest answer

One JSON line a round; `ratio` is together over the larger of decoding and longest, of which the median comes last.

    python -m tests.bench.episodes [--rounds 3] [--trajectories 64] [--seconds 2]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import random
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.core.structs import Sampling
from r1jax.environments.contract import read_contracts
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.models.transformer import split
from r1jax.runs.episodes.driver import BURST, Driver, make_continuous, make_dialogues
from r1jax.runs.episodes.trajectory import Episode, Start
from r1jax.weights import load_pretrained
from tests.tiny_model import write_tiny_model

SIZES = {"hidden_size": 128, "intermediate_size": 384, "max_position_embeddings": 2048}
TURNS, LONGEST, LIMIT = 4, 64, 192  # turns, tokens of a prompt, and of a reply


class Slow:
    """Answers `TURNS` replies, each after up to `most` seconds that its seed draws."""

    most = 0.0

    def reset(self, seed: int, **row: Any) -> None:
        self.draw, self.heard = random.Random(seed), 0

    def respond(self, reply: str) -> str | None:
        self.heard += 1
        if self.heard == TURNS:
            return None
        time.sleep(self.draw.uniform(0, 1) * self.most)
        return "Go on."


def find_waits(start: Start, turns: int) -> list[float]:
    """Shares of the longest wait after each turn but the last."""
    draw = random.Random(start.environment_seed)
    return [draw.uniform(0, 1) for _ in range(turns - 1)]


def split_turns(episode: Episode) -> list[tuple[list[int], int]]:
    """Given tokens and the number of sampled ones of each turn."""
    found: list[tuple[list[int], int]] = []
    given: list[int] = [*episode.prompt_tokens]
    count = 0
    for token, sampled in zip(episode.completion.tokens, episode.completion.sampled or (), strict=True):
        if not sampled and count:
            found.append((given, count))
            given, count = [], 0
        if sampled:
            count += 1
        else:
            given.append(token)
    return [*found, (given, count)]


def run_turns(engine: Any, params: Any, starts: Sequence[Start], episodes: Sequence[Episode], most: float) -> None:
    """The same trajectories, turn by turn: all sample, then the slowest answer is waited for."""
    engine.load(params)
    turns, slots = [split_turns(episode) for episode in episodes], {}
    for number in range(max(map(len, turns))):
        there = [i for i, each in enumerate(turns) if number < len(each)]
        for i in there:
            given, count = turns[i][number]
            sampling = dataclasses.replace(starts[i].sampling, max_new_tokens=count)
            if number:
                engine.extend(slots[i], given, sampling)
            else:
                slots[i] = engine.open(given, sampling, starts[i].seed)
        while not engine.is_idle:
            engine.step(BURST)
        waits = [find_waits(starts[i], len(turns[i]))[number] for i in there if number + 1 < len(turns[i])]
        time.sleep(max(waits, default=0.0) * most)
    engine.unload()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    folder = write_tiny_model(pathlib.Path(tempfile.mkdtemp()) / "model", **SIZES)
    # So many stop ids that lengths are close to geometric, of a mean near 50.
    stops = [2, 3, *np.linspace(4, 303, 6).astype(int).tolist()]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    model, tokenizer = load_pretrained(folder)
    graph, params = split(model)
    settings = EpisodeConfig(max_turns=TURNS, max_tokens=1000, workers=options.trajectories)
    contracts = read_contracts("tests.bench.episodes:Slow")
    from tests.bench import episodes as module  # whose class the driver makes

    engine = make_continuous(graph, params, slots=options.trajectories, tokens=LONGEST + 1000)
    dialogues = make_dialogues(tokenizer, contracts, settings)
    driver = Driver(lambda params: engine, dialogues, contracts, settings, longest=LONGEST)
    ask = [{"role": "user", "content": "Play."}]
    sampling = Sampling(max_new_tokens=LIMIT, stop_ids=tokenizer.eos_ids)
    starts = [Start(ask, {}, "", sampling, i, 100 + i) for i in range(options.trajectories)]
    play = lambda most, starts: _time(driver, module, params, most, starts)
    play(0.0, starts)
    ratios = []
    for _ in range(options.rounds):
        decoding, episodes = play(0.0, starts)
        together, again = play(options.seconds, starts)
        assert [e.completion.tokens for e in episodes] == [e.completion.tokens for e in again]
        needs = [
            sum(find_waits(start, episode.turns)) * options.seconds + 0.01 * episode.completion.length
            for start, episode in zip(starts, again, strict=True)
        ]
        last = sorted(range(len(starts)), key=needs.__getitem__)[-3:]
        longest = max(play(options.seconds, [starts[i]])[0] for i in last)
        begin = time.perf_counter()
        run_turns(engine, params, starts, episodes, options.seconds)
        turns = time.perf_counter() - begin
        ratios.append(together / max(decoding, longest))
        found = {"decoding": decoding, "longest": longest, "together": together, "turns": turns, "ratio": ratios[-1]}
        print(json.dumps({name: round(value, 2) for name, value in found.items()}), flush=True)
    tokens = sum(episode.completion.length for episode in episodes)
    turns_each = np.mean([episode.turns for episode in episodes])
    print(json.dumps({"median_ratio": round(float(np.median(ratios)), 3), "tokens": tokens, "turns": turns_each}))


def _time(
    driver: Driver, module: Any, params: Any, most: float, starts: Sequence[Start]
) -> tuple[float, list[Episode]]:
    module.Slow.most = most
    begin = time.perf_counter()
    episodes = driver.run(params, starts)
    seconds = time.perf_counter() - begin
    driver.release()
    return seconds, episodes


if __name__ == "__main__":
    main()
