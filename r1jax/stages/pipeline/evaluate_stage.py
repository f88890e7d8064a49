"""Evaluation of a pipeline's models: accuracy, format, language and length of replies, and the work of training."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.metrics import METRICS_FILE
from r1jax.core.metrics import read_rows as read_metrics
from r1jax.data.files import read_rows
from r1jax.data.tasks import make_builder
from r1jax.eval.benchmarks import Problem
from r1jax.eval.pipeline_report import EVALUATION_FILE
from r1jax.models.flops import count_work
from r1jax.models.transformer import split
from r1jax.rewards.base import load_rewards
from r1jax.rewards.base import score as score_rewards
from r1jax.runs.abstract_model import abstract_model
from r1jax.runs.evaluate import answer_problems, score_benchmarks, write_scores
from r1jax.runs.model_setup import load_tokenizer
from r1jax.runs.sampler import load_sampler
from r1jax.stages.collection import TRACES_FILE
from r1jax.stages.pipeline.resolve import MeasureConfig
from r1jax.text.encoding import PromptEncoder
from r1jax.text.language import language_share

NAME = "held_out"


def measure_model(model: pathlib.Path, config: MeasureConfig) -> dict[str, float]:
    """`accuracy` (strict pass@1) with its standard error over problems, `lenient`, `format_rate`, `language` (mean
    share of words in the target language), `mixed` (share of replies that mix it with another language), `mean_length`;
    replies without words are left out of `language` and `mixed`.

    Writes the scores and all samples to the model's folder, like the command `evaluate`.
    """
    problems, generate = read_problems(config), config.generate
    sampler = load_sampler(model, slots=generate.slots)
    answered = {NAME: answer_problems(sampler, problems, generate)}
    scores, rows = score_benchmarks(answered)
    texts = [text for problem in answered[NAME] for text in problem.completions]
    shares = [share for text in texts if (share := language_share(text, config.language)) is not None]
    format_reward = load_rewards({config.format: 1.0})
    prompts = [problem.prompt for problem in problems for _ in range(generate.num_samples)]
    formed = score_rewards(
        format_reward, prompts=prompts, completions=texts, completion_ids=[()] * len(texts), columns={}
    )
    found = scores[NAME]
    found["format_rate"] = float(np.nanmean(formed.total))
    found["language"] = float(np.mean(shares)) if shares else 1.0
    found["mixed"] = float(np.mean([0 < share < 1 for share in shares])) if shares else 0.0
    write_scores(model / EVALUATION_FILE, str(model), scores, rows)
    kept = {"accuracy": "pass@1", "accuracy_stderr": "pass@1_stderr", "lenient": "lenient_pass@1"}
    kept |= {name: name for name in ("format_rate", "language", "mixed", "mean_length", "truncated")}
    return {ours: found[theirs] for ours, theirs in kept.items()}


def read_problems(config: MeasureConfig) -> list[Problem]:
    """The held-out problems as prompts. Raises UserError for a missing file or a malformed row."""
    if not config.data.path:
        raise UserError("config.measure.data.path must name the file of held-out problems")
    build = make_builder(config.data)
    rows = [(row.place, build(row)) for row in read_rows(config.data.path, key="config.measure.data.path")]
    return [Problem(place, row["prompt"], row["solution"]) for place, row in rows[: config.data.eval_problems]]


def measure_training(folder: pathlib.Path) -> dict[str, float]:
    """Work of a stage's training, from its metrics: `tokens` (trained on; for RL also sampled or read), `flops` (useful
    ones, models/flops.py, of updates, rollouts, judgements and learned rewards) and `steps`. Empty for a stage that
    trains nothing.
    """
    rows = read_metrics(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []
    tokens = next((row["num_tokens"] for row in reversed(rows) if "num_tokens" in row), None)
    if tokens is None:
        return {}
    return {"tokens": tokens, "flops": sum(row.get("flops", 0.0) for row in rows), "steps": rows[-1]["step"]}


def measure_sampling(folder: pathlib.Path, settings: Any) -> dict[str, float]:
    """Work of a stage's samples that become a set: `sampling_flops`, of the model that gives them (without that of
    rewards that ask a model). Empty for a stage that collects nothing.
    """
    if not (folder / TRACES_FILE).exists():
        return {}
    config = getattr(settings, "teacher", None) or settings.model
    model = abstract_model(config)
    work, encode = count_work(split(model)[1], model.config), PromptEncoder(load_tokenizer(config))
    flops = 0.0
    with open(folder / TRACES_FILE, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            flops += work.sample(len(encode(row["prompt"])), [len(tokens) for tokens in row["completion_tokens"]])
    return {"sampling_flops": flops}
