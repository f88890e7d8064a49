"""Bad inputs of `python -m r1jax.evaluate`."""

import json
from typing import Any

from tests.inputs.case import NONE, Case, Files, folder, lines
from tests.inputs.jsonl_files import FILES, PROMPTS, ROW
from tests.inputs.model_folders import TOKENIZERS

PROBLEMS = lines({"prompt": "1 + 1 =", "solution": "2"})
SAMPLES = lines({"prompt": "1 + 1 =", "solution": "2", "completions": [r"\boxed{2}"]})
WRITTEN = ("out.json", "out.samples.jsonl")


def ask(name: str, *argv: str, words: tuple[str, ...] = (), files: Files = NONE, **options: Any) -> Case:
    """A case that asks the sound model unless argv says otherwise; a flag without value is left out."""
    given = {argument.partition("=")[0] for argument in argv}
    usual = {
        "--model": "{model}",
        "--benchmarks": "jsonl={here}/in.jsonl",
        "--output": "{here}/out.json",
        "--max_new_tokens": "2",
    }
    whole = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    argv = (*whole, *(argument for argument in argv if not argument.endswith("=")))
    return Case(name, argv, words, {"in.jsonl": PROBLEMS, **files}, **options)


def score(name: str, *argv: str, words: tuple[str, ...] = (), files: Files = NONE, **options: Any) -> Case:
    """A case that scores completions."""
    given = {argument.partition("=")[0] for argument in argv}
    usual = {"--samples": "{here}/samples.jsonl", "--output": "{here}/out.json"}
    whole = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    argv = (*whole, *(argument for argument in argv if not argument.endswith("=")))
    return Case(name, argv, words, {"samples.jsonl": SAMPLES, **files}, **options)


FLAGS = [
    ask("nothing", "--model=", words=("--model", "--samples")),
    ask("model and samples", "--samples={here}/in.jsonl", words=("--model", "--samples")),
    ask("no benchmark", "--benchmarks=", words=("--benchmarks",)),
    ask("benchmark unknown", "--benchmarks=mathematics", words=("mathematics",)),
    ask("benchmark file missing", "--benchmarks=jsonl={here}/none.jsonl", words=("none.jsonl",)),
    ask(
        "benchmark a folder",
        "--benchmarks=jsonl={here}/d.jsonl",
        words=("d.jsonl", "folder"),
        files={"d.jsonl": folder},
    ),
    ask("benchmark twice", "--benchmarks=jsonl={here}/in.jsonl,jsonl={here}/in.jsonl", words=("twice",)),
    ask("benchmark without file", "--benchmarks=jsonl", words=("jsonl",)),
    ask("benchmark a comma", "--benchmarks=,", words=("--benchmarks",)),
    ask("gsm8k of other columns", "--benchmarks=gsm8k={here}/in.jsonl", words=("question",)),
    ask("limit -1", "--limit=-1", words=("limit",)),
    ask("num_samples 0", "--num_samples=0", words=("num_samples",)),
    ask("num_samples 10^9", "--num_samples=1000000000", words=("num_samples",)),
    ask("temperature nan", "--temperature=nan", words=("temperature",)),
    ask("temperature -1", "--temperature=-1", words=("temperature",)),
    ask("top_p 0", "--top_p=0", words=("top_p",)),
    ask("max_new_tokens 0", "--max_new_tokens=0", words=("max_new_tokens",)),
    ask("max_new_tokens 10^9", "--max_new_tokens=1000000000", words=("max_new_tokens",)),
    ask("batch_size 0", "--batch_size=0", words=("batch_size",)),
    ask("dtype", "--dtype=float8", words=("dtype",)),
    ask("mesh", "--mesh=tensor=3", words=("--mesh",)),
    ask("template", "--template=hello", words=("--template",)),
    ask("model missing", "--model={here}/none", words=("none",)),
    ask("reward with model", "--reward=answer_reward", words=("--reward", "--samples")),
    ask("unknown flag", "--samplse=x", words=("samplse",)),
    ask("positional", "stray", words=("stray",)),
    ask(
        "problem beyond the positions",
        words=("in.jsonl:1", "512"),
        files={"in.jsonl": lines({"prompt": "a" * 5000, "solution": "2"})},
    ),
    ask("problem without solution", words=("in.jsonl:1", "solution"), files={"in.jsonl": lines({"prompt": "a"})}),
    score("no output", "--output=", words=("--output",)),
    score("samples missing", "--samples={here}/none.jsonl", words=("none.jsonl", "--samples")),
    score("samples a folder", "--samples={here}/d.jsonl", words=("d.jsonl", "folder"), files={"d.jsonl": folder}),
    score("more samples than there are", "--num_samples=5", words=("num_samples",)),
    score("num_samples -1", "--num_samples=-1", words=("num_samples",)),
    score("reward unknown", "--reward=answer_rewrd", words=("answer_rewrd",)),
    score("reward a comma", "--reward=,", words=("--reward",)),
    score("reward of no module", "--reward=nothing.there:reward", words=("nothing.there",)),
    score("reward of needed column", "--reward=code_reward", words=("code_reward",)),
]

