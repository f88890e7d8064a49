"""Collection by chunks: stopped at any write and started again it ends with the same bytes, and redoes a chunk."""

import dataclasses
import json
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from r1jax.core.buckets import staging
from r1jax.core.errors import UserError
from r1jax.data.filters import FilterConfig, Screen, Selection, Trace
from r1jax.data.training_set import SetWriter
from r1jax.eval.report import write_report
from r1jax.rewards.base import load_rewards
from r1jax.runs.journal import Journal
from r1jax.stages import collection
from r1jax.stages.score_journal import ScoreJournal
from tests.stages import stub_teacher
from tests.stages.stub_teacher import StubWindows

PROMPTS, SAMPLES, CHUNK = 29, 4, 8
GENERATE = collection.TeacherSampling(num_samples=SAMPLES, max_new_tokens=24, slots=2)
FILTERS = FilterConfig(min_reward=0.85, max_pass_rate=0.99, near_duplicates=0.6, samples_per_prompt=2)
SPEC = {"words": {"function": "tests.stages.stub_teacher:words_reward"}}
ROWS = [
    {"prompt": f"question {number}", "solution": stub_teacher.WORDS[number % 12], **({"id": 7} if number else {})}
    for number in range(PROMPTS)
]
Files = dict[str, bytes]


def collect(workdir: pathlib.Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> Files:
    """The files of a run; `judged_by`, `filters` and `reply` may change."""
    spec = changes.pop("judged_by", SPEC)
    filters = dataclasses.replace(FILTERS, **changes.pop("filters", {}))
    parts = stub_teacher.MODEL, rows, GENERATE, load_rewards(spec), filters, workdir
    collection.collect(*parts, judged_by=spec, **changes)
    return read(workdir)


def read(workdir: pathlib.Path) -> Files:
    return {file.name: file.read_bytes() for file in workdir.iterdir() if not file.name.startswith(".")}


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[StubWindows]:
    """Those that a test loads."""
    stub_teacher.scored.clear()
    return stub_teacher.install(monkeypatch)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        teachers = stub_teacher.install(patched)
        collect(workdir)
    assert [len(teacher.sampled) for teacher in teachers] == [PROMPTS]
    return workdir


@pytest.fixture(scope="module")
def whole(workdir: pathlib.Path) -> Files:
    return read(workdir)


def test_the_set_is_that_of_all_samples_filtered_at_once(whole: Files):
    names = ["set.jsonl", "set.stats.json", "traces.jsonl", "traces.scores.jsonl"]
    assert sorted(whole) == sorted([*names, "traces.jsonl.settings.json", "traces.scores.jsonl.settings.json"])
    rows = [json.loads(line) for line in whole["traces.jsonl"].splitlines()]
    traces = []
    for group, row in enumerate(rows):
        values = stub_teacher.words_reward(row["completions"], [row["solution"]] * SAMPLES)
        lengths = [len(tokens) for tokens in row["completion_tokens"]]
        for facts in zip(row["completions"], values, lengths, row["finish_reasons"], strict=True):
            traces.append(Trace(group, row["prompt"], *facts))
    selection = Selection(FILTERS)
    dropped = selection.decide(traces, Screen(FILTERS).examine(traces))
    kept = [trace for trace, why in zip(traces, dropped, strict=True) if not why]
    lines = [json.dumps({"prompt": trace.prompt, "completion": trace.completion}) for trace in kept]
    assert whole["set.jsonl"].decode().splitlines() == lines
    assert json.loads(whole["set.stats.json"]) == selection.statistics()
    assert {"", "cut_off", "pass_rate", "reward", "duplicate", "near_duplicate", "samples_per_prompt"} <= set(dropped)
    scores = [json.loads(line) for line in whole["traces.scores.jsonl"].splitlines()]
    assert [why for row in scores for why in row["dropped"]] == dropped
    assert [reward for row in scores for reward in row["rewards"]] == [trace.reward for trace in traces]
    assert [number for number, row in enumerate(scores) if "set" in row] == [7, 15, 23, 28]


def stop_at(function: Callable[..., Any], count: int, after: bool = False) -> Callable[..., Any]:
    """Raises in place of a call, or after it."""
    calls = iter(range(count))

    def stopping(*arguments: Any, **options: Any) -> Any:
        last = next(calls, None) is None
        if last and not after:
            raise KeyboardInterrupt
        result = function(*arguments, **options)
        if last:
            raise KeyboardInterrupt
        return result

    return stopping


STOPS = [(Journal, "put_line", count, False) for count in (0, 3, 8, 20, 28)]
STOPS += [(StubWindows, "sample", count, True) for count in (0, 2)]
STOPS += [(collection.Judge, "judge", count, after) for count in (0, 3) for after in (False, True)]
STOPS += [(SetWriter, "_append", count, after) for count in (0, 2) for after in (False, True)]
STOPS += [(ScoreJournal, "append", count, after) for count in (0, 1, 3) for after in (False, True)]
STOPS += [(SetWriter, "finish", 0, False), (collection.Record, "find_lack", 0, True)]


@pytest.mark.parametrize(("place", "name", "count", "after"), STOPS)
def test_stopped_at_any_write_it_ends_with_the_same_bytes(
    place: Any, name: str, count: int, after: bool, whole: Files, teachers: list[StubWindows], tmp_path: pathlib.Path
):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(place, name, stop_at(getattr(place, name), count, after))
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "run")
    assert "set.jsonl" not in read(tmp_path / "run")
    assert collect(tmp_path / "run") == whole
    assert sum(len(teacher.sampled) for teacher in teachers) <= PROMPTS + CHUNK
    assert len(stub_teacher.scored) <= (PROMPTS + CHUNK) * SAMPLES


