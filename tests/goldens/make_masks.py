"""Writes masks.json.xz: what TRL's chat templates show of 20 conversations, and what they mark as the assistant's.

usage: python tests/goldens/make_masks.py
needs: transformers 5, trl (its files only, so `pip install --no-deps trl` does; no torch, no network).
Written with transformers 5.24, trl 1.16.

{"source": versions, "conversations": {NAME: {"messages": [...], "tools": [...]}},
 "templates": {NAME: text of trl/chat_templates/NAME.jinja (Apache-2.0; chat formats of the models' makers)},
 "shown": {NAME: {CONVERSATION: CRC-32 of the text that transformers renders, or null where it is refused}},
 "learnt": {NAME: {CONVERSATION: [text of each generation block], or null where it is refused}}}
"""

import json
import lzma
import re
import zlib
from pathlib import Path

import transformers
import trl
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
ASK, AGAIN = {"role": "user", "content": "What is 2+2?"}, {"role": "user", "content": "And in Paris?"}
SAID, MORE = {"role": "assistant", "content": "It is 4."}, {"role": "assistant", "content": "It is mild."}
SYSTEM = {"role": "system", "content": "Be brief."}
THOUGHT = {"role": "assistant", "content": "It is 4.", "reasoning_content": "two and two"}
TAGGED = {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\nIt is 4."}
REPLY, SECOND = (
    {"role": "tool", "name": "weather", "content": "18 C"},
    {"role": "tool", "name": "clock", "content": "9"},
)
PLACES = {
    "type": "object",
    "properties": {"place": {"type": "string", "description": "A town."}},
    "required": ["place"],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"Tells the {name}.", "parameters": PLACES}}
    for name in ("weather", "clock")
]


def call(*names: str, content: str | None = None, place: object = "Oslo", **more: str) -> dict:
    """A turn of the assistant that calls tools; its content may be null, as in OpenAI's form."""
    calls = [
        {"id": f"call{i}", "type": "function", "function": {"name": name, "arguments": {"place": place}}}
        for i, name in enumerate(names)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


CONVERSATIONS = {
    "plain": [ASK, SAID],
    "two turns": [ASK, SAID, AGAIN, MORE],
    "system": [SYSTEM, ASK, SAID, AGAIN, MORE],
    "three turns": [ASK, SAID, AGAIN, MORE, ASK, {"role": "assistant", "content": "Still 4:\n\n```\n2 + 2\n```\n"}],
    "outer spaces": [ASK, {"role": "assistant", "content": "  It is 4. \n"}],
    "other scripts": [ASK, {"role": "assistant", "content": "是 4 ✓ — \u0001 <b> & ½"}],
    "thought": [ASK, THOUGHT],
    "thoughts": [ASK, THOUGHT, AGAIN, {**MORE, "reasoning_content": "the south"}],
    "tagged": [ASK, TAGGED],
    "tagged, then plain": [SYSTEM, ASK, TAGGED, AGAIN, MORE],
    "call": [ASK, call("weather")],
    "call and answer": [ASK, call("weather"), REPLY, MORE],
    "call with words": [SYSTEM, ASK, call("weather", content="Let me look."), REPLY, MORE],
    "call with an empty text": [ASK, call("weather", content=""), REPLY, MORE],
    "call with a thought": [ASK, call("weather", reasoning_content="ask the tool"), REPLY, MORE],
    "thought, words, call": [
        ASK,
        call("clock", content="Let me look.", reasoning_content="ask the tool"),
        SECOND,
        MORE,
    ],
    "thoughts around a call": [
        ASK,
        call("weather", reasoning_content="ask the tool"),
        REPLY,
        {**MORE, "reasoning_content": "18 is mild"},
    ],
    "parallel calls": [ASK, call("weather", "clock"), REPLY, SECOND, MORE],
    "calls in a row": [ASK, call("weather"), REPLY, call("clock", place="Ås ½"), SECOND, MORE],
    "call, answer, question": [SYSTEM, ASK, call("weather"), REPLY, MORE, AGAIN, call("clock"), SECOND, SAID],
}


def render(template: str, messages: list, tools: list | None, *, parts: bool, mask: bool) -> tuple[str, list] | None:
    """Text and spans by transformers; None if the template refuses. Contents are parts where the template shows those
    only, as TRL passes them.
    """
    if parts:
        messages = [{**m, "content": [{"type": "text", "text": m["content"] or ""}]} for m in messages]
    try:
        texts, spans = render_jinja_template(
            [messages], tools=tools, chat_template=template, return_assistant_tokens_mask=mask, **TOKENS
        )
    except Exception:  # a template raises whatever its expressions raise
        return None
    return texts[0], spans[0] if mask else []


def main() -> None:
    folder = Path(trl.__file__).parent / "chat_templates"
    templates = {file.stem: file.read_text("utf-8") for file in sorted(folder.glob("*.jinja"))}
    golden: dict = {
        "source": f"trl {trl.__version__}, transformers {transformers.__version__}",
        "conversations": {name: {"messages": messages} for name, messages in CONVERSATIONS.items()},
        "templates": templates,
        "shown": {},
        "learnt": {},
    }
    for name, conversation in golden["conversations"].items():
        conversation["tools"] = TOOLS if "call" in name else None
    for name, template in templates.items():
        has_blocks = re.search(r"{%-?\s*generation\b", template) is not None
        plain = render(template, [ASK, SAID], None, parts=False, mask=False)
        parts = plain is None or SAID["content"] not in plain[0]
        shown, learnt = golden["shown"].setdefault(name, {}), {}
        for title, conversation in golden["conversations"].items():
            made = render(template, **conversation, parts=parts, mask=has_blocks)
            shown[title] = None if made is None else zlib.crc32(made[0].encode())
            learnt[title] = None if made is None else [made[0][start:stop] for start, stop in made[1]]
        if has_blocks:
            golden["learnt"][name] = learnt
    data = json.dumps(golden, ensure_ascii=False).encode()
    (HERE / "masks.json.xz").write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    refused = sum(crc is None for crcs in golden["shown"].values() for crc in crcs.values())
    print(f"{len(templates)} templates, {len(golden['learnt'])} with blocks, {refused} renderings refused")


if __name__ == "__main__":
    main()
