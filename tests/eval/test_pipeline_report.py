"""The page of a pipeline: what came of what, every model's score, replies as inert text."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1jax import report as command
from r1jax.core.errors import UserError
from r1jax.core.metrics import MetricsWriter
from r1jax.eval.pipeline_report import compare, tabulate, write_story
from tests.eval.test_report import HOSTILE, Page

SCORES = {"format_rate": 0.9, "language": 0.75, "mixed": 0.5, "mean_length": 12.5}


def entry(number: int, name: str, stage: str, takes: list[str], **more: Any) -> dict[str, Any]:
    facts = {"name": name, "folder": f"{number:02}_{name}", "stage": stage, "takes": takes, "status": "done"}
    return {**facts, "init": "", "label": "", "seconds": 60.0, "metrics": {}, **more}


def measured(accuracy: float, **more: float) -> dict[str, float]:
    return {"accuracy": accuracy, "accuracy_stderr": 0.03, **SCORES, **more}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A finished stage of data, a base, two reinforced models, one stage that was skipped and one under way."""
    entries = [
        entry(1, "data", "synthesize", []),
        entry(2, "base", "sft", ["data"], label="Base", metrics=measured(0.2, steps=3, flops=1e12, tokens=100)),
        entry(3, "zero", "grpo", ["base", "data"], init="base", label="R1-Zero", metrics=measured(0.8, steps=2)),
        entry(4, "again", "grpo", ["zero"], init="zero", label="R1", metrics=measured(0.9, steps=2, flops=2e12)),
        {**entry(5, "skipped", "sft", ["zero"], init="zero", label="Dev"), "status": "skipped"},
        {**entry(6, "last", "sft", ["again"], init="again", label="Last"), "status": "running", "why": "zero changed"},
    ]
    comparison = {"once": ["zero"], "twice": ["zero", "again"], "never": ["last"]}
    (tmp_path / "pipeline.json").write_text(json.dumps({"stages": entries, "comparison": comparison}))
    for number, text in ((2, HOSTILE[0]), (3, HOSTILE[1]), (4, "<think>a</think>")):
        folder = tmp_path / entries[number - 1]["folder"]
        writer = MetricsWriter(folder, tensorboard=False)
        writer.write(1, {"reward": 0.5, "loss": 0.1})
        writer.close()
        rows = [{"problem": HOSTILE[2], "gold": "7", "completions": [text], "correct": [number == 4]}] * 3
        (folder / "evaluation.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_page_tells_every_stage_and_links_its_page(pipeline: Path):
    page = Page(write_story(pipeline))
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert {"02_base/report.html", "03_zero/report.html", "04_again/report.html"} <= links
    for text in ("R1-Zero", "80.0% ± 3.0", "75.0%", "skipped", "running"):
        assert text in page.text
    assert [run["label"] for run in page.data["runs"]] == ["R1-Zero", "R1"]
    paths = [attributes["class"] for tag, attributes in page.tags if tag == "path"]
    assert paths.count("model") == 4 and len(paths) == 5


def test_texts_of_models_are_inert(pipeline: Path):
    path = write_story(pipeline)
    page = Page(path)
    assert len(page.scripts) == 2, "the data and the page's own script"
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe")]
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text
    assert page.text.count("wrong") == 6 and page.text.count("right") >= 3


def test_what_all_problems_begin_with_is_told_by_none(pipeline: Path):
    shown = "Answer in few words and show how you came to it, as in this example.\nWhat is 34 + 25? 59\n"
    for file in pipeline.glob("*/evaluation.samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        asked = [{**row, "problem": f"{shown}What is {number} + 25?"} for number, row in enumerate(rows)]
        file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    page = Page(write_story(pipeline))
    assert "… What is 2 + 25?" in page.text
    assert "few words" not in page.text


def test_ways_are_compared_by_all_their_work(pipeline: Path):
    record = json.loads((pipeline / "pipeline.json").read_text())
    ways = compare(record["stages"], record["comparison"])
    assert [(way["model"], way["accuracy"], way["FLOP"]) for way in ways] == [
        ("once", "80.0% ± 3.0", "0.00e+00"),
        ("twice", "90.0% ± 3.0", "2.00e+12"),
    ]
    assert [row["model"] for row in tabulate(record["stages"])] == ["Base", "R1-Zero", "R1"]


def test_the_command_writes_it(pipeline: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["report", str(pipeline)]) == 0
    assert capsys.readouterr().out.strip() == str(pipeline / "report.html")
    assert 'id="stages"' in (pipeline / "report.html").read_text()


def test_before_anything_was_reinforced(pipeline: Path):
    record = json.loads((pipeline / "pipeline.json").read_text())
    record["stages"] = record["stages"][:2]
    (pipeline / "pipeline.json").write_text(json.dumps(record))
    assert "Base" in Page(write_story(pipeline)).text


def test_a_torn_record_is_told(tmp_path: Path):
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        write_story(tmp_path)


def test_odd_line_ends_and_half_characters_do_not_stop_the_page(pipeline: Path):
    row = {"problem": "a\u2028b\u0085c", "gold": "7", "completions": ["d\u2028e"], "correct": [True]}
    half = {"problem": "\ud83d", "gold": "7", "completions": ["\udc80"], "correct": [False]}
    text = json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(half) + "\n"
    for file in pipeline.glob("*/evaluation.samples.jsonl"):
        file.write_text(text, "utf-8")
    assert "d\u2028e" in Page(write_story(pipeline)).text
