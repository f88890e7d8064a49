"""Quoting of one model's text in another model's prompt, and reading of the verdict in its reply.

A judged response is untrusted: it may address the judge, end the judge's turn, or contain verdicts in the parser's
format, so that a judge that quotes it seems to give them. Three measures, each enough for most attacks:

- `disarm` rewrites special tokens, reasoning tags and verdict heads ("Score:") before the text is shown, so that a
  faithful quotation contains none;
- `fence` encloses the text between two equal lines with a code that the text cannot contain;
- `read_lines` and `choose` read the reply without its reasoning and without its quotations.

Left out: judges that a text persuades.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from r1jax.text.reasoning import THINK_OPEN

V = TypeVar("V")

MAX_REPLY = 20_000  # only so many characters at the end of a reply are read
_SPECIAL = re.compile(
    r"<([|｜][^<>\n]{1,60}?[|｜])>|<(/?(?:s|think|answer|bos|eos|pad|unk|(?:start|end)_of_turn))>"
    r"|\[(/?INST)\]|<<(/?SYS)>>",
    re.IGNORECASE,
)
_HEAD = re.compile(
    r"\b(score|rating|grade|overall|ranking|ranked|rank|order|best)\b([^:=：\n]{0,40}?)[ \t]*[:=：]", re.IGNORECASE
)
_TURN = re.compile(r"^([ \t]*(?:user|assistant|system|human))[ \t]*:", re.IGNORECASE | re.MULTILINE)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_EDGES = " \t\r>-*•\"'`“”‘’«»#_~"
# A line that is a quotation from its first character on; not a JSON field or a single quoted word.
_QUOTED = re.compile(r"^[\s\-*•]{0,8}(?:>|[\"'“‘«](?!\w{1,12}[\"'”’»]))")
# "Response 3 contains this line:", "The answer reads:"
_INTRODUCTION = re.compile(
    r"\b(?:responses?|answers?|candidates?|it|text|student|author)\b.{0,200}\b(?:says?|said|writes?|wrote|contain\w*"
    r"|claim\w*|holds?|ends?|reads?|quot\w+|includ\w+|stat\w+|has|asks?|tells?|line)\b[^:]{0,80}:$"
)


class Line(NamedTuple):
    """A line of a reply, as written and as normalized by `plain`, and whether it is a quotation."""

    raw: str
    text: str
    is_quoted: bool  # by its marks, or by the line before
    is_shown: bool  # a shown text has the same line, which the reply may still mean


def disarm(text: str) -> str:
    """The text for another model's prompt: without special tokens, reasoning tags, turns and verdict heads."""
    text = _SPECIAL.sub(lambda token: f"({token[1] or token[2] or token[3] or token[4]})", _INVISIBLE.sub("", text))
    return _TURN.sub(r"\1 –", _HEAD.sub(r"\1\2 –", text))


def fence(text: str, salt: str = "") -> str:
    """The text between two equal lines that it does not contain: a code from a hash of the text and `salt`."""
    number = 0
    while True:
        code = hashlib.sha256(f"{number} {salt} {text}".encode(errors="replace")).hexdigest()[:8]
        if code not in text:
            line = f"===== {code} ====="
            return f"{line}\n{text}\n{line}"
        number += 1


def read_lines(reply: str, shown: Sequence[str] = ()) -> list[Line]:
    """The non-empty lines of a reply outside its reasoning, without complete quotations of the shown texts."""
    texts = [[line for line in map(plain, text[-MAX_REPLY:].split("\n")) if line] for text in shown]
    known = {line for text in texts for line in text}
    joined = [" ".join(text) for text in texts if any("think>" in line for line in text)]
    lines = [Line(line, plain(line), bool(_QUOTED.match(line)), False) for line in reply[-MAX_REPLY:].split("\n")]
    lines = _without_thought(
        [line for line in lines if line.text], known, joined, reply.lstrip().startswith(THINK_OPEN)
    )
    marks = "\n" + "\n".join(line.text for line in lines) + "\n"
    for text in texts:
        block = "\n" + "\n".join(text) + "\n"
        start = marks.find(block) if len(text) > 1 else -1
        while start >= 0:
            first = marks.count("\n", 0, start)
            lines[first : first + len(text)] = [Line("", "…", True, True)]
            marks = f"{marks[:start]}\n…{marks[start + len(block) - 1 :]}"
            start = marks.find(block, start)
    return [
        Line(
            line.raw,
            line.text,
            line.is_quoted or bool(before and _INTRODUCTION.search(before.text)),
            line.text in known,
        )
        for before, line in zip([None, *lines], lines, strict=False)
    ]


def choose(found: Sequence[tuple[Line, V]]) -> V | None:
    """The verdict among lines that have a verdict's form: the last one that is in no shown text. If shown texts contain
    all of them, the value on which they agree; quotations never count.
    """
    found = [(line, verdict) for line, verdict in found if not line.is_quoted]
    own = [verdict for line, verdict in found if not line.is_shown]
    if own:
        return own[-1]
    same = all(verdict == found[0][1] for _, verdict in found)
    return found[-1][1] if found and same else None


def plain(line: str) -> str:
    """A line without surrounding marks and invisible characters, with normalized spaces and case."""
    spaced = " ".join(unicodedata.normalize("NFKC", _INVISIBLE.sub("", line)).split())
    return spaced.lstrip(_EDGES).rstrip(_EDGES.replace(">", "")).casefold()


def _without_thought(lines: list[Line], known: set[str], joined: Sequence[str], opened: bool) -> list[Line]:
    """The lines after the reply's own reasoning. If the reply opens none, tags inside quoted text end none."""
    for number in reversed(range(len(lines))):
        text = lines[number].text
        if "</think>" in text and (opened or not (text in known or any(quoted in text for quoted in joined))):
            rest = lines[number].raw.rpartition("</think>")[2]
            return ([Line(rest, plain(rest), False, False)] if plain(rest) else []) + lines[number + 1 :]
    return [] if opened else lines
