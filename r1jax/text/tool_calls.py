"""Tool calls in a reply's text, in the formats that models write.

- Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, several in a row.
- Qwen3-coder: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>`.
- Llama 3.1: the whole reply is `{"name": …, "parameters": {…}}`, after `<|python_tag|>` or not; several with `;`.
- GLM-4.5: `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…</tool_call>`.
- Kimi-K2: `<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`.
- gpt-oss: `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>`.
- MiniMax-M2: `<invoke name="NAME"><parameter name="KEY">VALUE</parameter>…</invoke>`.
- Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, or `[TOOL_CALLS]NAME[ARGS]{…}`.
- Phi-4-mini: `<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>`.
- Gemma 4: `<|tool_call>call:NAME{KEY:VALUE,…}<tool_call|>`, where `<|"|>` stands for the quotes of texts.
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
_GLM = re.compile(r"^([^<>{}\n]+?)\s*((?:<arg_key>.*)?)$", re.DOTALL)
_GLM_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_KIMI = re.compile(
    r"<\|tool_call_begin\|>\s*(?:functions\.)?([^:<\s]+)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(\{.*?\})\s*"
    r"(?:<\|tool_call_end\|>|$)",
    re.DOTALL,
)
_HARMONY = re.compile(
    r"(?:<\|start\|>assistant)?\s*(?:<\|channel\|>(?:commentary|analysis))?\s*to=functions\.([\w.-]+)\s*"
    r"(?:<\|channel\|>(?:commentary|analysis))?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>\s*(\{.*?\})\s*(?:<\|call\|>|$)",
    re.DOTALL,
)
_INVOKE = re.compile(r'<invoke name="([^">]+)">\s*(.*?)\s*</invoke>', re.DOTALL)
_INVOKE_PARAMETER = re.compile(r'<parameter name="([^">]+)">\n?(.*?)\n?</parameter>', re.DOTALL)
_MISTRAL = re.compile(
    r"\[TOOL_CALLS\]\s*([\w.-]+)\s*(?:\[CALL_ID\]\w+\s*)?\[ARGS\]\s*(\{.*?\})\s*(?=\[TOOL_CALLS\]|</s>|$)", re.DOTALL
)
_LIST = re.compile(r"(?:\[TOOL_CALLS\]|<\|tool_call\|>)\s*(\[.*\])\s*(?:<\|/tool_call\|>|</s>)?\s*$", re.DOTALL)
_GEMMA = re.compile(r"<\|tool_call>\s*call:([\w.-]+)(\{.*?\})(?:<tool_call\|>|$)", re.DOTALL)
_GEMMA_QUOTE = '<|"|>'
_FRAMES = re.compile(r"<\|tool_calls_section_(?:begin|end)\|>|</?minimax:tool_call>")
_DEEPSEEK_FRAME = re.compile(r"<｜tool▁calls▁(?:begin|end)｜>")
_DEEPSEEK_BEGIN = "<｜tool▁call▁begin｜>"
_PYTHON_TAG = "<|python_tag|>"
_PYTHON_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


class ToolCall(NamedTuple):
    """A call: the tool's name, and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def parse_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The reply without its calls, and the calls in order."""
    named = ((pattern, _read_named) for pattern in (_DEEPSEEK, _KIMI, _HARMONY, _MISTRAL))
    for pattern, read in ((_HERMES, _read_tagged), *named, (_INVOKE, _read_invoke), (_GEMMA, _read_gemma)):
        calls: list[ToolCall] = []

        def take(match: re.Match, read: Any = read, calls: list[ToolCall] = calls) -> str:
            call = read(match)
            if call is None:
                return match.group(0)
            calls.append(call)
            return ""

        rest = pattern.sub(take, text)
        if calls:
            return _FRAMES.sub("", _DEEPSEEK_FRAME.sub("", rest)).strip(), calls
    if (match := _LIST.search(text)) and (found := _read_list(match.group(1))):
        return text[: match.start()].strip(), found
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
    if (call := _read_json(match.group(1))) is not None:
        return call
    if (plain := _GLM.match(match.group(1))) and (plain.group(2) or "</tool_call>" in match.group(0)):
        found = {key.strip(): _read_value(value) for key, value in _GLM_ARGUMENT.findall(plain.group(2))}
        return (
            ToolCall(plain.group(1).strip(), found)
            if found or not plain.group(2) and _is_name(plain.group(1))
            else None
        )
    return None


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w.-]*_[\w.-]*", text.strip()) is not None


def _read_invoke(match: re.Match) -> ToolCall | None:
    return ToolCall(match.group(1), {key: _read_value(x) for key, x in _INVOKE_PARAMETER.findall(match.group(2))})


def _read_list(text: str) -> list[ToolCall]:
    """Calls of a JSON list; none if one of them cannot be read."""
    value = _load(text)
    calls = [_read_json(json.dumps(each)) for each in value] if isinstance(value, list) else []
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) else []


def _read_named(match: re.Match) -> ToolCall | None:
    arguments = _load(match.group(2))
    return ToolCall(match.group(1), arguments) if isinstance(arguments, dict) else None


def _read_gemma(match: re.Match) -> ToolCall | None:
    parts = match.group(2).split(_GEMMA_QUOTE)  # texts stand at odd places
    parts[::2] = [re.sub(r"([{,]\s*)(\w+)(\s*:)", r'\1"\2"\3', part) for part in parts[::2]]
    parts[1::2] = [json.dumps(part) for part in parts[1::2]]
    arguments = _load("".join(parts))
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
    """A parameter's value: JSON or a constant of Python (Qwen3.5 writes them), else the text."""
    value = _load(_PYTHON_CONSTANTS.get(text, text))
    return text if value is None and text.strip() not in ("null", "None") else value


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
