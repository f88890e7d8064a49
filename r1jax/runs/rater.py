"""Scores of texts by reward models and by the log-probs of two models, for rewards (rewards/learned/).

Each model is loaded at its first use, into the layout current at construction, and stays; its texts are read in batches
of like lengths.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from r1jax.core.distributed import fetch
from r1jax.core.errors import UserError
from r1jax.core.sharding import batch_parts, current_layout, in_layout
from r1jax.core.startup.voice import activity
from r1jax.core.structs import Program
from r1jax.data.examples import Example, encode_row
from r1jax.data.preferences.pairs import append_last
from r1jax.data.tasks import choose_template
from r1jax.models.flops import Work, count_work
from r1jax.models.transformer import Params, Transformer, merge, split
from r1jax.rewards.completions import Completion
from r1jax.runs.abstract_model import abstract_model
from r1jax.runs.likelihood import ROWS, Likelihood, find_length
from r1jax.runs.model_setup import ModelConfig, load_model
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.pretrained import require_tokenizer


class Rater:
    """`rater(model, prompts, completions) -> scores`. config: dtypes, layers and remat with which models are loaded."""

    def __init__(self, config: ModelConfig):
        self.config, self.layout = config, current_layout()
        self._scorers: dict[str, tuple[Scorer, Tokenizer]] = {}
        self._likelihoods: dict[str, tuple[Likelihood, Tokenizer]] = {}
        self._works: dict[str, Work] = {}
        self._flops = 0.0

    @in_layout
    def __call__(
        self,
        model: str,
        prompts: Sequence[Completion],
        completions: Sequence[str],
        *,
        template: str = "",
        reference: str = "",
        beta: float = 0.1,
    ) -> list[float]:
        """Score of each completion after its prompt by a reward model; or, with a reference, beta times the difference
        of both models' log-probs. template: how prompts that are texts are put (data/tasks.py); "" as they are.
        """
        if template:
            pose = choose_template(template)
            prompts = [pose(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        if not reference:
            scorer, tokenizer = self._find_scorer(model)
            pairs = zip(prompts, completions, strict=True)
            examples = [append_last(_encode(tokenizer, *pair)) for pair in pairs]
            self._count(model, [len(example.tokens) for example in examples], [0] * len(examples))
            return scorer.score(examples)
        values = [self._find_logps(name, prompts, completions) for name in (model, reference)]
        return [beta * (ours - theirs) for ours, theirs in zip(*values, strict=True)]

    def _find_scorer(self, name: str) -> tuple[Scorer, Tokenizer]:
        if name not in self._scorers:
            model, tokenizer = self._load(name)
            if model.score is None:
                raise UserError(
                    f"config.rewards.reward_model.model: {name} has no score; train one by stage = 'reward_model', or "
                    "set reference to the model before its training by DPO"
                )
            self._scorers[name] = Scorer(*split(model)), tokenizer
        return self._scorers[name]

    def _find_logps(self, name: str, prompts: Sequence[Completion], completions: Sequence[str]) -> list[float]:
        if name not in self._likelihoods:
            model, tokenizer = self._load(name)
            self._likelihoods[name] = Likelihood(*split(model)), tokenizer
        likelihood, tokenizer = self._likelihoods[name]
        examples = [_encode(tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
        starts = [int(np.argmax(example.weights > 0)) for example in examples]
        asked = [example.tokens[: start + 1].tolist() for example, start in zip(examples, starts, strict=True)]
        said = [example.targets[start:].tolist() for example, start in zip(examples, starts, strict=True)]
        self._count(name, [len(example.tokens) for example in examples], list(map(len, said)))
        return [float(np.sum(values)) for values in likelihood.score(asked, said)]

    def take_flops(self) -> float:
        """Useful FLOPs of the scores since the last call."""
        flops, self._flops = self._flops, 0.0
        return flops

    def _count(self, name: str, lengths: Sequence[int], targets: Sequence[int]) -> None:
        pairs = sum(length * (length + 1) / 2 for length in lengths)
        self._flops += self._works[name].forward(sum(lengths), sum(targets), pairs)

    def _load(self, name: str) -> tuple[Transformer, Tokenizer]:
        with activity(f"loading {name}"):
            model, tokenizer = load_model(_name(self.config, name))
        self._works[name] = count_work(split(model)[1], model.config)
        return model, require_tokenizer(tokenizer, name)


class Scorer:
    """Scores sequences at their last tokens, with the layout current at construction."""

    def __init__(self, graph: nnx.GraphDef, params: Params):
        self._params, self.layout = params, current_layout()
        self._score = jax.jit(functools.partial(_score, graph))

    @in_layout
    def score(self, examples: Sequence[Example]) -> list[float]:
        """One score a sequence. Rows of like lengths share a program."""
        rows, found = count_rows(), [0.0] * len(examples)
        sizes: dict[int, list[int]] = {}
        for number, example in enumerate(examples):
            sizes.setdefault(find_length(len(example.tokens)), []).append(number)
        for length, numbers in sizes.items():
            for first in range(0, len(numbers), rows):
                tokens, ends = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
                for row, number in enumerate(numbers[first : first + rows]):
                    ids = examples[number].tokens
                    tokens[row, : len(ids)], ends[row] = ids, len(ids) - 1
                scored = fetch(self._score(self._params, tokens, ends))
                for row, number in enumerate(numbers[first : first + rows]):
                    found[number] = float(scored[row])
        return found

    def program(self, length: int, work: Any) -> Program:
        """The program for texts of so many tokens; for abstract parameters."""
        rows, length = count_rows(), find_length(length)
        arguments = (
            self._params,
            jax.ShapeDtypeStruct((rows, length), np.int32),
            jax.ShapeDtypeStruct((rows,), np.int32),
        )
        return Program("score", self._score, arguments, work.forward(rows * length, rows, rows * length**2 / 2))


def list_scorer_programs(config: ModelConfig, name: str, length: int) -> list[Program]:
    """The program of a reward model beside a run with this `model` section, for texts of so many tokens; none for a
    model that a pipeline has yet to train.
    """
    try:
        model = abstract_model(_name(config, name))
    except UserError:
        return []
    graph, params = split(model)
    return [Scorer(graph, params).program(length, count_work(params, model.config)).rename("reward_model.score")]


def count_rows() -> int:
    """Texts of a forward pass."""
    parts = batch_parts()
    return -(-ROWS // parts) * parts


def _name(config: ModelConfig, name: str) -> ModelConfig:
    """The section of another model with the dtypes of this one."""
    plain = dict(preset="", tokenizer="", fetch="", sizes={}, layers=0, dispatch="grouped", buffer_factor=0.0)
    return dataclasses.replace(config, name=name, **plain, dispatch_tokens=0)  # type: ignore[arg-type]


def _encode(tokenizer: Tokenizer, prompt: Completion, completion: str) -> Example:
    return encode_row({"prompt": prompt, "completion": completion}, tokenizer)[0]


def _score(graph: nnx.GraphDef, params: Params, tokens: jax.Array, ends: jax.Array) -> jax.Array:
    """Scores [B] of rows [B, T] at the positions `ends`."""
    model = merge(graph, params)
    scores = model.rate(model.hidden(tokens).hidden)
    return jax.numpy.take_along_axis(scores, ends[:, None], axis=1)[:, 0]
