"""Fenced code in a reply, and which block is the program.

The last block after the reasoning that names the language counts, in any spelling of its name (`py`, `Python 3`,
`c++`); without one, the last unnamed block that is code. A fence is a line of at least three back ticks or tildes, at
any indentation; it closes at the first unnamed fence of at least its length after which the Python program parses, so
that strings and docstrings may contain fences; if none does, at the first.

Left out: a fence that is never closed, which a length limit cut off.
"""

import ast
import re
import textwrap
import warnings
from typing import NamedTuple

from r1jax.text.reasoning import after_thought

_FENCE = re.compile(r"^([ \t]{0,40}(?:(?:[-*+]|[0-9]{1,3}[.)])[ \t]{1,4})?)(`{3,}|~{3,})([^\n`]{0,200})$", re.MULTILINE)
_WORD = re.compile(r"[a-z][a-z+#]*")  # without a version: python3, c++17
_NAMES = {
    "python": frozenset(("python", "py", "pypy", "ipython")),
    "cpp": frozenset(("cpp", "c++", "cc", "cxx")),
    "javascript": frozenset(("javascript", "js", "node")),
    "bash": frozenset(("bash", "sh", "shell")),
}
_MAX_CLOSINGS = 8  # closing fences tried per block
_MAX_PARSED = 100_000  # longer blocks (in characters) are not parsed
_MAX_BLOCKS = 200  # only so many last blocks of a reply are considered


class Block(NamedTuple):
    """A fenced block: the name after its fence in lower case ("" without one), and its lines."""

    name: str
    code: str


def find_program(text: str, language: str) -> str:
    """The program of a language in a reply; "" without one."""
    blocks = find_blocks(after_thought(text))
    names = _NAMES.get(language, frozenset((language,)))
    for block in reversed(blocks):
        if block.name in names:
            return block.code
    for block in reversed(blocks):
        if not block.name and is_code(block.code, language):
            return block.code
    return ""


def find_blocks(text: str) -> list[Block]:
    """The closed fenced blocks of a text, in order; only the last ones of very many."""
    text = text.replace("\r\n", "\n")
    fences = list(_FENCE.finditer(text))[-2 * _MAX_BLOCKS * _MAX_CLOSINGS :]
    blocks = []
    number = 0
    while number < len(fences):
        opening = fences[number]
        closing = _find_closing(text, fences, number)
        if closing is None:
            number += 1
            continue
        blocks.append(Block(_read_name(opening[3]), _cut(text, opening, fences[closing])))
        number = closing + 1
    return blocks[-_MAX_BLOCKS:]


def is_code(text: str, language: str) -> bool:
    """Whether an unnamed block is a program and not its output, by a heuristic."""
    if language == "python":
        tree = _parse(text)
        return tree is not None and any(not isinstance(node, ast.Expr) or _calls(node) for node in tree.body)
    if language == "cpp":
        return "#include" in text or bool(re.search(r"\b(?:int|void|auto|bool|long)\s{1,4}\w{1,40}\s{0,4}\(", text))
    return False


def _find_closing(text: str, fences: list[re.Match[str]], opening: int) -> int | None:
    """Index of the fence that closes a block."""
    mark, first = fences[opening][2], None
    is_python = _read_name(fences[opening][3]) in _NAMES["python"] | {""}
    tried = 0
    for number in range(opening + 1, min(len(fences), opening + 1 + 4 * _MAX_CLOSINGS)):
        fence = fences[number]
        if fence[3].strip() and first is not None:
            break  # the next block begins
        if fence[3].strip() or fence[2][0] != mark[0] or len(fence[2]) < len(mark):
            continue
        first = number if first is None else first
        tried += 1
        size = fence.start() - fences[opening].end()
        if not is_python or tried > _MAX_CLOSINGS or size > _MAX_PARSED:
            break
        if _parse(_cut(text, fences[opening], fence)) is not None:
            return number
    return first


def _cut(text: str, opening: re.Match[str], closing: re.Match[str]) -> str:
    """The lines between two fences, without the fence's own indentation."""
    code = text[opening.end() + 1 : closing.start()].lstrip("\ufeff")
    return textwrap.dedent(code) if opening[1] and not code[:1].strip() else code


def _read_name(info: str) -> str:
    """The language name in the text after a fence: `python` for `Python 3`, `{.python}`, `py title="a.py"`."""
    word = _WORD.match(info.strip().lstrip("{.").lower())
    return word[0] if word else ("" if not info.strip() else info.strip())


def _parse(text: str) -> ast.Module | None:
    if len(text) > _MAX_PARSED:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _calls(node: ast.Expr) -> bool:
    return isinstance(node.value, ast.Call)
