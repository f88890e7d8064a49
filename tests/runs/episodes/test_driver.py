"""Trajectories of tiny models with environments: their tokens, and what depends on the clock."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.models.transformer import merge, split
from r1jax.runs.episodes.driver import CPU_CHUNK
from r1jax.runs.episodes.trajectory import Episode
from r1jax.weights import load_pretrained
from tests.runs.episodes.players import make_starts, script_driver, tiny_driver, write_family

STOPS = ("e", "t", "o", "1", "a", "n", "s", "k", "B", "7", "w")  # the random model ends a turn by these often enough


def play(model: Path, environment: str, count: int, **config: Any) -> tuple[list[Episode], Any]:
    driver, params = tiny_driver(model, environment, stop_texts=STOPS, turn_tokens=16, **config)
    episodes = driver.run(params, make_starts(count))
    driver.release()
    return episodes, driver


@pytest.fixture(scope="module")
def episodes(tiny_model: Path) -> tuple[list[Episode], Any]:
    return play(tiny_model, "Talker", 24)


GOLDENS = Path(__file__).parents[2] / "goldens"


@pytest.mark.parametrize("family", ["", "dense/qwen2_tied", "dense/qwen3_tied", "deepseek/v3_latent"])
def test_log_probs_of_every_turn_are_those_of_the_whole_sequence(
    family: str, tiny_model: Path, tmp_path: Path, episodes: tuple[list[Episode], Any]
) -> None:
    model = write_family(tmp_path / "model", GOLDENS / family) if family else tiny_model
    found = play(model, "Talker", 16, tokens=62, longest=62)[0] if family else episodes[0]
    graph, params = split(load_pretrained(model)[0])
    assert max(episode.turns for episode in found) >= 2
    tokens = np.zeros((len(found), 160 if not family else 124), np.int32)
    for row, episode in enumerate(found):
        whole = [*episode.prompt_tokens, *episode.completion.tokens]
        tokens[row, : len(whole)] = whole
    logits = np.asarray(merge(graph, params)(tokens), np.float64)
    logits -= logits.max(-1, keepdims=True)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    gaps = []
    for row, episode in enumerate(found):
        completion, first = episode.completion, len(episode.prompt_tokens)
        at = first + completion.places
        gaps.append(expected[row, at - 1, tokens[row, at]] - completion.sampled_logprobs)
        assert all(not p for p, sampled in zip(completion.logprobs, completion.sampled, strict=True) if not sampled)
    gaps = np.abs(np.concatenate(gaps))
    assert gaps.mean() < 1e-5 and gaps.max() < 5e-5


def test_no_token_is_computed_twice(episodes: tuple[list[Episode], Any]) -> None:
    """Each but the last of a sequence once, and those sampled behind a text that ended the turn; whole chunks that
    prompts begin with once for all that come while a slot holds them.
    """
    found, driver = episodes
    once = sum(len(e.prompt_tokens) + len(e.completion.tokens) - 1 for e in found)
    common = os.path.commonprefix([e.prompt_tokens for e in found])
    shared = len(common) // CPU_CHUNK * CPU_CHUNK * (len(found) - 1)
    assert shared > 0 and once - shared <= driver.computed <= once - shared + sum(e.turns for e in found) * 15


def test_messages_and_tokens_say_the_same(episodes: tuple[list[Episode], Any]) -> None:
    tokenizer = next(iter(episodes[1].dialogues.values())).tokenizer
    several = [episode for episode in episodes[0] if episode.turns > 1]
    assert several
    for episode in several:
        roles = [message["role"] for message in episode.completion.messages]
        assert roles[:3] == ["assistant", "user", "assistant"]
        text = tokenizer.decode(episode.completion.tokens, skip_special=False)
        assert episode.completion.messages[1]["content"] + "<|im_end|>\n<|im_start|>assistant\n" in text


@pytest.mark.parametrize("config", [{"workers": 2}, {"workers": 40}, {"isolation": "process"}], ids=str)
def test_the_time_that_environments_take_changes_no_bit(
    tiny_model: Path, episodes: tuple[list[Episode], Any], config: dict[str, Any]
) -> None:
    found, _ = play(tiny_model, "SlowTalker", 24, **config)
    for one, other in zip(episodes[0], found, strict=True):
        assert one.completion == other.completion  # log-probs to the last bit
        assert one.prompt_tokens == other.prompt_tokens


def test_limits_of_turns_tokens_and_the_whole() -> None:
    driver, _ = script_driver("Endless", lambda text, turn: "abc", max_turns=4)
    (episode,) = driver.run(None, make_starts(1))
    assert (episode.completion.finish_reason, episode.turns) == ("turns", 4)
    assert len(episode.completion.messages) == 8  # the last reply was answered, though nothing follows
    driver, _ = script_driver("Endless", lambda text, turn: "abc", turn_tokens=2)
    (episode,) = driver.run(None, make_starts(1))
    assert (episode.completion.finish_reason, episode.completion.length) == ("length", 2)
    driver, _ = script_driver("Endless", lambda text, turn: "abc")
    (episode,) = driver.run(None, make_starts(1, limit=100))
    assert episode.completion.finish_reason == "length" and 50 < len(episode.completion.tokens) <= 100


def test_a_long_opening_counts_as_tokens_of_the_trajectory() -> None:
    driver, _ = script_driver("Talker", lambda text, turn: "abc")
    driver.longest = 30
    (episode,) = driver.run(None, make_starts(1, limit=40))
    assert len(episode.prompt_tokens) + len(episode.completion.tokens) <= 30 + 40
