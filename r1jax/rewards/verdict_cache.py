r"""Verdicts without a worker: earlier ones, and answers so simple that math-verify would only confirm them.

Groups repeat answers, so a judged pair keeps its verdict (unless a deadline ended it). A pair is decided by exact
arithmetic if its gold and the answer's only box contain an integer, a decimal or a fraction. The verdict equals
math-verify's, which tests check by asking both; so the accepted form is narrow: the gold is `-12`, `0.5`,
`\frac{3}{4}`, or such a number in dollars or a box, and nothing else; the answer contains one `\boxed{}` with the like
and no other backslash, dollar or brace, so that there is nothing else to parse. All others go to the pool, and so do
decimals that differ by little, because math-verify rounds.
"""

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

MAX_VERDICTS = 100_000

# Longer numbers reach the limits of floating point somewhere in SymPy's comparisons, so the pool decides them.
_FRACTION = r"\\frac\{([0-9]{1,6})\}\{([1-9][0-9]{0,5})\}"
_VALUE = rf"(-?[0-9]{{1,9}}(?:\.[0-9]{{1,6}})?)|(-?){_FRACTION.replace('frac', '[dt]?frac', 1)}"
# Outside dollars and boxes math-verify accepts neither `\dfrac` nor leading zeros.
_BARE = rf"(-?(?:0|[1-9][0-9]{{0,8}})(?:\.[0-9]{{1,6}})?)|(-?){_FRACTION}"
_GOLD = re.compile(rf"{_BARE}|\$(?:{_VALUE})\$|\\boxed\{{(?:{_VALUE})\}}")
_BOX = re.compile(rf"\\boxed\{{(?:{_VALUE})\}}")
# Two numbers this far apart, and by this share of the larger, differ however they are rounded.
_APART, _APART_SHARE = Fraction(1, 1000), Fraction(1, 10**6)
_MAX_LENGTH = 100_000


class Verdict(NamedTuple):
    """1.0, 0.0 or None, and whether a worker determined it (or it was given up)."""

    value: float | None
    replied: bool


class Verdicts:
    """Known verdicts of (gold, answer) pairs; `judge` (a pool's) is asked for the others. Thread-safe."""

    def __init__(self, judge: Callable[..., Sequence[Verdict]], max_verdicts: int = MAX_VERDICTS) -> None:
        self._judge = judge
        self._max_verdicts = max_verdicts
        self._known: OrderedDict[bytes, float | None] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, pairs: Sequence[tuple[str | None, str]], *, latex_gold: bool = False) -> list[float | None]:
        """The value of each pair by `judge`; each distinct pair is judged once."""
        keys = [hashlib.sha256(repr((gold, answer, latex_gold)).encode()).digest() for gold, answer in pairs]
        values: dict[bytes, float | None] = {}
        asked: dict[bytes, tuple[str | None, str]] = {}
        with self._lock:
            for key, (gold, answer) in zip(keys, pairs, strict=True):
                if key in values or key in asked:
                    continue
                plain = None if latex_gold else decide_plainly(gold or "", answer)
                if plain is not None:
                    values[key] = float(plain)
                elif key in self._known:
                    self._known.move_to_end(key)
                    values[key] = self._known[key]
                else:
                    asked[key] = (gold, answer)
        verdicts = self._judge(list(asked.values()), latex_gold=latex_gold) if asked else ()
        with self._lock:
            for key, verdict in zip(asked, verdicts, strict=True):
                values[key] = verdict.value
                if verdict.replied:
                    self._known[key] = verdict.value
            while len(self._known) > self._max_verdicts:
                self._known.popitem(last=False)
        return [values[key] for key in keys]


def decide_plainly(gold: str, answer: str) -> bool | None:
    """Whether a simple answer equals a simple gold; None if either is not simple."""
    if len(answer) > _MAX_LENGTH or len(gold) > 40:
        return None
    wanted = _GOLD.fullmatch(gold)
    if wanted is None:
        return None
    box = _BOX.search(answer)
    if box is None:
        return None
    around = answer[: box.start()] + answer[box.end() :]
    if any(sign in around for sign in "\\${}"):
        return None
    a, b = _value(wanted), _value(box)
    if a != b and "." in wanted[0] + box[0] and abs(a - b) <= max(_APART, _APART_SHARE * max(abs(a), abs(b))):
        return None
    return a == b


def _value(match: re.Match[str]) -> Fraction:
    parts = [part for part in match.groups() if part is not None]
    if len(parts) == 1:
        return Fraction(parts[0])
    sign, top, bottom = parts
    return Fraction(int(sign + top), int(bottom))
