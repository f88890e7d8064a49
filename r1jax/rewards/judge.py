"""The judge reward: a model reads an answer and writes a score.

For open-ended prompts that no rule can check (R1's last stage). The judge is any `generate`: the policy itself, another
model, or a server given by `endpoint` (`endpoint.py`).

    rewards.judge_reward = {"weight": 1.0, "endpoint": "http://localhost:8000/v1", "model": "judge"}

The judge sees an answer disarmed and between fences (`r1jax/text/quoting.py`). A score is read from the last line of
the form `Score: 7` outside the judge's reasoning (also `7/10`, `**7**`, `[[7]]`, `Overall: 7`, a JSON field `score`),
not counting lines that the answer itself contains, or from a reply that is only a number. If there is no such score, or
it is out of range, the judge is asked once more; a judgement that is still unreadable, or a missing reply, gives None
("does not apply") unless `unreadable` sets a value.

Left out: protection against answers that persuade the judge; watch the agreement with a verifiable reward.
"""

import re
from collections.abc import Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.completions import Completion, read_text, read_texts
from r1jax.rewards.endpoint import SERVER_FIELDS, Endpoint
from r1jax.rewards.protocol import AskingReward, Generate
from r1jax.text import prompts as templates
from r1jax.text.quoting import Line, choose, disarm, fence, read_lines

_MARKS = r"[*_`\"'\[\](){} ]{0,8}"
_NUMBER = r"(-?[0-9]{1,4}(?:\.[0-9]{1,6})?)(?![0-9.]*[0-9])"
_OUT_OF = rf"{_MARKS}(?:(?:/|out of) ?([0-9]{{1,4}}))?{_MARKS}"
_HEAD = (
    r"(?:(?:so|thus|hence|therefore|and|my|the|your|final|overall|total)[ ,:]{1,3}){0,3}"
    r"(?:score|rating|grade|overall|verdict)[\"'*_]{0,4} ?[:=]"
)
# "7", "7/10.", "10 - 3 = 7", "7 (the highest possible score: 10)"
_LINE = re.compile(rf"{_HEAD}{_MARKS}(?:[0-9.+\-*/ ]{{1,40}}= ?)?{_NUMBER}{_OUT_OF}(?: ?\([^()]*\))?[.,]?")
_SENTENCE = re.compile(rf"{_HEAD}{_MARKS}{_NUMBER}{_OUT_OF}\. .*")
_JSON = re.compile(rf"(?<!\\)\"(?:score|rating|grade)\" ?: ?\"?{_NUMBER}()\"? ?[,}}]")
_BARE = re.compile(rf"{_MARKS}{_NUMBER}{_OUT_OF}\.?")
_NAMES = {"judge": templates.JUDGE, "judge_with_solution": templates.JUDGE_WITH_SOLUTION}


