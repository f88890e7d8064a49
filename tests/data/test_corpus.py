"""From files to examples: columns, templates, replies, held-out rows, and a note for everything that is left out."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.core.sections import unpack
from r1jax.data.corpus import Corpus, CorpusConfig, SourceConfig, load_corpus, split_gsm8k
from r1jax.data.examples import Example
from r1jax.text.tokenizer import Tokenizer
from tests.tiny_model import CHAT_TEMPLATE, SPECIALS

BYTES = Tokenizer.of_bytes(SPECIALS)


def with_template(template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    return dataclasses.replace(BYTES, chat_template=template)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path: str, source: dict[str, Any] | None = None, **settings: Any) -> Corpus:
    config = CorpusConfig({"main": SourceConfig(path, **(source or {}))}, **settings)
    return load_corpus(config, with_template())


def read(example: Example) -> tuple[str, str]:
    """(all fed text, the learnt targets)."""
    decode = lambda ids: BYTES.decode(ids, skip_special=False)
    return decode(example.tokens), decode(example.targets[example.weights > 0])


def test_a_raw_template_and_a_tagged_reply(tmp_path: Path) -> None:
    solution = "Half of 48 is 48/2=<<48/2=24>>24.\n#### 1,024"
    path = write(tmp_path / "a.jsonl", [{"question": "How many?", "answer": solution}])
    source = {
        "columns": {"prompt": "question", "completion": "answer"},
        "template": "question_reply",
        "extractor": "gsm8k",
        "reply": "tagged",
    }
    fed, learnt = read(load(path, source).train[0][0])
    said = "<think> Half of 48 is 48/2=24. </think> <answer> 1024 </answer>"
    assert fed == "Question: How many?\nReply:" + said
    assert learnt == said + "<|im_end|>"


def test_a_chat_of_prompt_and_completion(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "hi", "completion": "ho"}])
    fed, learnt = read(load(path).train[0][0])
    assert fed == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>" and learnt == "ho<|im_end|>"
    fed, learnt = read(load(path, {"loss_on": "all"}).train[0][0])
    assert learnt == fed[len("<|im_start|>") :] + "\n"


def test_notes_count_whatever_is_left_out(tmp_path: Path) -> None:
    rows = ["{broken\n", {"text": "abc"}, {"text": "abcdefghij"}, {"nothing": 1}, {"text": ""}]
    path = write(tmp_path / "a.jsonl", rows)
    corpus = load(path, length=8, on_error="skip")
    assert [read(example)[0] for example in corpus.train[0]] == ["abc", "abcdefgh"]
    assert corpus.notes[0] == (
        "main: 2 examples of 11 tokens from 4 rows (1 cut off at 8 tokens, 1 with nothing to learn dropped)"
    )
    assert corpus.notes[1].startswith(f"main: 2 malformed rows left out, the first: {path}:1: not a JSON object")
    dropped = load(path, length=8, on_error="skip", truncation="drop")
    assert "1 longer than 8 tokens dropped" in dropped.notes[0] and len(dropped.train[0]) == 1


def test_held_out_rows_are_drawn_by_seed_and_never_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"row {i % 40:02}"} for i in range(80)])  # every row twice
    first, again, other = (load(path, eval_rows=10, seed=seed) for seed in (0, 0, 1))
    texts = lambda examples: [read(example)[0] for example in examples]
    assert texts(first.held_out) == texts(again.held_out) != texts(other.held_out)
    assert len(first.held_out) == 10 and not {*texts(first.held_out)} & {*texts(first.train[0])}
    assert any("repeat a held-out prompt" in note for note in first.notes)


def test_another_completion_of_a_held_out_prompt_is_not_trained_on(tmp_path: Path) -> None:
    rows = [{"question": f"q{i % 10}", "completion": f"c{i}"} for i in range(30)]
    source = {"columns": {"prompt": "question"}, "template": "plain"}
    corpus = load(write(tmp_path / "a.jsonl", rows), source, eval_rows=2)
    prompts = lambda examples: {read(example)[0][:2] for example in examples}
    assert not prompts(corpus.held_out) & prompts(corpus.train[0]) and len(corpus.train[0]) in (24, 27)


def test_a_source_of_malformed_rows_alone_says_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"x": 1}, {"x": 2}])
    with pytest.raises(UserError, match=r"no usable row .*; the first malformed row: .*a\.jsonl:1: an SFT row needs"):
        load(path, on_error="skip")


def test_a_held_out_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "abc"}, {"text": "held"}])
    held = write(tmp_path / "b.jsonl", [{"text": "held"}, {"text": "more"}])
    corpus = load(path, {"eval_path": held})
    assert sorted(read(example)[0] for example in corpus.held_out) == ["held", "more"]
    assert [read(example)[0] for example in corpus.train[0]] == ["abc"]
    assert len(load(path, {"eval_path": held}, eval_rows=1).held_out) == 1


def test_procedural_sources_teach_the_answer() -> None:
    corpus = load("addition", {"args": {"low": 1, "high": 9}, "reply": "<answer> {answer} </answer>"}, eval_rows=5)
    assert (len(corpus.train[0]), len(corpus.held_out)) == (40, 5)
    fed, learnt = read(corpus.train[0][0])
    numbers = [int(word.strip("?")) for word in fed.partition("What is ")[2].split("<")[0].split(" + ")]
    assert learnt == f"<answer> {sum(numbers)} </answer><|im_end|>"


def test_weights_make_a_mixture_and_zero_leaves_a_source_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "abc"}])
    sources = {name: SourceConfig(path, weight=weight) for name, weight in {"a": 3.0, "b": 0.0, "c": 1.0}.items()}
    corpus = load_corpus(CorpusConfig(sources), with_template())
    assert corpus.mixing == [3.0, 1.0] and len(corpus.train) == 2
    assert corpus.notes[-1] == "b: left out, its weight is 0"
    assert load(path).mixing is None


@pytest.mark.parametrize(
    ("rows", "source", "settings", "message"),
    [
        ([], {}, {}, "has no usable row to train on (config.data.sources.main.path)"),
        ([{"text": "a"}], {"columns": {"text": "body"}}, {}, 'a.jsonl:1: no column "body" for text'),
        ([{"text": "a"}, "[1]\n"], {}, {}, "a.jsonl:2: not a JSON object: got list"),
        ([{"messages": "hi"}], {}, {}, "a.jsonl:1: messages must be a list of role and content messages"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {}, {}, "a.jsonl:1: a conversation for training needs"),
        ([{"x": 1}], {}, {}, "a.jsonl:1: an SFT row needs messages, prompt and completion, text, or tokens; got x"),
        ([{"text": "a"}], {"template": "other"}, {}, "config.data.template must be one of chat"),
        ([{"text": "a"}], {"extractor": "other"}, {}, "extractor must be one of gsm8k or none"),
        ([{"text": "a"}], {"reply": "other"}, {}, "reply must be one of plain, tagged or a text with {answer}"),
        ([{"text": "a"}], {"weight": 0.0}, {}, "not all 0"),
        ([{"text": "a"}], {"weight": -1.0}, {}, "at least 0"),
        ([{"text": "a"}], {}, {"length": 1}, "config.data.length must be at least 2, got 1"),
        ([{"text": "a"}], {}, {"epochs": 0}, "config.data.epochs must be at least 1 or none, got 0"),
        ([{"text": "a"}], {}, {"eval_rows": 1}, "config.data.eval_rows=1 leaves none of the 1 rows"),
    ],
)
def test_mistakes_are_said(tmp_path: Path, rows: list, source: dict, settings: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / "a.jsonl", rows), source, **settings)
    assert message in str(caught.value)


def test_missing_files_name_their_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: none\.jsonl \(config\.data\.sources\.main\.path\)"):
        load("none.jsonl")
    path = write(tmp_path / "a.jsonl", [{"text": "abc"}])
    with pytest.raises(UserError, match=r"config\.data\.sources\.main\.eval_path"):
        load(path, {"eval_path": "none.jsonl"})


def test_the_section_of_a_config_unpacks() -> None:
    section = {"sources": {"a": {"path": "x.jsonl", "weight": 2}}, "length": 64, "truncation": "left"}
    config = unpack(CorpusConfig, section, "data")
    assert config.sources["a"] == SourceConfig("x.jsonl", weight=2.0) and config.truncation == "left"
    with pytest.raises(UserError, match=r"config\.data\.sources\.a\.pth is not a known key"):
        unpack(CorpusConfig, {"sources": {"a": {"path": "x", "pth": 1}}}, "data")


@pytest.mark.parametrize(
    "text", ["<<", "<<a>>", "a<<b<<c>>d>>e", "<<>>x", "<<<>>>", ">><<", "<<a\n>>b", "x<<1=1>>1 <<", "<<a>><<b>>"]
)
def test_annotations_go_as_by_the_pattern(text: str) -> None:
    wanted = re.sub("<<.*?>>", "", text).strip()
    assert split_gsm8k(f"{text}#### 7") == (wanted, "7")


def test_splitting_takes_linear_time() -> None:
    """A million characters that a pattern would search for minutes."""
    assert split_gsm8k("<<" * 500_000 + "#### 7") == ("<<" * 500_000, "7")
