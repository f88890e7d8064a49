"""Environments behind servers on loopback, made by openenv-core's own application factory."""

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.environments.contract import read_contract
from tests.core.test_distributed import free_port
from tests.environment import ROOT
from tests.runs.episodes.players import make_starts, script_driver
from tests.runs.episodes.test_conductor import say, write_call
from tests.stages.episodes import EPISODES
from tests.stages.runs import train
from tests.text.test_mask_goldens import make_tokenizer

if importlib.util.find_spec("openenv") is None:
    pytest.skip("the package openenv-core is not installed (pip install -e '.[openenv]')", allow_module_level=True)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[str], str]]:
    """A function from the kind of a server to its address."""
    running: dict[str, tuple[str, subprocess.Popen]] = {}

    def start(kind: str) -> str:
        if kind not in running:
            port = free_port()
            command = [sys.executable, "-m", "tests.environments.peers.openenv_server", kind, str(port)]
            process = subprocess.Popen(command, cwd=ROOT)
            running[kind] = f"127.0.0.1:{port}", process
            while True:
                assert process.poll() is None, "the server ended"
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
        return f"openenv:{running[kind][0]}"

    yield start
    for _, process in running.values():
        process.kill()
        process.wait()


def play(name: str, *turns: str) -> tuple[list[Any], list[str]]:
    driver, engine = script_driver(name, say(*turns), tokenizer=make_tokenizer("qwen2_5"))
    episodes = driver.run(None, make_starts(2, limit=4000))
    driver.release()
    return episodes, engine.given


def test_an_action_of_one_text_is_the_reply(serve: Callable[[str], str]) -> None:
    contract = read_contract(serve("talk"))
    assert (contract.tool_names, contract.responds, contract.pays) == ([], True, True)
    episodes, given = play(serve("talk"), "ab", "abc", "abcde")
    for episode in episodes:
        assert episode.turns == 3 and episode.completion.payment == pytest.approx(1.0)
    for words in ("Speak, 2.", "Speak, 3."):  # by the seeds of the environments, 100 and 101
        assert sum(words in text for text in given) == 1
    assert sum("3 letters." in text for text in given) == 2


def test_an_action_of_several_fields_is_the_tool_step(serve: Callable[[str], str]) -> None:
    contract = read_contract(serve("line"))
    assert (contract.tool_names, contract.responds) == (["step"], False)
    parameters = contract.tools[0]["function"]["parameters"]
    assert parameters["required"] == ["steps"] and {*parameters["properties"]} == {"steps", "back"}
    calls = [write_call("step", steps=5), write_call("step", steps=2, back=True), write_call("step", steps=1)]
    episodes, given = play(serve("line"), *calls, "There.")
    assert [episode.completion.payment for episode in episodes] == [1.0, 1.0]
    assert sum("at 5" in text for text in given) == sum("the episode is over" in text for text in given) == 2


def test_tools_of_a_server_are_tools(serve: Callable[[str], str]) -> None:
    if importlib.util.find_spec("fastmcp") is None:
        pytest.skip("fastmcp is not installed")
    assert read_contract(serve("tools")).tool_names == ["add"]
    _, given = play(serve("tools"), write_call("add", a=2, b=3), "It is 5.")
    assert sum("<tool_response>\n5\n</tool_response>" in text for text in given) == 2


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="config.environment = openenv:http://127.0.0.1:.* does not answer"):
        read_contract(f"openenv:127.0.0.1:{free_port()}")


@pytest.mark.slow
def test_a_run_trains_with_it(serve: Callable[[str], str], tiny_model: Path, tmp_path: Path) -> None:
    rows = train(tmp_path / "run", tiny_model, **{**EPISODES, "environment": serve("talk")})
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["env/faults"] == 0 and row["sampling/sampling_logp_difference/max"] < 1e-5
        assert row["env/turns/mean"] > 1 and row["grad_norm"] > 0
