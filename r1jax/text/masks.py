"""A conversation as token ids and a mask of the assistant's tokens, for supervised training.

The mask covers the assistant's words and the token that ends the turn, which the sampler has to produce; never headers,
the user's words, or text that the template writes after the end token. The start of the words is found, in this order,
1. by the template's `{% generation %}` blocks, if it has any;
2. by rendering the conversation before the turn, with the assistant's turn opened: the words begin where it ends;
3. for a template without a generation prompt, by the first difference from a rendering with other words.
A template may rewrite earlier turns (DeepSeek-R1's and Qwen3's drop their reasoning). No single text then contains all
turns as they were said, so each turn becomes an example of its own, after the history as the template shows it. If the
template drops the reasoning of the turn itself, the words from the data are appended to the opened turn.

The text before the words is encoded separately, because a sampler meets a prompt that ends there.

Left out: text after the last assistant turn, and tool definitions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from r1jax.core.errors import UserError
from r1jax.text.chat_template import REASONING_NAMES, Message, render, render_spans
from r1jax.text.tokenizer import Tokenizer

Marked = tuple[list[int], list[bool]]  # ids, and True where the token is the assistant's
Span = tuple[int, int]


class _Turn(NamedTuple):
    """Text of a conversation up to an assistant turn, and the span of the assistant's words in it."""

    text: str
    span: Span


def mark_assistant(tokenizer: Tokenizer, messages: Sequence[Message], *, last_only: bool = False) -> list[Marked]:
    """One (ids, mask) for the conversation, or one per assistant turn where the template rewrites earlier turns.

    `last_only` masks the last assistant turn only, in one example. Raises UserError if there is no template, if the
    template rejects the messages, or if there is no assistant turn.
    """
    speakers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not speakers:
        raise UserError("a conversation for training needs a message with the role assistant")
    messages = messages[: speakers[-1] + 1]
    marked = render_spans(tokenizer, messages)
    if marked is not None and marked[1]:
        text, spans = marked
        _, opening = _open(tokenizer, messages)
        spans = [_settle(tokenizer, text, span, opening) for span in spans]
        return [_encode(tokenizer, text, spans[-1:] if last_only else spans)]
    if last_only:
        speakers = speakers[-1:]
    turns = [_render_turn(tokenizer, messages[:i], messages[i]) for i in speakers]
    whole = turns[-1].text
    if all(whole.startswith(turn.text[: turn.span[1]]) for turn in turns):
        return [_encode(tokenizer, whole, [turn.span for turn in turns])]
    return [_encode(tokenizer, turn.text, [turn.span]) for turn in turns]


# --- Spans of the assistant's words ---


def _render_turn(tokenizer: Tokenizer, history: Sequence[Message], message: Message) -> _Turn:
    closed = render(tokenizer, [*history, message], add_generation_prompt=False)
    opened, opening = _open(tokenizer, history)
    if opening and closed.startswith(opened):
        start = len(opened)
    else:
        start = _find_difference(tokenizer, history, message, closed)
    if _holds_words(closed[start:], message):
        return _Turn(closed, (start, _find_end(tokenizer, closed, start)))
    begun = opened if opening else closed[:start]
    said = _join_words(message)
    if re.search(r"<think>\s*$", begun):  # the prompt opens the reasoning already
        said = re.sub(r"^\s*<think>", "", said)
        said = said.removeprefix("\n") if begun.endswith("\n") else said
    stops = _stop_texts(tokenizer)
    text = begun + said + next((stop for stop in stops if closed.rstrip().endswith(stop)), "".join(stops[:1]))
    return _Turn(text, (len(begun), len(text)))


def _open(tokenizer: Tokenizer, history: Sequence[Message]) -> tuple[str, str]:
    """Text of a conversation with an assistant turn opened, and the part that opens it ("" if the template has
    none).
    """
    if not history:
        return "", ""
    before = render(tokenizer, history, add_generation_prompt=False)
    opened = render(tokenizer, history, add_generation_prompt=True)
    return opened, opened.removeprefix(before) if opened.startswith(before) else ""


def _find_difference(tokenizer: Tokenizer, history: Sequence[Message], message: Message, closed: str) -> int:
    """Position of the first difference from a rendering with other words. A space before it belongs to the words, as it
    does in tokens.
    """
    content, _ = _split_words(message)
    other = {"role": "assistant", "content": "1" if content.lstrip().startswith("0") else "0"}
    varied = render(tokenizer, [*history, other], add_generation_prompt=False)
    start = next((i for i, (a, b) in enumerate(zip(closed, varied, strict=False)) if a != b), len(varied))
    return start - 1 if closed[start - 1 : start] == " " else start


def _find_end(tokenizer: Tokenizer, text: str, start: int) -> int:
    """Position after the last end token, if only white space follows it; else the end of the text."""
    ends = [text.rfind(stop, start) + len(stop) for stop in _stop_texts(tokenizer) if stop in text[start:]]
    return len(text) if not ends or text[max(ends) :].strip() else max(ends)


def _settle(tokenizer: Tokenizer, text: str, span: Span, opening: str) -> Span:
    """Span of a generation block without the generation prompt that it may begin with, extended to an end token after
    it.
    """
    start, stop = span
    overlaps = range(min(len(opening), stop - start) + 1)
    start += next((overlap for overlap in overlaps if text[: start + overlap].endswith(opening)), 0)
    following = next((token for token in _stop_texts(tokenizer) if text[stop:].startswith(token)), "")
    if following:
        return start, stop + len(following)
    return start, _find_end(tokenizer, text[:stop], start)


def _stop_texts(tokenizer: Tokenizer) -> list[str]:
    """Text of every end token, the declared EOS first."""
    return [text for text in map(tokenizer.backend.id_to_token, tokenizer.eos_ids) if text]


# --- The assistant's words ---


def _split_words(message: Message) -> tuple[str, str]:
    """Content and reasoning of a message; the reasoning is "" unless it has a key of its own."""
    content = message.get("content")
    thoughts = next((message[name] for name in REASONING_NAMES if message.get(name)), "")
    return content if isinstance(content, str) else "", str(thoughts)


def _join_words(message: Message) -> str:
    content, thoughts = _split_words(message)
    return f"<think>\n{thoughts.strip()}\n</think>\n\n{content}" if thoughts else content


def _holds_words(text: str, message: Message) -> bool:
    """Whether the text contains all reasoning and content of a message, whatever the template puts around them."""
    return all(part.strip() in text for part in re.split("</?think>", _join_words(message)))


# --- Tokens ---


def _encode(tokenizer: Tokenizer, text: str, spans: Sequence[Span]) -> Marked:
    """Ids and mask. The text before the assistant's words is encoded separately, as a sampler's prompt would be."""
    ids = tokenizer.encode(text[: spans[0][0]])
    mask = [False] * len(ids)
    for (start, stop), (following, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True):
        said, turn = tokenizer.encode_more(text[start:stop]), tokenizer.encode_more(text[start:following])
        if turn[: len(said)] != said:  # the end of the words is inside a token
            turn = [*said, *tokenizer.encode_more(text[stop:following])]
        ids += turn
        mask += [place < len(said) for place in range(len(turn))]
    return ids, mask
