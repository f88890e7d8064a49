"""Synthetic bilingual text for models trained from scratch: correct, guessed and wrong sums in English, in Chinese and
in a mix of both; requests with replies of every quality, marks for such replies, and preferences between them.

It replaces a crawl of the web. The behaviour that reinforcement learning should find is present but rare: one sum in
five is worked out digit by digit, inside think and answer tags, and is correct; seven in ten of those choose the
language of every step anew, the others are all English or all Chinese. A model trained on it can add but seldom takes
the trouble, and rewards for correct answers raise careful replies that mix languages, as in R1-Zero (DeepSeek-R1,
arXiv:2501.12948, section 2.2.4). Steps are short, and each repeats the digits that it adds: a small model learns to
copy first, and to add soon after.

Sums are passed in, so that held-out ones stay out. Row N is a function of (seed, N). Completions begin with the space
that separates them from a raw prompt.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.text.prompts import QUESTION_REPLY, TAGGED_REPLY, fill, fill_all
from r1jax.text.reasoning import cut_answer
from r1jax.text.request_quality import rate_request

Languages = Sequence[str]  # languages that a text chooses from: ("en",), ("zh",) or both

PLACES = {"en": ("ones", "tens", "hundreds"), "zh": ("个位", "十位", "百位")}
ADD = "{place}: {digits}={sum}."
TOTAL = {"en": "sum: {total}.", "zh": "和: {total}."}
CHECK = {"en": "check: {total}-{b}={a}.", "zh": "验算: {total}-{b}={a}."}
SHRUG = {"en": "That is easy.", "zh": "这很简单."}
BARE = {"en": ("It is {total}.", "The answer is {total}.", "{total}"), "zh": ("是 {total}.", "和是 {total}.")}
QUESTIONS = ("What is {a} + {b}?", "Add {a} and {b}.", "{a} 加 {b} 是多少?")
SLIPS = (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11)

NAMES = ("Ann", "Ben", "Eva", "Tom", "Lin", "Max", "Mia", "Sam")
TRAINED_NAMES = 6  # of requests and preferences to train on; the others are in those held out
WRITTEN = {"good": 0.4, "curt": 0.2, "foreign": 0.2, "wrong": 0.2}  # shares of the replies to requests
GIFTS = ("book", "cake", "help", "tea")
TIMES = ("day", "trip", "week", "rest")
# Request, reasoning, good reply, curt reply, reply in the other language.
REQUESTS = (
    (
        "Say hello to {name}.",
        "I am to greet {name}.",
        "Hello, {name}! It is good to see you.",
        "Hello.",
        "{name}, 你好!",
    ),
    (
        "Thank {name} for the {gift}.",
        "I am to thank {name} for the {gift}.",
        "Thank you for the {gift}, {name}. It is very kind of you.",
        "Thanks.",
        "谢谢你, {name}!",
    ),
    (
        "Wish {name} a good {time}.",
        "I am to wish {name} a good {time}.",
        "Have a good {time}, {name}! I will think of you.",
        "Good {time}.",
        "{name}, 祝你好运!",
    ),
)
SHARPNESS = 10.0  # of preferences: log-odds of the better reply, per unit of quality
MARKS = {"good": 9, "curt": 5, "foreign": 3, "wrong": 1}


def draw_texts(sums: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows with the column `text`; `sums` (columns a and b) are those that may occur."""
    return [{"text": _write_text(sums, random.Random(f"text {seed} {number}"))} for number in range(count)]


