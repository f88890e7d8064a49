"""Prompts to ids: made once, whatever their form; what all of them begin with."""

import pytest

from r1jax.text import encoding
from r1jax.text.encoding import PromptEncoder, encode_prompt, find_prefix
from r1jax.text.tokenizer import Tokenizer


def test_texts_and_messages_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(tokenizer: Tokenizer, prompt: object) -> tuple[int, ...]:
        calls.append(prompt)
        return (len(calls),)

    monkeypatch.setattr(encoding, "encode_prompt", count)
    encode = PromptEncoder(Tokenizer.of_bytes())
    text, messages = "What is 1 + 2?", [{"role": "user", "content": "What is 1 + 2?"}]
    assert [encode(prompt) for prompt in (text, messages, text, [dict(messages[0])])] == [(1,), (2,), (1,), (2,)]
    assert calls == [text, messages]


def test_the_prefix_is_never_a_whole_prompt() -> None:
    tokenizer = Tokenizer.of_bytes()
    prompts = [encode_prompt(tokenizer, text) for text in ("2 + 3", "2 + 31", "2 + 4")]
    assert find_prefix(prompts) == prompts[0][:-1]
    assert find_prefix(prompts[:2]) == prompts[0][:-1]
    assert find_prefix([*prompts, encode_prompt(tokenizer, "9")]) == ()
