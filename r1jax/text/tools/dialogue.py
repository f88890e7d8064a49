"""Conversations that grow by tokens: the opening prompt, what a sampled turn says, and the tokens that answer it.

What was sampled is never encoded again. The tokens of a new turn are the difference of two renderings of the chat
template: a short conversation with the new messages, and the same without them, from the end of the assistant's words
on. So an answer continues whatever stands there, also where the template would rewrite it (thoughts that it drops from
earlier turns stay as they were sampled). `Dialogue` checks at its construction that the template extends what is there,
and shows tools, calls and results; if not, it takes the tagged format, if that was not ruled out.

Tagged format, for base models and for templates that ignore tools: the prompt describes the tools, and a call stands in
the text, where its result follows at once:

    23 * 19 is <call>calculate 23 * 19</call><result>437</result> 437.

The argument of a tool with a single one is written as it is, several as a JSON object. Sampling stops at `</call>`.

A prompt that is a text has no roles: what an environment answers is appended as it is.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from r1jax.core.errors import UserError
from r1jax.text.chat_template import render
from r1jax.text.encoding import encode_prompt
from r1jax.text.message_forms import join_parts
from r1jax.text.reasoning import THINK_CLOSE
from r1jax.text.tokenizer import Tokenizer
from r1jax.text.tool_calls import ToolCall, find_broken_calls, parse_tool_calls
from r1jax.text.tools.schemas import Schema, arguments_of, name_of

Format = Literal["auto", "template", "tagged"]
Prompt = str | Sequence[Mapping[str, Any]]
Message = dict[str, Any]

CALL_OPEN, CALL_CLOSE = "<call>", "</call>"
RESULT_OPEN, RESULT_CLOSE = "<result>", "</result>"
_CALL = re.compile(rf"{CALL_OPEN}\s*([\w.-]*)\s*(.*?){CALL_CLOSE}", re.DOTALL)
_INSTRUCTION = (
    "You may call tools. Write a call as <call>NAME ARGUMENT</call>; its result follows in <result></result>. Several "
    "arguments are written as a JSON object.\nTools:\n"
)
_WORD, _THOUGHT, _RESULT = "probe-reply", "probe-thought", "probe-result"
_QUESTION: Message = {"role": "user", "content": "probe-question"}


class Turn(NamedTuple):
    """A sampled turn as it reads: its message, the calls that it makes, and texts that look like one and are none."""

    message: Message
    calls: list[ToolCall]
    broken: list[str]


class Answer(NamedTuple):
    """Tokens that follow a sampled turn, and the messages that they stand for."""

    tokens: tuple[int, ...]
    messages: list[Message]


@dataclasses.dataclass(frozen=True)
class Shown:
    """Parts of a conversation that a chat template shows: definitions of tools, results of calls, and thoughts of
    earlier turns.
    """

    tools: bool = False
    results: bool = False
    thoughts: bool = False


class Dialogue:
    """The format of conversations with one set of tools (JSON schemas).

    Raises UserError if there are tools and `format` is "template", but the template does not show results of calls. A
    template that shows results and no definitions (DeepSeek-V3's) is used if it is asked for; the system's message then
    lists the tools.
    """

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Schema] = (), *, format: Format = "auto"):
        self.tokenizer, self.tools = tokenizer, [*tools]
        self._stops = {id_: tokenizer.backend.id_to_token(id_) or "" for id_ in tokenizer.eos_ids}
        ends = sorted(filter(None, self._stops.values()), key=len, reverse=True)
        self._end = re.compile("|".join(map(re.escape, ends)) or r"(?!)")
        self._tail = re.compile(rf"(?:{self._end.pattern}|\s)*\Z")
        self.shown = Shown() if tokenizer.chat_template is None else self._probe()
        is_shown = self.shown.tools and self.shown.results
        self.is_tagged = bool(self.tools) and (format == "tagged" or (format == "auto" and not is_shown))
        if self.tools and not self.is_tagged and not self.shown.results:
            raise UserError("the chat template shows no results of tools: config.episode.format must be auto or tagged")

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end a turn, beside the stop ids."""
        return (CALL_CLOSE,) if self.is_tagged else ()

    # --- The prompt ---

    def open(self, prompt: Prompt, opening: str | None = None) -> tuple[int, ...]:
        """Tokens of a prompt with its tools. opening: text that is appended to the prompt, or to its last message."""
        prompt = self.extend_prompt(prompt, opening)
        if isinstance(prompt, str):
            if self.tools and not self.is_tagged:
                raise UserError("tools of a raw prompt need config.episode.format = tagged")
            return encode_prompt(self.tokenizer, f"{self._instruct()}\n\n{prompt}" if self.tools else prompt)
        if not self.tools or (self.shown.tools and not self.is_tagged):
            return tuple(self.tokenizer.encode(render(self.tokenizer, prompt, tools=self.tools or None)))
        first, *rest = prompt
        told = {**first, "content": f"{self._instruct()}\n\n{join_parts(first.get('content') or '')}"}
        if first.get("role") == "system":
            return encode_prompt(self.tokenizer, [told, *rest])
        try:
            return encode_prompt(self.tokenizer, [{"role": "system", "content": self._instruct()}, *prompt])
        except UserError:  # the template knows no system
            return encode_prompt(self.tokenizer, [told, *rest])

    def extend_prompt(self, prompt: Prompt, opening: str | None) -> Prompt:
        """The prompt with a text behind it."""
        if not opening:
            return prompt
        if isinstance(prompt, str):
            return prompt + opening
        *before, last = prompt
        return [*before, {**last, "content": join_parts(last.get("content") or "") + opening}]

    # --- A turn that was sampled ---

    def read(self, ids: Sequence[int]) -> Turn:
        """The turn that these sampled ids say, their stop id included."""
        said = ids[:-1] if ids and ids[-1] in self._stops else ids
        plain = self.tokenizer.decode(said)
        if not self.tools:
            return Turn({"role": "assistant", "content": plain}, [], [])
        if self.is_tagged:
            return self._read_tagged(plain)
        text = self.tokenizer.decode(said, skip_special=False)
        thought, closed, spoken = text.rpartition(THINK_CLOSE)
        rest, calls = parse_tool_calls(spoken)
        broken = find_broken_calls(rest) if calls or rest.strip() else []
        if not calls:
            return Turn({"role": "assistant", "content": plain}, [], broken)
        return Turn(_call_message(thought + closed + rest, calls), calls, broken)

    def _read_tagged(self, text: str) -> Turn:
        found = _CALL.search(text)
        if not found:
            return Turn({"role": "assistant", "content": text}, [], [])
        name, body = found.group(1), found.group(2).strip()
        schema = next((tool for tool in self.tools if name_of(tool) == name), None)
        arguments = _read_arguments(schema, body) if schema else {"text": body}
        if arguments is None:
            return Turn({"role": "assistant", "content": text}, [], [found.group(0)])
        call = ToolCall(name, arguments)
        return Turn(_call_message(text[: found.start()], [call]), [call], [])

    # --- What follows it ---

    def answer_calls(self, turn: Turn, results: Sequence[str], last: int) -> Answer:
        """Tokens that follow a turn's calls: a result for each, then errors of its broken calls. last: id with which
        the turn ended.
        """
        names = [call.name for call in turn.calls] + ["unknown"] * (len(results) - len(turn.calls))
        messages: list[Message] = [
            {"role": "tool", "name": name, "content": clean(text)} for name, text in zip(names, results, strict=True)
        ]
        if self.is_tagged:
            contents = [message["content"].replace(RESULT_CLOSE, "</ result>") for message in messages]
            text = "".join(f"{RESULT_OPEN}{self._escape(content)}{RESULT_CLOSE}" for content in contents)
            return Answer(tuple(self.tokenizer.encode_more(text)), messages)
        calls = turn.calls or [ToolCall("unknown", {})]
        return Answer(self._encode_more(self._find_suffix(messages, calls), last), messages)

    def answer_words(self, text: str, last: int, *, is_raw: bool = False) -> Answer:
        """A user's message after a turn that ended with the id `last`; is_raw: of a prompt without roles."""
        message: Message = {"role": "user", "content": clean(text)}
        if is_raw:
            return Answer(tuple(self.tokenizer.encode_more(self._escape(message["content"]))), [message])
        return Answer(self._encode_more(self._find_suffix([message], []), last), [message])

    def _encode_more(self, suffix: str, last: int) -> tuple[int, ...]:
        """Ids of a template's text after a turn, without the end token that was sampled."""
        begun = suffix.lstrip()
        if (end := self._stops.get(last)) and begun.startswith(end):
            suffix = begun.removeprefix(end)
        elif last in self._stops and (found := self._end.match(begun)):
            suffix = begun[found.end() :]
        return tuple(self.tokenizer.encode_more(suffix))

    def _find_suffix(self, messages: Sequence[Message], calls: Sequence[ToolCall]) -> str:
        """The template's text behind an assistant's words or calls where these messages follow, and a turn is opened.

        Templates that take one call a turn get one, and all results.
        """
        for said in [calls, calls[:1]] if len(calls) > 1 else [calls]:
            try:
                return self._compare(_give_ids(_probe_reply(said)), _give_ids(*messages))
            except UserError as error:
                refused = error
        raise refused

    def _compare(self, replies: Sequence[Message], messages: Sequence[Message]) -> str:
        talk = [_QUESTION, *replies]
        show: Callable[..., str] = lambda *shown, opened: render(
            self.tokenizer, shown, add_generation_prompt=opened, tools=self.tools or None
        )
        before, whole = show(*talk, opened=False), show(*talk, *messages, opened=True)
        # A template may show a turn in another way once the next one follows (without its thoughts), so the turn's end
        # is found by its last words, or its last call.
        tail = self._tail.search(before)
        words = before[: tail.start()] if tail else before
        calls = replies[0].get("tool_calls")
        end = words[words.rfind(calls[-1]["function"]["name"]) :] if calls else _WORD
        _, found, after = whole.rpartition(end)
        if not found:
            raise UserError("the chat template does not show a turn of the assistant before the next message")
        return after

    # --- The template ---

    def _probe(self) -> Shown:
        """The template's properties."""
        thought: Message = {"role": "assistant", "content": f"<think>\n{_THOUGHT}\n</think>\n\n{_WORD}"}
        talk = render(self.tokenizer, [_QUESTION, thought, _QUESTION])
        names = [name_of(tool) for tool in self.tools] or ["probe"]
        result = {"role": "tool", "name": names[0], "content": _RESULT}
        try:
            after = self._find_suffix([result], [ToolCall(names[0], {})])
            head = render(self.tokenizer, [_QUESTION], tools=self.tools)
        except UserError:
            after = head = ""
        return Shown(bool(head) and all(name in head for name in names), _RESULT in after, _THOUGHT in talk)

    def _instruct(self) -> str:
        if not self.is_tagged:
            return "\n".join(["Tools:", *(json.dumps(tool, ensure_ascii=False) for tool in self.tools)])
        lines = []
        for tool in self.tools:
            kinds = [f"{key}: {kind.get('type', 'any')}" for key, kind in arguments_of(tool).items()]
            description = " ".join(tool.get("function", tool).get("description", "").split())
            lines.append(f"- {name_of(tool)}({', '.join(kinds)}): {description}")
        return _INSTRUCTION + "\n".join(lines)

    def _escape(self, text: str) -> str:
        """The text, where special tokens that it spells are no control tokens."""
        return self.tokenizer.escape_messages([{"role": "tool", "content": text}])[0]["content"]


def clean(text: str) -> str:
    """The text without halves of characters, which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _probe_reply(calls: Sequence[ToolCall]) -> Message:
    return _call_message("", calls) if calls else {"role": "assistant", "content": _WORD}


def _call_message(content: str, calls: Sequence[ToolCall]) -> Message:
    described = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls]
    return {"role": "assistant", "content": content, "tool_calls": described}


def _give_ids(*messages: Message) -> list[Message]:
    """The messages with ids of calls, which some templates ask for: nine letters and digits, by the call's place."""
    found: list[Message] = []
    for place, message in enumerate(messages):
        if "tool_calls" in message:
            calls = [{**call, "id": f"call{number:05}"} for number, call in enumerate(message["tool_calls"])]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            message = {**message, "tool_call_id": f"call{place:05}"}
        found.append(message)
    return found


def _read_arguments(schema: Schema, body: str) -> dict[str, Any] | None:
    """Arguments of a tagged call; None for a text that is none of this tool's."""
    known = arguments_of(schema)
    try:
        value = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and value.keys() <= known.keys():
        return value
    if len(known) != 1 or not body:
        return None
    ((name, kind),) = known.items()
    return {name: body if kind.get("type") == "string" or value is None else value}