def test_a_power_cut_may_take_the_end_of_any_file(whole: Files, teachers: list[StubWindows], tmp_path: pathlib.Path):
    generator = random.Random(0)
    for number in range(12):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ScoreJournal, "append", stop_at(ScoreJournal.append, 3))
            with pytest.raises(KeyboardInterrupt):
                collect(tmp_path / f"run{number}")
        name = ("traces.jsonl", "traces.scores.jsonl", "set.jsonl.part")[number % 3]
        file = tmp_path / f"run{number}" / name
        file.write_bytes(file.read_bytes()[: generator.randrange(file.stat().st_size)])
        assert collect(tmp_path / f"run{number}") == whole, name


def test_samples_of_an_earlier_release_are_scored_without_their_teacher(
    whole: Files, teachers: list[StubWindows], tmp_path: pathlib.Path
):
    (tmp_path / "run").mkdir()
    for name in ("traces.jsonl", "traces.jsonl.settings.json"):
        (tmp_path / "run" / name).write_bytes(whole[name])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ScoreJournal, "append", stop_at(ScoreJournal.append, 2))
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "run")
    assert collect(tmp_path / "run") == whole and not teachers
    assert len(stub_teacher.scored) == (PROMPTS + CHUNK) * SAMPLES


def test_half_a_chunk_of_an_earlier_release_is_sampled_again(
    whole: Files, teachers: list[StubWindows], tmp_path: pathlib.Path
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "traces.jsonl.settings.json").write_bytes(whole["traces.jsonl.settings.json"])
    (tmp_path / "run" / "traces.jsonl").write_bytes(b"".join(whole["traces.jsonl"].splitlines(keepends=True)[:11]))
    assert collect(tmp_path / "run") == whole
    assert teachers[0].sampled == list(range(CHUNK, PROMPTS))


