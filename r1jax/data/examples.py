"""One SFT row as tokens and which of them are learnt: `messages`, `prompt` + `completion`, or `text`.

An example is what the model is fed, what it should say next at each place, and whether that place counts: the shift
by one happens here, inside the document, so that packed neighbours never predict each other. Loss is on the
assistant's turns, on the completion, or on all of a text.

Leaves out: order, mixtures and packing (`sequences.py`), and files (`sources.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from r1jax.core.errors import UserError
from r1jax.text.encoding import encode_prompt
from r1jax.text.masks import mark_assistant
from r1jax.text.tokenizer import Tokenizer

Truncation = Literal["right", "left", "drop"]
LossOn = Literal["completion", "all"]


class Example(NamedTuple):
    """tokens, targets int32 [n] and weights float32 [n]: 1 where a target is learnt, else 0."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def encode_row(row: Mapping[str, Any], tokenizer: Tokenizer, *, loss_on: LossOn = "completion") -> list[Example]:
    """The examples of a row: one, or one per assistant turn where the chat template rewrites earlier turns.

    `prompt` is messages, which the completion ends as the assistant's turn, or a raw text, after which the completion
    is followed by the end token. Raises UserError for a row of no kind.
    """
    if "messages" in row:
        marked = mark_assistant(tokenizer, row["messages"])
    elif "prompt" in row and "completion" in row:
        prompt, said = row["prompt"], _text(row["completion"])
        if isinstance(prompt, str):
            marked = [_join(encode_prompt(tokenizer, prompt), said, tokenizer)]
        else:
            marked = mark_assistant(tokenizer, [*prompt, {"role": "assistant", "content": said}])[-1:]
    elif isinstance(row.get("text"), str):
        ids = [*tokenizer.encode(row["text"], add_special=True), *tokenizer.eos_ids[:1]]
        marked = [(ids, [True] * len(ids))]
    else:
        raise UserError(
            f"an SFT row needs messages, prompt and completion, or text; it has {', '.join(row) or 'nothing'}"
        )
    return [_shift(ids, mask if loss_on == "completion" else [True] * len(ids)) for ids, mask in marked]


def _text(completion: Any) -> str:
    if isinstance(completion, list):  # TRL's conversational form: one assistant message
        return "".join(str(turn["content"]) for turn in completion)
    return str(completion)


def _join(prompt: Sequence[int], completion: str, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Prompt and completion are encoded apart, as a sampler meets them: the border is a border of tokens."""
    said = [*tokenizer.encode(completion), *tokenizer.eos_ids[:1]]
    return [*prompt, *said], [False] * len(prompt) + [True] * len(said)


def _shift(ids: Sequence[int], mask: Sequence[bool]) -> Example:
    tokens = np.asarray(ids, np.int32)
    return Example(tokens[:-1], tokens[1:], np.asarray(mask, np.float32)[1:])


def truncate(example: Example, length: int, policy: Truncation) -> Example | None:
    """At most `length` places: cut off at the right or left, or None where `policy` drops what is too long or where
    nothing to learn is left.
    """
    if len(example.tokens) > length:
        if policy == "drop":
            return None
        part = slice(length) if policy == "right" else slice(len(example.tokens) - length, None)
        example = Example(*(array[part] for array in example))
    return example if example.weights.any() else None
