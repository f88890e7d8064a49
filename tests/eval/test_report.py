"""The report file: self-contained, its own script only, hostile texts inert, nothing left out in silence."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from r1jax import report as command
from r1jax.core.errors import UserError
from r1jax.core.metrics import MetricsWriter
from r1jax.eval.report import POINT_LIMIT, write_comparison, write_report

MakeRun = Callable[..., Path]

HOSTILE = (
    "</script><script>document.title='OWNED'</script>",
    "<img src=x onerror=\"document.title='OWNED'\">",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
    "\u2028'\"&lt;&#60;{{ 7 * 7 }}${7*7}",
)


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of each element that holds some."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture
def hostile_run(tmp_path: Path) -> Path:
    """A run whose texts, names and config values all try to run something."""
    workdir = tmp_path / "<b>run&"
    writer = MetricsWriter(workdir, tensorboard=False)
    config = {"model": HOSTILE[0], "task": HOSTILE[1], "a": {HOSTILE[2]: HOSTILE[3]}}
    (workdir / "config.json").write_text(json.dumps(config))
    names = {f"rewards/{text}/mean": 0.5 for text in HOSTILE} | {f"eval/{HOSTILE[1]}/pass@1": 0.5, HOSTILE[0]: 1.0}
    for step in (1, 2):
        writer.write(step, {"reward": 0.5, **names})
    rows = [
        {"prompt": [{"role": text, "content": text}], "completion": text, "rewards": {text: 1.0}} for text in HOSTILE
    ]
    writer.write_samples(2, [{**row, "finish_reason": row["completion"], row["completion"]: 1} for row in rows])
    writer.close()
    return workdir


def test_page_is_self_contained(make_run: MakeRun, tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run"))
    page = Page(path)
    assert path == tmp_path / "run" / "report.html"
    assert {"img", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    addresses = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert all(value is not None and value.startswith(("#", "data:,")) for value in addresses)
    assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_only_the_pages_own_script_is_admitted(hostile_run: Path) -> None:
    page = Page(write_report(hostile_run))
    assert [found.get("type") for tag, found in page.tags if tag == "script"] == ["application/json", None]
    (policy,) = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_hostile_texts_are_kept_and_make_no_tags(hostile_run: Path) -> None:
    page = Page(write_report(hostile_run))
    assert [row["completion"] for row in page.data["samples"]] == list(HOSTILE)
    assert {"img", "b", "svg"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [found for _, found in page.tags if any(name.startswith("on") for name in found)]
    assert HOSTILE[0] in page.text and HOSTILE[3] in page.text, "config values are shown as they are"


def test_half_characters_and_odd_line_ends_are_kept_apart(tmp_path: Path) -> None:
    """Half a surrogate pair has no UTF-8; U+2028 and U+0085 end no line of a file."""
    writer = MetricsWriter(tmp_path / "run", tensorboard=False)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"note": "\ud83d"}))
    writer.write(1, {"reward": 0.5})
    texts = ["a \ud83d b", "a\u2028b\u0085c\x0cd", "\udc80"]
    writer.write_samples(1, [{"prompt": text, "completion": text, "rewards": {}} for text in texts])
    writer.close()
    page = Page(write_report(tmp_path / "run"))
    assert len(page.data["samples"]) == 3 and page.data["samples"][1]["completion"] == texts[1]


def test_headline_and_facts(make_run: MakeRun, tmp_path: Path) -> None:
    text = " ".join(Page(write_report(make_run(tmp_path / "run"))).text.split())
    for part in ("run", "models/SmolLM2-135M-Instruct", "addition", "step 0 → step 60, ± one standard error"):
        assert part in text
    for measure in ("strict, sampled", "strict, greedy", "lenient, sampled", "format"):
        assert measure in text
    assert "points" in text and "rewards.r1_format_reward.weight" in text


def test_samples_left_out_are_counted_on_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", steps=50, samples=16)
    page = Page(write_report(workdir))
    assert len(page.data["samples"]) <= 300
    steps = [row["step"] for row in page.data["samples"]]
    assert {1, 50} <= set(steps)
    assert f"{len(steps)} of 800 samples, from {len(set(steps))} of 50 steps" in page.text
    assert "all 8 samples" in Page(write_report(make_run(tmp_path / "short", steps=1, samples=8))).text


def test_long_curves_are_thinned_and_the_page_is_told(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "run", tensorboard=False)
    for step in range(1, 2 * POINT_LIMIT + 2):
        writer.write(step, {"reward": float(step)} | ({"eval/a/pass@1": 0.5} if step % 1000 == 0 else {}))
    (run,) = Page(write_report(tmp_path / "run")).data["runs"]
    steps, values = run["series"]["reward"]
    assert run["stride"] == 3 and len(steps) <= POINT_LIMIT
    assert (steps[0], values[0], steps[-1]) == (3, 2.0, 2 * POINT_LIMIT + 1)
    assert run["series"]["eval/a/pass@1"][0] == [1000, 2000, 3000]


def test_a_run_may_lack_anything_but_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert "No metrics yet" in Page(write_report(tmp_path)).text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "kl": null}\n{"step": 2, "lo')
    (tmp_path / "samples.jsonl").write_text('{"step": 1, "completion": "a"}\n{"step": 1, "compl')
    page = Page(write_report(tmp_path))
    assert list(page.data["runs"][0]["series"]) == ["loss"]
    assert "no config.json" in page.text and "all 1 samples" in page.text


def test_comparison_tells_runs_apart(make_run: MakeRun, tmp_path: Path) -> None:
    workdirs = [make_run(tmp_path / name / "zero", seed=seed, steps=12) for seed, name in enumerate("ab")]
    page = Page(write_comparison(workdirs, tmp_path / "both.html"))
    assert [run["label"] for run in page.data["runs"]] == ["a/zero", "b/zero"]
    assert {row["run"] for row in page.data["samples"]} == {0, 1}
    rows = page.text[page.text.index("differences only") :]
    assert "2e-05" in rows and "2 runs compared" in page.text
    same = [found for tag, found in page.tags if tag == "tr" and "data-same" in found]
    assert len(same) > 10


def test_the_same_run_twice_is_numbered(make_run: MakeRun, tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "zero", steps=2)
    page = Page(write_comparison([workdir, workdir], tmp_path / "both.html"))
    assert [run["label"] for run in page.data["runs"]] == ["zero (1)", "zero (2)"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\nnonsense\n{"step": 2}\n', r"metrics\.jsonl:2:"),
        ("samples.jsonl", '{"prompt": "no step"}\n', r"samples\.jsonl:1:"),
        ("config.json", "{", r"config\.json: a config must be JSON"),
        ("config.json", "[]", r"config\.json: a config must be a JSON object, got list"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)


def test_command_writes_one_or_several(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make_run(tmp_path / name, steps=2)
    assert command.main(["report", "a"]) == command.main(["report", "a", "b"]) == 0
    assert command.main(["report", "b", "--output=c.html"]) == 0
    assert sorted(path.name for path in tmp_path.glob("**/*.html")) == ["c.html", "comparison.html", "report.html"]
    assert (tmp_path / "comparison.html").exists(), "beside the runs that it compares"
    assert not list(tmp_path.glob("**/*.draft"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "folder of a run is missing"),
        (["nowhere"], "no such folder: nowhere"),
        (["."], "has no metrics.jsonl"),
        (["--colour=red"], "Unknown command line flag 'colour'"),
        (["run", "--output=nowhere/report.html"], "cannot be written to nowhere/report.html"),
    ],
)
def test_command_says_one_clear_line(
    args: list[str],
    message: str,
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", steps=1)
    assert command.main(["report", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_watched_page_reloads_until_the_watch_ends(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, pages = make_run(tmp_path / "run", steps=2), []

    def wait(seconds: float) -> None:
        pages.append((workdir / "report.html").read_text())
        if len(pages) == 3:
            raise KeyboardInterrupt
        with open(workdir / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 9 + len(pages), "reward": 0.5}) + "\n")

    monkeypatch.setattr(command.time, "sleep", wait)
    monkeypatch.setattr(command, "find_times", lambda workdirs: {workdir: len(pages)})
    assert command.main(["report", str(workdir), "--watch"]) == 0
    reload = '<meta http-equiv="refresh" content="15">'
    assert all(reload in page for page in pages) and pages[2] != pages[0]
    last = (workdir / "report.html").read_text()
    assert reload not in last and "[10,11]" not in pages[0]


def test_help_is_for_newcomers(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", "--help"]) == 0
    out = capsys.readouterr().out
    assert "python -m r1jax.report runs/grpo_zero" in out and "--output" in out


def test_a_report_needs_no_jax(make_run: MakeRun, tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", steps=2)
    code = "import sys; sys.modules['jax'] = None; from r1jax.report import main; sys.exit(main(sys.argv))"
    subprocess.run([sys.executable, "-c", code, str(workdir)], check=True, env={"PYTHONPATH": ":".join(sys.path)})
