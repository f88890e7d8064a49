"""Bad inputs of `python -m r1jax.generate`."""

import json
from typing import Any

from tests.inputs.case import NONE, Case, Files, Make, copy_model, folder, lines, with_tokenizer_entry
from tests.inputs.jsonl_files import FILES, PROMPTS
from tests.inputs.model_folders import FOLDERS, TOKENIZERS

PROMPT = lines({"prompt": "1 + 1 ="})
CHAT = lines({"prompt": [{"role": "user", "content": "1 + 1"}]})
SETTINGS = ("out.jsonl", "out.jsonl.settings.json", ".out.jsonl.lock")


def case(name: str, *argv: str, words: tuple[str, ...] = (), files: Files = NONE, **options: Any) -> Case:
    """A case with a sound model, prompts and output unless argv names others; a flag `--x=` without value is left
    out."""
    given = {argument.partition("=")[0] for argument in argv}
    usual = {
        "--model": "{model}",
        "--prompts": "{here}/in.jsonl",
        "--output": "{here}/out.jsonl",
        "--max_new_tokens": "2",
    }
    whole = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    argv = (*whole, *(argument for argument in argv if not argument.endswith("=")))
    return Case(name, argv, words, {"in.jsonl": PROMPT, **files}, **options)


def of_model(name: str, make: Make, words: tuple[str, ...]) -> Case:
    return case(f"model: {name}", "--model={here}/m", words=words, files={"m": make})


def _closed(path: Any, model: Any) -> None:
    path.symlink_to("/proc/1")


FLAGS = [
    case("no model", "--model=", words=("--model",)),
    case("no prompts", "--prompts=", words=("--prompts",)),
    case("no output", "--output=", words=("--output",)),
    case("unknown flag", "--temprature=1", words=("temprature",)),
    case("positional", "stray", words=("stray",)),
    case("temperature text", "--temperature=hot", words=("temperature", "hot")),
    case("temperature nan", "--temperature=nan", words=("temperature", "nan")),
    case("temperature inf", "--temperature=inf", words=("temperature", "inf")),
    case("temperature -1", "--temperature=-1", words=("temperature", "-1")),
    case("top_p 0", "--top_p=0", words=("top_p",)),
    case("top_p 1.5", "--top_p=1.5", words=("top_p",)),
    case("top_p nan", "--top_p=nan", words=("top_p",)),
    case("top_k -1", "--top_k=-1", words=("top_k",)),
    case("top_k 2.5", "--top_k=2.5", words=("top_k",)),
    case("top_k 10^30", "--top_k=1" + "0" * 30, words=("top_k",)),
    case("min_p 2", "--min_p=2", words=("min_p",)),
    case("min_p nan", "--min_p=nan", words=("min_p",)),
    case("num_samples 0", "--num_samples=0", words=("num_samples",)),
    case("num_samples 10^9", "--num_samples=1000000000", words=("num_samples",)),
    case("num_samples 10^30", "--num_samples=1" + "0" * 30, words=("num_samples",)),
    case("max_new_tokens 0", "--max_new_tokens=0", words=("max_new_tokens",)),
    case("max_new_tokens -5", "--max_new_tokens=-5", words=("max_new_tokens",)),
    case("max_new_tokens 10^9", "--max_new_tokens=1000000000", words=("max_new_tokens",)),
    case("max_new_tokens 10^12", "--max_new_tokens=1000000000000", words=("max_new_tokens",)),
    case("seed text", "--seed=one", words=("seed",)),
    case("batch_size 0", "--batch_size=0", words=("batch_size",)),
    case("batch_size -1", "--batch_size=-1", words=("batch_size",)),
    case("dtype int8", "--dtype=int8", words=("dtype", "int8")),
    case("dtype empty", "--dtype=nothing", words=("dtype",)),
    case("mesh without size", "--mesh=tensor", words=("mesh",)),
    case("mesh unknown axis", "--mesh=rows=2", words=("mesh", "rows")),
    case("mesh too large", "--mesh=tensor=3", words=("--mesh", "tensor")),
    case("mesh 0", "--mesh=tensor=0", words=("--mesh",)),
    case("mesh -3", "--mesh=tensor=-3", words=("--mesh",)),
    case("mesh 10^30", "--mesh=tensor=1" + "0" * 30, words=("--mesh",)),
    case("template without question", "--template=hello", words=("--template",)),
    case("template run without one", "--template=run", words=("--template",)),
]

