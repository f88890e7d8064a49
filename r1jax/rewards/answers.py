r"""Rewards for a correct answer: 1.0 or 0.0 against the column `solution`, None where it has nothing to compare with.

All three use the reader of answers (`reader/`): the reasoning is cut off first, and a hedge is not an answer.

- `accuracy_reward` asks math-verify, with open-r1's settings: the answer is LaTeX in `\boxed{}` (or in `$...$` after
  words such as "the final answer is"); a bare number is not an answer. It understands algebra, sets and intervals.
- `answer_reward` takes the content of the last answer tags or the last `\boxed{}`: numbers by exact value and unit,
  choices by letter, texts by spelling, and formulas by math-verify.
- `number_reward` takes the last number of the text, anywhere.

`docs/rewards.md` shows the value of each. Left out: calculation if the gold is a number (`answer_reward` does not pay
`\sqrt{49}` for 7, but does pay 48/2 for 24: any fraction is a number).
"""

from collections.abc import Sequence
from typing import Any

from r1jax.rewards import verifier
from r1jax.rewards.completions import Completion, read_texts
from r1jax.rewards.guards import guard_replies
from r1jax.rewards.protocol import declare_reward
from r1jax.rewards.reader.comparing import Verdict, compare_answer, same_answer
from r1jax.rewards.reader.golds import read_gold, write_latex
from r1jax.rewards.reader.kinds import read_answer
from r1jax.rewards.reader.numerals import Numeral, find_last_numeral, same_last_value
from r1jax.rewards.reader.places import find_answer, find_boxed, find_place
from r1jax.rewards.reader.spelling import plain_latex
from r1jax.text.reasoning import after_closed_thought

__all__ = ("accuracy_reward", "answer_reward", "find_answer", "find_boxed", "number_reward", "same_answer")


def explain_accuracy(completions: Sequence[Completion], solution: Sequence[Any]) -> list[str | None]:
    """For each reply of `accuracy_reward`, whether math-verify was asked, or the rule by which it was not."""
    texts = read_texts(completions)
    return [
        "math-verify decides" if asked else explain_answer(text, read_gold(gold) or "")[0].rule
        for text, gold, asked in zip(texts, solution, guard_replies(texts, solution), strict=True)
    ]


def explain_answers(completions: Sequence[Completion], solution: Sequence[Any]) -> list[str | None]:
    """For each reply of `answer_reward`, the place of its answer and the rule of the comparison."""
    golds = [read_gold(gold) for gold in solution]
    return [
        None if gold is None else explain_answer(text, gold)[0].rule
        for text, gold in zip(read_texts(completions), golds, strict=True)
    ]


def explain_number(completions: Sequence[Completion]) -> list[str | None]:
    """For each reply of `number_reward`, its last number."""
    found = [find_last_numeral(after_closed_thought(text)) for text in read_texts(completions)]
    return ["no number" if numeral is None else f"the last number: {numeral.told}" for numeral in found]


@declare_reward(by_row=True, warm_up=verifier.warm_up, explain=explain_accuracy)
def accuracy_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""Whether math-verify finds the reply's LaTeX answer equal to `solution` (the gold goes first: order matters to
    it).

    None where `solution` cannot be parsed. Runs in worker processes with a hard deadline: an answer that exceeds it
    gives 0.0, a solution that does gives None.

    Fixed against open-r1: a gold without `$` or box is read whole, as if boxed (open-r1 reads `2\pi` as 2 and `3, 5, 7`
    as 7); the reasoning is cut off before an answer is searched; and an equality found by math-verify does not count if
    the reader of answers finds another kind of answer: a hedge, a list or an equation in place of a number, a word that
    changes the number, a unit other than the gold's. Open-r1's settings also reject `\boxed{7.}`, `\boxed{\frac12}`,
    `\boxed{1\,234}`, `\boxed{1e3}`, `\boxed{2 1/2}`, `\boxed{90°}` and other scripts; this is kept.
    """
    texts = guard_replies(read_texts(completions), solution)
    return verifier.verify(list(zip(map(write_latex, solution), texts, strict=True)))


@declare_reward(by_row=True, explain=explain_answers)
def answer_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""Whether the reply's last answer tags, or else its last `\boxed{}`, contain `solution`. None where that is empty.

    If the gold is a number, only numbers can equal it; a formula is left to math-verify, in its processes.
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


@declare_reward(by_row=True, explain=explain_number)
def number_reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float | None]:
    """Whether the last number after the reply's reasoning equals `solution` (or, for a text, its last number).

    None where that has no number, or is a formula, a list or the like.
    """
    rewards: list[float | None] = []
    for text, gold in zip(read_texts(completions), map(read_gold, solution), strict=True):
        wanted, found = _read_number(gold), find_last_numeral(after_closed_thought(text))
        rewards.append(None if wanted is None else float(found is not None and same_last_value(found, wanted)))
    return rewards


def explain_answer(text: str, gold: str) -> tuple[Verdict, str]:
    """Verdict of `answer_reward` on a reply with its rule, and the answer that it found; `same` None needs algebra."""
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
