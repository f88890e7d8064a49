r"""Benchmarks by name: the source of their problems, the columns, and the prompt.

`NAME` reads the data set from the hub, `NAME=FILE` a file of it (with its publishers' columns), and `jsonl=FILE` any
file with `prompt` and `solution`. DeepSeek's protocol puts the question as one user turn that asks for steps and a
final answer in `\boxed{}`, without examples and without a system turn (DeepSeek-R1, arXiv:2501.12948).
"""

import dataclasses
import pathlib
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from r1jax.core.errors import UserError
from r1jax.data.files import read_rows
from r1jax.data.tasks import Prompt, RowError, check_prompt, choose_template
from r1jax.eval.extraction import read_gold
from r1jax.eval.prompting import Prompting
from r1jax.text.prompts import BOXED, MULTIPLE_CHOICE, fill

Columns = Mapping[str, Any]


class Problem(NamedTuple):
    """place: FILE:LINE; prompt: text or messages; gold: the reference answer; columns: of the row, for rewards."""

    place: str
    prompt: Prompt
    gold: str
    columns: Columns = {}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """hub: data set (`org/name`, `org/name:split` or `org/name:config:split`); read: columns -> (question, gold);
    wording: prompt template of the question.
    """

    hub: str
    read: Callable[[Columns], tuple[str, str]]
    wording: str = BOXED


def load_benchmark(
    spec: str, *, template: str = "chat", limit: int = 0, prompting: Prompting | None = None
) -> tuple[str, list[Problem]]:
    """Name and problems of `NAME`, `NAME=FILE` or `jsonl=FILE`; the first `limit` of them (0: all).

    template: `chat` uses the benchmark's wording and the model's chat template; anything else is a raw template, by
    name or as text with {question}. A prompt of a `jsonl` file that is more than a question is used unchanged.
    prompting: how a run asks, in place of `template`: a question is put as the run puts its own; a benchmark's wording
    is used only where the run has neither a raw template nor grading.

    Raises UserError for an unknown name, a missing file or a malformed row (with file and line).
    """
    name, given, path = spec.partition("=")
    if name != "jsonl" and name not in BENCHMARKS:
        raise UserError(f"--benchmarks: unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}, jsonl=FILE")
    if (given or name == "jsonl") and not path:
        raise UserError(f"--benchmarks: {name}= needs a file name after it")
    benchmark = BENCHMARKS.get(name)
    make = _make_prompts(benchmark, template) if prompting is None else _ask_as_run(benchmark, prompting)
    rows = read_rows(path or BENCHMARKS[name].hub, key=f"--benchmarks={name}")[: limit or None]
    if not rows:
        raise UserError(f"{path or name} has no problems (--benchmarks={spec})")
    problems = []
    for place, columns in rows:
        try:
            problems.append(Problem(place, *make(columns)))
        except (RowError, KeyError) as error:
            reason = f"no column {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{place}: {reason} (--benchmarks={spec})") from None
    return (pathlib.Path(path).stem if name == "jsonl" else name), problems


def _ask_as_run(benchmark: Benchmark | None, prompting: Prompting) -> Callable[[Columns], tuple[Prompt, str, Columns]]:
    is_bare = prompting.grading is not None or not prompting.takes_turns

    def make(columns: Columns) -> tuple[Prompt, str, Columns]:
        if benchmark is None:
            built = prompting.build(columns)
            return built["prompt"], _read_answer(built["solution"]), built
        question, gold = benchmark.read(columns)
        prompt = prompting.wrap(question if is_bare else fill(benchmark.wording, question))
        return prompt, gold, {**columns, "question": question, "solution": gold}

    return make


def _make_prompts(benchmark: Benchmark | None, template: str) -> Callable[[Columns], tuple[Prompt, str]]:
    try:
        wrap = choose_template(template)
    except UserError as error:
        raise UserError(str(error).replace("config.data.template", "--template")) from None

    def make(columns: Columns) -> tuple[Prompt, str]:
        if benchmark is None:
            prompt, gold = check_prompt(columns["prompt"]), columns["solution"]
            is_question = template != "chat" and isinstance(prompt, str)
            return (wrap(str(prompt)) if is_question else prompt), _read_answer(gold)
        question, gold = benchmark.read(columns)
        return wrap(fill(benchmark.wording, question) if template == "chat" else question), gold

    return make


def _read_answer(value: Any) -> str:
    """Reference answer as text: 145.0 becomes "145", a worked solution its final answer."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else read_gold(str(value))
    if not text:
        raise RowError("the gold answer is empty")
    return text


def _read_problem(columns: Columns) -> tuple[str, str]:
    """Question from `problem` or `question` and answer from `answer`, the usual columns of mathematical sets."""
    named = {name.lower(): value for name, value in columns.items()}
    question = named["problem"] if "problem" in named else named["question"]
    return str(question).strip(), _read_answer(named["answer"])


def _read_svamp(columns: Columns) -> tuple[str, str]:
    body = str(columns["Body"]).strip()
    question = f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {str(columns['Question']).strip()}"
    return question, _read_answer(columns["Answer"])


def _read_gpqa(columns: Columns) -> tuple[str, str]:
    """Question with its four answers in an order drawn from the question's text, so that it is the same in
    every run.
    """
    question = str(columns["Question"]).strip()
    options = [str(columns[name]).strip() for name in ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))]
    order = random.Random(f"gpqa {question}").sample(range(4), 4)
    listed = [f"{letter}) {options[number]}" for letter, number in zip("ABCD", order, strict=True)]
    return "\n".join([question, "", *listed]), "ABCD"[order.index(0)]


BENCHMARKS = {
    "gsm8k": Benchmark("openai/gsm8k:main:test", _read_problem),
    "svamp": Benchmark("ChilleD/SVAMP:test", _read_svamp),
    "aime24": Benchmark("HuggingFaceH4/aime_2024:train", _read_problem),
    "aime25": Benchmark("math-ai/aime25:test", _read_problem),
    "math500": Benchmark("HuggingFaceH4/MATH-500:test", _read_problem),
    "gpqa": Benchmark("Idavidrein/gpqa:gpqa_diamond:train", _read_gpqa, MULTIPLE_CHOICE),
}
