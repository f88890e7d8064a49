r"""Letters of multiple choice: `C`, `(C)`, `\text{C}`, `**C**`, `Option C`, `C. 12 eV`, `Answer: c` are C.

Several letters are no choice (`C or D`, `BC`), nor are words that begin with one (`Cannot be said`). In a completion
the last place that names a letter counts: a requested line, answer tags or a box; a box with something else in it
(`\boxed{12 eV}`) does not.
"""

import re
from collections import deque

from r1jax.rewards.reader.characters import plain_characters
from r1jax.rewards.reader.places import find_place
from r1jax.rewards.reader.spelling import strip_introduction
from r1jax.text.reasoning import ANSWER_CLOSE, ANSWER_OPEN, after_closed_thought, after_thought

LETTERS = "A-H"  # the next letter, I, is a word
_GOLD = re.compile(rf"[(\[]?([{LETTERS}])[)\]]?\.?|[(\[]?([{LETTERS}])(?:[)\]]|[.:])\s+\S.*", re.DOTALL)
_MARKUP = re.compile(r"\\(?:text\w*|math(?:rm|bf|it|sf)|bf|boxed)(?![a-zA-Z])|[${}*`_<>]|\\[()\[\]]")
_NAMED = re.compile(r"(?:the )?(?:correct |right |best )?(?:option|choice|letter|answer)\b\s*(?:is\b|:)?\s*", re.I)
_LETTER = re.compile(rf"(?P<open>[(\[])?\s*(?P<letter>[{LETTERS}{LETTERS.lower()}])(?![\w'])\s*(?P<close>[)\]])?")
_ANOTHER = re.compile(
    rf"[\s.,:;)/&|-]*(?:\b(?:or|and)\b|/|,|&)?\s*[(\[]?[{LETTERS}][)\]]?(?![\w'])\s*(?:[.,;)]|$|or\b|and\b)"
)
_LINE = re.compile(r"answer\b[\s*_]*(?:is\b|:)[ \t*_:]*(?:\n[ \t]*)?([^\n]{0,200})", re.IGNORECASE)
# A capital A before a word is the article.
_LONE_LETTER = re.compile(rf"(?<![\w'\\])([{LETTERS}])(?![\w'])(?<!A(?= [a-z]))")
_MAX_LENGTH = 400
_MOST_LINES = 20


def read_gold_choice(gold: str) -> str | None:
    """The letter of a gold that is a choice: `C`, `(C)`, `C.`, `C. 12`; else None."""
    match = _GOLD.fullmatch(_MARKUP.sub("", gold).strip()) if len(gold) <= _MAX_LENGTH else None
    return (match[1] or match[2]) if match else None


def read_choice(answer: str) -> str | None:
    """The one letter that an answer names; None if it names none, or several."""
    if len(answer) > _MAX_LENGTH:
        return None
    text = _MARKUP.sub("", strip_introduction(plain_characters(answer))).strip()
    text = _NAMED.sub("", text, count=1) if _NAMED.match(text) else text
    match = _LETTER.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    if _ANOTHER.match(rest) and rest.strip(" ."):
        return None
    behind = rest.lstrip()
    is_marked = bool(match["close"]) or rest[:1] in tuple(".:),-") and rest[:1] != ""
    if rest[:1] in tuple("+?^=<>_"):
        return None
    if re.fullmatch(r"is (?:the (?:correct |right |best )?(?:answer|option|choice)|correct|right)", behind.strip(". ")):
        return match["letter"].upper()
    if behind.strip(".") and not is_marked and (behind[0].isalpha() or match["letter"].islower()):
        return None
    if match["letter"].islower() and not match["close"] and behind.strip(" .)"):
        return None
    return match["letter"].upper()


def find_choice(text: str) -> tuple[bool, str | None]:
    """Whether any place of a completion names letters, and the one letter that the last such place names."""
    text = after_thought(text)
    found: list[tuple[int, str | None]] = []
    for line in deque(_LINE.finditer(text), maxlen=_MOST_LINES):
        letter = read_choice(line[1])
        if letter or _LONE_LETTER.search(_MARKUP.sub("", line[1])):
            found.append((line.start(), letter))
    if r"\boxed" in text or ANSWER_CLOSE in text:
        place = find_place(text)
        position = max(text.rfind(r"\boxed"), text.rfind(ANSWER_OPEN))
        letter = read_choice(place.text) if place and place.text else None
        if letter or place and place.text and _LONE_LETTER.search(_MARKUP.sub("", place.text)):
            found.append((position, letter))
    return (True, max(found, key=lambda one: one[0])[1]) if found else (False, None)


def find_last_letter(text: str) -> str | None:
    """The last letter that stands alone after the closed reasoning."""
    last = max(_LONE_LETTER.finditer(after_closed_thought(text)), key=lambda found: found.start(), default=None)
    return None if last is None else last[1]
