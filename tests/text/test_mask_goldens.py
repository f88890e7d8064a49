"""What is learnt of 20 conversations by the templates of TRL's collection, against TRL's own masks (make_masks.py).

TRL marks by `{% generation %}` blocks that it adds to a template (its twin). A twin and the template without blocks are
both compared with the twin's marks. They differ for these reasons and no other, each checked below:
- `BEYOND`: TRL also learns the header that a prompt ends with, the line break after the end token, or a second end;
- Gemma 4's and GLM's calls end at the token that opens the tool's reply, where the sampler stops: TRL leaves it out;
- thoughts that a template without blocks drops are learnt all the same;
- `content: null` is read as no words; TRL's blocks learn "None" or refuse it;
- a call that the template does not show is refused, where TRL learns the turn without it.
"""

import dataclasses
import functools
import json
import lzma
import re
import zlib
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.text.chat_template import render
from r1jax.text.masks import mark_assistant
from r1jax.text.tokenizer import Tokenizer

GOLDEN = json.loads(lzma.decompress((Path(__file__).parents[1] / "goldens/masks.json.xz").read_bytes()))
TEMPLATES, CONVERSATIONS, LEARNT = GOLDEN["templates"], GOLDEN["conversations"], GOLDEN["learnt"]
STOPS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "diffusion_gemma": ["<turn|>", "<|tool_response>"],
    "gemma": ["<end_of_turn>"],
    "gemma4": ["<turn|>", "<|tool_response>"],
    "glm4moe": ["<|endoftext|>", "<|user|>", "<|observation|>"],
    "gptoss": ["<|return|>", "<|call|>"],
    "idefics3": ["<end_of_utterance>"],
    "lfm2": ["<|im_end|>"],
    "llama3": ["<|eot_id|>", "<|eom_id|>"],
    "llava_next": ["</s>"],
    "muse_glimmer": ["<|eot|>", "<|eom|>"],
    "nemotron": ["<|im_end|>"],
    "phi3": ["<eos>", "<|end|>"],
    "qwen": ["<|im_end|>"],
    "smolvlm": ["<end_of_utterance>"],
}
BEYOND = {  # what one of the two learns besides, by the template's name
    "deepseek": r"<｜Assistant｜>(?:<think>\n)?|<｜tool▁outputs▁end｜>",  # prompts end with these
    "diffusion_gemma": r"<\|tool_response>",
    "glm4moe": r"\nNone(?=\n)",
    "gptoss": r"<\|start\|>assistant",
    "muse_glimmer": r"<\|start\|>assistant",
    "nemotron": r"<think>\n",
    "phi3": r"(?<=<\|end\|>)\n?<eos>",
    "qwen2_5": r"\A\n",
    "qwen3_5_nothink": r"<think>\n\n</think>\n\n",
    "qwen3_5_think": r"<think>\n",
    "qwen3_6": r"<think>\n",
    "qwen3_8": r"<think>\n",
}
HIDES_CALLS_BESIDE_WORDS = ("deepseek_r1_distill", "deepseek_r1_distill_training")  # shown beside null, so learnt


def find(table: dict[str, Any], name: str) -> Any:
    """The entry with the longest key that begins a name."""
    return next((table[key] for key in sorted(table, key=len, reverse=True) if name.startswith(key)), None)


@functools.lru_cache(maxsize=1)
def make_tokenizer(name: str) -> Tokenizer:
    """A vocabulary of bytes with the special tokens that a template writes."""
    template, stops = TEMPLATES[name], find(STOPS, name)
    form = r"<[|｜][^<>\s'\"]{1,40}[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_(?:turn|utterance)>|</s>"
    others = sorted({"<eos>", *re.findall(form, template)} - {*stops})
    tokenizer = Tokenizer.of_bytes(("<pad>", "<bos>", *stops, *others))
    ids = tuple(tokenizer.specials[stop] for stop in stops)
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return dataclasses.replace(tokenizer, chat_template=template, eos_ids=ids, template_variables=tokens)


