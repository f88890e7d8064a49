"""Messages in the form that a chat template reads.

Data come in several forms: a content may be a text, a list of text parts, or null beside tool calls; the arguments of a
call may be a mapping or its JSON (OpenAI's form). A template reads some of them, and fails on the others, prints them
as Python writes them, or shows nothing at all (templates of vision models ignore a content that is a plain text). So a
template is asked once what it shows of each form, and messages are changed only where it does not read theirs; all
else reaches the template as transformers would pass it.

Left out: images and other parts that are not text, which a template may show as placeholders.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.core.errors import UserError

Message = Mapping[str, Any]
Show = Callable[[Sequence[Message]], str]  # renders messages by a template; raises UserError where it refuses them
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")  # keys of a message's reasoning, the usual one first
_QUESTION, _WORD, _KEY = "probe-question", "probe-word", "probe-key"


class MessageForms:
    """The forms that one template reads, each found when it is first needed. `show` renders by the template."""

    def __init__(self, show: Show):
        self._show = show

    def fit(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages in forms that the template reads, without keys whose value is None, which templates would print;
        reasoning is copied to all its key names. Raises UserError for a message that is no mapping.
        """
        return [self._fit(message) for message in messages]

    def _fit(self, message: Message) -> dict[str, Any]:
        if not isinstance(message, Mapping):
            raise UserError(f"a message must be a mapping with role and content, got {str(message)[:60]!r}")
        kept = {key: value for key, value in message.items() if value is not None}
        reasoning = next((kept[name] for name in REASONING_NAMES if name in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        if "tool_calls" in kept:
            if not kept["tool_calls"]:
                del kept["tool_calls"]  # templates ask whether the key is there
            else:
                kept["tool_calls"] = [self._fit_call(call) for call in _check_calls(kept["tool_calls"])]
                kept.setdefault("content", None if self._reads_null else "")
        if kept.get("content") is not None:
            kept["content"] = self._fit_content(kept["content"])
        return kept

    def _fit_content(self, content: Any) -> Any:
        if isinstance(content, str) and not self._reads_text and self._reads_parts:
            return [{"type": "text", "text": content}]
        if is_parts(content) and not self._reads_parts:
            return join_parts(content)
        return content

    def _fit_call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        inner = call.get("function")
        if isinstance(inner, Mapping):
            return {**call, "function": self._fit_call(inner)}
        arguments = call.get("arguments")
        if isinstance(arguments, str) and self._arguments == "mapping":
            arguments = _parse_mapping(arguments)
        elif isinstance(arguments, Mapping) and self._arguments == "text":
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "arguments": arguments} if "arguments" in call else dict(call)

    # --- What the template reads ---

    @functools.cached_property
    def _reads_text(self) -> bool:
        return _WORD in self._try(_talk(_QUESTION, _WORD))

    @functools.cached_property
    def _reads_parts(self) -> bool:
        parts = self._try(_talk(*([{"type": "text", "text": text}] for text in (_QUESTION, _WORD))))
        return parts == self._try(_talk(_QUESTION, _WORD)) if self._reads_text else _WORD in parts

    @functools.cached_property
    def _arguments(self) -> str:
        """The form of arguments that must be made of the other: "mapping", "text", or "" where none must."""
        for content in ("", None):  # DeepSeek-R1's template shows calls beside a null only
            of_mapping, of_text = (self._try(_call(content, form({_KEY: _WORD}))) for form in (dict, json.dumps))
            if _KEY in of_mapping:
                return "" if of_text == of_mapping else "mapping"
            if _KEY in of_text:
                return "text"
        return ""

    @functools.cached_property
    def _reads_null(self) -> bool:
        arguments: Any = json.dumps({_KEY: _WORD}) if self._arguments == "text" else {_KEY: _WORD}
        shown = self._try(_call(None, arguments))
        return _KEY in shown and shown.count("None") <= self._try(_call("", arguments)).count("None")

    def _try(self, messages: Sequence[Message]) -> str:
        """The rendering; "" where the template refuses the messages."""
        try:
            return self._show(messages)
        except UserError:
            return ""


def _talk(question: Any, reply: Any) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def _call(content: str | None, arguments: Any) -> list[Message]:
    call = {"id": "probe0000", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    return [_talk(_QUESTION, "")[0], {"role": "assistant", "content": content, "tool_calls": [call]}]


def join_parts(content: Any) -> Any:
    """The text of a content made of text parts; any other content unchanged."""
    return "".join(part["text"] for part in content) if is_parts(content) else content


def is_parts(content: Any) -> bool:
    """Whether a content is a list of text parts."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content)
    )


def _parse_mapping(text: str) -> Any:
    """The mapping that a JSON text holds; the text itself where it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _check_calls(calls: Any) -> list[Mapping[str, Any]]:
    if isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls):
        return calls
    raise UserError(f"tool_calls must be a list of mappings, got {str(calls)[:60]!r}")
