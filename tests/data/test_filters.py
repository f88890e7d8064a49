"""Each filter of traces by itself, in their order, and the set that is written."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from r1jax.core.errors import UserError
from r1jax.data.corpus import CorpusConfig, SourceConfig, load_corpus
from r1jax.data.filters import FilterConfig, Finding, Screen, Selection, Trace, measure_repetition
from r1jax.data.training_set import Position, SetWriter, find_pattern, is_finished
from r1jax.text.tokenizer import Tokenizer
from tests.data.make_traces import CONFIGS, GOLDEN, make_filters, make_traces

LOOP = "and so we go on and on " * 20


def make(*completions: str, **fields: Any) -> list[Trace]:
    return [
        Trace(
            **{"group": number, "prompt": f"question {number}", "reward": 1.0, "length": 10, **fields, "completion": c}
        )
        for number, c in enumerate(completions)
    ]


def filter_traces(traces: list[Trace], config: FilterConfig) -> tuple[list[Trace], dict[str, Any]]:
    selection = Selection(config)
    dropped = selection.decide(traces, Screen(config).examine(traces))
    return [trace for trace, why in zip(traces, dropped, strict=True) if not why], selection.statistics()


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


@pytest.mark.parametrize("name", CONFIGS)
def test_in_chunks_and_taken_up_again_they_keep_what_release_0_2_kept(name: str, tmp_path: pathlib.Path):
    config, traces, golden = make_filters(name, tmp_path), make_traces(), json.loads(GOLDEN.read_text())[name]
    screen, selection, found, decided = Screen(config), Selection(config), list[int](), []
    for first in range(0, len(traces), 35):  # seven prompts
        if first % 105 == 0:  # a restart: from what was written of each prompt
            selection = Selection(config)
            for one in decided:
                selection.restore(*one)
        chunk = traces[first : first + 35]
        findings = [Finding(*facts) for facts in json.loads(json.dumps(screen.examine(chunk)))]
        dropped = selection.decide(chunk, findings)
        found += [first + place for place, why in enumerate(dropped) if not why]
        for place in range(0, len(chunk), 5):
            own = slice(place, place + 5)
            facts = [Finding("", *finding[1:]) for finding in findings[own]]
            decided.append(([t.reward for t in chunk[own]], [t.length for t in chunk[own]], facts, dropped[own]))
    assert {"kept": found, "statistics": selection.statistics()} == golden
    assert selection.kept == len(found) and selection.shares["kept"] == len(found) / len(traces)
    assert sum(selection.shares.values()) == pytest.approx(1)


ROWS = [{"prompt": f"question {number}", "completion": "y" * number} for number in range(11)]


@pytest.mark.parametrize("shard", [0, 4])
def test_a_set_is_the_same_wherever_its_writer_was_stopped(tmp_path: pathlib.Path, shard: int):
    whole = SetWriter(tmp_path / "whole" / "set.jsonl", shard)
    whole.resume()
    whole.write(ROWS)
    whole.finish({"kept": 11})
    assert is_finished(tmp_path / "whole" / "set.jsonl", shard)
    expected = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    names = [f"set-{number:05d}.jsonl" for number in range(3)] if shard else ["set.jsonl"]
    assert sorted(expected) == sorted([*names, "set.stats.json"])
    assert b"".join(expected[name] for name in names) == b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    pattern = find_pattern(tmp_path / "whole" / "set.jsonl", shard)
    assert sorted(file.name for file in pattern.parent.glob(pattern.name)) == names

    path, place = tmp_path / "other" / "set.jsonl", Position()
    for first in range(0, len(ROWS), 3):  # each chunk is written, lost, and written again by another writer
        for lost in (True, False):
            writer = SetWriter(path, shard)
            assert writer.holds(place) and not writer.holds(place._replace(size=10_000))
            writer.resume(place)
            reached = writer.write([{"lost": 1}] * 9 if lost else ROWS[first : first + 3])
        place = reached
    assert not is_finished(path, shard)
    writer.finish({"kept": 11})
    if shard:  # stopped before its statistics were written
        (path.parent / "set.stats.json").unlink()
        writer = SetWriter(path, shard)
        assert writer.holds(place)
        writer.resume(place)
        writer.finish({"kept": 11})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == expected


def test_a_set_whose_last_shard_is_full_has_no_empty_one(tmp_path: pathlib.Path):
    writer = SetWriter(tmp_path / "set.jsonl", 4)
    writer.resume()
    assert writer.write(ROWS[:8]) == Position(2, 0, 0)
    writer.finish({})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set-00000.jsonl", "set-00001.jsonl", "set.stats.json"]


def test_the_set_is_what_supervised_training_reads(tmp_path: pathlib.Path):
    writer = SetWriter(tmp_path / "new" / "set.jsonl", 1)
    writer.resume()
    writer.write({"prompt": trace.prompt, "completion": trace.completion} for trace in make("Yes, 4", "5"))
    writer.finish({})
    path = str(find_pattern(tmp_path / "new" / "set.jsonl", 1))
    config = CorpusConfig({"traces": SourceConfig(path, template="plain")}, length=64)
    tokenizer = Tokenizer.of_bytes()
    examples = load_corpus(config, tokenizer).train[0]
    assert [tokenizer.decode(e.targets[e.weights > 0], skip_special=False) for e in examples] == [
        "Yes, 4<|im_end|>",
        "5<|im_end|>",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "xx"}, "config.filters.language must be one of en, "),
        ({"max_repetition": 1.5}, "config.filters.max_repetition must be from 0 to 1, got 1.5"),
        ({"ngram": 0}, "config.filters.ngram must be at least 1, got 0"),
        ({"rows_per_shard": -1}, "config.filters.rows_per_shard must be at least 0, got -1"),
    ],
)
def test_a_mistake_names_its_key(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        FilterConfig(**changes)
