r"""Rewards for a correct answer: 1.0 or 0.0 against the column `solution`, None where it has nothing to compare with.

Three ways to read a reply, from strict to lenient:

- `accuracy_reward` asks math-verify, with open-r1's settings: the answer is LaTeX in `\boxed{}` (or in `$...$` after
  words such as "the final answer is"); a bare number is not an answer. It understands algebra, sets and intervals.
- `answer_reward` takes the content of the last answer tags or the last `\boxed{}`, and compares numbers by exact value
  and anything else by spelling.
- `number_reward` takes the last number of the text, anywhere.

Left out: algebra in `answer_reward` (`\sqrt{2}/2` is not `1/\sqrt{2}`), which `accuracy_reward` covers.
"""

import re
from collections.abc import Sequence
from typing import Any

from r1jax.rewards import verifier
from r1jax.rewards.completions import Completion, read_texts
from r1jax.rewards.numerals import find_last_numeral, read_numeral, same_value, unwrap
from r1jax.rewards.protocol import by_row, declare_reward
from r1jax.rewards.tags import ANSWER_CLOSE, ANSWER_OPEN

_BRACES = re.compile(r"(?P<box>\\boxed\s{0,8}\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")
# LaTeX that changes the look and not the meaning.
_LOOKS = re.compile(r"\\(?:left|right|,|;|!| )|\s+")
# A box inside a box happens; a thousand nested ones are an attack.
_MAX_NESTED_BOXES = 4
_LONE_LETTER = re.compile(r"\(([a-z])\)|([a-z])\)")


@declare_reward(by_row=True, warm_up=verifier.warm_up)
def accuracy_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    """Whether math-verify finds the reply's LaTeX answer equal to `solution` (the gold goes first: order matters to
    it).

    None where `solution` cannot be parsed. Runs in worker processes with a hard deadline: an answer that exceeds it
    gives 0.0, a solution that does gives None.
    """
    golds = [None if gold is None else str(gold) for gold in solution]
    return verifier.verify(list(zip(golds, read_texts(completions), strict=True)))


@by_row
def answer_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""Whether the reply's last answer tags, or else its last `\boxed{}`, contain `solution`. None where that
    is empty.
    """
    golds = ["" if gold is None else str(gold) for gold in solution]
    golds = [find_answer(gold) or gold for gold in golds]
    answers = [find_answer(text) for text in read_texts(completions)]
    return [
        float(answer is not None and same_answer(answer, gold)) if gold.strip() else None
        for answer, gold in zip(answers, golds, strict=True)
    ]


@by_row
def number_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    """Whether the last number of the reply equals `solution` (or its last number). None where that has no number."""
    rewards: list[float | None] = []
    for text, gold in zip(read_texts(completions), map(str, solution), strict=True):
        wanted, found = read_numeral(gold) or find_last_numeral(gold), find_last_numeral(text)
        rewards.append(None if wanted is None else float(found is not None and same_value(found, wanted)))
    return rewards


def find_answer(text: str) -> str | None:
    r"""The content of the last closed answer tags, or else of the last `\boxed{}`; a box inside the tags is opened."""
    tagged = _find_tagged(text)
    answer = find_boxed(text) if tagged is None else tagged
    for _ in range(_MAX_NESTED_BOXES):
        inner = None if answer is None else find_boxed(answer)
        if inner is None:
            break
        answer = inner
    return answer


def find_boxed(text: str) -> str | None:
    r"""The content of the `\boxed{}` that closes last, with balanced braces, in one linear pass; None if there
    is none.
    """
    starts: list[int | None] = []
    content = None
    for token in _BRACES.finditer(text):
        if token["box"]:
            starts.append(token.end())
        elif token["open"]:
            starts.append(None)
        elif token["close"] and starts and (start := starts.pop()) is not None:
            content = start, token.start()
    return None if content is None else text[slice(*content)].strip()


def same_answer(answer: str, solution: str) -> bool:
    """Whether two short answers agree: as exact numbers if both are numbers, else as text, ignoring case and
    spacing.
    """
    found, wanted = read_numeral(answer), read_numeral(solution)
    if found is not None and wanted is not None:
        return same_value(found, wanted)
    spelled = _spell(answer)
    return bool(spelled) and spelled == _spell(solution)


def _find_tagged(text: str) -> str | None:
    last_close = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, max(last_close, 0))
    if start < 0:
        return None
    start += len(ANSWER_OPEN)
    return text[start : text.find(ANSWER_CLOSE, start)].strip()


def _spell(text: str) -> str:
    r"""Canonical spelling of answers that are not numbers: `(B)` is `b`, `\left( 1, 2 \right)` is `(1,2)`."""
    text = re.sub(r"\\[dt]frac", r"\\frac", unwrap(text))
    text = _LOOKS.sub("", text).casefold()
    letter = _LONE_LETTER.fullmatch(text)
    return (letter[1] or letter[2]) if letter else text
