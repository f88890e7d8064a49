"""A conversation as token ids and a mask of the assistant's tokens, for supervised training.

The mask covers what the template shows of the assistant's turn behind the prompt that opens it: thoughts, words, tool
calls, and the token that ends the turn, which the sampler has to produce; never headers, what users and tools say, or
text that the template writes after the end token. The start is found, in this order,
1. by the template's `{% generation %}` blocks, if it has any: they alone say what is learnt;
2. by rendering the conversation before the turn, with the assistant's turn opened: the turn begins where it ends;
3. for a template without a generation prompt, by the first difference from a rendering with other words.
Where the turn's end token is the first token of what comes next (GLM's `<|user|>`), it is added.

A template may rewrite earlier turns (DeepSeek-R1's and Qwen3's drop their reasoning). No single text then contains all
turns as they were said, so each turn becomes an example of its own, after the history as the template shows it. If the
template drops the reasoning of the turn itself, it is put in `<think>` tags before what the template shows. Words that
it drops beside a tool call (Llama 3.1's does) stay dropped; a call that it does not show is an error.

The text before the turn is encoded separately, because a sampler meets a prompt that ends there.

Left out: text after the last assistant turn.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from r1jax.core.errors import UserError
from r1jax.text.chat_template import render, render_spans
from r1jax.text.message_forms import REASONING_NAMES, Message, join_parts
from r1jax.text.reasoning import THINK_CLOSE
from r1jax.text.tokenizer import Tokenizer

Marked = tuple[list[int], list[bool]]  # ids, and True where the token is the assistant's
Span = tuple[int, int]
_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
_THOUGHT_OF_PROMPT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


class _Turn(NamedTuple):
    """Text of a conversation up to an assistant turn, and the span of the assistant's part in it."""

    text: str
    span: Span


def mark_assistant(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    last_only: bool = False,
) -> list[Marked]:
    """One (ids, mask) for the conversation, or one per assistant turn where the template rewrites earlier turns.

    tools: definitions (JSON schemas) for the template. `last_only` masks the last assistant turn only, in one example.
    Raises UserError if there is no template, if the template rejects the messages or does not show their tool calls, or
    if there is no assistant turn.
    """
    speakers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not speakers:
        raise UserError("a conversation for training needs a message with the role assistant")
    messages = messages[: speakers[-1] + 1]
    if last_only:
        speakers = speakers[-1:]
    marker = _Marker(tokenizer, tools)
    text, spans = marker.read_blocks(messages)
    if spans and all(_holds_calls(_cut(text, spans), messages[i]) for i in speakers):
        return [marker.encode(text, spans[-1:] if last_only else spans)]
    turns = [marker.read_turn(messages[:i], messages[i]) for i in speakers]
    whole = turns[-1].text
    if all(whole.startswith(turn.text[: turn.span[1]]) for turn in turns):
        return [marker.encode(whole, [turn.span for turn in turns])]
    return [marker.encode(turn.text, [turn.span]) for turn in turns]


