"""Tool calls in a reply's text, in the formats that models write.

- Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, several in a row.
- Qwen3-coder: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>`.
- Llama 3.1: the whole reply is `{"name": …, "parameters": {…}}`, after `<|python_tag|>` or not; several with `;`.
- DeepSeek V3 and R1: `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\\n```json\\n{…}\\n```<｜tool▁call▁end｜>`.

A call that does not parse stays text, so that nothing a model wrote is lost; `find_broken_calls` lists such texts.
Sources: the models' chat templates.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_FUNCTION = re.compile(r"^<function=([^>\n]+)>\s*(.*?)\s*(?:</function>)?\s*$", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?([^\n<`]+?)\s*(?:<｜tool▁sep｜>|\n)\s*(?:```json)?\s*(\{.*?\})\s*(?:```)?\s*"
    r"<｜tool▁call▁end｜>",
    re.DOTALL,
)
_DEEPSEEK_FRAME = re.compile(r"<｜tool▁calls▁(?:begin|end)｜>")
_DEEPSEEK_BEGIN = "<｜tool▁call▁begin｜>"
_PYTHON_TAG = "<|python_tag|>"


class ToolCall(NamedTuple):
    """A call: the tool's name, and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def parse_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The reply without its calls, and the calls in order."""
    for pattern, read in ((_HERMES, _read_tagged), (_DEEPSEEK, _read_deepseek)):
        calls: list[ToolCall] = []

        def take(match: re.Match, read: Any = read, calls: list[ToolCall] = calls) -> str:
            call = read(match)
            if call is None:
                return match.group(0)
            calls.append(call)
            return ""

        rest = pattern.sub(take, text)
        if calls:
            return _DEEPSEEK_FRAME.sub("", rest).strip(), calls
    return _read_bare(text)


def find_broken_calls(rest: str) -> list[str]:
    """Texts in what `parse_tool_calls` left over that begin as a call does and could not be read."""
    marks = [match.group(0) for match in _HERMES.finditer(rest)]
    marks += [rest[place:] for mark in (_DEEPSEEK_BEGIN, _PYTHON_TAG) if (place := rest.find(mark)) >= 0]
    return marks


def _read_tagged(match: re.Match) -> ToolCall | None:
    if function := _FUNCTION.match(match.group(1)):
        arguments = {key: _read_value(value) for key, value in _PARAMETER.findall(function.group(2))}
        return ToolCall(function.group(1).strip(), arguments)
    return _read_json(match.group(1))


def _read_deepseek(match: re.Match) -> ToolCall | None:
    arguments = _load(match.group(2))
    return ToolCall(match.group(1), arguments) if isinstance(arguments, dict) else None


def _read_bare(text: str) -> tuple[str, list[ToolCall]]:
    """Calls of a reply that is nothing else."""
    body = text.strip().removeprefix(_PYTHON_TAG).strip()
    if not body.startswith("{"):
        return text, []
    calls = [_read_json(part) for part in ([body] if _load(body) is not None else re.split(r"\s*;\s*(?=\{)", body))]
    found = [call for call in calls if call is not None]
    return ("", found) if found and len(found) == len(calls) else (text, [])


def _read_json(text: str) -> ToolCall | None:
    value = _load(text)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _load(arguments)
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _read_value(text: str) -> Any:
    """A parameter's value: JSON where it is, else the text."""
    value = _load(text)
    return text if value is None and text.strip() != "null" else value


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
