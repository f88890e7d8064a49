r"""Places of a completion's answer: never inside the reasoning; in the last answer tags, the last box, or a requested
line.

Text around a box counts: `-\boxed{7}` is -7, `\boxed{7} million` is not 7, `not \boxed{7}` and `\boxed{7} is wrong` are
not answers, boxes joined by "or", "and" or a comma are one answer with several parts, and a later "The answer is 8."
replaces a boxed 7. All by plain searches, in linear time.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from r1jax.rewards.reader.numerals import read_numeral
from r1jax.rewards.reader.spelling import spell_latex, strip_introduction
from r1jax.rewards.reader.units import read_unit
from r1jax.text.reasoning import ANSWER_CLOSE, ANSWER_OPEN, after_thought

GSM8K_MARK = "####"

_BRACES = re.compile(r"(?P<box>\\boxed\s{0,8}\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")
_BARE_BOX = re.compile(r"\\boxed\s{1,8}(-?[0-9]+(?:\.[0-9]+)?|[A-Za-z](?![a-zA-Z]))")
# A box inside a box happens; a thousand nested ones are an attack.
_MAX_NESTED_BOXES = 4
_MAX_JOINED_BOXES = 20
_SEEN_AROUND = 80
_JOINED = re.compile(
    r"(?:\s|\\text|\\q?quad|\\[,;:()\[\] ]|[{}()\[\]$*~,;/&|.]"
    r"|\b(?:or|and|maybe|possibly|perhaps|either|else|also)\b)*",
    re.IGNORECASE,
)
_NEGATED_BEFORE = re.compile(
    r"(?:\bnot|n't|n’t|\bnever|\bcannot|\bneither)(?: (?:be|equal(?: to)?|simply|just|really|the answer))?"
    r"[ \t$:({\\\[*]*\Z",
    re.I,
)
_NEGATED_BEHIND = re.compile(
    r"[\s$)*}\]\\,]*(?:which )?"
    r"(?:(?:is|was)(?: clearly| certainly)? (?:not|wrong|incorrect|false|impossible|no)\b|isn't|cannot be|can't be)",
    re.I,
)
_HEDGED_BEHIND = re.compile(r"[\s$)*}\]\\,(]*\bor (?:maybe |possibly |perhaps |else )?\$?-?[0-9]", re.I)
_SIGN_BEFORE = re.compile(r"[$=(\[{:,] {0,2}-[ $]?\Z|(?:^|(?<=\n))-\$?$")  # `- \boxed{7}` is an item of a list
_FACTOR_BEHIND = re.compile(
    r"\\(?:pi|sqrt|frac|cdot|times)(?![a-zA-Z])[^\s$]{0,40}|[\^!/*][^\s$*][^\s$]{0,40}|![^\s$]{0,40}"
)
_CLOSING = re.compile(r"(?:\\[\])]|[}$*_ \t])*")
_SCALE_BEHIND = re.compile(
    r"(?:\\text ?\{ ?)?(hundred|thousand|million|billion|trillion|dozen|percent|per cent|\\?%)(?![a-zA-Z])",
    re.IGNORECASE,
)
_UNIT_BEHIND = re.compile(
    r"((?:square |cubic )?(?:\\(?:text|mathrm|mbox) ?\{[^{}]{1,30}\}|[A-Za-z°]{1,15})(?:\^\{?[1-9]\}?|[²³])?"
    r"(?:/[a-zA-Z]{1,8})?)(?=[\s$.,;)\\]|$)"
)
_NO_UNITS_BEHIND = frozenset(("in", "a", "an", "A", "s", "I", "as", "at", "or", "and", "is", "of", "min"))
_STATEMENT = re.compile(
    r"(?<![a-z])answer\b[ \t*_]*+(?:,[^,.\n]{0,60},)?[ \t]*+(?:is\b|:|=)"
    r"(?:[ \t]*+(?:therefore|thus|equal to|:))?[ \t*_:]*+",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_MAX_STATEMENT = 300


class Place(NamedTuple):
    """An answer as written, and the rule by which it was found; None if the rule says that there is none."""

    text: str | None
    rule: str


def find_answer(text: str) -> str | None:
    r"""The content of the last closed answer tags, or else of the last `\boxed{}`; a box inside the tags is opened."""
    place = find_place(text)
    return None if place is None else place.text


def find_place(text: str) -> Place | None:
    """The answer in tags or boxes after the reasoning, with the text around them. None if there are none."""
    text = after_thought(text)
    tagged = _find_tagged(text)
    if tagged is None:
        return _find_in_boxes(text)
    inside = _find_in_boxes(tagged)
    if inside is None:
        return (None if tagged else _find_in_boxes(text)) or Place(tagged, "answer tags")
    first = tagged.partition(r"\boxed")[0].strip(" $")
    if inside.text is not None and first and read_numeral(first) is not None:
        return Place(None, "a number beside a box")
    return Place(inside.text, f"{inside.rule} in answer tags")


def find_boxed(text: str) -> str | None:
    r"""The content of the `\boxed{}` that closes last, with balanced braces, in one linear pass; None if there
    is none.
    """
    last = next(iter(_find_boxes(text)), None)
    return None if last is None else text[last[1] : last[2]].strip()


def find_statement(text: str) -> str | None:
    """The content of the last "answer is …" or "Answer: …" of a text, up to the end of its sentence or line."""
    last = max(_STATEMENT.finditer(text), key=lambda found: found.start(), default=None)
    if last is None:
        return None
    rest = text[last.end() : last.end() + _MAX_STATEMENT].lstrip()
    end = _SENTENCE_END.search(rest)
    return (rest[: end.start()] if end else rest).strip().rstrip("*_ ") or None


def find_marked(text: str) -> str | None:
    """The content of the last `####` line; None if that is a heading (words followed by more text)."""
    position = text.rfind(GSM8K_MARK)
    if position < 0:
        return None
    line, _, behind = text[position + len(GSM8K_MARK) :].lstrip(" \t").partition("\n")
    line = line.strip()
    is_heading = bool(re.match(r"[A-Za-z]{3,}", line)) and read_numeral(strip_introduction(line)) is None
    return None if not line or is_heading and behind.strip() else line


def find_line(text: str) -> Place | None:
    """The answer in the last requested line after the reasoning: GSM8K's `####`, or "answer is"."""
    text = after_thought(text)
    marked, stated = find_marked(text), find_statement(text)
    if marked is not None and (stated is None or text.rfind(GSM8K_MARK) > text.rfind(stated) or stated in marked):
        return Place(marked, "#### line")
    return None if stated is None else Place(stated, "asked-for line")


