"""r1jax from Python: `r1jax.run` trains by a config, `r1jax.load` opens a model to generate, talk, score and evaluate.

Both do what the commands of the same purpose do, with the same defaults; docs/python.md has examples. Mistakes raise
`r1jax.core.errors.UserError`.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from r1jax import chat, evaluate, train
from r1jax.core.config import load_config
from r1jax.core.errors import UserError
from r1jax.core.metrics import METRICS_FILE, SAMPLES_FILE, read_rows
from r1jax.core.structs import Completion
from r1jax.data.sources import SourceRow
from r1jax.eval.benchmarks import load_benchmark
from r1jax.eval.prompting import RUN, Prompting, choose_prompting, name_prompting
from r1jax.rewards.registry import name_rewards
from r1jax.runs.conversation import Conversation, choose_turns
from r1jax.runs.evaluate import check_scores, measure, write_scores
from r1jax.runs.generate import Generation, encode_rows, sample_prompts
from r1jax.runs.likelihood import Likelihood
from r1jax.runs.sampler import Sampler, load_sampler, place_sampler
from r1jax.stages.registry import resolve_run
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.pretrained import require_tokenizer

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages


class Sample(NamedTuple):
    """One completion: its text without special tokens, sampled ids (the stop id included), their log-probs after
    temperature and before top-k / top-p, and `stop` or `length`.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, which is a MODEL and holds report.html, and its resolved settings."""

    workdir: pathlib.Path
    settings: Any

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, one a step."""
        return read_rows(self.workdir / METRICS_FILE)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl, one a completion."""
        return read_rows(self.workdir / SAMPLES_FILE)

    def load(self, **options: Any) -> Model:
        """The trained model, as `load` opens it."""
        return load(self.workdir, **options)


def run(
    config: str | pathlib.Path | Mapping[str, Any] | ConfigDict,
    *,
    workdir: str | pathlib.Path | None = None,
    **overrides: Any,
) -> Run:
    """Trains by a config, as `python -m r1jax.train` does, and resumes from `workdir` if it has a checkpoint.

    config: a config file, with its arguments if any ("configs/X.py:name=value"), or its values as nested dicts.
    workdir: default runs/X for configs/X.py, runs/STAGE for values. overrides: keys of the config with `__` for the
    dots (`rollout__group_size=4`); a dict replaces a whole section. `rewards` may hold functions: a list of functions
    and names, or a dict from either to weight or settings; config.json records a function as `module:name`.
    """
    if isinstance(config, (str, pathlib.Path)):
        values: Any = load_config(str(config))
        name = pathlib.Path(str(config).partition(":")[0]).stem
    else:
        values = {**config, **({"rewards": name_rewards(config["rewards"])} if "rewards" in config else {})}
        name = str(config.get("stage"))
    if "rewards" in overrides:
        overrides["rewards"] = name_rewards(overrides["rewards"])
    flags = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    settings = resolve_run(values, flags).settings
    folder = train.check_workdir(workdir or f"runs/{name}")
    train.start(settings, folder)
    return Run(folder, settings)


def load(model: str | pathlib.Path, *, dtype: str = "float32", mesh: str = "", batch_size: int = 64) -> Model:
    """Opens a MODEL: a Hugging Face folder, a .gguf file, a hub name, the workdir of a run or one of its checkpoints.

    mesh: axes and sizes to shard over (`fsdp=4,tensor=2`; default: one CPU, or a copy on each accelerator). batch_size:
    completions sampled at once.
    """
    with place_sampler(mesh):
        sampler = load_sampler(model, dtype=dtype, slots=batch_size)
        return Model(str(model), sampler, choose_prompting(model, None))


class Model:
    """A loaded model.

    prompting: how its run asked it (None: it carries nothing of that kind). sampler: its structure `graph`, weights
    `params` and engines. Settings of sampling are keywords: temperature, top_k, top_p, min_p, max_new_tokens, seed.
    """

    def __init__(self, name: str, sampler: Sampler, prompting: Prompting | None):
        self.name, self.sampler, self.prompting = name, sampler, prompting

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises UserError if it has none."""
        return require_tokenizer(self.sampler.tokenizer, self.name)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, template: str | None = None, num_samples: int = 1, **sampling: Any
    ) -> list[list[Sample]]:
        """`num_samples` completions of each prompt: a text, which the model gets as it is, or messages.

        template: what a text is put into: `run` (as its run asked; sampling is then the run's too where no keyword says
        otherwise), `chat`, `r1`, `question_reply`, or a text with {question}. Defaults: temperature 1, 256 new tokens.
        """
        asked = self._name_prompting(template) if template else None
        config = _choose(asked, {"num_samples": num_samples, **sampling})
        rows = [SourceRow(f"prompt {n}", {"prompt": _wrap(asked, p)}) for n, p in enumerate(_list_prompts(prompts))]
        if not rows:
            return []
        groups = sample_prompts(self._stopping(asked), encode_rows(rows, self.sampler), config)
        return [[self._describe(completion) for completion in group] for group in groups]

    def chat(
        self,
        messages: Prompt,
        *,
        on_text: Callable[[str], None] = lambda piece: None,
        **sampling: Any,
    ) -> str:
        """The reply to a conversation, or to one message given as text. `on_text` gets each piece as it arrives.

        The template of its run is used, if it carries one. Defaults as in `python -m r1jax.chat`.
        """
        turns: list[Mapping[str, Any]] = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        )
        if not turns:
            raise UserError("a conversation needs at least one message")
        talk = self._conversation
        talk.config, talk.messages = _choose(self.prompting, sampling, chat.REPLY), turns
        reply = talk.reply()
        shown = 0
        for _ in reply:
            on_text(reply.text[shown:])
            shown = len(reply.text)
        return reply.text

    def logprobs(
        self,
        prompts: Prompt | Sequence[Prompt],
        completions: str | Sequence[str | Sequence[int]],
        *,
        temperature: float = 1.0,
    ) -> list[list[float]]:
        """Log-probs, in nats, of the tokens of each completion (a text or ids) after its prompt."""
        texts: Any = [completions] if isinstance(completions, str) else completions
        rows = [SourceRow(f"prompt {n}", {"prompt": prompt}) for n, prompt in enumerate(_list_prompts(prompts))]
        if len(rows) != len(texts):
            raise UserError(f"there must be one completion for each prompt, got {len(texts)} for {len(rows)}")
        ids = [self.tokenizer.encode_more(text) if isinstance(text, str) else list(text) for text in texts]
        return self._likelihood.score(encode_rows(rows, self.sampler), ids, temperature=temperature)

    def evaluate(
        self,
        benchmarks: str | Sequence[str],
        *,
        template: str | None = None,
        limit: int = 0,
        num_samples: int = 1,
        output: str | pathlib.Path | None = None,
        **sampling: Any,
    ) -> dict[str, dict[str, Any]]:
        """Scores by benchmark, as `python -m r1jax.evaluate` gives them: `gsm8k`, `gsm8k=FILE`, `jsonl=FILE`, ….

        template: as there, by default that of its run. limit: the first problems of each benchmark (0: all). output:
        the JSON file to write, with all samples beside it.
        """
        asked = self.prompting if template in (None, RUN) else None
        if template == RUN:
            asked = self._name_prompting(RUN)
        config = _choose(asked, {"num_samples": num_samples, **sampling}, evaluate.SAMPLING)
        specs = benchmarks.split(",") if isinstance(benchmarks, str) else benchmarks
        problems = dict(
            load_benchmark(spec, template=template or "chat", limit=limit, prompting=asked) for spec in specs
        )
        if output is not None:
            check_scores(output)
        scores, rows = measure(self._stopping(asked), problems, config, asked)
        if output is not None:
            write_scores(output, self.name, scores, rows)
        return scores

    @functools.cached_property
    def _conversation(self) -> Conversation:
        return Conversation(self.sampler, choose_turns(self.sampler, self.prompting), Generation())

    @functools.cached_property
    def _likelihood(self) -> Likelihood:
        return Likelihood(self.sampler.graph, self.sampler.params)

    def _name_prompting(self, template: str) -> Prompting:
        if template == RUN and self.prompting is not None:
            return self.prompting
        return name_prompting(self.name, template)

    def _stopping(self, asked: Prompting | None) -> Sampler:
        """The sampler with the stop ids of a prompting."""
        if asked is None or not asked.stop_ids:
            return self.sampler
        return self.sampler.stop_at(asked.stop_ids)

    def _describe(self, completion: Completion) -> Sample:
        text = self.sampler.decode(completion.tokens)
        return Sample(text, completion.tokens, completion.logprobs, completion.finish_reason)


def _choose(asked: Prompting | None, given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Generation:
    """Sampling: the given values, else the run's, else the defaults of the command."""
    values: dict[str, Any] = {**(defaults or {}), **(asked.sampling if asked else {}), **given}
    known = [field.name for field in dataclasses.fields(Generation)]
    if unknown := [key for key in values if key not in known]:
        raise UserError(f"no sampling setting {unknown[0]!r}; known: {', '.join(known)}")
    return Generation(**values)


def _list_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt (a text, or messages) or several, as a list."""
    is_one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping))
    found: Any = [prompts] if is_one else list(prompts)
    return found


def _wrap(asked: Prompting | None, prompt: Any) -> Any:
    return asked.wrap(prompt) if asked else prompt
