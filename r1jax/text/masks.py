"""A conversation as tokens and which of them the assistant said: what supervised training learns.

Learnt are the assistant's words and the token that ends its turn, which a sampler has to produce; never a header, the
user's words, or what the template writes after the end token. Where the words begin is said, in this order,
1. by the template, if it has `{% generation %}` blocks;
2. by renderings of growing prefixes: what the conversation before a turn, with the assistant's turn opened, does not
   have yet;
3. for a template without a generation prompt, by where a rendering with other words differs.
A template may rewrite earlier turns (DeepSeek-R1's and Qwen3's drop their thoughts). Then no one text holds all turns
as they were said, and each turn becomes an example of its own, after the history as the template shows it. Where even
the turn's own thoughts are dropped, the words follow the opened turn as they stand in the data.

The border before the words is a border of tokens: a prompt ends there when a model is sampled.

Leaves out: what follows the last assistant turn, and tool definitions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from r1jax.core.errors import UserError
from r1jax.text.chat import REASONING_NAMES, Message, render, render_spans
from r1jax.text.tokenizer import Tokenizer

Marked = tuple[list[int], list[bool]]  # ids, and True where the assistant said the token
Span = tuple[int, int]


class _Turn(NamedTuple):
    """A conversation up to an assistant turn, as text, and the span of what it says there."""

    text: str
    span: Span


def mark_assistant(tokenizer: Tokenizer, messages: Sequence[Message], *, last_only: bool = False) -> list[Marked]:
    """One (ids, mask), or one for each assistant turn where the template rewrites earlier ones.

    `last_only` marks the last assistant turn alone, in one example. Raises UserError without a template, for messages
    that the template refuses, and where no assistant speaks.
    """
    speakers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not speakers:
        raise UserError("a conversation to learn from needs a message whose role is assistant")
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


# --- Where the words stand ---


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
    if re.search(r"<think>\s*$", begun):  # the prompt has begun the thought already
        said = re.sub(r"^\s*<think>", "", said)
        said = said.removeprefix("\n") if begun.endswith("\n") else said
    stops = _stop_texts(tokenizer)
    text = begun + said + next((stop for stop in stops if closed.rstrip().endswith(stop)), "".join(stops[:1]))
    return _Turn(text, (len(begun), len(text)))


def _open(tokenizer: Tokenizer, history: Sequence[Message]) -> tuple[str, str]:
    """The text before an assistant turn, opened for it, and which part of it opens: "" for a template that has none."""
    if not history:
        return "", ""
    before = render(tokenizer, history, add_generation_prompt=False)
    opened = render(tokenizer, history, add_generation_prompt=True)
    return opened, opened.removeprefix(before) if opened.startswith(before) else ""


def _find_difference(tokenizer: Tokenizer, history: Sequence[Message], message: Message, closed: str) -> int:
    """Where the turn's words begin: other words in their place differ from there on. A space before goes with them, as
    tokens have it."""
    content, _ = _split_words(message)
    other = {"role": "assistant", "content": "1" if content.lstrip().startswith("0") else "0"}
    varied = render(tokenizer, [*history, other], add_generation_prompt=False)
    start = next((i for i, (a, b) in enumerate(zip(closed, varied, strict=False)) if a != b), len(varied))
    return start - 1 if closed[start - 1 : start] == " " else start


def _find_end(tokenizer: Tokenizer, text: str, start: int) -> int:
    """Behind the last end token, if only white space follows it; else the end of the text."""
    ends = [text.rfind(stop, start) + len(stop) for stop in _stop_texts(tokenizer) if stop in text[start:]]
    return len(text) if not ends or text[max(ends) :].strip() else max(ends)


def _settle(tokenizer: Tokenizer, text: str, span: Span, opening: str) -> Span:
    """A generation block without the generation prompt that it may begin with, and up to the end token, which may stand
    behind it."""
    start, stop = span
    overlaps = range(min(len(opening), stop - start) + 1)
    start += next((overlap for overlap in overlaps if text[: start + overlap].endswith(opening)), 0)
    following = next((token for token in _stop_texts(tokenizer) if text[stop:].startswith(token)), "")
    if following:
        return start, stop + len(following)
    return start, _find_end(tokenizer, text[:stop], start)


def _stop_texts(tokenizer: Tokenizer) -> list[str]:
    """The spelling of every end token, the declared EOS first."""
    return [text for text in map(tokenizer.backend.id_to_token, tokenizer.eos_ids) if text]


# --- What the words are ---


def _split_words(message: Message) -> tuple[str, str]:
    """Content and thoughts of a message, the latter where they have a field of their own."""
    content = message.get("content")
    thoughts = next((message[name] for name in REASONING_NAMES if message.get(name)), "")
    return content if isinstance(content, str) else "", str(thoughts)


def _join_words(message: Message) -> str:
    content, thoughts = _split_words(message)
    return f"<think>\n{thoughts.strip()}\n</think>\n\n{content}" if thoughts else content


def _holds_words(text: str, message: Message) -> bool:
    """Whether all thoughts and words of a message are in the text, however the template sets them."""
    return all(part.strip() in text for part in re.split("</?think>", _join_words(message)))


# --- To tokens ---


def _encode(tokenizer: Tokenizer, text: str, spans: Sequence[Span]) -> Marked:
    """Ids and mask. What stands before a turn's words is encoded apart from them, as a sampler meets it."""
    ids = tokenizer.encode(text[: spans[0][0]])
    mask = [False] * len(ids)
    for (start, stop), (following, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True):
        said, turn = tokenizer.encode_more(text[start:stop]), tokenizer.encode_more(text[start:following])
        if turn[: len(said)] != said:  # the end is inside of a token
            turn = [*said, *tokenizer.encode_more(text[stop:following])]
        ids += turn
        mask += [place < len(said) for place in range(len(turn))]
    return ids, mask
