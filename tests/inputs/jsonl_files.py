"""Hostile JSONL files: the content of each, and what the error must name (file and line, where there is one).

Each row but the broken one would do as a prompt, as a completion to score, and as a row to train on.
"""

import json
from typing import Any

ROW: dict[str, Any] = {"prompt": "1 + 1 =", "completion": " 2", "solution": "2", "completions": ["2", "3"]}


def _after(line: str | bytes) -> bytes:
    """A sound row, then a broken one."""
    return json.dumps(ROW).encode() + b"\n" + (line.encode() if isinstance(line, str) else line) + b"\n"


def _with(**changes: Any) -> bytes:
    return _after(json.dumps({key: value for key, value in {**ROW, **changes}.items() if value is not ...}))


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "rows.jsonl"),
    "blank lines": (b"\n\n  \n", "rows.jsonl"),
    "no JSON": (_after("hello"), "rows.jsonl:2"),
    "cut off": (_after('{"prompt": "1 + 1 ='), "rows.jsonl:2"),
    "a list": (_after("[1, 2]"), "rows.jsonl:2"),
    "a text": (_after('"hello"'), "rows.jsonl:2"),
    "a number": (_after("7"), "rows.jsonl:2"),
    "null": (_after("null"), "rows.jsonl:2"),
    "two objects": (_after('{"prompt": "a"} {"prompt": "b"}'), "rows.jsonl:2"),
    "trailing comma": (_after('{"prompt": "a",}'), "rows.jsonl:2"),
    "single quotes": (_after("{'prompt': 'a'}"), "rows.jsonl:2"),
    "invalid UTF-8": (_after(b'{"prompt": "\xff\xfe"}'), "rows.jsonl:2"),
    "UTF-16": (json.dumps(ROW).encode("utf-16"), "rows.jsonl:1"),
    "zero bytes": (b"\0" * 4096, "rows.jsonl:1"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\x99" * 200, "rows.jsonl:1"),
    "deep": (_after("[" * 1_000_000), "rows.jsonl:2"),
    "deep object": (_after('{"a":' * 100_000 + "1" + "}" * 100_000), "rows.jsonl:2"),
    "long number": (_after('{"prompt": ' + "9" * 100_000 + "}"), "rows.jsonl:2"),
    "half a surrogate": (_after('{"prompt": "a \\ud83d b", "completion": "b", "solution": "2"}'), "rows.jsonl:2"),
    "half a surrogate in a name": (_after('{"prompt": "a", "x\\udc00": 1}'), "rows.jsonl:2"),
    "a line of 16 MiB without a quote": (_after('{"prompt": "' + "a" * 2**24), "rows.jsonl:2"),
    "control character": (_after('{"prompt": "a\x01b"}'), "rows.jsonl:2"),
    "NaN for a text": (_after('{"prompt": NaN, "completion": NaN, "solution": NaN}'), "rows.jsonl:2"),
    "an empty object": (_after("{}"), "rows.jsonl:2"),
}

# As above, for rows of prompts only.
PROMPTS: dict[str, tuple[bytes, str]] = {
    "prompt is a number": (_with(prompt=7), "rows.jsonl:2"),
    "prompt is empty": (_with(prompt=""), "rows.jsonl:2"),
    "prompt is null": (_with(prompt=None), "rows.jsonl:2"),
    "prompt is an object": (_with(prompt={"role": "user"}), "rows.jsonl:2"),
    "no message": (_with(prompt=[]), "rows.jsonl:2"),
    "messages are texts": (_with(prompt=["a", "b"]), "rows.jsonl:2"),
    "message without content": (_with(prompt=[{"role": "user"}]), "rows.jsonl:2"),
    "message without role": (_with(prompt=[{"content": "a"}]), "rows.jsonl:2"),
    "content is a number": (_with(prompt=[{"role": "user", "content": 7}]), "rows.jsonl:2"),
    "content is a list": (_with(prompt=[{"role": "user", "content": ["a"]}]), "rows.jsonl:2"),
    "role is a list": (_with(prompt=[{"role": [], "content": "a"}]), "rows.jsonl:2"),
}
