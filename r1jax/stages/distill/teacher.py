"""The teacher of a distillation: a frozen model with the student's vocabulary."""

from __future__ import annotations

from typing import NamedTuple

from flax import nnx

from r1jax.core.errors import UserError
from r1jax.models.transformer import Params, Transformer, split
from r1jax.runs.model_setup import ModelConfig, load_model
from r1jax.text.tokenizer import Tokenizer


class Teacher(NamedTuple):
    """Structure and parameters of a teacher."""

    graph: nnx.GraphDef
    params: Params


def load_teacher(config: ModelConfig, student: Transformer, tokenizer: Tokenizer) -> Teacher:
    """The teacher of config.teacher. Raises UserError unless its vocabulary equals the student's."""
    model, theirs = load_model(config)
    if theirs is not None:
        check_tokens(tokenizer, theirs, config.path)
    if model.config.vocab_size != student.config.vocab_size:
        raise UserError(
            f"config.teacher: {config.path} has logits for {model.config.vocab_size} tokens, "
            f"the student for {student.config.vocab_size}"
        )
    return Teacher(*split(model))


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
