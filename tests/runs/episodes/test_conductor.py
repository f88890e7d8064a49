"""Trajectories with tools by a scripted model; and environments that do wrong, each of which costs its trajectory."""

import json
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.runs.episodes.episode_metrics import describe_episodes
from tests.runs.episodes.players import make_starts, script_driver
from tests.text.test_mask_goldens import make_tokenizer


def write_call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def say(*turns: str) -> Any:
    return lambda text, turn: turns[min(turn, len(turns) - 1)]


def test_tools_are_called_in_order_and_their_results_reach_the_model() -> None:
    both = write_call("increment", amount=2) + "\n" + write_call("wait")
    turns = say(
        f"First.\n{both}", write_call("explode", text="boom"), write_call("fly"), write_call("increment"), "End."
    )
    driver, engine = script_driver("Counter", turns, tokenizer=make_tokenizer("qwen2_5"))
    (episode,) = driver.run(None, make_starts(1, limit=4000, word="tree"))
    environment = episode.completion.environment
    assert environment.count == 3 and environment.row["word"] == "tree" and environment.row["seed"] == 100
    assert episode.completion.payment == 3.0
    answers = [text for text in engine.given[1:]]
    assert "<tool_response>\n2\n</tool_response>\n<tool_response>\ndone\n</tool_response>" in answers[0]
    assert "error: ValueError: boom" in answers[1]
    assert "error: there is no tool 'fly'; there are increment, wait, explode" in answers[2]
    roles = [message["role"] for message in episode.completion.messages]
    assert roles == ["assistant", "tool", "tool", *["assistant", "tool"] * 3, "assistant"]
    assert episode.completion.messages[0]["tool_calls"][1]["function"] == {"name": "wait", "arguments": {}}
    assert (episode.calls, episode.failures) == (
        {"increment": 2, "wait": 1, "explode": 1},
        {"explode": 1, "unknown": 1},
    )
    metrics = describe_episodes([episode], 0.0)
    assert metrics["tools/call_frequency"] == 5 and metrics["tools/failure_frequency"] == 2 / 5
    assert metrics["tools/increment/calls"] == 2 and metrics["tools/explode/failures"] == 1


def test_wrong_arguments_and_calls_that_cannot_be_read_are_told() -> None:
    turns = say(write_call("increment", size=2), '<tool_call>{"name": "increment", </tool_call>', "End.")
    driver, engine = script_driver("Counter", turns, tokenizer=make_tokenizer("qwen2_5"))
    (episode,) = driver.run(None, make_starts(1, limit=4000))
    assert "error: TypeError: increment: got an unexpected keyword argument 'size'" in engine.given[1]
    assert "error: this call could not be read" in engine.given[2]
    assert episode.failures == {"increment": 1, "malformed": 1}


def test_the_tagged_format_goes_on_within_the_turn() -> None:
    turns = say("2 and 3: <call>calculate 2 * 3</call> never seen", " So 6.")
    driver, engine = script_driver("", turns, tools=["calculate"])
    (episode,) = driver.run(None, make_starts(1))
    assert engine.given[1] == "<result>6</result>"
    text = make_text(driver, episode)
    assert text == "2 and 3: <call>calculate 2 * 3</call><result>6</result> So 6.<|im_end|>"
    assert episode.completion.finish_reason == "stop" and episode.turns == 2


def make_text(driver: Any, episode: Any) -> str:
    tokenizer = next(iter(driver.dialogues.values())).tokenizer
    return tokenizer.decode(episode.completion.tokens, skip_special=False)


def test_a_column_chooses_the_environment() -> None:
    places = {"a": "tests.environments.toys:Talker", "b": "tests.environments.toys:Endless"}
    driver, _ = script_driver(places, say("abc"), max_turns=5)
    episodes = driver.run(None, [*make_starts(1, kind="a"), *make_starts(1, kind="b")])
    assert [e.turns for e in episodes] == [3, 5]
    with pytest.raises(UserError, match="a row names the environment 'c'"):
        driver.run(None, make_starts(1, kind="c"))


FAULTS = {
    "HangInReset": "time",
    "HangInRespond": "time",
    "RaiseInReset": "raised in reset",
    "RaiseInInit": "died",
    "RaiseInRespond": "raised in respond",
    "RaiseInReward": "raised in get_reward",
    "WrongTypes": "wrong type",
    "WrongReward": "wrong type",
}


@pytest.mark.parametrize("name", [*FAULTS])
def test_a_fault_costs_its_trajectory(name: str) -> None:
    places = {kind: f"tests.environments.toys:{kind}" for kind in ("Talker", name)}
    driver, _ = script_driver(places, say("abc"), call_seconds=0.3)
    starts = [start for kind in places for start in make_starts(2, kind=kind)]
    *good, first, second = driver.run(None, starts)
    assert [episode.completion.finish_reason for episode in good] == ["stop", "stop"]
    for episode in (first, second):
        assert episode.completion.finish_reason == "fault" and episode.events == {FAULTS[name]: 1}
        assert episode.completion.environment is None


@pytest.mark.parametrize("name", ["Megabytes", "InvalidText", "Endless", "Leaking"])
def test_odd_replies_are_cut_cleaned_and_counted(name: str) -> None:
    driver, engine = script_driver(name, say("abc"), reply_characters=200)
    (episode,) = driver.run(None, make_starts(1))
    assert episode.completion.finish_reason in ("stop", "length", "turns")
    assert all(len(message["content"]) <= 204 for message in episode.completion.messages)
    assert bool(episode.events) == (name == "Megabytes")
    given = [
        id_ for id_, sampled in zip(episode.completion.tokens, episode.completion.sampled, strict=True) if not sampled
    ]
    turns = sum(message["role"] == "user" for message in episode.completion.messages)
    assert given.count(1) <= 2 * turns  # one header of a user and one of the assistant, and none that was forged


@pytest.mark.parametrize(("name", "fault"), [("Greedy", "memory"), ("Dying", "died"), ("HangInRespond", "time")])
def test_processes_have_limits_of_time_and_memory(name: str, fault: str) -> None:
    driver, _ = script_driver(name, say("abc"), isolation="process", memory_mb=512, call_seconds=2.0)
    (episode,) = driver.run(None, make_starts(1))
    assert (episode.completion.finish_reason, episode.events) == ("fault", {fault: 1})


def test_a_process_tells_its_state() -> None:
    driver, _ = script_driver("Talker", say("abc", "de"), isolation="process")
    (episode,) = driver.run(None, make_starts(1))
    assert episode.completion.environment.heard == ["abc", "de", "de"] and episode.completion.payment == 7.0


@pytest.mark.slow
def test_the_sandbox_runs_a_file_of_its_own() -> None:
    driver, _ = script_driver("Talker", say("abc", "de"), isolation="sandbox", workers=2)
    episodes = driver.run(None, make_starts(3))
    assert [episode.completion.payment for episode in episodes] == [7.0] * 3
    driver, _ = script_driver("HangInRespond", say("abc"), isolation="sandbox", call_seconds=1.0)
    (episode,) = driver.run(None, make_starts(1))
    assert episode.events == {"time": 1}
