"""Renderings against transformers' `apply_chat_template` (tests/goldens/make_texts.py); what templates may not do."""

import json
from pathlib import Path

import pytest

from r1jax.core.errors import UserError
from r1jax.text.chat_template import render
from r1jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
FAMILIES = json.loads((ROOT / "tests/goldens/families.json").read_text())
CASES = json.loads((ROOT / "tests/goldens/chat.json").read_text())
TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|im_end|>",
}


@pytest.mark.parametrize("case", [case for case in CASES if case["template"] is not None])
def test_templates_render_as_in_transformers(case: dict) -> None:
    def result() -> str:
        variables = {**TOKENS, **case["variables"]}
        opened = case["add_generation_prompt"]
        return render(case["template"], case["messages"], add_generation_prompt=opened, **variables)

    if case.get("refused"):
        with pytest.raises(UserError, match="roles must alternate"):
            result()
    else:
        assert result() == case["text"]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3", "deepseek_r1", "generation"])
def test_templates_of_families_render_as_in_transformers(name: str) -> None:
    cases = [case for case in FAMILIES if case["template"] == f"{name}.jinja"]
    template = (ROOT / "tests/goldens/templates" / f"{name}.jinja").read_text("utf-8")
    assert len(cases) >= 18
    for case in cases:
        variables = {**TOKENS, **case["variables"], "add_generation_prompt": case["add_generation_prompt"]}
        assert render(template, case["messages"], **variables) == case["text"]


def test_demo_model_renders_and_encodes_as_in_transformers(demo_model: Path) -> None:
    tokenizer = Tokenizer.from_path(demo_model)
    own = [case for case in CASES if case["template"] is None]
    assert len(own) == 12 and "named SmolLM" in own[0]["text"]  # the template's own system turn stays
    for case in own:
        text = render(tokenizer, case["messages"], add_generation_prompt=case["add_generation_prompt"])
        assert (text, tokenizer.encode(text)) == (case["text"], case["ids"])


def test_a_model_without_template_says_so() -> None:
    with pytest.raises(UserError, match="no chat template"):
        render(Tokenizer.of_bytes(), [{"role": "user", "content": "hi"}])


def test_no_messages_are_refused() -> None:
    with pytest.raises(UserError, match="at least one message"):
        render("{{ messages[0].content }}", [])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'user'}) }}",
        "{{ render.__globals__ }}",
        "{% if %}",
    ],
)
def test_templates_reach_nothing_and_change_nothing(template: str) -> None:
    with pytest.raises(UserError, match="template"):
        render(template, [{"role": "user", "content": "hi"}])
