"""The self-ranking reward: the policy answers a question several times and is then asked to rank its answers.

The notes that this project started from describe R1-Zero's training in this way: the trained model answers a question
several times, is shown its own answers and asked to rank them "from best to worst based on correctness, clarity, and
logic", and the ranks become rewards: the first is reinforced, the second less, and a non-answer in the last place is
removed. (In DeepSeek's report rules check the answers. Compare both with `compare_to`.)

A judgement shows the distinct answers of a group in shuffled order, at most `at_once` per prompt; every second
judgement reverses the order of the previous one, which cancels a position bias. A response's reward is 1 - place / (n -
1), from 1.0 for the first to 0.0 for the last, by the mean of its places in all readable judgements. Equal texts share
one place. A group without a readable judgement gets None: the reward does not apply.

    rewards.self_rank_reward = {"weight": 1.0, "judgements": 2, "drop_bottom": True, "compare_to": "answer_reward"}
    rewards.answer_reward = 0.0

Responses are shown disarmed (`r1jax/text/quoting.py`), each as one numbered entry: quotation marks are escaped, further
lines are indented. A judgement without a readable ranking is requested once more.

Left out: protection against responses that persuade the judge. A policy that judges itself may learn to please itself;
watch the agreement with a verifiable reward.
"""

import random
import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.answers import find_answer
from r1jax.rewards.completions import Completion, read_text, read_texts
from r1jax.rewards.endpoint import SERVER_FIELDS, Endpoint
from r1jax.rewards.protocol import AskingReward, Generate, OutOfLoss
from r1jax.rewards.ranking import Places, read_ranking
from r1jax.text import prompts as templates
from r1jax.text.quoting import disarm

_TEMPLATES = {"rank": templates.RANK, "rank_brief": templates.RANK_BRIEF, "rank_shots": templates.RANK_SHOTS}
_INDENT = "\n   "
_NON_ANSWER = re.compile(
    r"\W{0,8}(?:i(?: am|['’]m) (?:not sure|unsure|sorry|unable)|i (?:do not|don['’]t) know|i (?:cannot|can['’]t)\b"
    r"|no idea|unknown\b|n/?a\b|none\b\W*$)",
    re.IGNORECASE,
)


