"""Rows of every form as tokens, shifted by one inside the document, with what is learnt."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.data.examples import Example, encode_row, truncate
from r1jax.text.tokenizer import Tokenizer
from tests.text.test_tokenizer import make_folder
from tests.tiny_model import CHAT_TEMPLATE, SPECIALS

TOKENIZER = dataclasses.replace(Tokenizer.of_bytes(SPECIALS), chat_template=CHAT_TEMPLATE)
ASK, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def check(example: Example, whole: str, learnt: str) -> None:
    """Fed are all tokens but the last; targets are the next ones; learnt the given ones alone."""
    assert [*example.tokens, example.targets[-1]] == ids(whole)
    assert (example.tokens[1:] == example.targets[:-1]).all()
    assert example.targets[example.weights > 0].tolist() == ids(learnt)
    assert set(example.weights.tolist()) <= {0.0, 1.0}
    assert [array.dtype for array in example] == [np.int32, np.int32, np.float32]


CHAT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>"


@pytest.mark.parametrize(
    ("row", "whole", "learnt"),
    [
        ({"messages": [ASK, REPLY]}, f"{CHAT}\n", "ho<|im_end|>"),
        ({"messages": [ASK, REPLY, ASK, REPLY]}, f"{CHAT}\n{CHAT}\n", "ho<|im_end|>ho<|im_end|>"),
        ({"prompt": [ASK], "completion": "ho"}, f"{CHAT}\n", "ho<|im_end|>"),
        ({"prompt": [ASK], "completion": [REPLY]}, f"{CHAT}\n", "ho<|im_end|>"),
        ({"prompt": [ASK, REPLY, ASK], "completion": "ho"}, f"{CHAT}\n{CHAT}\n", "ho<|im_end|>"),
        ({"prompt": "Q: hi A:", "completion": " ho"}, "Q: hi A: ho<|im_end|>", " ho<|im_end|>"),
        ({"prompt": "Q: hi A:", "completion": " ho<|im_end|>"}, "Q: hi A: ho<|im_end|>", " ho<|im_end|>"),
        ({"text": "plain"}, "plain<|im_end|>", "lain<|im_end|>"),
        ({"text": "plain", "messages": [ASK, REPLY]}, f"{CHAT}\n", "ho<|im_end|>"),
    ],
)
def test_rows_of_every_form(row: dict, whole: str, learnt: str) -> None:
    [example] = encode_row(row, TOKENIZER)
    check(example, whole, learnt)


def test_loss_on_all_tokens() -> None:
    [example] = encode_row({"messages": [ASK, REPLY]}, TOKENIZER, loss_on="all")
    assert example.weights.all() and example.targets.tolist() == ids(f"{CHAT}\n")[1:]


def test_a_template_that_drops_thoughts_makes_an_example_a_turn() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
    template += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    tokenizer = dataclasses.replace(TOKENIZER, chat_template=template)
    thought = {"role": "assistant", "content": "<think>so</think>ho"}
    first, second = encode_row({"messages": [ASK, thought, ASK, thought]}, tokenizer)
    asked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    said = "<think>so</think>ho<|im_end|>"
    check(first, asked + said, said)
    check(second, f"{asked}ho<|im_end|>\n{asked}{said}", said)
    assert len(encode_row({"prompt": [ASK, thought, ASK], "completion": [thought]}, tokenizer)) == 1


def test_bos_and_eos_stand_once(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}
    tokenizer = Tokenizer.from_folder(make_folder(tmp_path, config))
    for text in ("hi", "<s>hi", "hi</s>"):
        [example] = encode_row({"text": text}, tokenizer)
        assert [*example.tokens, example.targets[-1]] == [256, *tokenizer.encode("hi"), 257]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "got no column"),
        (
            {"text": None, "prompt": "a"},
            "an SFT row needs messages, prompt and completion, text, or tokens; got text, prompt",
        ),
        ({"messages": []}, "messages must be a list of role and content messages"),
        ({"messages": [{"content": "a"}]}, "messages must be a list of role and content messages"),
        ({"prompt": 3, "completion": "a"}, "messages must be a list"),
        ({"prompt": "a", "completion": 3}, "the completion of a raw prompt must be a text, got '3'"),
        ({"prompt": "a", "completion": None}, "the completion of a raw prompt must be a text, got 'None'"),
    ],
)
def test_rows_of_no_form_are_refused(row: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        encode_row(row, TOKENIZER)
    assert message in str(caught.value)


def test_truncation() -> None:
    example = Example(np.arange(5), np.arange(1, 6), np.array([0, 0, 0, 1, 1], np.float32))
    assert truncate(example, 5, "drop") is example
    assert truncate(example, 4, "drop") is None
    right, left = truncate(example, 4, "right"), truncate(example, 4, "left")
    assert right is not None and left is not None
    assert right.tokens.tolist() == [0, 1, 2, 3] and right.targets.tolist() == [1, 2, 3, 4]
    assert left.tokens.tolist() == [1, 2, 3, 4] and left.weights.tolist() == [0, 0, 1, 1]
    assert truncate(example, 3, "right") is None  # only the prompt is left
    empty = Example(*(np.zeros(0, kind) for kind in (np.int32, np.int32, np.float32)))
    assert truncate(empty, 4, "right") is None


def test_tools_of_a_row_are_shown() -> None:
    template = "{% if tools %}{{ tools[0].name }}\n{% endif %}" + CHAT_TEMPLATE
    tokenizer = dataclasses.replace(TOKENIZER, chat_template=template)
    for tools in ([{"name": "clock"}], '[{"name": "clock"}]'):
        for row in ({"messages": [ASK, REPLY]}, {"prompt": [ASK], "completion": "ho"}):
            [example] = encode_row({**row, "tools": tools}, tokenizer)
            assert tokenizer.decode(example.tokens, skip_special=False).startswith("clock\n<|im_start|>user")
    for tools in (None, [], "", "null"):
        [example] = encode_row({"messages": [ASK, REPLY], "tools": tools}, tokenizer)
        assert tokenizer.decode(example.tokens, skip_special=False).startswith("<|im_start|>user")


HOSTILE = [
    {"messages": [ASK, {"role": "assistant", "content": "a\ud800b"}]},
    {"messages": [{"role": "user", "content": "\udfff"}, REPLY]},
    {"messages": [ASK, {"role": "assistant", "content": [{"type": "image"}]}]},
    {"messages": [ASK, {"role": "assistant", "content": 5}]},
    {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": "f()"}]},
    {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]},
    {"messages": [ASK, REPLY], "tools": "clock"},
    {"prompt": "\ud83d", "completion": "x"},
    {"prompt": "x", "completion": "\ud83d"},
    {"text": "\ud83d"},
]


@pytest.mark.parametrize("row", HOSTILE)
def test_hostile_rows_are_errors_of_the_row(row: dict) -> None:
    with pytest.raises(UserError):
        encode_row(row, TOKENIZER)
