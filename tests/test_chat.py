"""A conversation in the terminal: what a line does, what is sent to the model, and how a reply looks."""

import io
import os
import pathlib
import pty
import shutil
import subprocess
import sys

import pytest

from r1jax import chat as command
from r1jax.core import console
from r1jax.core.structs import Request
from r1jax.eval.prompting import Prompting
from r1jax.runs.conversation import Conversation
from r1jax.runs.generate import Generation
from r1jax.runs.sampler import Sampler, load_sampler
from r1jax.text.encoding import encode_prompt
from tests.environment import make_xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
GREEDY = Generation(temperature=0.0, max_new_tokens=5)


@pytest.fixture(scope="module")
def sampler(tiny_model: pathlib.Path) -> Sampler:
    return load_sampler(tiny_model)


@pytest.fixture(scope="module")
def spoken(sampler: Sampler) -> Conversation:
    return Conversation(sampler, Prompting(), GREEDY)


@pytest.fixture
def talk(spoken: Conversation) -> Conversation:
    """A new conversation, on the programs of the others."""
    spoken.reset()
    spoken.config, spoken.system, spoken.prompting = GREEDY, "", Prompting()
    return spoken


def test_a_reply_is_that_of_the_chat_template_with_all_turns(talk: Conversation, sampler: Sampler) -> None:
    assert sampler.tokenizer is not None
    talk.system = "Be brief."
    turns = [{"role": "system", "content": "Be brief."}]
    for question in ("2 + 2?", "Sure?"):
        talk.ask(question)
        reply = talk.reply()
        pieces = list(reply)
        turns.append({"role": "user", "content": question})
        (expected,) = sampler.generate([Request(encode_prompt(sampler.tokenizer, turns), GREEDY.sampling((2, 3)))])
        assert tuple(reply.tokens) == expected.tokens and reply.finish_reason == expected.finish_reason
        assert reply.logprobs == pytest.approx(expected.logprobs, abs=2e-5)
        assert "".join(piece for piece, _ in pieces) == reply.text == sampler.decode(expected.tokens)
        talk.keep(reply.text)
        turns.append({"role": "assistant", "content": reply.text})
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


def test_a_template_of_one_question_gets_each_message_alone(talk: Conversation, sampler: Sampler) -> None:
    assert sampler.tokenizer is not None
    talk.prompting = Prompting("Q: {question} <think>")
    for question in ("one", "two"):
        talk.ask(question)
        reply = talk.reply()
        assert all(is_thought for _, is_thought in reply), "the prompt has opened the reasoning"
        (expected,) = sampler.generate(
            [Request(encode_prompt(sampler.tokenizer, f"Q: {question} <think>"), GREEDY.sampling((2, 3)))]
        )
        assert tuple(reply.tokens) == expected.tokens
        talk.keep(reply.text)


def test_lines_are_obeyed_or_answered(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "/temperature 0.5",
        "/tokens 3",
        "/samples 2",
        "hello",
        "/samples x",
        "/temperature -1",
        "/nothing",
        "/help",
    ]
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("\n".join([*lines, "", "/system Be kind.", "again", "/quit", "never"]))
    )
    console.shared_console.cache_clear()
    command.Terminal(talk).run("a model")
    said = capsys.readouterr().out
    assert (talk.config.temperature, talk.config.max_new_tokens, talk.config.num_samples) == (0.5, 3, 2)
    assert [message["content"] for message in talk.messages[::2]] == ["hello", "again"] and len(talk.messages) == 4
    assert talk.system == "Be kind." and said.count("sample 2 of 2") == 2
    for words in (
        "a model. /help lists commands",
        "error: a whole number must follow the command, got 'x'",
        "error: temperature must be 0 (greedy) or more, got -1.0",
        "error: no command /nothing",
        *(entry.form for entry in command.COMMANDS.values()),
    ):
        assert words in said
    command.Terminal(talk).take("/reset")
    assert talk.messages == [] and talk.system == "Be kind."


def test_a_message_that_the_template_refuses_is_told_and_forgotten(
    talk: Conversation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.shared_console.cache_clear()
    monkeypatch.setattr(talk, "prompting", Prompting("{question}"))
    command.Terminal(talk).take("/system x")
    assert "error: this model's template holds one question and no system message" in capsys.readouterr().out
    assert talk.messages == [] and talk.system == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "error: --model is missing"),
        (["--model=none/of/it"], "error: no model none/of/it: there is no file or folder"),
        (["--model={model}", "--template=run"], "error: --template=run needs a model that carries how it was asked"),
        (["--model={model}", "--template=odd"], "error: --template must be one of chat, r1"),
        (["--model={model}", "--samples=0"], "error: num_samples must be at least 1"),
    ],
)
def test_a_mistake_gets_one_line(
    tiny_model: pathlib.Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["chat", *(flag.format(model=tiny_model) for flag in flags)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_one_message_is_answered_as_the_run_asks(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, sampler: Sampler, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    asked = Prompting("Q: {question} A:", sampling={"temperature": 0.0, "max_new_tokens": 4})
    (folder / "prompting.json").write_text(asked.to_text())
    console.shared_console.cache_clear()
    assert command.main(["chat", f"--model={folder}", "--prompt=2 + 2?"]) == 0
    assert sampler.tokenizer is not None
    tokens = encode_prompt(sampler.tokenizer, "Q: 2 + 2? A:")
    (expected,) = sampler.generate([Request(tokens, Generation(**asked.sampling).sampling((2, 3)))])
    assert capsys.readouterr().out == console._clean(sampler.decode(expected.tokens)) + "\n"


@pytest.mark.slow
def test_in_a_terminal_it_talks_until_ctrl_d(tiny_model: pathlib.Path) -> None:
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "r1jax.chat", f"--model={tiny_model}", "--max_new_tokens=4"]
    environment = {**os.environ, "TERM": "xterm", "XLA_FLAGS": make_xla_flags(1)}
    with subprocess.Popen(arguments, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        for wait_for, line in ((b"Ctrl-D ends", b"hello\n"), (b"tokens, the first after", b"\x04")):
            while wait_for not in seen:
                seen += os.read(ours, 4096)
            os.write(ours, line)
        assert process.wait(timeout=60) == 0
    assert b"> " in seen and b"\x1b[2m" in seen, "a prompt, and dimmed facts"
    os.close(ours)
