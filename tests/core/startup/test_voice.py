"""The voice speaks after a silence, names what is done, and is silent for a command that prints."""

import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from r1jax.core import console
from r1jax.core.startup import voice
from r1jax.core.startup.voice import Voice, activity, describe_activity


@pytest.fixture(autouse=True)
def _speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(voice.VARIABLE, raising=False)
    monkeypatch.setattr(voice, "_settled", False)  # a run of an earlier test in this process has settled it
    monkeypatch.setattr(voice, "_muted", False)
    monkeypatch.setattr(voice, "_opened", False)


def _wait_for(lines: list[str], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(lines) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_it_names_the_opening_then_the_innermost_activity() -> None:
    lines: list[str] = []
    with Voice("loading jax", first=0.02, longest=0.02, write=lines.append):
        _wait_for(lines, 1)
        with activity("loading a model"), activity("reading weights"):
            deadline = time.monotonic() + 30
            while not lines[-1].startswith("reading weights") and time.monotonic() < deadline:
                time.sleep(0.01)
        said = len(lines)
        _wait_for(lines, said + 2)  # the next line may still be of the activity
    assert lines[0].startswith("loading jax, ")
    assert any(line.startswith("reading weights, ") for line in lines)
    assert lines[-1].startswith("working, ")
    assert describe_activity() == ""


def test_it_says_that_it_works_where_no_activity_is_named() -> None:
    lines: list[str] = []
    with Voice(first=0.02, longest=0.02, write=lines.append):
        _wait_for(lines, 1)
    assert lines[0].startswith("working, ")


def test_what_is_printed_breaks_the_silence(capsys: pytest.CaptureFixture[str]) -> None:
    before = voice._spoken
    time.sleep(0.01)
    console.set_up_logging()
    with console.Progress(2) as progress:
        progress.update(1, {})
    assert voice._spoken > before
    assert "step 1/2" in capsys.readouterr().out


def test_silence_of_zero_seconds_is_never_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(voice.VARIABLE, "0")
    lines: list[str] = []
    with Voice("opening", first=0.0, write=lines.append):
        time.sleep(0.05)
    assert lines == []


def test_a_compilation_is_named_by_its_program() -> None:
    found: list[str] = []
    go = threading.Event()

    def watch() -> None:
        while not go.is_set():
            found.append(describe_activity())
            time.sleep(0.005)

    new = time.time_ns() % 1_000_003  # a program that no earlier test run has kept

    def decode_everything(x: Any) -> Any:
        for number in range(40):
            x = jnp.sin(x) @ x + number + new
        return x

    lowered = jax.jit(decode_everything).lower(jnp.ones((8, 8)))
    thread = threading.Thread(target=watch)
    thread.start()
    lowered.compile()
    go.set()
    thread.join()
    assert any(text.startswith("compiling decode_everything, ") for text in found), set(found)
