r"""Rewards for a correct answer: 1.0 or 0.0 against the column `solution`, None where it has nothing to compare with.

All three read by the reader of answers (`reader/`): the thought is cut off first, and a hedge is no answer.

- `accuracy_reward` asks math-verify, with open-r1's settings: the answer is LaTeX in `\boxed{}` (or in `$...$` after
  words such as "the final answer is"); a bare number is no answer. It understands algebra, sets and intervals.
- `answer_reward` takes what the last answer tags or the last `\boxed{}` hold: numbers by exact value and unit, choices
  by letter, texts by spelling, and formulas by math-verify.
- `number_reward` takes the last number of the text, whatever stands around it.

`docs/rewards.md` shows what each pays. Left out: calculation where the gold is a number (`answer_reward` does not pay
`\sqrt{49}` for 7, though it does pay 48/2 for 24: a fraction is a number, shortened or not).
"""

from collections.abc import Sequence
from typing import Any

from r1jax.rewards import verifier
from r1jax.rewards.completions import Completion, read_texts
from r1jax.rewards.guards import guard_replies
from r1jax.rewards.protocol import by_row, declare_reward
from r1jax.rewards.reader.comparing import Verdict, compare_answer, same_answer
from r1jax.rewards.reader.golds import read_gold, write_latex
from r1jax.rewards.reader.kinds import read_answer
from r1jax.rewards.reader.numerals import Numeral, find_last_numeral, same_value
from r1jax.rewards.reader.places import after_closed_thought, find_answer, find_boxed, find_place
from r1jax.rewards.reader.spelling import plain_latex

__all__ = ("accuracy_reward", "answer_reward", "find_answer", "find_boxed", "number_reward", "same_answer")


@declare_reward(by_row=True, warm_up=verifier.warm_up)
def accuracy_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""Whether math-verify finds the reply's LaTeX answer equal to `solution` (gold first: order matters to it).

    None where `solution` holds nothing that can be parsed. Runs in worker processes with a hard deadline, so an answer
    that would take for ever is 0.0 and a solution that would is None.

    Mended: a gold without `$` or box is read whole, as if boxed (open-r1 reads `2\pi` as 2 and `3, 5, 7` as 7); the
    thought is cut off before an answer is looked for; and what math-verify takes for equal does not count where the
    reader of answers finds another kind of thing: a hedge, a list or an equation for a number, a word that makes it
    another one, a unit that is not the gold's. Open-r1's settings also refuse `\boxed{7.}`, `\boxed{\frac12}`,
    `\boxed{1\,234}`, `\boxed{1e3}`, `\boxed{2 1/2}`, `\boxed{90°}` and what uses other scripts; they stay refused.
    """
    texts = guard_replies(read_texts(completions), solution)
    return verifier.verify(list(zip(map(write_latex, solution), texts, strict=True)))


@by_row
def answer_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""Whether the reply's last answer tags, or else its last `\boxed{}`, hold `solution`. None where that is empty.

    A gold that is a number is met by numbers alone; one that is a formula is left to math-verify, in its processes.
    """
    golds = [read_gold(gold) for gold in solution]
    verdicts = [
        None if gold is None else explain_answer(text, gold)
        for text, gold in zip(read_texts(completions), golds, strict=True)
    ]
    asked = [n for n, verdict in enumerate(verdicts) if verdict is not None and verdict[0].same is None]
    pairs = [(rf"\boxed{{{plain_latex(golds[n] or '')}}}", rf"\boxed{{{plain_latex(verdicts[n][1])}}}") for n in asked]  # type: ignore[index]
    found = dict(zip(asked, verifier.verify(pairs) if pairs else (), strict=True))
    return [
        None if verdict is None else float(found.get(n) == 1.0 if verdict[0].same is None else verdict[0].same)
        for n, verdict in enumerate(verdicts)
    ]


@by_row
def number_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    """Whether the last number behind the reply's thought equals `solution` (or, of a text, its last number).

    None where that holds no number, or is a formula, a list or the like.
    """
    rewards: list[float | None] = []
    for text, gold in zip(read_texts(completions), map(read_gold, solution), strict=True):
        wanted, found = _read_number(gold), find_last_numeral(after_closed_thought(text))
        rewards.append(None if wanted is None else float(found is not None and same_value(found, wanted)))
    return rewards


def explain_answer(text: str, gold: str) -> tuple[Verdict, str]:
    """(what `answer_reward` says of a reply and by which rule, the answer that it found); `same` None asks algebra."""
    place = find_place(text)
    if place is None or place.text is None:
        return Verdict(False, "no answer in tags or boxes" if place is None else place.rule, by_kind=True), ""
    verdict = compare_answer(place.text, gold)
    if verdict.same is None and read_answer(gold).numeral is not None:
        verdict = Verdict(False, f"{verdict.rule}, which is not done for a number")
    return verdict._replace(rule=f"{place.rule}: {verdict.rule}"), place.text


def _read_number(gold: str | None) -> Numeral | None:
    if gold is None:
        return None
    reading = read_answer(gold)
    if reading.numeral is not None:
        return reading.numeral
    return find_last_numeral(gold) if reading.kind in ("text", "unreadable") else None
