"""The kinds of classes in TRL's documentation of `environment_factory`, as TRL would take them, in a run's driver."""

import sys
import types
from collections.abc import Iterator
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from r1jax.environments.contract import read_contract
from r1jax.rewards.base import load_rewards
from r1jax.rewards.episodes.played import score_played
from tests.runs.episodes.players import make_starts, script_driver
from tests.runs.episodes.test_conductor import say, write_call
from tests.text.test_mask_goldens import make_tokenizer

PLACE = "tests.environments.trl_classes"


class Echo:
    """Stands in for the client of an echo server, which pays a tenth for each letter."""

    def __init__(self, base_url: str):
        self.base_url = base_url

    def step(self, action: Any) -> Any:
        return Bag(observation=Bag(echoed_message=action.message, reward=len(action.message) / 10))


class TextArena(Echo):
    """Stands in for the client of a word game with the word "crane", which tells the whole game every time."""

    def _tell(self, reward: float = 0.0, done: bool = False) -> Any:
        return Bag(observation=Bag(messages=[Bag(content=self.text)]), reward=reward, done=done)

    def reset(self) -> Any:
        self.text = " Find a word of five letters."
        return self._tell()

    def step(self, action: Any) -> Any:
        word = action.message.strip("[]").lower()
        is_word = len(word) == 5
        self.text += f"\n{word}: " + ("invalid move" if not is_word else "right" if word == "crane" else "wrong")
        return self._tell(float(word == "crane"), word == "crane")


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = {
        "echo_env": {"EchoEnv": Echo},
        "echo_env.models": {"EchoAction": Bag},
        "textarena_env": {"TextArenaAction": Bag, "TextArenaEnv": TextArena},
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    yield
    sys.modules.pop(PLACE, None)


def play(name: str, reward: str, *turns: str) -> tuple[Any, list[str], list[float]]:
    """The episodes of two trajectories that say these turns, what the model was given, and rewards."""
    driver, engine = script_driver(f"{PLACE}:{name}", say(*turns), tokenizer=make_tokenizer("qwen2_5"))
    episodes = driver.run(None, make_starts(2, limit=4000, question="…"))
    played = [episode.completion for episode in episodes]
    scores = score_played(load_rewards({f"{PLACE}:{reward}": 1.0}), ["p"] * 2, played, {})
    return episodes, engine.given, scores.by_name[reward].tolist()


def test_the_counter() -> None:
    assert read_contract(f"{PLACE}:IncrementEnv").tool_names == ["increment"]
    calls = [write_call("increment", step=step) for step in (3, 4)]
    episodes, given, rewards = play("IncrementEnv", "counter_reward", *calls, "It is 7.")
    assert rewards == [7.0, 7.0] and [episode.turns for episode in episodes] == [3, 3]
    assert sum("<tool_response>\n7\n</tool_response>" in text for text in given) == 2
    assert "The amount to add." in given[0]  # the definition of the tool


def test_the_echo() -> None:
    episodes, given, rewards = play("EchoToolEnv", "reward_func", write_call("echo", message="Hello World!"), "Done.")
    assert rewards == [1.2, 1.2] and all(episode.calls == {"echo": 1} for episode in episodes)
    assert sum("<tool_response>\nHello World!\n</tool_response>" in text for text in given) == 2


def test_the_word_game() -> None:
    """What `reset` returns is in the prompt; a game that is over says so by an exception, which the model reads."""
    guesses = [write_call("guess", guess=word) for word in ("[stone]", "[no]", "[crane]", "[again]")]
    episodes, given, rewards = play("WordleEnv", "reward_func", *guesses, "I found it.")
    assert rewards == [1.0, 1.0]
    assert "Find a word of five letters." in given[0]
    answers = [text for text in given if "<tool_response>" in text]
    assert [any(news in text for text in answers) for news in ("stone: wrong", "no: invalid move", "crane: right")]
    assert sum("Game over." in text for text in answers) == 2
    assert all(episode.failures == {"guess": 1} and episode.turns == 5 for episode in episodes)
