"""Parser of rankings: a model's ranking of n responses, as places.

Four forms are recognized, tried in this order:

- the last line `Ranking: 2 > 1 = 3` outside the reasoning (also `,` or `;` between, `Response 2`, `[2]`, `**2**`; `=`
  is a tie; "from worst to best" reverses it), alone or after a sentence of the ranker;
- a first line that is only such a chain: the continuation of a prompt that ended in "Ranking:";
- JSON: `[{"response": 2, "rank": 1}, …]`, in an object or alone; `response` is a number or the text itself;
- a numbered list at the end, best first, whose entries begin with `Response 2` or quote a response's text.

Lines that a response contains do not count (`r1jax/text/quoting.py`).

A ranking that names a response twice, or one that does not exist, or fewer than half of them is unreadable (None): a
partial reward is worse than none. Responses that a readable ranking omits share the last place.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from r1jax.text.quoting import Line, choose, disarm, read_lines

# Only the end of a long judgement is searched, and numbers are short, because the text is untrusted.
_MAX_LENGTH = 20_000
_MAX_RANK = 1_000
_ITEM = r"(?:[#*\[(`\"']|\b(?:response|answer|candidate)\b|\s){0,8}([0-9]{1,3})(?:[\])*`\"'.]){0,4}"
_CHAIN = re.compile(rf"{_ITEM}(?:\s{{0,4}}([>=,;](?:\s{{0,2}}then\b)?|\bthen\b)\s{{0,4}}{_ITEM})*", re.IGNORECASE)
_PART = re.compile(r"([0-9]{1,3})|([>=,;])|\bthen\b")
_HEADED = re.compile(
    r"(?:(?:so|thus|hence|therefore|my|the|final|overall|full)[ ,]{1,3}){0,3}(?:ranking|rank|order|best)\b"
    r"([^:\n]{0,40}):[ *`]{0,8}([^\n]+)"
)
_WORST_FIRST = re.compile(r"worst (?:to|first)|worst-(?:to|first)")
_SENTENCE = re.compile(r"[.!?] (?=[a-z])")
_SAYS = re.compile(r"[\"“”]|\b(?:sa(?:ys|id)|writes|wrote|claims?|contains?|reads|quotes?|states?|asks?|tells?)\b")
_ENTRY = re.compile(r"[ \t]{0,8}[0-9]{1,3}[.)][ \t]{1,4}([^\n]+)")
_NAMED = re.compile(r"[*\"'\[(]{0,3}(?:response|answer|candidate)[ \t]{1,4}#?([0-9]{1,3})\b", re.IGNORECASE)

Places = list[float]


def read_ranking(text: str, responses: Sequence[str]) -> Places | None:
    """The place of each response, 0 for the best to n - 1 for the worst, ties at the mean of their places; or None.

    `responses` are the texts that the ranker was shown.
    """
    lines = read_lines(text, responses)
    headed = [(line, tiers) for line in lines if (tiers := _read_headed(line.text))]
    tiers = (choose(headed) or []) if headed else _read_bare(lines, len(responses))
    for read in (_read_json, _read_list):
        tiers = tiers or ([] if headed else read(lines, responses))
    return _to_places(tiers, len(responses)) if tiers else None


def _read_headed(line: str) -> list[list[int]]:
    """Tiers of a line with the word ranking, a colon and a chain, whole or at the end of the ranker's own sentence."""
    head = _HEADED.match(line)
    if head is None:
        starts = [end.end() for end in _SENTENCE.finditer(line)]
        head = next((head for start in reversed(starts[-4:]) if (head := _HEADED.match(line, start))), None)
        if head is None or _SAYS.search(line[: head.start()]):
            return []
    said = head[2].strip()
    chain = _CHAIN.match(said)
    if chain is None or said[chain.end() :].strip(" .*`"):
        return []
    return _split(chain[0])[:: -1 if _WORST_FIRST.search(head[1]) else 1]


