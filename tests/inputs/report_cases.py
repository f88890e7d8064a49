"""Bad inputs of `python -m r1jax.report`."""

import json
from typing import Any

from tests.inputs.case import NONE, Case, Files, folder, lines

METRICS = lines({"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5})
PAGE = ("run/report.html",)


def case(name: str, *argv: str, words: tuple[str, ...] = (), files: Files = NONE, **options: Any) -> Case:
    return Case(name, argv or ("{here}/run",), words, {"run/metrics.jsonl": METRICS, **files}, **options)


def of_metrics(name: str, content: str | bytes, *words: str) -> Case:
    return case(f"metrics: {name}", words=("metrics.jsonl", *words), files={"run/metrics.jsonl": content})


FLAGS = [
    Case("no folder", (), ("folder",)),
    case("folder missing", "{here}/none", words=("none",)),
    case("folder is a file", "{here}/run/metrics.jsonl", words=("metrics.jsonl",)),
    case("folder empty", "{here}/e", words=("metrics.jsonl",), files={"e": folder}),
    case("one of two missing", "{here}/run", "{here}/none", words=("none",)),
    case("unknown flag", "{here}/run", "--outptu=x", words=("outptu",)),
    case("output a folder", "{here}/run", "--output={here}/d", words=("--output",), files={"d/x": "my notes"}),
    case("output in /proc", "{here}/run", "--output=/proc/none/p.html", words=("/proc/none",)),
    case("output below a file", "{here}/run", "--output={here}/run/metrics.jsonl/p.html", words=("metrics.jsonl",)),
    case("output is the metrics", "{here}/run", "--output={here}/run/metrics.jsonl", words=("metrics.jsonl", "exists")),
    case(
        "output is notes",
        "{here}/run",
        "--output={here}/n.html",
        words=("n.html", "exists"),
        files={"n.html": "my notes"},
    ),
    case("output of 300 characters", "{here}/run", "--output={here}/" + "x" * 300, words=("--output",)),
]
FILES = [
    of_metrics("no JSON", METRICS + "hello\n" + METRICS, "3"),
    of_metrics("a list", "[1]\n" + METRICS, "1"),
    of_metrics("without step", lines({"loss": 1.0}) + METRICS, "step"),
    of_metrics("step is text", lines({"step": "one"}) + METRICS, "step"),
    of_metrics("step is a list", lines({"step": [1]}) + METRICS, "step"),
    of_metrics("step is null", lines({"step": None}) + METRICS, "step"),
    of_metrics("binary", b"\xff\xfe\x00" * 100 + b"\n" + METRICS.encode()),
    of_metrics("deep", "[" * 100_000 + "\n" + METRICS),
    of_metrics("long number", '{"step": ' + "9" * 100_000 + "}\n" + METRICS),
    case("metrics a folder", words=("metrics.jsonl",), files={"run/metrics.jsonl": folder}),
    case("config no JSON", words=("config.json",), files={"run/config.json": "{"}),
    case("config a list", words=("config.json",), files={"run/config.json": "[1]"}),
    case("config binary", words=("config.json",), files={"run/config.json": b"\xff\xfe\x00"}),
    case("samples no JSON", words=("samples.jsonl",), files={"run/samples.jsonl": "hello\n" + METRICS}),
    case(
        "samples without step",
        words=("samples.jsonl",),
        files={"run/samples.jsonl": lines({"prompt": "a"}, {"step": 1})},
    ),
    case("samples a folder", words=("samples.jsonl",), files={"run/samples.jsonl": folder}),
    case("pipeline no JSON", "{here}/p", words=("pipeline.json",), files={"p/pipeline.json": "{"}),
    case("pipeline a list", "{here}/p", words=("pipeline.json",), files={"p/pipeline.json": "[]"}),
    case("pipeline empty", "{here}/p", words=("pipeline.json",), files={"p/pipeline.json": "{}"}),
    case("stages a number", "{here}/p", words=("pipeline.json",), files={"p/pipeline.json": '{"stages": 7}'}),
    case("stage a text", "{here}/p", words=("pipeline.json",), files={"p/pipeline.json": '{"stages": ["a"]}'}),
    case("stage empty", "{here}/p", words=("pipeline.json",), files={"p/pipeline.json": '{"stages": [{}]}'}),
]
FINE = [
    case("fine: plain", code=0, new=PAGE),
    case("fine: no row yet", code=0, new=PAGE, files={"run/metrics.jsonl": ""}),
    *(
        case(
            f"fine: {value}",
            code=0,
            new=PAGE,
            files={"run/metrics.jsonl": f'{{"step": 0, "loss": {value}}}\n' + METRICS},
        )
        for value in ("NaN", "Infinity", "1e999")
    ),
    case("fine: config of a later format", code=0, new=PAGE, files={"run/config.json": json.dumps({"format": 99})}),
    case("fine: notes in the page's place", code=0, new=PAGE, files={"run/report.html": "my notes"}),
    case("fine: torn last line", code=0, new=PAGE, files={"run/metrics.jsonl": METRICS + '{"step": 3, "lo'}),
    case("fine: null", code=0, new=PAGE, files={"run/metrics.jsonl": METRICS + lines({"step": 3, "loss": None})}),
    case(
        "fine: hostile text",
        code=0,
        new=PAGE,
        files={
            "run/samples.jsonl": lines(
                {"step": 1, "prompt": "</script><script>alert(1)</script>", "completion": "\ud83d\u2028"}
            )
        },
    ),
    case(
        "fine: two runs",
        "{here}/run",
        "{here}/two",
        code=0,
        new=("comparison.html",),
        files={"two/metrics.jsonl": METRICS},
    ),
]

CASES = [*FLAGS, *FILES, *FINE]
