"""Each filter of traces by itself, in their order, and the set that is written."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.data.corpus import CorpusConfig, SourceConfig, load_corpus
from r1jax.data.filters import FilterConfig, Trace, filter_traces, measure_repetition, write_set
from r1jax.text.tokenizer import Tokenizer

LOOP = "and so we go on and on " * 20


def make(*completions: str, **fields: Any) -> list[Trace]:
    return [
        Trace(
            **{"group": number, "prompt": f"question {number}", "reward": 1.0, "length": 10, **fields, "completion": c}
        )
        for number, c in enumerate(completions)
    ]


def kept(traces: list[Trace], **config: Any) -> list[str]:
    return [trace.completion for trace in filter_traces(traces, FilterConfig(**config))[0]]


def test_what_was_cut_off_goes():
    traces = [*make("a"), *make("b", finish_reason="length")]
    assert kept(traces) == ["a"]


def test_the_pass_rate_is_that_of_the_prompt_and_its_bounds_are_strict():
    rewards = {0: [0, 0], 1: [1, 0], 2: [1, 1]}
    traces = [
        dataclasses.replace(make(f"{group} {number}")[0], group=group, reward=reward)
        for group, values in rewards.items()
        for number, reward in enumerate(values)
    ]
    assert kept(traces, min_reward=0) == ["0 0", "0 1", "1 0", "1 1", "2 0", "2 1"]
    assert kept(traces, min_reward=0, min_pass_rate=0) == ["1 0", "1 1", "2 0", "2 1"]
    assert kept(traces, min_reward=0, min_pass_rate=0, max_pass_rate=1) == ["1 0", "1 1"]
    assert kept(traces, max_pass_rate=1) == ["1 0"]
    cut = [dataclasses.replace(traces[2], finish_reason="length"), *traces[3:]]
    assert kept(cut, min_reward=0, min_pass_rate=0, max_pass_rate=1) == ["1 1"], "a cut off sample counts in the rate"


def test_only_right_ones_stay():
    assert kept([*make("a"), *make("b", reward=0.9)]) == ["a"]


def test_length():
    traces = [*make("a", length=3), *make("b", length=5), *make("c", length=9)]
    assert kept(traces, min_tokens=4, max_tokens=8) == ["b"]
    assert kept(traces, min_tokens=5) == ["b", "c"]


def test_one_language():
    traces = make("We add them.", "我们先 add 总和", "3 + 4 = 7", "总和是七")
    assert kept(traces, language="en") == ["We add them.", "3 + 4 = 7"]
    assert kept(traces, language="zh", min_language_share=0.7) == ["我们先 add 总和", "3 + 4 = 7", "总和是七"]


def test_endless_repetition():
    assert measure_repetition(LOOP) > 0.9 and measure_repetition("one two three") == 0
    assert kept(make("fine as it is", LOOP)) == ["fine as it is"]
    assert len(kept(make(LOOP), max_repetition=1.0)) == 1


def test_contamination_of_question_or_completion(tmp_path: pathlib.Path):
    words = "one two three four five six seven eight nine ten eleven"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": words, "answer": "#### 3"}) + "\n")
    chat = [{"role": "system", "content": "be good"}, {"role": "user", "content": f"So: {words}?"}]
    traces = [*make("a", f"b {words}"), *make("c", prompt=chat), *make("d", prompt=f"{words} twelve")]
    assert kept(traces, benchmarks=(str(tmp_path / "bench.jsonl"),)) == ["a"]
    assert kept(traces, benchmarks=(str(tmp_path / "bench.jsonl"),), ngram=12) == ["a", f"b {words}", "c", "d"]
    with pytest.raises(UserError, match=r"no such file: none.jsonl \(config.filters.benchmarks\)"):
        kept(traces, benchmarks=("none.jsonl",))


def test_duplicates_exact_and_near():
    text = " ".join(f"word{number}" for number in range(100))
    traces = make(text, text, f"{text} more", "another  one", prompt="the same")
    assert kept([*traces, *make("another one", prompt="the same")]) == [text, f"{text} more", "another  one"]
    assert kept(traces, near_duplicates=0.9) == [text, "another  one"]
    assert kept(make("same", "same")) == ["same", "same"], "the same reply to another question is another sample"


def test_samples_per_prompt():
    traces = [*make("a", group=1), *make("b", group=2), *make("c", group=1), *make("d", group=1)]
    assert kept(traces, samples_per_prompt=2) == ["a", "b", "c"]


def test_counts_of_everything():
    traces = [*make("a", LOOP, "b"), *make("c", reward=0.0), *make("d", finish_reason="length", length=40), *make("a")]
    found, statistics = filter_traces(traces, FilterConfig())
    assert [trace.completion for trace in found] == ["a", "b"]
    dropped = {name: count for name, count in statistics["dropped"].items() if count}
    assert dropped == {"cut_off": 1, "reward": 1, "repetition": 1, "duplicate": 1}
    assert statistics["input"] == {
        "samples": 6,
        "prompts": 3,
        "mean_reward": pytest.approx(5 / 6),
        "mean_tokens": 15.0,
        "median_tokens": 10.0,
        "max_tokens": 40,
    }
    assert statistics["output"]["samples"] == 2
    assert filter_traces([], FilterConfig())[1]["output"]["samples"] == 0


def test_the_set_is_what_supervised_training_reads(tmp_path: pathlib.Path):
    traces = make("Yes, 4", "5")
    found, statistics = filter_traces(traces, FilterConfig())
    write_set(tmp_path / "new" / "set.jsonl", found, statistics)
    assert json.loads((tmp_path / "new" / "set.stats.json").read_text()) == statistics
    rows = [json.loads(line) for line in (tmp_path / "new" / "set.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": "question 0", "completion": "Yes, 4"}
    config = CorpusConfig({"traces": SourceConfig(str(tmp_path / "new" / "set.jsonl"), template="plain")}, length=64)
    tokenizer = Tokenizer.of_bytes()
    example = load_corpus(config, tokenizer).train[0][0]
    assert tokenizer.decode(example.targets[example.weights > 0], skip_special=False) == "Yes, 4<|im_end|>"
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "xx"}, "config.filters.language must be one of en, "),
        ({"max_repetition": 1.5}, "config.filters.max_repetition must be from 0 to 1, got 1.5"),
        ({"ngram": 0}, "config.filters.ngram must be at least 1, got 0"),
    ],
)
def test_a_mistake_names_its_key(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        FilterConfig(**changes)