def _read_bare(lines: Sequence[Line], count: int) -> list[list[int]]:
    if not lines or lines[0].is_quoted:
        return []
    line = lines[0].text
    chain = _CHAIN.match(line)
    # A single number is a ranking only if there are two responses.
    if chain is None or (len(_split(chain[0])) < 2 and count > 2):
        return []
    return _split(chain[0]) if not line[chain.end() :].strip(" .*`") else []


def _read_json(lines: Sequence[Line], responses: Sequence[str]) -> list[list[int]]:
    """Tiers, best first, from the last JSON list whose entries have a rank."""
    text = "\n".join(line.raw for line in lines if not (line.is_quoted or line.is_shown))
    plain = [_plain(response) for response in responses]
    for start in reversed([match.start() for match in re.finditer(r"\[\s*\{", text)][-4:]):
        try:
            entries, _ = json.JSONDecoder().raw_decode(text[start:])
        except (ValueError, RecursionError):
            continue
        found: dict[float, list[int]] = {}
        for entry in entries:
            rank = entry.get("rank") if isinstance(entry, dict) else None
            if not isinstance(rank, (int, float)) or not 0 <= rank < _MAX_RANK:
                continue
            index = _find(entry.get("response"), plain)
            if index is not None:
                found.setdefault(float(rank), []).append(index)
        if found:
            return [found[rank] for rank in sorted(found)]
    return []


def _read_list(lines: Sequence[Line], responses: Sequence[str]) -> list[list[int]]:
    """Tiers of the list at the end of the text."""
    plain = [_plain(response) for response in responses]
    tiers: list[list[int]] = []
    for line in reversed(lines):
        entry = None if line.is_quoted or line.is_shown else _ENTRY.fullmatch(line.raw)
        if entry is None:
            break
        named = _NAMED.match(entry[1])
        index = int(named[1]) - 1 if named else _find_quoted(entry[1], plain)
        if index is not None:
            tiers.append([index])
    return tiers[::-1]


def _split(chain: str) -> list[list[int]]:
    tiers: list[list[int]] = []
    tied = False
    for number, sign in _PART.findall(chain):
        if number and tied:
            tiers[-1].append(int(number) - 1)
        elif number:
            tiers.append([int(number) - 1])
        tied = sign == "="
    return tiers


def _find(response: Any, plain: Sequence[str]) -> int | None:
    """Index of a JSON entry's `response`: a number from 1, or the text (whole, or its beginning)."""
    if isinstance(response, str) and response.strip().isdecimal() and len(response) < 4:
        response = int(response)
    if isinstance(response, int):
        return response - 1
    return _find_quoted(f'"{response}"', plain) if isinstance(response, str) else None


def _find_quoted(entry: str, plain: Sequence[str]) -> int | None:
    """Index of the one response that the entry's beginning quotes, whole or in part; None if none or several match."""
    quotation = re.match(r"[*\s]{0,4}[\"“](.+?)(?:(?<!\\)[\"”]|…|\.\.\.)", entry, re.DOTALL)
    if quotation is None:
        return None
    said = _plain(quotation[1])
    same = [i for i, response in enumerate(plain) if response == said]
    same = same or [i for i, response in enumerate(plain) if said and response.startswith(said)]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    """The words of a text, in the form in which a ranking can quote them."""
    text = disarm(text[:_MAX_LENGTH]).replace('\\"', '"')
    return " ".join(text.split()).strip(" .").casefold()


def _to_places(tiers: list[list[int]], count: int) -> Places | None:
    named = [index for tier in tiers for index in tier]
    if len(named) != len(set(named)) or not all(0 <= index < count for index in named) or 2 * len(named) < count:
        return None
    excluded = [index for index in range(count) if index not in set(named)]
    places = [0.0] * count
    first = 0
    for tier in [*tiers, excluded]:
        for index in tier:
            places[index] = first + (len(tier) - 1) / 2
        first += len(tier)
    return places