@functools.cache
def learn(name: str) -> dict[str, list[str] | UserError]:
    """What is learnt of each conversation, in runs of neighbouring tokens; or why it is refused."""
    tokenizer, found = make_tokenizer(name), {}
    for title, conversation in CONVERSATIONS.items():
        try:
            examples = mark_assistant(tokenizer, conversation["messages"], tools=conversation["tools"])
        except UserError as error:
            found[title] = error
            continue
        runs = []
        for ids, mask in examples:
            for learnt, pairs in groupby(zip(ids, mask, strict=True), lambda pair: pair[1]):
                runs += [tokenizer.decode([id_ for id_, _ in pairs], skip_special=False)] if learnt else []
        found[title] = runs
    return found


def find_twin(name: str) -> str | None:
    return next((twin for twin in (f"{name}_training", name) if twin in LEARNT), None)


def list_calls(title: str) -> list[str]:
    calls = [call for message in CONVERSATIONS[title]["messages"] for call in message.get("tool_calls", [])]
    return [call["function"]["name"] for call in calls]


def list_thoughts(title: str) -> list[str]:
    messages = CONVERSATIONS[title]["messages"]
    tagged = [re.search(r"<think>\n(.*)\n</think>", m["content"] or "") for m in messages]
    return [m["reasoning_content"] for m in messages if "reasoning_content" in m] + [t[1] for t in tagged if t]


def has_null(title: str) -> bool:
    return any(m["content"] is None for m in CONVERSATIONS[title]["messages"])


def shows_calls(runs: list[str], title: str) -> bool:
    return all("".join(runs).count(name) >= list_calls(title).count(name) for name in list_calls(title))


def settle(name: str, runs: list[str]) -> str:
    """What is learnt without what one of the two learns besides."""
    stops = "|".join(map(re.escape, find(STOPS, name)))
    text = re.sub(find(BEYOND, name) or r"(?!)", "", "".join(runs))
    text = re.sub(rf"({stops})\n+", r"\1", text)
    return text.replace("<|return|>", "<|end|>") if name.startswith("gptoss") else text  # a turn of its own is the last


@pytest.mark.parametrize("name", [name for name in TEMPLATES if find_twin(name)])
def test_what_is_learnt_is_what_trl_learns(name: str) -> None:
    compared = 0
    for title, ours in learn(name).items():
        trl = LEARNT[find_twin(name)][title]
        if isinstance(ours, UserError):
            assert trl is None or not shows_calls(trl, title), (title, ours, trl)
            continue
        if trl is None:
            assert has_null(title), (title, ours)
            continue
        compared += 1
        if name in HIDES_CALLS_BESIDE_WORDS and not shows_calls(trl, title):
            assert shows_calls(ours, title), (title, ours)
            continue
        got, want = settle(name, ours), settle(name, trl)
        words = ["Let me look."] if name.startswith("gptoss") else []  # shown as a thought
        for thought in list_thoughts(title) + words:
            if got.count(thought) > want.count(thought):
                assert find_twin(name) != name, title  # blocks alone say what is learnt
                dropped = rf"(<think>|<\|channel[|>]*(?:thought|analysis)(?:<\|message\|>)?)?\n?{thought}\n?"
                got = re.sub(dropped + r"(</think>|<channel\|>|<\|end\|>)?\n*", "", got, count=1)
                want, got = (re.sub(r"</?think>|(?<=>)\s+|^\s+", "", text) for text in (want, got))
        assert got == want, (title, ours, trl)
    assert compared >= 8


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_is_learnt_whole(name: str) -> None:
    """Thoughts and calls are there, and one end token closes what is learnt, also where TRL has no twin."""
    stops = find(STOPS, name)
    for title, runs in learn(name).items():
        if isinstance(runs, UserError):
            continue
        assert runs and shows_calls(runs, title), title
        if name not in LEARNT:
            assert all(thought in "".join(runs) for thought in list_thoughts(title)), (title, runs)
            assert all(run.endswith(tuple(stops)) for run in runs), (title, runs)
            assert not any(stop + stop in run for run in runs for stop in stops), (title, runs)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_show_what_transformers_shows(name: str) -> None:
    tokenizer, dated = make_tokenizer(name), "strftime_now(" in TEMPLATES[name]
    for title, crc in GOLDEN["shown"][name].items():
        if crc is None or dated:
            continue
        conversation = CONVERSATIONS[title]
        text = render(tokenizer, conversation["messages"], add_generation_prompt=False, tools=conversation["tools"])
        if zlib.crc32(text.encode()) != crc:
            assert has_null(title) and "None" not in text, (title, text)
