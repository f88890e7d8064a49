"""The teacher of a distillation: a frozen model with the student's vocabulary."""

from __future__ import annotations

from typing import NamedTuple

from flax import nnx

from r1jax.core.errors import UserError
from r1jax.core.sharding import is_abstract
from r1jax.learner.trainable import Trainable
from r1jax.models.flops import Work, count_work
from r1jax.models.transformer import Params, split
from r1jax.runs.abstract_model import abstract_model
from r1jax.runs.model_setup import ModelConfig, load_model
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.pretrained import require_tokenizer


class Teacher(NamedTuple):
    """Structure, parameters and work of a teacher."""

    graph: nnx.GraphDef
    params: Params
    work: Work


def find_teacher(config: ModelConfig, student: Trainable, tokenizer: Tokenizer | None) -> Teacher:
    """The teacher of config.teacher: loaded, or abstract beside an abstract student. tokenizer: the student's.

    Raises UserError unless its vocabulary equals the student's.
    """
    if is_abstract(student.params):
        model, theirs = abstract_model(config, "teacher"), None
    else:
        model, theirs = load_model(config)
    if theirs is not None:
        check_tokens(require_tokenizer(tokenizer, "config.model"), theirs, config.name)
    if model.config.vocab_size != student.sizes.vocab_size:
        raise UserError(
            f"config.teacher: {config.name} has logits for {model.config.vocab_size} tokens, "
            f"the student for {student.sizes.vocab_size}"
        )
    graph, params = split(model)
    return Teacher(graph, params, count_work(params, model.config))


def check_tokens(tokenizer: Tokenizer, theirs: Tokenizer, path: str) -> None:
    """Raises UserError, naming a token, unless both vocabularies map every id to the same token."""
    ours, others = (t.backend.get_vocab(with_added_tokens=True) for t in (tokenizer, theirs))
    if ours == others:
        return
    token = min(ours.items() ^ others.items(), key=lambda item: item[1])[0]
    raise UserError(
        f"config.teacher: the tokenizer of {path} is not the student's: {token!r} is {others.get(token, 'absent')} "
        f"there and {ours.get(token, 'absent')} here; logits can only be compared token by token"
    )