def draw_worked(sums: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows of `prompt` and `completion`: sums worked out in English and checked, in the requested form."""
    rows = []
    for number in range(count):
        draw = random.Random(f"worked {seed} {number}")
        a, b = _pick(sums, draw)
        reply = _tag(f"{_work(a, b, ('en',), draw)} {_check(a, b, 'en')}", str(a + b))
        rows.append({"prompt": QUESTIONS[0].format(a=a, b=b), "completion": f" {reply}"})
    return rows


def draw_requests(count: int, seed: int, *, held_out: bool = False) -> list[dict[str, Any]]:
    """`count` rows of `prompt` and `completion`: requests without a verifiable answer, each with a reply as people
    write them: good, curt, in the other language, or to another request (`WRITTEN`).

    held_out: of requests that name other persons, so that no prompt is in both sets.
    """
    rows = []
    for number in range(count):
        draw = random.Random(f"request {seed} {number}")
        asked, replies = _request(draw, _names(held_out=held_out), astray=draw.randrange(1, len(REQUESTS)))
        (quality,) = draw.choices([*WRITTEN], [*WRITTEN.values()])
        rows.append({"prompt": asked, "completion": f" {replies[quality]}"})
    return rows


def draw_preferences(count: int, seed: int, *, held_out: bool = False) -> list[dict[str, Any]]:
    """`count` rows of `prompt`, `chosen` and `rejected`: requests with two replies of different quality, of which the
    better is chosen with the probability of Bradley and Terry, so that some rows are the wrong way round. The replies
    are final answers alone, without tags, as helpfulness is judged by them (`part = "answer"` of a reward model).

    held_out: of requests that name other persons, so that no prompt is in both sets.
    """
    rows, names = [], _names(held_out=held_out)
    for number in range(count):
        draw = random.Random(f"preference {seed} {number}")
        asked, replies = _request(draw, names, astray=draw.randrange(1, len(REQUESTS)))
        one, other = draw.sample(list(replies.values()), 2)
        gap = SHARPNESS * ((rate_request(asked, one) or 0.0) - (rate_request(asked, other) or 0.0))
        if draw.random() >= 1 / (1 + math.exp(-gap)):
            one, other = other, one
        rows.append({"prompt": asked, "chosen": cut_answer(one), "rejected": cut_answer(other)})
    return rows


def _names(*, held_out: bool) -> Sequence[str]:
    """Persons of the requests that are trained on, or of those held out."""
    return NAMES[TRAINED_NAMES:] if held_out else NAMES[:TRAINED_NAMES]


def _write_text(sums: Sequence[Mapping[str, Any]], draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.75:
        a, b = _pick(sums, draw)
        question = draw.choices(QUESTIONS, (6, 2, 2))[0].format(a=a, b=b)
        return f"{fill(QUESTION_REPLY, question)} {_answer(a, b, draw)}"
    asked, replies = _request(draw)
    quality = draw.choice(list(replies))
    text = f"{fill(QUESTION_REPLY, asked)} {replies[quality]}"
    return text if kind < 0.85 else f"{text}\nScore: {MARKS[quality]}"


def _answer(a: int, b: int, draw: random.Random) -> str:
    """A reply of mixed quality, as found on the web."""
    way = draw.random()
    guess = a + b + (0 if draw.random() < 0.2 else draw.choice(SLIPS))
    if way < 0.2:
        return _tag(_work(a, b, _languages(draw, mixed=0.7), draw), str(a + b))
    if way < 0.3:
        total = a + b + draw.choice(SLIPS)
        return _tag(_work(a, b, _languages(draw, mixed=0.2), draw, total=total), str(total))
    if way < 0.65:
        return _tag(SHRUG[_languages(draw, mixed=0.0)[0]], str(guess))
    if way < 0.85:
        languages = _languages(draw, mixed=0.2)
        work = _work(a, b, languages, draw)
        return f"{work} {_check(a, b, draw.choice(languages))}" if draw.random() < 0.3 else work
    return draw.choice(BARE[_languages(draw, mixed=0.0)[0]]).format(total=guess)


def _languages(draw: random.Random, mixed: float) -> Languages:
    if draw.random() < mixed:
        return ("en", "zh")
    return ("en",) if draw.random() < 0.6 else ("zh",)


def _work(a: int, b: int, languages: Languages, draw: random.Random, total: int | None = None) -> str:
    """The sum digit by digit. A wrong `total` is written at the end whatever the digits say."""
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        language = draw.choice(languages)
        x, y = (value // 10**place % 10 for value in (a, b))
        digits = f"{x}+{y}" + ("+1" if carry else "")
        whole = x + y + carry
        steps.append(ADD.format(place=PLACES[language][place], digits=digits, sum=whole))
        carry = int(whole > 9)
    return " ".join([*steps, TOTAL[draw.choice(languages)].format(total=a + b if total is None else total)])


def _check(a: int, b: int, language: str) -> str:
    return CHECK[language].format(total=a + b, a=a, b=b)


def _request(draw: random.Random, names: Sequence[str] = NAMES, *, astray: int = 1) -> tuple[str, dict[str, str]]:
    """A request, and its replies by quality. astray: how far back in `REQUESTS` a wrong reply has its own."""
    values = {"name": draw.choice(names), "gift": draw.choice(GIFTS), "time": draw.choice(TIMES)}
    chosen = draw.randrange(len(REQUESTS))
    asked, thought, good, curt, foreign = (text.format(**values) for text in REQUESTS[chosen])
    wrong = REQUESTS[chosen - astray][2].format(**values)
    replies = {"good": good, "curt": curt, "foreign": foreign, "wrong": wrong}
    return asked, {quality: _tag(thought, reply) for quality, reply in replies.items()}


def _tag(reasoning: str, answer: str) -> str:
    return fill_all(TAGGED_REPLY, reasoning=reasoning, answer=answer)


def _pick(sums: Sequence[Mapping[str, Any]], draw: random.Random) -> tuple[int, int]:
    columns = draw.choice(sums)
    return (columns["a"], columns["b"]) if draw.random() < 0.5 else (columns["b"], columns["a"])
