"""The policy as its own judge: prompts beyond the model's positions get no reply and no engine."""

from typing import Any

import pytest

from r1jax.core.structs import Completion
from r1jax.rl.policy_judge import Judge, JudgeConfig
from r1jax.runs.sampler import Sampler
from r1jax.text.tokenizer import Tokenizer
from tests.tiny_model import SPECIALS


def test_a_prompt_beyond_the_models_positions_gets_no_reply(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, asked = Tokenizer.of_bytes(SPECIALS), []

    def generate(self: Sampler, requests: Any) -> list[Completion]:
        asked.extend(requests)
        return [Completion(request.tokens[:1], (0.0,), "length") for request in requests]

    monkeypatch.setattr(Sampler, "generate", generate)
    judge = Judge(JudgeConfig(max_new_tokens=8), None, tokenizer, seed=0, slots=2, context=64)
    with judge.weights({}, 0):
        # A rare character takes four tokens: 20 of them exceed what 20 letters do not.
        assert judge(["a" * 20, "\U0001f600" * 20, "b" * 56, "c" * 57]) == ["a", "", "b", ""]
        assert [len(request.tokens) for request in asked] == [20, 56]
        assert judge(["\U0001f600" * 10**5]) == [""] and len(asked) == 2
    assert "2 of 4 prompts of the judge exceed the 64 positions" in caplog.text