def get_judge_reward(
    generate: Generate | None = None,
    template: str = "judge",
    highest: float = 10.0,
    unreadable: float | None = None,
    judgements: int = 1,
    max_characters: int = 8000,
    as_written: bool = False,
    endpoint: str = "",
    model: str = "",
    **server: Any,
) -> AskingReward[..., list[float | None]]:
    """A reward in 0..1: the judge's score over `highest`, or the mean of the readable ones of several `judgements`.

    `template` contains `{question}` and `{response}`, optionally `{solution}`, or is the name "judge" or
    "judge_with_solution"; of a long response the last `max_characters` are shown. `as_written` shows it unchanged and
    without fences, to a model that was trained on texts of exactly that form. An `endpoint` (an address) with its
    `model` is used instead of `generate`; `server` are further fields of `Endpoint`, such as `timeout_seconds`, with
    its defaults. Raises UserError.
    """
    if unknown := [name for name in server if name not in SERVER_FIELDS]:
        raise UserError(
            f"judge_reward: unknown argument {unknown[0]!r}; it takes template, highest, unreadable, judgements, "
            f"max_characters, as_written, endpoint, model, {', '.join(SERVER_FIELDS)}"
        )
    template = _NAMES.get(template, template)
    if "{question}" not in template or "{response}" not in template:
        raise UserError(
            "judge_reward: template must contain {question} and {response}, or be judge or judge_with_solution"
        )
    if judgements < 1 or not highest > 0:
        raise UserError("judge_reward: judgements and highest must be positive")
    if endpoint:
        generate = Endpoint(endpoint, model, **server)
    if generate is None:
        raise UserError("judge_reward needs a judge: set endpoint and model, or use it in a run whose model can judge")
    ask: Generate = generate

    def judge_reward(
        completions: Sequence[Completion], prompts: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """See `get_judge_reward`."""
        if "{solution}" in template and "solution" not in columns:
            raise UserError("judge_reward: its template needs a data column 'solution'; map one in config.data")
        calls: list[dict[str, Any]] = []
        texts = read_texts(completions)
        for row, text in enumerate(texts):
            shown = text[-max_characters:]
            if not as_written:
                shown = fence(disarm(shown.strip()), str(prompts[row]))
            values = {"question": prompts[row], "response": shown}
            if "{solution}" in template:
                values["solution"] = str(columns["solution"][row])
            calls += [{"kind": "judgement", "row": row, "prompt": _pose(template, values)}] * judgements
        calls = [dict(call) for call in calls]
        _ask(ask, calls, highest, texts, max_characters)
        again = [call for call in calls if call["score"] is None and call["completion"]]
        for call in () if as_written else again:
            call["prompt"] = _add(call["prompt"], templates.JUDGE_AGAIN)
        _ask(ask, again, highest, texts, max_characters)
        found: dict[int, list[float]] = {}
        for call in calls:
            if call["score"] is not None:
                found.setdefault(call["row"], []).append(call["score"] / highest)
        reward.record(calls, sum(call["score"] is not None for call in calls))
        return [sum(found[row]) / len(found[row]) if row in found else unreadable for row in range(len(completions))]

    reward: AskingReward[..., list[float | None]] = AskingReward(judge_reward, collective=not endpoint)
    return reward


def read_score(text: str, highest: float = 10.0, answer: str = "") -> float | None:
    """Score from 0 to `highest` in a judge's reply about `answer`; None if there is none."""
    lines = read_lines(text, [answer] if answer else ())
    found: list[tuple[Line, float | None]] = []
    for pattern in (_LINE, _SENTENCE):
        for line in lines:
            match = pattern.fullmatch(line.text)
            if match is None and line.text.startswith(("{", "[")) and line.text.endswith(("}", "]")):
                match = next(reversed(list(_JSON.finditer(line.text))), None)
            if match is not None:
                found.append((line, _to_score(match, highest)))
        if found:
            return choose(found)
    bare = _BARE.fullmatch(lines[0].text) if len(lines) == 1 else None
    return None if bare is None else _to_score(bare, highest)


def _to_score(match: re.Match[str], highest: float) -> float | None:
    score = float(match[1])
    if match[2] and float(match[2]) != highest:
        return None
    return score if 0 <= score <= highest else None


def _ask(ask: Generate, calls: Sequence[dict[str, Any]], highest: float, texts: Sequence[str], most: int) -> None:
    """Adds the reply and its score to each call."""
    for call, reply in zip(calls, ask([call["prompt"] for call in calls]) if calls else (), strict=True):
        score = read_score(reply or "", highest, texts[call["row"]][-most:])
        call |= {"completion": reply or "", "score": score}


def _add(prompt: Completion, text: str) -> Completion:
    if isinstance(prompt, str):
        return prompt + text
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + text}]


def _pose(template: str, values: dict[str, Any]) -> Completion:
    """The judge's prompt: text, or one message if the question is messages."""
    question = values["question"]
    asked = question if isinstance(question, str) else read_text(question[-1:])
    text = templates.fill_all(template, **values | {"question": asked.strip()})
    return text if isinstance(question, str) else [{"role": "user", "content": text}]