class _Marker:
    """Finds the assistant's part in what a tokenizer's template shows, with these tools."""

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None):
        self._tokenizer = tokenizer
        self._variables = {} if tools is None else {"tools": list(tools)}
        ends = map(tokenizer.backend.id_to_token, tokenizer.eos_ids)
        self._stops = [text for text in ends if text]  # the declared EOS first
        self._stop = re.compile("|".join(map(re.escape, sorted(self._stops, key=len, reverse=True))) or r"(?!)")
        self._tail = re.compile(rf"(?:{self._stop.pattern}|\s)*\Z")

    def read_blocks(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Text and spans of the assistant by the template's generation blocks; no spans if it has none."""
        text, blocks = render_spans(self._tokenizer, messages, **self._variables) or ("", [])
        prompts = [self._open(messages[:i]) for i, m in enumerate(messages) if blocks and m.get("role") == "assistant"]
        spans: list[Span] = []
        for start, stop in blocks:
            start, stop = self._settle(text, (start, stop), prompts)
            before = spans[-1][1] if spans else 0
            if spans and start <= before:  # the end token stands in a block of its own
                spans[-1] = (spans[-1][0], max(stop, before))
            elif not spans or self._cut_tail(text[before:stop]) or self._cut_tail(text[:before]) == text[:before]:
                spans.append((start, stop))
        return text, spans

    def read_turn(self, history: Sequence[Message], message: Message) -> _Turn:
        """The turn as the template shows it after its history, completed by the thoughts that it drops."""
        closed = self._show([*history, message])
        opened, opening = self._open(history)
        start = next((len(prompt) for prompt in _vary(opened) if opening and closed.startswith(prompt)), None)
        if start is None:
            start = self._find_difference(history, message, closed)
            start = max((self._find_header(closed, start, header) for header in _vary(opening)), default=start)
        stop = self._find_end(closed, start)
        if not self._ends(closed[start:stop]):
            closed = closed[:stop] + (self._find_next(message) or closed[stop:])
            stop = len(closed)
        shown = closed[start:stop]
        if _holds(shown, message):
            return _Turn(closed, (start, stop))
        if not _holds_calls(shown, message):
            shown = self._add_calls(history, message, shown)
        begun = opened if opening else closed[:start]
        text = begun + self._add_thoughts(begun, shown, message, closed)
        return _Turn(text, (len(begun), len(text)))

    def encode(self, text: str, spans: Sequence[Span]) -> Marked:
        """Ids and mask. The text before the first span is encoded separately, as a sampler's prompt would be."""
        tokenizer = self._tokenizer
        ids = tokenizer.encode(text[: spans[0][0]])
        mask = [False] * len(ids)
        for (start, stop), (following, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True):
            said = tokenizer.encode_more(text[start:stop])
            after = self._encode_after(text, (start, stop), following, said)
            ids += [*said, *after]
            mask += [True] * len(said) + [False] * len(after)
        return ids, mask

    def _encode_after(self, text: str, span: Span, following: int, said: list[int]) -> list[int]:
        """Ids of the text from a span's end to `following`, where `said` are those of the span."""
        start, stop = span
        if stop == following:
            return []
        # What stands before a special token does not change how the text behind it is encoded, so that the words, which
        # may be long, are not encoded again.
        specials = self._tokenizer.specials
        end = max(
            (end for end in self._stops if end in specials and text.endswith(end, start, stop)), default="", key=len
        )
        if end and said[-1:] == [specials[end]]:
            ids = self._tokenizer.encode_more(text[stop - len(end) : following])
            if ids[0] == said[-1]:
                return ids[1:]
        turn = self._tokenizer.encode_more(text[start:following])
        if turn[: len(said)] == said:
            return turn[len(said) :]
        return self._tokenizer.encode_more(text[stop:following])  # the end of the words is inside a token

    # --- Where the assistant's part begins and ends ---

    def _show(self, messages: Sequence[Message], *, opened: bool = False) -> str:
        return render(self._tokenizer, messages, add_generation_prompt=opened, **self._variables)

    def _open(self, history: Sequence[Message]) -> tuple[str, str]:
        """Text of a conversation with an assistant turn opened, and the part that opens it ("" if the template has
        none).
        """
        if not history:
            return "", ""
        before, opened = self._show(history), self._show(history, opened=True)
        return opened, opened[len(os.path.commonprefix((before, opened))) :]

    def _find_difference(self, history: Sequence[Message], message: Message, closed: str) -> int:
        """Position of the first difference from a rendering with other words. A space before it belongs to the words,
        as it does in tokens; a special token that begins alike is not cut.
        """
        content, _ = _split_words(message)
        other = {"role": "assistant", "content": "1" if content.lstrip().startswith("0") else "0"}
        start = len(os.path.commonprefix((closed, self._show([*history, other]))))
        for token in self._tokenizer.specials:
            place = closed.find(token, max(0, start - len(token) + 1), start + len(token) - 1)
            if place >= 0:
                return place
        return start - 1 if closed[start - 1 : start] == " " else start

    def _find_header(self, closed: str, start: int, opening: str) -> int:
        """Position after the last header of an assistant's turn before `start`, if it is of this turn; else `start`.
        It is needed where the template rewrites the history once the turn is there (gpt-oss drops thoughts).
        """
        place = closed.rfind(opening, 0, start) + len(opening) if opening else -1
        return start if place < len(opening) or self._stop.search(closed, place, start) else place

    def _find_end(self, text: str, start: int) -> int:
        """Position after the end tokens that follow the words at once; the end of the text if there are none."""
        words = len(self._cut_tail(text))
        first = self._stop.search(text, max(words, start))
        stop = first.end() if first else len(text)
        while first and (first := self._stop.match(text, stop)):
            stop = first.end()
        return stop

    def _find_next(self, message: Message) -> str:
        """The end token of a turn that the template shows without one: that with which the next message begins; for a
        tool call, else that of turns without calls (DeepSeek-R1's template leaves a single call open). "" if none.
        """
        calls = message.get("tool_calls")
        said: Message = {"role": "assistant", "content": "0"}
        following: Message = {"role": "tool" if calls else "user", "content": "0", "name": "probe"}
        talk: list[Message] = [{"role": "user", "content": "0"}, {**said, "tool_calls": calls}]
        try:
            before, after, plain = self._show(talk), self._show([*talk, following]), self._show([talk[0], said])
        except UserError:
            return ""
        between = re.match(rf"\s*(?:{self._stop.pattern})", after[len(before) :]) if after.startswith(before) else None
        ends = [stop for stop in self._stops if calls and plain.rstrip().endswith(stop)]
        return between[0] if between else "".join(ends[:1])

    def _settle(self, text: str, block: Span, prompts: Sequence[tuple[str, str]]) -> Span:
        """Span of a generation block without the generation prompt that it may begin with, extended to an end token
        after it.
        """
        start, stop = block
        for prompt in (varied for opened, _ in prompts for varied in _vary(opened)):
            if start < len(prompt) < stop and text.startswith(prompt):
                start = len(prompt)
        openings = {varied for _, opening in prompts for varied in _vary(opening)}
        for opening in sorted(openings, key=len, reverse=True):
            overlaps = range(1, min(len(opening), stop - start) + 1)
            overlap = next((size for size in overlaps if text[: start + size].endswith(opening)), 0)
            if overlap:
                start += overlap
                break
        following = self._stop.match(text, stop)
        return start, following.end() if following else self._find_end(text[:stop], start)

    def _cut_tail(self, text: str) -> str:
        """The text without the end tokens and white space at its end."""
        tail = self._tail.search(text)
        return text[: tail.start()] if tail and self._stop.search(tail[0]) else text

    def _ends(self, text: str) -> bool:
        return any(text.endswith(stop) for stop in self._stops)

    # --- What the template drops ---

    def _add_calls(self, history: Sequence[Message], message: Message, shown: str) -> str:
        """The turn with its tool calls, which the template shows only where the turn has no words (DeepSeek-R1's)."""
        calls = ""
        try:
            bare = {key: value for key, value in message.items() if key not in REASONING_NAMES}
            turn = self.read_turn(history, {**bare, "content": None}) if _split_words(message)[0] else None
            calls = turn.text[turn.span[0] :] if turn else ""
        except UserError:
            pass
        if not _holds_calls(calls, message):
            names = ", ".join(_list_calls(message))
            raise UserError(
                f"the chat template does not show all tool calls of a turn ({names}), so they cannot be learnt: "
                "write them into the content, use a template that shows them, or split the turn"
            )
        return self._cut_tail(shown) + calls

    def _add_thoughts(self, begun: str, shown: str, message: Message, closed: str) -> str:
        """The text of a turn whose thoughts the template drops: the thoughts in tags, then what it shows."""
        content, thoughts = _split_words(message)
        tagged, _, answer = content.rpartition(THINK_CLOSE)
        said = f"<think>\n{thoughts.strip()}\n</think>\n\n" if thoughts else ""
        if message.get("tool_calls"):
            said += (f"{tagged}{THINK_CLOSE}\n\n" if tagged and tagged not in shown else "") + shown.lstrip("\n")
        elif (answer if tagged else content).strip() in shown:
            words = (answer if tagged else content).strip()
            said += content + shown[shown.rfind(words) + len(words) :].lstrip()
        else:
            ends = [stop for stop in self._stops if closed.rstrip().endswith(stop)] or self._stops
            said += content + "".join(ends[:1])
        if not _OPEN_THOUGHT.search(begun):
            return said
        said = re.sub(r"^\s*<think>", "", said)  # the prompt opens the thoughts already
        return said.removeprefix("\n") if begun.endswith("\n") else said


def _vary(prompt: str) -> list[str]:
    """A prompt that opens a turn, and the same without the thought that it may open, or leave empty."""
    plain = _THOUGHT_OF_PROMPT.sub("", prompt)
    return [prompt] if plain == prompt else [prompt, plain]


def _cut(text: str, spans: Sequence[Span]) -> str:
    return "".join(text[start:stop] for start, stop in spans)


# --- The assistant's words ---


def _split_words(message: Message) -> tuple[str, str]:
    """Content and reasoning of a message; the reasoning is "" unless it has a key of its own."""
    thoughts = next((message[name] for name in REASONING_NAMES if message.get(name)), "")
    content = join_parts(message.get("content"))
    return content if isinstance(content, str) else "", str(thoughts)


def _holds(text: str, message: Message) -> bool:
    """Whether a text contains all thoughts and tool calls of a message, and its words if it has no calls."""
    content, thoughts = _split_words(message)
    parts = [thoughts, *re.split("</?think>", content)]
    if message.get("tool_calls"):
        parts = parts[:-1] if THINK_CLOSE in content else parts[:1]
    return all(part.strip() in text for part in parts) and _holds_calls(text, message)


def _holds_calls(text: str, message: Message) -> bool:
    return all(text.count(name) >= count for name, count in Counter(_list_calls(message)).items())


def _list_calls(message: Message) -> list[str]:
    """The names of the tools that a message calls."""
    calls = [call.get("function") or call for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    return [str(call["name"]) for call in calls if isinstance(call, Mapping) and call.get("name")]
