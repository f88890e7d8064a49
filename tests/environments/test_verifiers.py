"""Environments of the package verifiers, whose own classes decide: several turns, tools, rubrics, and a run."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.data.tasks import TaskConfig, load_task
from r1jax.environments.contract import read_contract
from tests.runs.episodes.players import make_starts, script_driver
from tests.runs.episodes.test_conductor import say, write_call
from tests.stages.episodes import EPISODES
from tests.stages.runs import train
from tests.text.test_mask_goldens import make_tokenizer

if importlib.util.find_spec("verifiers") is None:
    pytest.skip("the package verifiers is not installed (pip install -e '.[verifiers]')", allow_module_level=True)

GAME = "verifiers:counting_game"


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "peers")


def play(name: str, *turns: str, **row: Any) -> tuple[list[Any], list[str]]:
    driver, engine = script_driver(name, say(*turns), tokenizer=make_tokenizer("qwen2_5"))
    return driver.run(None, make_starts(2, limit=4000, **row)), engine.given


def test_turns_and_their_end_are_those_of_the_environment() -> None:
    contract = read_contract(GAME)
    assert (contract.tool_names, contract.responds, contract.pays) == ([], True, True)
    episodes, given = play(GAME, "ab", "abc", "12", solution="12")
    for episode in episodes:
        assert [m["role"] for m in episode.completion.messages] == ["assistant", "user"] * 2 + ["assistant"]
        assert episode.completion.payment == 7.0 + 0.5  # letters, and half of the answer
        metrics = episode.completion.environment.metrics
        assert metrics == {"length_reward": 7.0, "answer_reward": 1.0, "num_turns": 3.0}
    assert sum("3 characters. Go on." in text for text in given) == 2


def test_arguments_follow_the_name() -> None:
    episodes, _ = play(GAME + ' {"limit": 1}', "ab")
    assert [episode.turns for episode in episodes] == [1, 1]


def test_tools_are_called_by_the_environment() -> None:
    name = GAME + ' {"kind": "tools", "limit": 9}'
    assert read_contract(name).tool_names == ["add"]
    both = write_call("add", a=1, b=2) + "\n" + write_call("add", a=-1, b=2)
    episodes, given = play(name, both, write_call("add", a=3, b=4), "It is 7.", solution="7")
    for episode in episodes:
        assert (episode.calls, episode.turns, episode.completion.payment) == ({"add": 3}, 3, 2.0)
        metrics = episode.completion.environment.metrics
        assert {name: metrics[name] for name in ("add_calls", "num_turns")} == {"add_calls": 3.0, "num_turns": 3.0}
    assert sum("no debts" in text and "<tool_response>\n3\n" in text for text in given) == 2


def test_its_own_limit_of_turns_ends_an_episode_with_tools() -> None:
    episodes, given = play(GAME + ' {"kind": "tools", "limit": 2}', *[write_call("add", a=1, b=2)] * 3, "It is 3.")
    assert sum("the episode is over (max_turns_reached)" in text for text in given) == 2 * 2
    assert all(episode.failures == {"add": 2} for episode in episodes)


def test_its_problems_are_rows() -> None:
    task = load_task(TaskConfig(GAME, eval_problems=4))
    assert (len(task.train), len(task.held_out)) == (36, 4)
    assert task.train[3]["prompt"] == [{"role": "user", "content": "Say 3."}]
    assert task.train[3]["solution"] == "3"


@pytest.mark.parametrize(
    ("name", "message"),
    [("verifiers:no_such_module", "cannot be loaded"), (GAME + ' {"limit": ', "cannot be loaded")],
)
def test_a_mistake_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_contract(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["turns", "tools"])
def test_a_run_trains_with_it(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    name = f'{GAME} {{"kind": "{kind}"}}'
    changes = {**EPISODES, "environment": name, "data__source": name, "data__args": "{}", "data__eval_problems": 5}
    rows = train(tmp_path / "run", tiny_model, **changes)
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and read_rows(tmp_path / "run" / "samples.jsonl")
    for row in rows[1:]:
        assert row["env/faults"] == 0 and row["sampling/sampling_logp_difference/max"] < 1e-5
        assert row["env/turns/mean"] >= 1 and "rewards/environment_reward/mean" in row
    assert kind == "tools" or (rows[-1]["env/turns/mean"] > 1 and rows[-1]["grad_norm"] > 0)
