"""Tokenized SFT examples with loss weights, from rows of `messages`, `prompt` + `completion`, `text`, or `tokens`.

An example holds input tokens, the next token at each position, and whether that position has a loss. The shift by one
happens here, inside the document, so that packed neighbours never predict each other. Loss is on the assistant's turns,
on the completion, or on the whole text; of tokens, on those that `sampled` marks.

Left out: files (`files.py`), columns and templates (`corpus.py`), order, mixtures and packing (`sequences.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from r1jax.core.errors import UserError
from r1jax.text.encoding import encode_prompt
from r1jax.text.masks import mark_assistant
from r1jax.text.message_forms import join_parts
from r1jax.text.tokenizer import Tokenizer

Truncation = Literal["right", "left", "drop"]
LossOn = Literal["completion", "all"]


class Example(NamedTuple):
    """tokens, targets int32 [n] and weights float32 [n]: 1 where a target has a loss, else 0."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def encode_row(row: Mapping[str, Any], tokenizer: Tokenizer, *, loss_on: LossOn = "completion") -> list[Example]:
    """Examples of a row: one, or one per assistant turn where the chat template rewrites earlier turns.

    `prompt` is messages, which the completion (text or messages) continues as the assistant's turn, or raw text, whose
    completion is followed by the end token. Messages may come with `tools`, which the chat template shows. `tokens` and
    `sampled` (0 or 1 for each) are a trajectory as it was sampled, under the vocabulary of the digest `tokenizer`; with
    another vocabulary the `messages` beside them are encoded. Raises UserError for a row with none of these columns.
    """
    if "tokens" in row and not ("messages" in row and row.get("tokenizer") != tokenizer.digest):
        marked = [_read_tokens(row, tokenizer)]
    elif "messages" in row:
        marked = mark_assistant(tokenizer, check_messages(row["messages"]), tools=read_tools(row.get("tools")))
    elif "prompt" in row and "completion" in row:
        marked = [_mark_completion(row, tokenizer)]
    elif isinstance(row.get("text"), str):
        ids = _end(tokenizer.encode(row["text"], add_special=True), tokenizer)
        marked = [(ids, [True] * len(ids))]
    else:
        raise UserError(f"an SFT row needs messages, prompt and completion, text, or tokens; got {list_columns(row)}")
    return [_shift(ids, mask if loss_on == "completion" else [True] * len(ids)) for ids, mask in marked]


def list_columns(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, in a line."""
    return " ".join(", ".join(row).split())[:200] or "no column"


def check_messages(value: Any) -> list[Mapping[str, Any]]:
    """Returns messages unchanged. Raises UserError unless they are a list of dicts with a role, and with a content that
    is a text, text parts, or null; what a tool says may be anything.
    """
    is_list = isinstance(value, list) and bool(value)
    if not is_list or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value):
        raise UserError(f"messages must be a list of role and content messages, got {str(value)[:60]!r}")
    for message in value:
        content = join_parts(message.get("content"))
        if message["role"] != "tool" and not isinstance(content, str | None):
            raise UserError(f"a content must be a text, a list of text parts or null, got {str(content)[:60]!r}")
    return value


def read_tools(value: Any) -> list[Mapping[str, Any]] | None:
    """Definitions of tools: a list of mappings (JSON schemas), or its JSON. Raises UserError for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "null")
        except (ValueError, RecursionError):
            raise UserError(f"tools must be a list of mappings or its JSON, got {value[:60]!r}") from None
    if value is None or (isinstance(value, list) and all(isinstance(tool, Mapping) for tool in value)):
        return value or None
    raise UserError(f"tools must be a list of mappings or its JSON, got {str(value)[:60]!r}")


def _read_tokens(row: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    tokens, sampled = row["tokens"], row.get("sampled")
    if not (isinstance(tokens, list) and isinstance(sampled, list) and len(tokens) == len(sampled)):
        raise UserError("tokens and sampled must be lists of one length")
    if row.get("tokenizer") != tokenizer.digest:
        raise UserError("tokens of another vocabulary can be learnt only with messages beside them")
    return tokens, [bool(each) for each in sampled]


def _mark_completion(row: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str):
        said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        messages = [*check_messages(prompt), *check_messages(said)]
        return mark_assistant(tokenizer, messages, tools=read_tools(row.get("tools")), last_only=True)[0]
    if not isinstance(completion, str):
        raise UserError(f"the completion of a raw prompt must be a text, got {str(completion)[:60]!r}")
    # Encoded separately, as in sampling, so that a token boundary lies between prompt and completion.
    before = encode_prompt(tokenizer, prompt)
    said = _end(tokenizer.encode_more(completion), tokenizer)
    return [*before, *said], [False] * len(before) + [True] * len(said)


def _end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Ids with exactly one end token, whether the text spells it or the tokenizer has added it."""
    if ids and ids[-1] in tokenizer.eos_ids:
        return ids[:-1] if ids[-2:-1] == ids[-1:] else ids
    return [*ids, *tokenizer.eos_ids[:1]]


def _shift(ids: Sequence[int], mask: Sequence[bool]) -> Example:
    tokens = np.asarray(ids, np.int32)
    return Example(tokens[:-1], tokens[1:], np.asarray(mask, np.float32)[1:])


def truncate(example: Example, length: int, policy: Truncation) -> Example | None:
    """The example cut to at most `length` positions on the right or left; None if `policy` is "drop" and it is too
    long, or if no position with a loss is left.
    """
    if len(example.tokens) > length:
        if policy == "drop":
            return None
        part = slice(length) if policy == "right" else slice(len(example.tokens) - length, None)
        example = Example(*(array[part] for array in example))
    return example if example.weights.any() else None
