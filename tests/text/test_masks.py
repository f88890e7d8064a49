"""What of a conversation is learnt, token by token, on templates of every kind."""

import dataclasses
import json
from itertools import groupby
from pathlib import Path

import pytest
import tokenizers

from r1jax.core.errors import UserError
from r1jax.text.chat_template import render, render_spans
from r1jax.text.masks import Marked, mark_assistant
from r1jax.text.tokenizer import Tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
TEMPLATES = {file.stem: file.read_text("utf-8") for file in (GOLDENS / "templates").glob("*.jinja")}
R1_TOKENS = ("<pad>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
ASK, AGAIN = {"role": "user", "content": "2+2?"}, {"role": "user", "content": "And 3?"}
THOUGHT = {"role": "assistant", "content": "<think>\nsum\n</think>\n\nIt is 4."}
PLAIN = {"role": "assistant", "content": "It is 4."}
FIELD = {"role": "assistant", "content": "It is 4.", "reasoning_content": "sum"}


@pytest.fixture(scope="module")
def smollm(demo_model: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_path(demo_model)
    assert tokenizer is not None
    return tokenizer


def make_bytes(template: str | None, specials: tuple[str, ...] = ("<pad>", "<|im_start|>", "<|im_end|>")) -> Tokenizer:
    return dataclasses.replace(Tokenizer.of_bytes(specials), chat_template=template)


def show(tokenizer: Tokenizer, marked: Marked) -> str:
    """The text, with what is learnt in ⟦⟧."""
    ids, mask = marked
    assert len(ids) == len(mask)
    runs = [
        (learnt, [id_ for id_, _ in run]) for learnt, run in groupby(zip(*marked, strict=True), lambda pair: pair[1])
    ]
    decode = lambda ids: tokenizer.decode(ids, skip_special=False)
    return "".join(f"⟦{decode(ids)}⟧" if learnt else decode(ids) for learnt, ids in runs)


def show_all(tokenizer: Tokenizer, messages: list, **options: bool) -> list[str]:
    return [show(tokenizer, marked) for marked in mark_assistant(tokenizer, messages, **options)]


# --- Three templates, token by token ---


def test_smollm2_token_by_token(smollm: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Add."}, ASK, PLAIN, AGAIN, {"role": "assistant", "content": "5\n"}]
    [(ids, mask)] = mark_assistant(smollm, messages)
    assert ids == smollm.encode(render(smollm, messages, add_generation_prompt=False))
    tokens = [smollm.decode([id_], skip_special=False) for id_ in ids]
    assert list(zip(tokens, mask, strict=True)) == [
        *[(token, False) for token in ("<|im_start|>", "system", "\n", "Add", ".", "<|im_end|>", "\n")],
        *[(token, False) for token in ("<|im_start|>", "user", "\n", "2", "+", "2", "?", "<|im_end|>", "\n")],
        *[(token, False) for token in ("<|im_start|>", "ass", "istant", "\n")],
        *[(token, True) for token in ("It", " is", " ", "4", ".", "<|im_end|>")],
        *[(token, False) for token in ("\n", "<|im_start|>", "user", "\n", "And", " ", "3", "?", "<|im_end|>", "\n")],
        *[(token, False) for token in ("<|im_start|>", "ass", "istant", "\n")],
        *[(token, True) for token in ("5", "\n", "<|im_end|>")],
        ("\n", False),
    ]


def test_deepseek_r1_token_by_token() -> None:
    tokenizer = make_bytes(TEMPLATES["deepseek_r1"], R1_TOKENS)
    examples = mark_assistant(tokenizer, [ASK, THOUGHT, AGAIN, THOUGHT])
    first = [1, 3, *tokenizer.encode("2+2?"), 4, *tokenizer.encode("<think>\n")]
    said = [*tokenizer.encode("sum\n</think>\n\nIt is 4."), 2]
    history = [1, 3, *tokenizer.encode("2+2?"), 4, *tokenizer.encode("\n\nIt is 4."), 2]
    second = [*history, 3, *tokenizer.encode("And 3?"), 4, *tokenizer.encode("<think>\n")]
    assert examples == [
        ([*first, *said], [False] * len(first) + [True] * len(said)),
        ([*second, *said], [False] * len(second) + [True] * len(said)),
    ]


@pytest.mark.parametrize(
    "case", [case for case in json.loads((GOLDENS / "families.json").read_text()) if any(case.get("mask", []))]
)
def test_generation_blocks_token_by_token_as_in_transformers(case: dict, smollm: Tokenizer) -> None:
    tokenizer = dataclasses.replace(smollm, chat_template=TEMPLATES["generation"])
    learnt = [message["content"] for message in case["messages"] if message["role"] == "assistant"]
    [(ids, mask)] = mark_assistant(tokenizer, case["messages"])
    assert ids == case["ids"][: len(ids)] and mask == list(map(bool, case["mask"]))[: len(ids)]
    assert not any(case["mask"][len(ids) :])
    runs = [list(run) for learnt, run in groupby(zip(ids, mask, strict=True), lambda pair: pair[1]) if learnt]
    texts = [tokenizer.decode([id_ for id_, _ in run], skip_special=False) for run in runs]
    assert texts == [f"{words}<|im_end|>" for words in learnt]


# --- Growing prefixes and turns of their own ---


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3", "deepseek_r1"])
def test_conversations_without_thoughts(name: str) -> None:
    ends = {"llama3": "<|eot_id|>", "deepseek_r1": "<｜end▁of▁sentence｜>"}
    end = ends.get(name, "<|im_end|>")
    specials = R1_TOKENS if name == "deepseek_r1" else ("<pad>", "<bos>", end, "<|im_start|>", "<|start_header_id|>")
    tokenizer = make_bytes(TEMPLATES[name], specials)
    shown = show_all(tokenizer, [ASK, PLAIN, AGAIN, PLAIN])
    if name == "qwen3":  # the last turn gets an empty thought, which earlier ones lose
        assert [text.count("⟦") for text in shown] == [1, 1]
        assert all(text.endswith("assistant\n⟦<think>\n\n</think>\n\nIt is 4.<|im_end|>⟧\n") for text in shown)
        assert "assistant\nIt is 4.<|im_end|>" in shown[1]
    else:
        assert len(shown) == 1 and shown[0].count(f"⟦It is 4.{end}⟧") == 2
        assert shown[0].count("⟦") == 2


def test_qwen3_learns_the_thoughts_of_each_turn() -> None:
    tokenizer = make_bytes(TEMPLATES["qwen3"])
    for message in (THOUGHT, FIELD):
        shown = show_all(tokenizer, [ASK, message, AGAIN, message])
        asked = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        said = "⟦<think>\nsum\n</think>\n\nIt is 4.<|im_end|>⟧\n"
        again = "<|im_start|>user\nAnd 3?<|im_end|>\n<|im_start|>assistant\n"
        assert shown == [asked + said, f"{asked}It is 4.<|im_end|>\n{again}{said}"]


def test_deepseek_r1_opens_the_thought_once() -> None:
    tokenizer = make_bytes(TEMPLATES["deepseek_r1"], R1_TOKENS)
    asked = "<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>"
    said = "sum\n</think>\n\nIt is 4.<｜end▁of▁sentence｜>"
    assert show_all(tokenizer, [ASK, THOUGHT]) == [f"{asked}<think>\n⟦{said}⟧"]
    assert show_all(tokenizer, [ASK, FIELD]) == [f"{asked}<think>\n⟦{said}⟧"]
    assert show_all(tokenizer, [ASK, PLAIN]) == [f"{asked}⟦It is 4.<｜end▁of▁sentence｜>⟧"]


def test_thoughts_in_a_field_that_the_template_ignores_are_not_lost() -> None:
    shown = show_all(make_bytes(TEMPLATES["qwen2.5"]), [ASK, FIELD, AGAIN, PLAIN])
    assert len(shown) == 2
    assert shown[0].endswith("assistant\n⟦<think>\nsum\n</think>\n\nIt is 4.<|im_end|>⟧")
    assert shown[1].endswith("assistant\n⟦It is 4.<|im_end|>⟧\n")


def test_only_the_last_turn() -> None:
    for name in ("qwen2.5", "qwen3", "generation"):
        shown = show_all(make_bytes(TEMPLATES[name]), [ASK, PLAIN, AGAIN, THOUGHT], last_only=True)
        assert len(shown) == 1 and shown[0].count("⟦") == 1
        assert "⟦<think>\nsum\n</think>\n\nIt is 4.<|im_end|>⟧" in shown[0]


def test_what_follows_the_last_assistant_turn_is_left_out() -> None:
    tokenizer = make_bytes(TEMPLATES["qwen2.5"])
    assert show_all(tokenizer, [ASK, PLAIN, AGAIN]) == show_all(tokenizer, [ASK, PLAIN])


# --- Borders ---


def test_the_border_before_the_words_is_a_border_of_tokens(smollm: Tokenizer) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}:  {{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant:  {% endif %}"
    tokenizer = dataclasses.replace(smollm, chat_template=template)
    for words in ("  indented", " one", "none", "\n\n"):
        messages = [ASK, {"role": "assistant", "content": words}]
        [(ids, mask)] = mark_assistant(tokenizer, messages)
        prompt = tokenizer.encode(render(tokenizer, [ASK]))
        assert ids[: len(prompt)] == prompt and mask.index(True) == len(prompt)
        assert show(tokenizer, (ids, mask)).endswith(f"assistant:  ⟦{words}<|im_end|>⟧\n")


def test_a_template_without_generation_prompt() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert show_all(make_bytes(template), [ASK, PLAIN, AGAIN, PLAIN]) == [
        "user: 2+2?\nassistant:⟦ It is 4.\n⟧user: And 3?\nassistant:⟦ It is 4.\n⟧"
    ]
    inst = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    inst += "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    tokenizer = make_bytes(inst, ("<pad>", "<s>", "</s>"))
    assert show_all(tokenizer, [ASK, PLAIN]) == ["<s>[INST] 2+2? [/INST]⟦ It is 4.</s>⟧"]
    zero = [{"role": "user", "content": "1-1?"}, {"role": "assistant", "content": "0 or 1"}]
    assert show_all(tokenizer, zero) == ["<s>[INST] 1-1? [/INST]⟦ 0 or 1</s>⟧"]


def test_an_assistant_that_speaks_first_and_empty_words() -> None:
    tokenizer = make_bytes(
        TEMPLATES["generation"].replace("generation", "if true", 1).replace("endgeneration", "endif")
    )
    assert "{%- generation" not in tokenizer.chat_template
    shown = show_all(tokenizer, [PLAIN, ASK, {"role": "assistant", "content": ""}])
    assert shown == [
        "<|im_start|>assistant\n⟦It is 4.<|im_end|>⟧\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n⟦<|im_end|>⟧\n"
    ]


def test_blocks_with_header_or_without_end_token_are_settled() -> None:
    head = "{% for m in messages %}{% if m.role == 'assistant' %}"
    tail = "{% else %}[{{ m.content }}]{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    for block in (
        "{% generation %}<a>{{ m.content }}<|im_end|>\n{% endgeneration %}",
        "<a>{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n",
    ):
        shown = show_all(make_bytes(head + block + tail), [ASK, PLAIN, AGAIN, PLAIN])
        assert shown == ["[2+2?]<a>⟦It is 4.<|im_end|>⟧\n[And 3?]<a>⟦It is 4.<|im_end|>⟧\n"]


def test_a_template_that_works_on_the_text_of_its_blocks_falls_back_to_prefixes() -> None:
    template = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% set said %}"
    template += "{% generation %}{{ m.content }}{% endgeneration %}{% endset %}{{ said | length }}{{ said }}<|im_end|>"
    template += "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    tokenizer = make_bytes(template)
    assert render_spans(tokenizer, [ASK, PLAIN]) is None
    assert show_all(tokenizer, [ASK, PLAIN])[0].endswith("It is 4.<|im_end|>⟧")


def test_a_bos_of_the_template_stands_once() -> None:
    tokenizer = make_bytes(TEMPLATES["llama3"], ("<pad>", "<bos>", "<|eot_id|>"))
    [(ids, _)] = mark_assistant(tokenizer, [ASK, PLAIN])
    assert ids.count(1) == 1 and ids[0] == 1


# --- Mistakes ---


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="this model has no chat template"):
        mark_assistant(make_bytes(None), [ASK, PLAIN])
    with pytest.raises(UserError, match="with the role assistant"):
        mark_assistant(make_bytes(TEMPLATES["qwen3"]), [ASK])
    strict = "{% for m in messages %}{{ raise_exception('no') if m.role == 'tool' }}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="rejects these messages"):
        mark_assistant(make_bytes(strict), [{"role": "tool", "content": "x"}, PLAIN])


# --- What is encoded ---


def test_words_are_encoded_once_and_as_with_what_follows(smollm: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the end token takes the white space behind it (Phi-3's does), or is a text that goes on."""
    greedy = dataclasses.replace(smollm, backend=tokenizers.Tokenizer.from_str(smollm.backend.to_str()))
    greedy.backend.add_special_tokens([tokenizers.AddedToken("<|im_end|>", rstrip=True)])
    longer = dataclasses.replace(smollm, backend=tokenizers.Tokenizer.from_str(smollm.backend.to_str()))
    longer.backend.add_special_tokens(["<|im_end|>\n"])
    spelt = {"role": "user", "content": "is <|im_end|> a token?"}
    words = {"role": "assistant", "content": "a long thought " * 500}
    encode, sizes = Tokenizer.encode_more, list[int]()

    def count(self: Tokenizer, text: str) -> list[int]:
        sizes.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode_more", count)
    for tokenizer in (smollm, greedy, longer):
        sizes.clear()
        [(ids, mask)] = mark_assistant(tokenizer, [ASK, words, spelt, PLAIN])
        if tokenizer is not longer:
            assert sum(sizes) < 1.1 * len(words["content"])
            text = render(smollm, [ASK, words, spelt, PLAIN], add_generation_prompt=False)
            assert ids == tokenizer.encode(text)
        said = tokenizer.decode([id_ for id_, learnt in zip(ids, mask, strict=True) if learnt], skip_special=False)
        assert said == f"{words['content']}<|im_end|>It is 4.<|im_end|>"
