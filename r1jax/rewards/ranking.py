"""Parser of rankings: a model's ranking of n responses, as places.

Four forms are recognized, tried in this order, the last one in the text counting:

- JSON: `[{"response": 2, "rank": 1}, …]`, in an object or alone; `response` is a number or the text itself;
- a line `Ranking: 2 > 1 = 3` (also `,` or `;` between, `Response 2`, `[2]`, `**2**`; `=` is a tie);
- a first line that is only such a chain: the continuation of a prompt that ended in "Ranking:";
- a numbered list, best first, whose entries begin with `Response 2` or quote a response's text.

A ranking that names a response twice, or one that does not exist, or fewer than half of them is unreadable (None): a
partial reward is worse than none. Responses that a readable ranking omits share the last place.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

# Only the end of a long judgement is searched, and numbers are short, because the text is untrusted.
_MAX_LENGTH = 20_000
_ITEM = r"(?:[#*\[(`\"']|\b(?:response|answer|candidate)\b|\s){0,8}([0-9]{1,3})(?:[\])*`\"'.]){0,4}"
_CHAIN = re.compile(rf"{_ITEM}(?:\s{{0,4}}([>=,;]|\bthen\b)\s{{0,4}}{_ITEM})*", re.IGNORECASE)
_PART = re.compile(r"([0-9]{1,3})|([>=,;])|\bthen\b")
_HEADED = re.compile(r"\branking\b[^:\n]{0,40}:[ \t*]{0,8}([^\n]+)", re.IGNORECASE)
_ENTRY = re.compile(r"^[ \t]{0,8}[0-9]{1,3}[.)][ \t]{1,4}([^\n]+)$", re.MULTILINE)
_NAMED = re.compile(r"[*\"'\[(]{0,3}(?:response|answer|candidate)[ \t]{1,4}#?([0-9]{1,3})\b", re.IGNORECASE)

Places = list[float]


def read_ranking(text: str, responses: Sequence[str]) -> Places | None:
    """The place of each response, 0 for the best to n - 1 for the worst, ties at the mean of their places; or None."""
    text = text[-_MAX_LENGTH:]
    for read in (_read_json, _read_headed, _read_bare, _read_list):
        tiers = read(text, responses)
        if tiers:
            return _to_places(tiers, len(responses))
    return None


def _read_json(text: str, responses: Sequence[str]) -> list[list[int]]:
    """Tiers, best first, from the last JSON list whose entries have a rank."""
    for start in reversed([match.start() for match in re.finditer(r"\[\s*\{", text)][-4:]):
        try:
            entries, _ = json.JSONDecoder().raw_decode(text[start:])
        except (ValueError, RecursionError):
            continue
        found: dict[float, list[int]] = {}
        for entry in entries:
            rank = entry.get("rank") if isinstance(entry, dict) else None
            if not isinstance(rank, (int, float)):
                continue
            index = _find(entry.get("response"), responses)
            if index is not None:
                found.setdefault(float(rank), []).append(index)
        if found:
            return [found[rank] for rank in sorted(found)]
    return []


def _read_headed(text: str, responses: Sequence[str]) -> list[list[int]]:
    for line in reversed(_HEADED.findall(text)):
        chain = _CHAIN.match(line.strip())
        if chain and not line.strip()[chain.end() :].strip(" .*`"):
            return _split(chain[0])
    return []


def _read_bare(text: str, responses: Sequence[str]) -> list[list[int]]:
    line = text.strip().partition("\n")[0]
    chain = _CHAIN.match(line)
    # A single number is a ranking only if there are two responses.
    if chain is None or (len(_split(chain[0])) < 2 and len(responses) > 2):
        return []
    return _split(chain[0]) if not line[chain.end() :].strip(" .*`") else []


def _read_list(text: str, responses: Sequence[str]) -> list[list[int]]:
    tiers = []
    for entry in _ENTRY.findall(text):
        named = _NAMED.match(entry)
        index = int(named[1]) - 1 if named else _find_quoted(entry, responses)
        if index is not None:
            tiers.append([index])
    return tiers


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


def _find(response: Any, responses: Sequence[str]) -> int | None:
    """Index of a JSON entry's `response`: a number from 1, or the text (whole, or its beginning)."""
    if isinstance(response, str) and response.strip().isdecimal() and len(response) < 4:
        response = int(response)
    if isinstance(response, int):
        return response - 1
    return _find_quoted(f'"{response}"', responses) if isinstance(response, str) else None


def _find_quoted(entry: str, responses: Sequence[str]) -> int | None:
    """Index of the one response that the entry's beginning quotes, in whole or in part; None if none or
    several match.
    """
    quotation = re.match(r"[*\s]{0,4}[\"“](.+?)(?:[\"”]|…|\.\.\.)", entry, re.DOTALL)
    if quotation is None:
        return None
    said = _plain(quotation[1])
    same = [i for i, response in enumerate(responses) if _plain(response) == said]
    same = same or [i for i, response in enumerate(responses) if said and _plain(response).startswith(said)]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
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