def _find_tagged(text: str) -> str | None:
    last_close = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, max(last_close, 0))
    if start < 0:
        return None
    start += len(ANSWER_OPEN)
    return text[start : text.find(ANSWER_CLOSE, start)].strip()


def _find_boxes(text: str) -> Iterator[tuple[int, int, int]]:
    r"""(start of `\boxed`, start and end of its content) of each outermost closed box, last first."""
    if r"\boxed" not in text:
        return
    starts: list[tuple[int, int] | None] = []
    closed: list[tuple[int, int, int]] = []
    for token in _BRACES.finditer(text):
        if token["box"]:
            starts.append((token.start(), token.end()))
        elif token["open"]:
            starts.append(None)
        elif token["close"] and starts and (start := starts.pop()) is not None:
            closed.append((*start, token.start()))
    least = len(text) + 1
    for box in reversed(closed):
        if box[2] < least:
            least = box[0]
            yield box


def _find_in_boxes(text: str) -> Place | None:
    boxes = list(_take(_find_boxes(text), _MAX_JOINED_BOXES + 1))
    if not boxes:
        bare = _BARE_BOX.search(text)
        return None if bare is None else Place(bare[1], "box without braces")
    begin, start, end = boxes[0]
    content, rule = _open_boxes(text[start:end]), "last box"
    joined = [content]
    for (_, _, before), (after, _, _) in zip(boxes[1:], boxes, strict=False):
        if after - before - 1 > _SEEN_AROUND or not _JOINED.fullmatch(text, before + 1, after):
            break
        begin, start, before_end = boxes[len(joined)]
        joined.append(_open_boxes(text[start:before_end]))
    if len(joined) > _MAX_JOINED_BOXES:
        return Place(None, "very many boxes")
    if len({_key(one) for one in joined}) > 1:
        content, rule = ", ".join(reversed(joined)), f"{len(joined)} boxes as one answer"
    return _look_around(text, begin, end + 1, content, rule)


def _look_around(text: str, begin: int, end: int, content: str, rule: str) -> Place:
    """The answer in a box (or boxes) that spans text[begin:end], with its sign and unit, or its retraction."""
    before, behind = text[max(0, begin - _SEEN_AROUND) : begin], text[end : end + _SEEN_AROUND]
    if _NEGATED_BEFORE.search(before) or _NEGATED_BEHIND.match(behind):
        return Place(None, f"{rule}, negated")
    if _HEDGED_BEHIND.match(behind):
        return Place(None, f"{rule}, or another number")
    number = read_numeral(content)
    stated = None if number is None else find_statement(text[end:])
    if number is not None and stated is not None:
        last = read_numeral(strip_introduction(stated))
        if last is not None and last.value != number.value:
            return Place(None, f"{rule}, taken back by a later answer")
    if _SIGN_BEFORE.search(before):
        content, rule = f"-({content})" if number is None else f"-{content}", f"{rule} with its sign"
    factor = _FACTOR_BEHIND.match(behind)
    if factor:
        return Place(content + factor[0], f"{rule} and what multiplies it")
    behind = behind[_CLOSING.match(behind).end() :]  # type: ignore[union-attr]
    scale = _SCALE_BEHIND.match(behind)
    if scale:
        return Place(f"{content} {scale[1]}", f"{rule} and the word behind it")
    unit = _UNIT_BEHIND.match(behind)
    if unit and number is not None and not number.unit and unit[1] not in _NO_UNITS_BEHIND and read_unit(" " + unit[1]):
        return Place(f"{content} {unit[1]}", f"{rule} and the unit behind it")
    return Place(content, rule)


def _open_boxes(content: str) -> str:
    content = content.strip()
    for _ in range(_MAX_NESTED_BOXES):
        inner = find_boxed(content)
        if inner is None:
            break
        content = inner
    return content


def _key(content: str) -> object:
    number = read_numeral(content)
    return spell_latex(content) if number is None else (number.value, number.percent)


def _take(boxes: Iterator[tuple[int, int, int]], count: int) -> Iterator[tuple[int, int, int]]:
    for _, box in zip(range(count), boxes, strict=False):
        yield box
