"""Conversations and tool calls in published templates, against transformers (tests/goldens/make_chats.py).

The templates and tokenizers are other projects' files: R1JAX_TOKENIZERS names the folder that the script describes.
"""

import dataclasses
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from r1jax.text.chat_template import render
from r1jax.text.tokenizer import Tokenizer
from r1jax.text.tool_calls import parse_tool_calls

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/chats.json").read_text())
FOLDER = Path(os.environ.get("R1JAX_TOKENIZERS", "absent"))
SILENT = {
    "deepseek_r1_distill",
    "deepseekv3",
    "gemma",
    "gemma3",
    "llama3",
    "phi3",
    "phi3_5",
    "own",
}  # no calls
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER.is_dir(), reason="R1JAX_TOKENIZERS names no folder")]


@pytest.fixture(scope="module", params=GOLDEN["tokenizers"].items(), ids=lambda item: item[0])
def chat(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    name, owner = request.param
    tokenizer = Tokenizer.from_path(FOLDER / owner)
    assert tokenizer is not None
    file = FOLDER / "templates" / f"{name}.jinja"
    return name, dataclasses.replace(tokenizer, chat_template=file.read_text("utf-8")) if file.is_file() else tokenizer


def show(tokenizer: Tokenizer, case: dict[str, Any], messages: list[dict[str, Any]] | None = None) -> str:
    messages = messages or case["messages"]
    ends_open = messages[-1]["role"] != "assistant"
    variables = {"tools": case.get("tools"), "strftime_now": lambda form: GOLDEN["date"]}
    return render(tokenizer, messages, add_generation_prompt=ends_open, **variables)


def test_renderings_and_ids_are_those_of_transformers(chat: tuple[str, Tokenizer]) -> None:
    name, tokenizer = chat
    crc = lambda value: zlib.crc32(json.dumps(value).encode())
    for case, expected in zip(GOLDEN["conversations"], GOLDEN["rendered"][name], strict=True):
        if expected is not None:
            text = show(tokenizer, case)
            assert [crc(text), crc(tokenizer.encode(text))] == expected, text


def test_calls_are_read_back(chat: tuple[str, Tokenizer]) -> None:
    name, tokenizer = chat
    if name in SILENT:
        pytest.skip("the template shows no calls")
    cases = [case for case in GOLDEN["conversations"] if case["messages"][-1].get("tool_calls")]
    assert len(cases) == 2
    for case in cases:
        *before, last = case["messages"]
        said = show(tokenizer, case).removeprefix(show(tokenizer, case, before))
        said = re.sub(r"<\|(eot_id|im_end|call|tool_response)(\||)>\s*$", "", said)  # what ends the turn
        wanted = [(call["function"]["name"], call["function"]["arguments"]) for call in last["tool_calls"]]
        assert [(call.name, call.arguments) for call in parse_tool_calls(said)[1]] == wanted, said