def test_an_edited_prompt_is_answered_anew_and_what_follows_is_judged_anew(
    teachers: list[StubWindows], tmp_path: pathlib.Path
):
    rows = [{**row, "solution": "twelve"} if number == 10 else row for number, row in enumerate(ROWS)]
    expected = collect(tmp_path / "expected", rows)
    collect(tmp_path / "run")
    (tmp_path / "run" / "set.jsonl").unlink()
    teachers.clear()
    stub_teacher.scored.clear()
    files = collect(tmp_path / "run", rows)
    old = files.pop("traces.jsonl.old-1")
    assert files == expected and old.count(b"\n") == PROMPTS
    assert teachers[0].sampled == [10] and len(stub_teacher.scored) == PROMPTS * SAMPLES


def test_scores_of_other_rewards_are_set_aside(
    workdir: pathlib.Path,
    whole: Files,
    teachers: list[StubWindows],
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
):
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "set.jsonl").unlink()
    spec = {"words": {**SPEC["words"], "weight": 2.0}}
    files = collect(tmp_path / "run", judged_by=spec, filters={"min_reward": 1.7, "max_pass_rate": 1.98})
    assert files["set.jsonl"] == whole["set.jsonl"] and not teachers
    assert files["traces.scores.jsonl.old-1"] == whole["traces.scores.jsonl"]
    assert "made by other rewards or filters" in caplog.text


def test_a_set_in_shards(whole: Files, teachers: list[StubWindows], tmp_path: pathlib.Path):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ScoreJournal, "append", stop_at(ScoreJournal.append, 2))
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "run", filters={"rows_per_shard": 5})
    files = collect(tmp_path / "run", filters={"rows_per_shard": 5})
    shards = [files[name] for name in sorted(files) if name.startswith("set-")]
    assert b"".join(shards) == whole["set.jsonl"] and {shard.count(b"\n") for shard in shards[:-1]} == {5}
    assert "set.jsonl" not in files and files["set.stats.json"] == whole["set.stats.json"]


def test_nothing_left_is_one_line_and_is_not_scored_again(teachers: list[StubWindows], tmp_path: pathlib.Path):
    for _ in range(2):
        with pytest.raises(UserError, match="none of the teacher's 116 samples is left, dropped were {'cut_off'"):
            collect(tmp_path / "run", filters={"min_reward": 5.0})
    assert len(stub_teacher.scored) == PROMPTS * SAMPLES and "set.jsonl" not in read(tmp_path / "run")


def test_a_set_takes_the_form_that_is_asked_for(
    teachers: list[StubWindows], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stub_teacher.StubSampler, "decode", lambda self, tokens: TAGGED.format(len(tokens)))
    files = collect(tmp_path / "run", reply="{reasoning} so {answer}", filters={"max_pass_rate": None})
    rows = [json.loads(line) for line in files["set.jsonl"].splitlines()]
    assert rows and all(row["completion"].startswith("x y so ") for row in rows)


TAGGED = "<think>x  y</think><answer>{}</answer>"


def test_its_page_says_what_was_dropped(workdir: pathlib.Path, whole: Files, tmp_path: pathlib.Path):
    page = write_report(workdir, tmp_path / "page.html").read_text()
    statistics = json.loads(whole["set.stats.json"])
    assert f"{statistics['output']['samples']} of 116 samples are kept" in page
    for name, count in statistics["dropped"].items():
        row = f'<th scope="row">{name.replace("_", " ")}</th><td>{count}</td><td>{count / 116:.1%}</td>'
        assert (row in page) == bool(count)
    assert "No metrics yet" not in page


def test_a_bucket_gets_the_files_now_and_then(
    teachers: list[StubWindows], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    sent: list[int] = []
    monkeypatch.setattr(collection, "UPLOAD_SECONDS", 0.0)
    monkeypatch.setattr(staging, "is_staged", lambda folder: True)
    monkeypatch.setattr(staging, "locate", lambda folder: folder)
    monkeypatch.setattr(
        staging, "push", lambda folder: sent.append((folder / "traces.jsonl").read_bytes().count(b"\n"))
    )
    monkeypatch.setattr(collection, "UPLOAD_SHARE", 1e9)
    collect(tmp_path / "run")
    assert sent == [8, 16, 24, 29, 29]