PLACES = [
    score("output exists", words=("out.json", "exists"), files={"out.json": "my notes"}),
    score("samples file exists", words=("out.samples.jsonl", "exists"), files={"out.samples.jsonl": "my notes"}),
    score("output is the samples", "--output={here}/samples.jsonl", words=("samples.jsonl", "exists")),
    score(
        "output's samples are the samples",
        "--samples={here}/out.samples.jsonl",
        words=("out.samples.jsonl", "exists"),
        files={"out.samples.jsonl": SAMPLES},
    ),
    score("output a folder", words=("out.json",), files={"out.json": folder}),
    score("output in /proc", "--output=/proc/none/out.json", words=("/proc/none",)),
    score("output of 300 characters", "--output={here}/" + "x" * 300, words=("--output",)),
    score("page exists", "--reward=answer_reward", words=("out.html", "exists"), files={"out.html": "my notes"}),
    score("page in /proc", "--reward=answer_reward", "--output=/proc/none/out.json", words=("/proc/none",)),
    score("output of another program", words=("out.json", "exists"), files={"out.json": json.dumps({"scores": 1})}),
    ask("output exists, model", words=("out.json", "exists"), files={"out.json": "my notes"}),
    ask("output is the problems", "--output={here}/in.jsonl", words=("in.jsonl", "exists")),
    ask("output below a file", "--output={here}/in.jsonl/out.json", words=("in.jsonl",)),
    ask("output in /proc, model", "--output=/proc/none/out.json", words=("/proc/none",)),
]

ROWS = [
    score(f"samples: {name}", "--samples={here}/rows.jsonl", words=(word,), files={"rows.jsonl": content})
    for name, (content, word) in FILES.items()
]
ROWS += [
    score(f"completions {name}", words=("samples.jsonl:1",), files={"samples.jsonl": lines({**ROW, **changes})})
    for name, changes in {
        "empty": {"completions": []},
        "numbers": {"completions": [1, 2]},
        "a text": {"completions": "2"},
        "null": {"completions": None},
        "without solution": {"solution": None},
        "solution a list": {"solution": []},
        "tokens a number": {"completion_tokens": 7},
        "tokens of numbers": {"completion_tokens": [7, 7]},
        "tokens of one only": {"completion_tokens": [[1]]},
        "reasons a number": {"finish_reasons": 7},
        "reasons of one only": {"finish_reasons": ["stop"]},
    }.items()
]
ROWS += [
    ask(f"problems: {name}", "--benchmarks=jsonl={here}/rows.jsonl", words=(word,), files={"rows.jsonl": content})
    for name, (content, word) in {**FILES, **PROMPTS}.items()
]
MODELS = [
    ask(f"model: {name}", "--model={here}/m", words=words, files={"m": make})
    for name, (make, words) in TOKENIZERS.items()
]
FINE = [
    ask("fine: plain", code=0, new=WRITTEN),
    ask("fine: seed -1", "--seed=-1", code=0, new=WRITTEN),
    ask("fine: no output", "--output=", code=0),
    ask("fine: limit beyond the rows", "--limit=1000000", code=0, new=WRITTEN),
    score("fine: samples", code=0, new=WRITTEN),
    score("fine: rewards", "--reward=answer_reward,number_reward", code=0, new=("out.html",)),
]

CASES = [*FLAGS, *PLACES, *ROWS, *MODELS, *FINE]
