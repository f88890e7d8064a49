"""The judge reward: a model reads an answer and writes a score.

For open-ended prompts that no rule can check (R1's last stage). The judge is any `generate`: the policy itself, another
model, or a server given by `endpoint` (`endpoint.py`).

    rewards.judge_reward = {"weight": 1.0, "endpoint": "http://localhost:8000/v1", "model": "judge"}

A score is read from the last line `Score: 7` of the reply (also `7/10`, `**7**`, `[[7]]`, or a JSON field `score`), or
from a reply that is only a number. Anything else, a number out of range, and a missing reply are unreadable: None
("does not apply") unless `unreadable` sets a value.

Left out: protection against answers that address the judge, beyond an instruction to ignore them; a policy will find
what pleases the judge.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.completions import Completion, read_text, read_texts
from r1jax.rewards.endpoint import Endpoint
from r1jax.rewards.protocol import AskingReward, Generate
from r1jax.text import prompts as templates

_NUMBER = r"(-?[0-9]{1,4}(?:\.[0-9]{1,6})?)"
_WRAP = r"[ \t*_`\"'\[(]{0,8}"
_OUT_OF = r"(?:[ \t]?(?:/|out of)[ \t]?([0-9]{1,4}))?"
_SCORE = re.compile(
    rf"\b(?:score|rating|grade)\b[\"'*_]{{0,4}}[ \t]{{0,4}}[:=]{_WRAP}{_NUMBER}(?![0-9.]*[0-9]){_OUT_OF}", re.IGNORECASE
)
_BARE = re.compile(rf"{_WRAP}{_NUMBER}[*_`\"'\])]{{0,8}}{_OUT_OF}\.?")
_MAX_LENGTH = 20_000
_SERVER_FIELDS = [field.name for field in dataclasses.fields(Endpoint) if field.name not in ("url", "model")]
_NAMES = {"judge": templates.JUDGE, "judge_with_solution": templates.JUDGE_WITH_SOLUTION}


def get_judge_reward(
    generate: Generate | None = None,
    template: str = "judge",
    highest: float = 10.0,
    unreadable: float | None = None,
    judgements: int = 1,
    max_characters: int = 8000,
    endpoint: str = "",
    model: str = "",
    **server: Any,
) -> AskingReward[..., list[float | None]]:
    """A reward in 0..1: the judge's score over `highest`, or the mean of the readable ones of several `judgements`.

    `template` contains `{question}` and `{response}`, optionally `{solution}`, or is the name "judge" or
    "judge_with_solution"; of a long response the last `max_characters` are shown. An `endpoint` (an address) with its
    `model` is used instead of `generate`; `server` are further fields of `Endpoint`, such as `timeout_seconds`, with
    its defaults. Raises UserError.
    """
    if unknown := [name for name in server if name not in _SERVER_FIELDS]:
        raise UserError(
            f"judge_reward: unknown argument {unknown[0]!r}; it takes template, highest, unreadable, judgements, "
            f"max_characters, endpoint, model, {', '.join(_SERVER_FIELDS)}"
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
        for row, text in enumerate(read_texts(completions)):
            values = {"question": prompts[row], "response": text[-max_characters:]}
            if "{solution}" in template:
                values["solution"] = str(columns["solution"][row])
            calls += [{"kind": "judgement", "row": row, "prompt": _pose(template, values)}] * judgements
        calls = [dict(call) for call in calls]
        found: dict[int, list[float]] = {}
        for call, reply in zip(calls, ask([call["prompt"] for call in calls]) if calls else (), strict=True):
            score = read_score(reply or "", highest)
            call |= {"completion": reply or "", "score": score}
            if score is not None:
                found.setdefault(call["row"], []).append(score / highest)
        reward.record(calls, sum(call["score"] is not None for call in calls))
        return [sum(found[row]) / len(found[row]) if row in found else unreadable for row in range(len(completions))]

    reward: AskingReward[..., list[float | None]] = AskingReward(judge_reward)
    return reward


def read_score(text: str, highest: float = 10.0) -> float | None:
    """The score in a judge's reply, from 0 to `highest`; None if there is none."""
    text = text[-_MAX_LENGTH:].strip()
    scores = list(_SCORE.finditer(text))
    match = scores[-1] if scores else _BARE.fullmatch(text)
    if match is None:
        return None
    score = float(match[1])
    if match[2] and float(match[2]) != highest:
        return None
    return score if math.isfinite(score) and 0 <= score <= highest else None


def _pose(template: str, values: dict[str, Any]) -> Completion:
    """The judge's prompt: text, or one message if the question is messages."""
    question = values["question"]
    asked = question if isinstance(question, str) else read_text(question[-1:])
    text = templates.fill_all(template, **values | {"question": asked.strip()})
    return text if isinstance(question, str) else [{"role": "user", "content": text}]
