"""A training set of trajectories: what a collection keeps of them on file, their rewards, and the rows of the set.

A row of the set has the `tokens` as they were sampled, with `sampled` marking those with a loss, and the digest of
their vocabulary; beside them `messages` (and `tools`, where the chat template shows them) for models of another
vocabulary. Those of the tagged format, and of raw prompts, have tokens alone. Rewards read the attributes of
environments that JSON knows, so that a collection that goes on after a kill judges by its file.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.core.structs import Completion
from r1jax.environments.contract import read_contracts
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.environments.worker_process import is_json
from r1jax.rewards.base import Reward, Scores
from r1jax.rewards.episodes.played import score_played
from r1jax.runs.episodes.driver import make_dialogues
from r1jax.runs.episodes.player import Player
from r1jax.runs.generate import COLLECTED, PLAYED
from r1jax.text.tokenizer import Tokenizer

Row = dict[str, Any]


def describe_played(player: Player, columns: Mapping[str, Any], completions: Sequence[Completion]) -> Row:
    """Columns of a prompt's trajectories beside those of `generate`: prompts with what `reset` added, their tokens, and
    the states of environments.
    """
    dialogue = player.dialogues[player.find_kind(columns)]
    prompts = [completion.prompt or columns["prompt"] for completion in completions]
    tokens = [[*dialogue.open(prompt)] for prompt in prompts]
    states = [
        {k: v for k, v in vars(completion.environment).items() if not k.startswith("_") and is_json(v)}
        if hasattr(completion.environment, "__dict__")
        else {}
        for completion in completions
    ]
    return dict(zip(COLLECTED, (prompts, tokens, states), strict=True))


def is_played(row: Mapping[str, Any]) -> bool:
    """Whether a row of the file has trajectories."""
    return PLAYED[0] in row


def score_rows(rewards: Sequence[Reward], rows: Sequence[Row], columns: Mapping[str, Sequence[Any]]) -> Scores:
    """Scores of the trajectories of rows, flat."""
    played = [completion for row in rows for completion in _read(row)]
    prompts = [prompt for row in rows for prompt in row["completion_prompts"]]
    return score_played(rewards, prompts, played, columns, group_size=len(rows[0]["completions"]))


class SetForms:
    """The forms of a set's rows, for each environment of a run."""

    def __init__(
        self, tokenizer: Tokenizer, environment: str | Mapping[str, str], tools: Sequence[str], episode: EpisodeConfig
    ):
        self._digest, self._column = tokenizer.digest, episode.column
        self._dialogues = make_dialogues(tokenizer, read_contracts(environment, tools), episode)

    def make_row(self, row: Row, sample: int) -> Row:
        """The row of the set for a trajectory."""
        kinds = self._dialogues
        dialogue = kinds[next(iter(kinds)) if len(kinds) == 1 else str(row.get(self._column, ""))]
        prompt, before = row["completion_prompts"][sample], row["prompt_tokens"][sample]
        exact = {
            "tokens": [*before, *row["completion_tokens"][sample]],
            "sampled": [*[0] * len(before), *row["completion_sampled"][sample]],
            "tokenizer": self._digest,
        }
        if dialogue.is_tagged or isinstance(prompt, str):
            return exact
        tools = {"tools": dialogue.tools} if dialogue.tools else {}
        return {"messages": [*prompt, *row["completion_messages"][sample]], **tools, **exact}


def _read(row: Row) -> list[Completion]:
    """The trajectories of a row of the file."""
    empty = Completion((), (), "fault")
    return [
        dataclasses.replace(
            empty,
            tokens=tuple(row["completion_tokens"][i]),
            finish_reason=row["finish_reasons"][i],
            sampled=tuple(map(bool, row["completion_sampled"][i])),
            messages=tuple(row["completion_messages"][i]),
            prompt=row["completion_prompts"][i],
            environment=types.SimpleNamespace(**row["environment_states"][i]),
            payment=row["environment_rewards"][i],
        )
        for i in range(len(row["completions"]))
    ]
