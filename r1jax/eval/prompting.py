"""How a run asks its model: prompt template, worked example, stop ids, sampling, and how an answer is read and judged.

A run writes it as `prompting.json` into `model/` of its workdir, and `convert` into the folder that it exports, so that
whoever measures or uses the model can ask as the run did. For a workdir of an earlier version it is derived from the
run's config.json.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from r1jax.core.errors import UserError
from r1jax.core.resolution import resolve
from r1jax.core.sections import to_json, to_values, unpack
from r1jax.core.structs import SamplingConfig
from r1jax.data.tasks import (
    EXTRACTORS,
    RAW_TEMPLATES,
    Example,
    Prompt,
    TaskConfig,
    check_prompt,
    choose_template,
    to_text,
)
from r1jax.eval.held_out import EvalConfig
from r1jax.eval.saved_config import CONFIG_FILE, read_config_file
from r1jax.rewards.registry import REWARDS
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.names import find_model
from r1jax.weights.pretrained import PROMPTING_FILE, find_description

log = logging.getLogger(__name__)

FORMAT = 1
RUN = "run"  # the template's name that stands for the one MODEL carries
SAMPLING_KEYS = tuple(field.name for field in dataclasses.fields(SamplingConfig))


@dataclasses.dataclass(frozen=True)
class Grading:
    """Rewards that judge an answer, by name, as in the `eval` section of a config.

    Attributes:
      strict: rewards that must all be 1 for an answer to count.
      lenient: reward of the lenient score.
      format: reward that measures the format of a reply; "" is none.
    """

    strict: tuple[str, ...]
    lenient: str
    format: str = ""

    def to_config(self, name: str) -> EvalConfig:
        """The same as an `eval` section, for problems of this name."""
        return EvalConfig(name, strict=self.strict, lenient=self.lenient, format=self.format)


@dataclasses.dataclass(frozen=True)
class Prompting:
    """How a model is asked.

    Attributes:
      template: `chat` (one user message for the model's chat template), or a text with {question}.
      example: worked example that a raw template shows before the question.
      stop_ids: ids that end a completion; empty: those of the tokenizer.
      sampling: values of the sampling keys (temperature, top_k, top_p, min_p, max_new_tokens) that the run set.
      columns: column of a problem (`prompt`, `solution`) -> column of the run's data file.
      extractor: way to take the solution out of its column, or None (data/tasks.py).
      grading: rewards that judge an answer; None: by the last number, letter or expression in the requested place.
    """

    template: str = "chat"
    example: Example | None = None
    stop_ids: tuple[int, ...] = ()
    sampling: dict[str, int | float] = dataclasses.field(default_factory=dict)
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    extractor: str | None = None
    grading: Grading | None = None

    def __post_init__(self) -> None:
        choose_template(self.template, self.example)
        if self.extractor is not None and self.extractor not in EXTRACTORS:
            raise UserError(f"extractor must be one of {', '.join(EXTRACTORS)} or null, got {self.extractor!r}")
        for key in self.sampling:
            if key not in SAMPLING_KEYS:
                raise UserError(f"sampling may hold {', '.join(SAMPLING_KEYS)}, got {key!r}")

    @property
    def takes_turns(self) -> bool:
        """Whether a prompt can hold several turns: the chat template does, a raw template holds one question."""
        return self.template == "chat"

    def wrap(self, prompt: Prompt) -> Prompt:
        """The prompt of a question. Messages, and a text that begins and ends as the template does, are kept."""
        if not isinstance(prompt, str):
            return prompt
        render = choose_template(self.template, self.example)
        if not self.takes_turns:
            head, _, tail = str(render("{question}")).rpartition("{question}")
            if head and prompt.startswith(head) and prompt.endswith(tail):
                return prompt
        return render(prompt)

    def build(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """A row of a problem file as the run makes one of its own: the columns, `prompt` from the template, `question`,
        and the extracted `solution`. A file without the run's columns must hold `prompt`, and `solution` as it is.

        Raises RowError or KeyError for a row without a usable prompt or solution.
        """
        built, extract = dict(columns), EXTRACTORS.get(self.extractor or "", to_text)
        if self.columns and all(theirs in columns for theirs in self.columns.values()):
            built |= {ours: columns[theirs] for ours, theirs in self.columns.items()}
        else:
            extract = to_text
        built["solution"] = extract(built["solution"])
        prompt = check_prompt(built["prompt"])
        if isinstance(prompt, str):
            built.setdefault("question", prompt)
        return built | {"prompt": self.wrap(prompt)}

    def describe(self) -> str:
        """Template, sampling and grading in one line."""
        named = {text: name for name, text in RAW_TEMPLATES.items()}
        template = named.get(self.template, self.template if self.takes_turns else "one of its own")
        parts = [f"template {template}{' with a worked example' if self.example else ''}"]
        off = {key: getattr(SamplingConfig, key) for key in ("top_k", "top_p", "min_p")}
        own = {key: self.sampling[key] for key in SAMPLING_KEYS if key in self.sampling}
        parts += [f"{key} {value:g}" for key, value in own.items() if value != off.get(key)]
        if self.grading:
            parts.append(f"strict is {' and '.join(self.grading.strict)}")
        return ", ".join(parts)

    def to_text(self) -> str:
        """The content of prompting.json."""
        return to_json({"format": FORMAT, **to_values(self)})


def make_prompting(config: Mapping[str, Any], stop_ids: tuple[int, ...] = ()) -> Prompting | None:
    """How the run of a config asks: its values, nested and complete or not. None for a run that trains on no texts.

    Raises UserError for a section that is not today's.
    """
    data, sampling = config.get("data"), config.get("rollout")
    if not isinstance(data, Mapping) or not (config.get("model") or config.get("student")):
        return None
    if "sources" in data:  # supervised: the template of its prompts, if all sources have the same
        templates = {source.get("template", "chat") for source in data["sources"].values()}
        return Prompting(_spell(templates.pop()), stop_ids=stop_ids) if len(templates) == 1 else None
    if "source" not in data:
        return None
    task = resolve(TaskConfig, data).settings
    asked = Prompting(
        _spell(task.template), task.shown_example, stop_ids, columns=task.columns, extractor=task.extractor
    )
    if not isinstance(sampling, Mapping) or not isinstance(config.get("eval"), Mapping):
        return asked
    measured = resolve(EvalConfig, config["eval"]).settings
    own = {key: sampling.get(key, getattr(SamplingConfig, key)) for key in SAMPLING_KEYS}
    own["temperature"] = measured.temperature
    return dataclasses.replace(asked, sampling=own, grading=Grading(measured.strict, measured.lenient, measured.format))


def read_prompting(model: str | pathlib.Path) -> Prompting | None:
    """How a MODEL was asked where it carries that, or where its run's config.json tells it; else None.

    Raises UserError for a MODEL that is not there, and for a prompting.json that cannot be read.
    """
    path = find_model(model)
    if path.is_file():
        return None
    folder = find_description(path)
    is_run = folder != path
    if (folder / PROMPTING_FILE).is_file():
        return _read_file(folder / PROMPTING_FILE, is_run=is_run)
    return derive_prompting(folder.parent) if is_run else None


def derive_prompting(workdir: pathlib.Path) -> Prompting | None:
    """How the run of a workdir asks, by its config.json; None, with a line in the log, where that does not tell it."""
    try:
        tokenizer = Tokenizer.from_path(find_description(workdir))
        values = read_config_file(workdir / CONFIG_FILE).values
        return make_prompting(values, () if tokenizer is None else tokenizer.eos_ids)
    except (OSError, ValueError, UserError) as error:
        log.warning("%s does not tell how the run asks its model: %s", workdir / CONFIG_FILE, error)
        return None


def choose_prompting(model: str | pathlib.Path, template: str | None) -> Prompting | None:
    """The prompting of MODEL that `--template` asks for: `run`, or None where MODEL carries one; None for another name.

    Raises UserError for `run` where MODEL carries none.
    """
    if template not in (None, RUN):
        return None
    found = read_prompting(model)
    if found is None and template == RUN:
        raise UserError(
            f"--template=run needs a model that carries how it was asked: a workdir, or a folder exported from one, "
            f"got {model}"
        )
    return found


def describe_missing(model: str | pathlib.Path) -> dict[str, str]:
    """{"prompting.json": its content} for a workdir that lacks the file, {} for another MODEL: what an export adds."""
    path = find_model(model)
    folder = path if path.is_file() else find_description(path)
    found = derive_prompting(folder.parent) if folder != path and not (folder / PROMPTING_FILE).is_file() else None
    return {} if found is None else {PROMPTING_FILE: found.to_text()}


def name_prompting(model: str | pathlib.Path, template: str) -> Prompting:
    """The prompting that a template's name stands for: MODEL's own for `run`, else the template alone."""
    found = choose_prompting(model, template)
    if found is not None:
        return found
    try:
        return Prompting(_spell(template))
    except UserError as error:
        raise UserError(str(error).replace("config.data.template", "--template")) from None


def _spell(template: str) -> str:
    """The text of a raw template's name, so that the file does not depend on today's names."""
    return RAW_TEMPLATES.get(template, template)


def _read_file(file: pathlib.Path, *, is_run: bool) -> Prompting:
    """Reads prompting.json. Code that a folder from elsewhere names is not imported: only registered rewards are."""
    try:
        values = json.loads(file.read_text("utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise UserError(f"must be a JSON object of format {FORMAT}")
        found = unpack(Prompting, values)
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{file}: {str(error).replace('config.', '')}; remove it to ask without it") from None
    names = [*found.grading.strict, found.grading.lenient, found.grading.format] if found.grading else []
    foreign = [name for name in names if name and name not in REWARDS]
    if foreign and not is_run:
        log.warning(
            "%s names %s, code that is not imported from a folder: answers are graded without", file, foreign[0]
        )
        return dataclasses.replace(found, grading=None)
    return found
