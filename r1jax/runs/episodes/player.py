"""Trajectories of a loaded model for rows of a file or problems of a benchmark: what `generate` and `evaluate` ask for.

The seeds of a row are a function of the seed, its number and the sample, as without an environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.sections import unpack
from r1jax.core.seeds import derive_seed
from r1jax.core.sharding import use_layout
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Completion
from r1jax.environments.contract import read_contracts
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.models.transformer import Params
from r1jax.rollout.continuous import ContinuousEngine
from r1jax.runs.episodes.driver import Driver, make_continuous, make_dialogues
from r1jax.runs.episodes.trajectory import Start
from r1jax.runs.generate import WINDOW, Generation
from r1jax.runs.sampler import Sampler
from r1jax.text.tools.dialogue import Prompt
from r1jax.weights.pretrained import require_tokenizer

OnRow = Callable[[int, list[Completion]], None]


class Player:
    """Samples of prompts, a window of them at a time, like `generate.Windows`.

    rows: prompt and columns of each. environment, tools: as config.environment and config.tools.
    """

    def __init__(
        self,
        sampler: Sampler,
        rows: Sequence[tuple[Prompt, Mapping[str, Any]]],
        config: Generation,
        episode: EpisodeConfig,
        *,
        environment: str | Mapping[str, str] = "",
        tools: Sequence[str] = (),
    ):
        self._sampler, self._rows, self._config, self._episode = sampler, rows, config, episode
        contracts = read_contracts(environment, tools, key="--environment")
        dialogues = make_dialogues(require_tokenizer(sampler.tokenizer, "the model"), contracts, episode)
        longest = max(len(each.open(prompt)) for prompt, _ in rows for each in dialogues.values())
        room = episode.max_tokens or config.max_new_tokens
        slots = min(sampler.slots, len(rows) * config.num_samples)

        def make(params: Params) -> ContinuousEngine:
            with use_layout(sampler.layout):
                tokens = longest + room
                return make_continuous(
                    sampler.graph, params, slots=slots, tokens=tokens, stop_ids=len(sampler.stop_ids)
                )

        self.dialogues = dialogues
        self._driver = Driver(make, dialogues, contracts, episode, longest=longest)
        self.size = max(1, WINDOW * slots // config.num_samples)

    def sample(
        self, numbers: Sequence[int], on_row: OnRow = lambda number, completions: None
    ) -> list[list[Completion]]:
        """`num_samples` trajectories of each of these rows; on_row: called with a row's number and its completions."""
        G = self._config.num_samples
        starts = [self._start(number, g) for number in numbers for g in range(G)]
        with activity(f"sampling {len(starts)} trajectories"):
            found = [episode.completion for episode in self._driver.run(self._sampler.params, starts)]
        self._driver.release()
        groups = [found[place * G : (place + 1) * G] for place in range(len(numbers))]
        for number, group in zip(numbers, groups, strict=True):
            on_row(number, group)
        return groups

    def find_kind(self, columns: Mapping[str, Any]) -> str:
        """The name of a row's environment."""
        kinds = self._driver.contracts
        return next(iter(kinds)) if len(kinds) == 1 else str(columns.get(self._episode.column, ""))

    def _start(self, number: int, g: int) -> Start:
        prompt, columns = self._rows[number]
        kind, seed = self.find_kind(columns), self._config.seed
        row = {name: value for name, value in columns.items() if name != "prompt"}
        sampling = self._config.sampling(self._sampler.stop_ids)
        seeds = derive_seed(seed, number, g), derive_seed("environment", seed, number)
        return Start(prompt, row, kind, sampling, *seeds)


def read_episode(text: str | None) -> EpisodeConfig:
    """The settings of `--episode`, a JSON object with keys of config.episode. Raises UserError for anything else."""
    try:
        values = json.loads(text or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"--episode must be a JSON object of config.episode's keys, got {text!r}")
    episode = unpack(EpisodeConfig, values, "episode")
    episode.check_episode()
    return episode


def read_environment(text: str | None) -> str | dict[str, str]:
    """The value of `--environment`: a name or place, or a JSON object of several by name."""
    if not text or not text.lstrip().startswith("{"):
        return text or ""
    try:
        return {str(name): str(place) for name, place in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise UserError(f"--environment must be a name, module:Class, or a JSON object of them, got {text!r}") from None