PLACES = [
    case("model missing", "--model={here}/nothing", words=("nothing",)),
    case("model is text", "--model={here}/in.jsonl", words=("in.jsonl",)),
    case("model of 5000 characters", "--model=" + "x" * 5000, words=("--model",)),
    case("model with zero byte", "--model=a\0b", words=("model",)),
    case("gguf empty", "--model={here}/m.gguf", words=("m.gguf",), files={"m.gguf": ""}),
    case("gguf cut off", "--model={here}/m.gguf", words=("m.gguf",), files={"m.gguf": b"GGUF\3\0\0\0"}),
    case(
        "gguf of counts", "--model={here}/m.gguf", words=("m.gguf",), files={"m.gguf": b"GGUF\3\0\0\0" + b"\xff" * 16}
    ),
    case("prompts missing", "--prompts={here}/none.jsonl", words=("none.jsonl", "--prompts")),
    case("prompts a folder", "--prompts={here}/d.jsonl", words=("d.jsonl", "folder"), files={"d.jsonl": folder}),
    case("prompts of no kind", "--prompts={here}/in.txt", words=("in.txt", "--prompts"), files={"in.txt": PROMPT}),
    case("prompts parquet broken", "--prompts={here}/in.parquet", words=("in.parquet",), files={"in.parquet": PROMPT}),
    case(
        "prompts arrayrecord broken",
        "--prompts={here}/in.arrayrecord",
        words=("in.arrayrecord",),
        files={"in.arrayrecord": PROMPT},
    ),
    case("prompts match nothing", "--prompts={here}/*.none.jsonl", words=("--prompts",)),
    case("output exists", words=("out.jsonl", "exists"), files={"out.jsonl": "my notes\n"}),
    case("output is the prompts", "--output={here}/in.jsonl", words=("in.jsonl", "exists")),
    case("output a folder", words=("out.jsonl",), files={"out.jsonl": folder}),
    case("output below a file", "--output={here}/in.jsonl/out.jsonl", words=("in.jsonl",)),
    case("output in /proc", "--output=/proc/none/out.jsonl", words=("/proc/none",)),
    case("output of 300 characters", "--output={here}/" + "x" * 300, words=("--output",)),
    case(
        "output of other settings",
        "--seed=1",
        words=("seed",),
        files={"out.jsonl": PROMPT, "out.jsonl.settings.json": json.dumps({"seed": 0})},
    ),
    case("settings torn", words=("out.jsonl",), files={"out.jsonl": PROMPT, "out.jsonl.settings.json": '{"se'}),
]

ROWS = [
    case(f"prompts: {name}", "--prompts={here}/rows.jsonl", words=(word,), files={"rows.jsonl": content})
    for name, (content, word) in {**FILES, **PROMPTS}.items()
]
ROWS += [
    case(f"tokens {name}", words=("in.jsonl:1", "tokens"), files={"in.jsonl": lines({"tokens": tokens})})
    for name, tokens in {
        "empty": [],
        "negative": [-1],
        "too large": [5, 10**9],
        "texts": ["a"],
        "floats": [1.5],
        "null": None,
        "true": [True],
        "a text": "12",
    }.items()
]
ROWS += [
    case("prompt beyond the positions", words=("in.jsonl:1", "512"), files={"in.jsonl": lines({"prompt": "a" * 5000})}),
    case(
        "no tokenizer",
        "--model={here}/m",
        words=("tokenizer",),
        files={"m": lambda path, model: _without_tokenizer(path, model)},
    ),
]


def _without_tokenizer(path: Any, model: Any) -> None:
    copy_model(path, model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()


EMPTY = {"in.jsonl": CHAT, "m": lambda path, model: _replace_template(path, model, "{# nothing #}")}
TEMPLATES = [
    case(
        f"template: {name}",
        "--model={here}/m",
        words=("template",),
        files={"in.jsonl": CHAT, "m": _with_template(text)},
    )
    for _with_template in [lambda text: lambda path, model: _replace_template(path, model, text)]
    for name, text in {
        "division": "{{ 1 / 0 }}",
        "syntax": "{% if %}",
        "types": "{{ messages + 1 }}",
        "include": "{% include 'x' %}",
        "power": "{{ 9 ** (9 ** 9) }}",
        "long text": "{{ 'a' * 10 ** 10 }}",
        "class": "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
        "raises": "{{ raise_exception('no system message') }}",
        "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "renders nothing": "{# nothing #}",
        "a number": 7,
    }.items()
]


def _replace_template(path: Any, model: Any, text: Any) -> None:
    with_tokenizer_entry(chat_template=text)(path, model)
    (path / "chat_template.jinja").unlink(missing_ok=True)
    if isinstance(text, str):
        (path / "chat_template.jinja").write_text(text)


TEMPLATES += [case("template renders nothing", "--model={here}/m", words=("in.jsonl:1", "no tokens"), files=EMPTY)]


MODELS = [of_model(name, make, words) for name, (make, words) in {**FOLDERS, **TOKENIZERS}.items()]

FINE = [
    case("fine: plain", code=0, new=SETTINGS),
    case("fine: seed -1", "--seed=-1", code=0, new=SETTINGS),
    case("fine: seed 10^30", "--seed=1" + "0" * 30, code=0, new=SETTINGS),
    case(
        "fine: longer than the positions, with a warning", "--max_new_tokens=600", code=0, new=SETTINGS, words=("512",)
    ),
    case("fine: batch_size 10^9", "--batch_size=1000000000", code=0, new=SETTINGS),
    case("fine: byte order mark", code=0, new=SETTINGS, files={"in.jsonl": "\ufeff" + PROMPT}),
    case("fine: CRLF", code=0, new=SETTINGS, files={"in.jsonl": PROMPT.replace("\n", "\r\n")}),
    case("fine: a blank line", code=0, new=SETTINGS, files={"in.jsonl": PROMPT + "\n\n"}),
    case(
        "fine: path with spaces and umlauts",
        "--output={here}/öut put.jsonl",
        code=0,
        new=("öut put.jsonl", ".öut put.jsonl"),
    ),
    case(
        "fine: a broken template that no text needs",
        "--model={here}/m",
        code=0,
        new=SETTINGS,
        files={"m": lambda p, m: _replace_template(p, m, "{{ 1 / 0 }}")},
    ),
    case("fine: prefix of zero width", code=0, new=SETTINGS, files={"in.jsonl": lines({"prompt": "\u200b\u2028"})}),
    case("fine: an empty output file", code=0, new=SETTINGS, files={"x": ""}),
]

CASES = [*FLAGS, *PLACES, *ROWS, *TEMPLATES, *MODELS, *FINE]