def get_self_rank_reward(
    generate: Generate | None = None,
    template: str = templates.RANK,
    judgements: int = 2,
    at_once: int = 8,
    drop_bottom: bool = False,
    drop_non_answers: bool = False,
    max_characters: int = 2000,
    as_text: bool = False,
    seed: int = 0,
    endpoint: str = "",
    model: str = "",
    **server: Any,
) -> AskingReward[..., list[float | None]]:
    """A reward in 0..1 from the ranking that `generate` writes of each group's own answers.

    `template` contains `{question}` and `{responses}`, or is the name "rank", "rank_brief" or "rank_shots" (worked
    pairs to continue: use `at_once` 2); of a long response the last `max_characters` are shown. `as_text` asks in plain
    text even if the data's prompts are messages. `drop_bottom` takes the group's last place out of the loss,
    `drop_non_answers` every reply without an answer ("I am not sure", an empty answer) at any rank; neither leaves a
    group with fewer than two rows. Groups are equal `group_ids` if `score` passes them, else equal `prompts`. With an
    `endpoint` (an address) its `model` ranks in place of `generate`; `server` are further fields of `Endpoint`. Raises
    UserError.
    """
    if unknown := [name for name in server if name not in SERVER_FIELDS]:
        raise UserError(f"self_rank_reward: unknown argument {unknown[0]!r}")
    if endpoint:
        generate = Endpoint(endpoint, model, **server)
    if generate is None:
        raise UserError(
            "self_rank_reward needs a model that ranks: set endpoint and model, or use it where one samples"
        )
    ask: Generate = generate
    template = _TEMPLATES.get(template, template)
    if "{question}" not in template or "{responses}" not in template:
        names = ", ".join(_TEMPLATES)
        raise UserError(f"self_rank_reward: template must contain {{question}} and {{responses}}, or be one of {names}")
    for name, value, least in (
        ("judgements", judgements, 1),
        ("at_once", at_once, 2),
        ("max_characters", max_characters, 1),
    ):
        if value < least:
            raise UserError(f"self_rank_reward: {name} must be at least {least}, got {value}")

    def self_rank_reward(
        completions: Sequence[Completion],
        prompts: Sequence[Completion],
        group_ids: Sequence[int] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """See `get_self_rank_reward`."""
        texts = read_texts(completions)
        groups: dict[Any, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(str(prompt) if group_ids is None else group_ids[row], []).append(row)
        asked: list[dict[str, Any]] = [
            {
                "kind": "ranking",
                "group": number,
                "prompt": _pose(template, prompts[rows[0]], shown, max_characters, as_text),
                "responses": shown,
            }
            for number, rows in enumerate(groups.values())
            for shown in _arrange([texts[row] for row in rows], judgements, at_once, seed)
        ]
        _ask(ask, asked, max_characters)
        _ask(ask, [call for call in asked if call["places"] is None and call["completion"]], max_characters)
        reward.record(asked, sum(call["places"] is not None for call in asked))
        rewards: list[float | None] = [None] * len(texts)
        for number, rows in enumerate(groups.values()):
            values = _average([texts[row] for row in rows], [call for call in asked if call["group"] == number])
            for row, value in zip(rows, values, strict=True):
                rewards[row] = value
            for row in _find_dropped(rows, rewards, texts, drop_bottom, drop_non_answers):
                rewards[row] = OutOfLoss(rewards[row] or 0.0)
        return rewards

    reward: AskingReward[..., list[float | None]] = AskingReward(self_rank_reward, collective=not endpoint)
    return reward


def is_non_answer(text: str) -> bool:
    """Whether a reply gives no answer: its answer (in tags or a box, else its last line) is empty or declines."""
    answer = find_answer(text)
    if answer is None:
        answer = text.strip().rpartition("\n")[2]
    return not any(_is_visible(char) for char in answer) or bool(_NON_ANSWER.match(answer))


def _is_visible(char: str) -> bool:
    return char.isalnum() or (not char.isascii() and unicodedata.category(char) == "Sm")


def _arrange(texts: Sequence[str], judgements: int, at_once: int, seed: int) -> list[list[str]]:
    """The ordered lists of responses to show; none for fewer than two different texts."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        return []
    # A function of the texts alone, so that a resumed run judges like an uninterrupted one.
    shuffler = random.Random(f"{seed} {zlib.crc32(chr(0).join(distinct).encode(errors='replace'))}")
    shown = []
    for judgement in range(judgements):
        if judgement % 2 == 0:
            shuffler.shuffle(distinct)
            parts = -(-len(distinct) // at_once)
            pieces = [distinct[part::parts] for part in range(parts)]
            pieces = [piece for piece in pieces if len(piece) > 1]
        else:
            pieces = [piece[::-1] for piece in pieces]
        shown += pieces
    return shown


def _ask(generate: Generate, calls: Sequence[dict[str, Any]], max_characters: int) -> None:
    """Adds the reply and the places that it gives to each call."""
    for call, reply in zip(calls, generate([call["prompt"] for call in calls]) if calls else (), strict=True):
        shown = [text[-max_characters:].strip() for text in call["responses"]]
        call |= {"completion": reply or "", "places": read_ranking(reply or "", shown)}


def _pose(
    template: str, question: Completion, responses: Sequence[str], max_characters: int, as_text: bool
) -> Completion:
    """The judge's prompt: text, or one message if the question is messages."""
    shown = [disarm(text[-max_characters:].strip()).replace('"', '\\"') for text in responses]
    listed = "\n".join(f'{i + 1}. "{_INDENT.join(text.splitlines())}"' for i, text in enumerate(shown))
    asked = question if isinstance(question, str) else read_text(question[-1:])
    text = templates.fill_all(template, question=asked.strip(), responses=listed)
    return text if as_text or isinstance(question, str) else [{"role": "user", "content": text}]


def _average(texts: Sequence[str], calls: Sequence[dict[str, Any]]) -> list[float | None]:
    values: dict[str, list[float]] = {}
    for call in calls:
        places: Places | None = call["places"]
        for text, place in zip(call["responses"], places or (), strict=places is not None):
            values.setdefault(text, []).append(1.0 - place / (len(call["responses"]) - 1))
    return [sum(found) / len(found) if (found := values.get(text)) else None for text in texts]


def _find_dropped(
    rows: Sequence[int], rewards: Sequence[float | None], texts: Sequence[str], bottom: bool, non_answers: bool
) -> list[int]:
    """Rows of a group to take out of the loss; none if fewer than two would stay, or if nothing was ranked."""
    values = {row: value for row in rows if (value := rewards[row]) is not None}
    if not values:
        return []
    lowest, highest = min(values.values()), max(values.values())
    dropped = [
        row
        for row in rows
        if (bottom and lowest < highest and values.get(row) == lowest) or (non_answers and is_non_answer(texts[row]))
    ]
    return dropped if len(rows) - len(dropped) >= 2 else []
