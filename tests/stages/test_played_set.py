"""Rejection sampling with an environment: a set of trajectories, which SFT learns as they were sampled."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.data.examples import encode_row
from r1jax.environments.episode_config import EpisodeConfig
from r1jax.stages import rejection_sampling
from r1jax.stages.collection import SCORES_FILE, SET_FILE, TRACES_FILE
from r1jax.stages.played_set import SetForms
from r1jax.weights import load_pretrained
from tests.stages import runs
from tests.stages.episodes import STOPS
from tests.text.test_mask_goldens import make_tokenizer

CONFIG = Path(__file__).with_name("tiny_collection.py")
CHANGES = {
    "environment": "tests.environments.toys:Talker",
    "episode": f'{{"arguments": {{"limit": 2}}, "turn_tokens": 48, "max_tokens": 200, "stop_texts": {STOPS}}}',
    "data__template": "chat",
    "generate__prompts": 6,
    "generate__max_new_tokens": 200,
    "generate__num_samples": 8,
    "rewards": '{"environment_reward": 1.0, "heard": {"function": "tests.stages.test_played_set:heard_reward"}}',
    "filters": '{"min_reward": 5.0}',
}


def heard_reward(environments: list[Any], **columns: Any) -> list[float]:
    """Reads an attribute that the environment kept."""
    return [float(len(environment.heard)) for environment in environments]


def collect(workdir: Path, model: Path) -> list[dict[str, Any]]:
    rejection_sampling.run(runs.read_settings(CONFIG, model__name=model, **CHANGES), workdir)
    return read(workdir / SET_FILE)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_set_of_trajectories_is_learnt_as_it_was_sampled(tiny_model: Path, tmp_path: Path) -> None:
    rows = collect(tmp_path / "run", tiny_model)
    tokenizer = load_pretrained(tiny_model)[1]
    assert tokenizer is not None and rows
    traces = read(tmp_path / "run" / TRACES_FILE)
    said = {tuple(tokens) for row in traces for tokens in row["completion_tokens"]}
    assert any(sum(message["role"] == "assistant" for message in row["messages"]) > 1 for row in rows)
    for row in rows:
        first = row["sampled"].index(1)
        assert tuple(row["tokens"][first:]) in said and " Seed " in row["messages"][0]["content"]
        (example,) = encode_row(row, tokenizer)
        np.testing.assert_array_equal(example.tokens, row["tokens"][:-1])
        np.testing.assert_array_equal(example.targets, row["tokens"][1:])
        np.testing.assert_array_equal(example.weights, row["sampled"][1:])
    # Scores are made again from what is on file, where no environment lives any more.
    before = [(tmp_path / "run" / name).read_bytes() for name in (SET_FILE, SCORES_FILE)]
    for name in (SET_FILE, SCORES_FILE):
        (tmp_path / "run" / name).unlink()
    collect(tmp_path / "run", tiny_model)
    assert [(tmp_path / "run" / name).read_bytes() for name in (SET_FILE, SCORES_FILE)] == before


def make_row(prompt: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "calculate", "arguments": {"expression": "2 * 3"}}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculate", "content": "6"},
        {"role": "assistant", "content": "It is 6."},
    ]
    return {
        "completion_prompts": [prompt],
        "prompt_tokens": [[5, 6]],
        "completion_tokens": [[7, 8, 9]],
        "completion_sampled": [[1, 0, 1]],
        "completion_messages": [messages],
    }


def test_a_model_of_another_vocabulary_learns_the_messages() -> None:
    """Calls and the last words have a loss; the result of the tool, and the definition, have none."""
    tokenizer, ask = make_tokenizer("qwen2_5"), [{"role": "user", "content": "2 * 3?"}]
    row = SetForms(tokenizer, "", ["calculate"], EpisodeConfig()).make_row(make_row(ask), 0)
    assert row["tokens"] == [5, 6, 7, 8, 9] and row["sampled"] == [0, 0, 1, 0, 1]
    assert encode_row(row, tokenizer)[0].targets.tolist() == [6, 7, 8, 9]
    (example,) = encode_row({**row, "tokenizer": "another"}, tokenizer)
    whole = tokenizer.decode(example.tokens.tolist(), skip_special=False)
    assert "Computes an arithmetic expression" in whole and "<tool_response>\n6\n</tool_response>" in whole
    learnt = tokenizer.decode(example.targets[example.weights > 0].tolist(), skip_special=False)
    assert '"expression": "2 * 3"' in learnt and learnt.endswith("It is 6.<|im_end|>") and "tool_response" not in learnt


def test_the_tagged_format_has_tokens_alone() -> None:
    tokenizer = dataclasses.replace(make_tokenizer("qwen2_5"), chat_template=None)
    row = SetForms(tokenizer, "", ["calculate"], EpisodeConfig()).make_row(make_row("2 * 3?"), 0)
    assert {*row} == {"tokens", "sampled", "tokenizer"}
    with pytest.raises(UserError, match="tokens of another vocabulary can be learnt only with messages"):
        encode_row({**row, "tokenizer": "another"}, tokenizer)
