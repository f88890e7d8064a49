"""The tool and the environment of docs/environments.md, run as they stand."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from r1jax.rewards.base import load_rewards
from r1jax.rewards.episodes.played import score_played
from tests.runs.episodes.players import make_starts, script_driver
from tests.runs.episodes.test_conductor import say, write_call
from tests.text.test_mask_goldens import make_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"
PROGRAMS = {
    text.partition("\n")[0].removeprefix("# "): text
    for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
        sys.modules.pop(name.removesuffix(".py"), None)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def test_the_tool() -> None:
    driver, engine = script_driver("", say("<call>shout abc</call>", "Done."), tools=["my_tools:shout"])
    driver.run(None, make_starts(1))
    assert engine.given[1] == "<result>ABC</result>"


def test_the_environment_and_its_rewards() -> None:
    digs = [write_call("dig", place=place) for place in (1, 2, 3, 4)]
    driver, engine = script_driver("my_env:Treasure", say(*digs, "I stop."), tokenizer=make_tokenizer("qwen2_5"))
    places = range(6)
    episodes = driver.run(None, make_starts(len(places), limit=4000))
    assert any("further down" in text or "further up" in text for text in engine.given)
    assert any("the spade broke" in text for text in engine.given)
    rewards = load_rewards({"environment_reward": 1.0, "my_env:short_reward": 1.0})
    played = [episode.completion for episode in episodes]
    scores = score_played(rewards, ["p"] * len(played), played, {})
    found = [one.environment.found for one in played]
    assert scores.by_name["environment_reward"].tolist() == [float(value) for value in found]
    assert set(scores.by_name["short_reward"].tolist()) == {-0.1 * 3}


def test_the_text_of_the_tagged_format() -> None:
    assert "<call>calculate 23 * 19</call><result>437</result> 437." in PAGE.read_text()
    driver, engine = script_driver("", say("23 * 19 is <call>calculate 23 * 19</call>", " 437."), tools=["calculate"])
    driver.run(None, make_starts(1))
    assert engine.given[1] == "<result>437</result>"
