"""Trajectories of `generate` and `evaluate`: a column for what was said, kept rows, and flags."""

import json
from pathlib import Path

import pytest

from r1jax.core.errors import UserError
from r1jax.generate import main
from r1jax.runs.episodes.player import read_environment, read_episode

EPISODE = '{"max_turns": 3, "turn_tokens": 16, "stop_texts": ["e", "t", "o", "1", "a", "n", "s", "k", "B", "7", "w"]}'


def test_generate_writes_conversations_and_keeps_them(tiny_model: Path, tmp_path: Path) -> None:
    prompts, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"Play {n}."}], "limit": 3} for n in range(6)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--model={tiny_model}", f"--prompts={prompts}", f"--output={output}", "--num_samples=4"]
    flags += ["--environment=tests.environments.toys:Talker", f"--episode={EPISODE}", "--max_new_tokens=120"]
    assert main(["generate", *flags]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    for row in found:
        for tokens, sampled, logprobs in zip(
            row["completion_tokens"], row["completion_sampled"], row["logprobs"], strict=True
        ):
            assert len(tokens) == len(sampled) == len(logprobs) and sampled[-1] == 1
        assert all(messages[0]["role"] == "assistant" for messages in row["completion_messages"])
    assert any(len(messages) > 1 for row in found for messages in row["completion_messages"])
    before = output.read_bytes()
    assert main(["generate", *flags]) == 0 and output.read_bytes() == before


def test_flags_are_read() -> None:
    assert read_episode('{"max_turns": 2}').max_turns == 2
    assert read_environment('{"a": "b:C"}') == {"a": "b:C"} and read_environment("x:Y") == "x:Y"
    with pytest.raises(UserError, match="config.episode.turns is not a known key"):
        read_episode('{"turns": 2}')
    with pytest.raises(UserError, match="--episode must be a JSON object"):
        read_episode("[1]")
