"""The reward of a reward model (`stage = "reward_model"`), or the one that a DPO model implies.

    rewards.reward_model = {"model": "runs/rm", "part": "answer"}

R1's last stage has two of them (2501.12948, section 2.3.4): helpfulness is judged on the final answer alone, and
harmlessness on the whole reply, reasoning included.

    rewards.helpful = {"function": "reward_model", "name": "helpful", "model": "runs/helpful", "part": "answer"}
    rewards.harmless = {"function": "reward_model", "name": "harmless", "model": "runs/harmless", "part": "reply"}

With `reference`, the model before its training by DPO, the reward of a text is beta (log p(text) - log p'(text))
(Rafailov et al. 2023, 2305.18290, eq. 5). The models lie on the devices of the run, beside the policy.

Left out: protection against a policy that learns what the model scores too high; watch a true score, and stop early (R1
used its reward models in the last 400 of 1,700 steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from r1jax.core.errors import UserError
from r1jax.rewards.completions import Completion, read_texts
from r1jax.rewards.protocol import WrappedFunction
from r1jax.text.reasoning import cut_answer

Part = Literal["answer", "reply"]


class Rate(Protocol):
    """Scores of completions after their prompts by a MODEL: those of a reward model or, with a reference MODEL, the
    rewards that log-probs imply.
    """

    def __call__(
        self,
        model: str,
        prompts: Sequence[Completion],
        completions: Sequence[str],
        *,
        template: str = "",
        reference: str = "",
        beta: float = 0.1,
    ) -> list[float]: ...


def get_reward_model(
    rate: Rate | None = None,
    model: str = "",
    template: str = "",
    part: Part = "answer",
    name: str = "reward_model",
    reference: str = "",
    beta: float = 0.1,
    squash: bool = False,
) -> WrappedFunction[..., list[float | None]]:
    """A reward: the score of a completion by the reward model `model`, a MODEL.

    template: how prompts that are texts are put to it (`chat`, or a text with {question}), around the template of
    config.data, which they have already; empty leaves them as the policy sees them. part: "answer" scores the text
    behind the reasoning, without answer tags, "reply" all of it. name: of the metrics, where a config has several.
    reference, beta: of a DPO model's implied reward. squash: maps the score to 0..1 by a sigmoid. Raises UserError.
    """
    if not model:
        raise UserError("reward_model: model must name a reward model (a run of stage = 'reward_model', or a folder)")
    if part not in ("answer", "reply"):
        raise UserError(f"reward_model: part must be answer or reply, got {part!r}")
    if not 0 < beta < math.inf:
        raise UserError(f"reward_model: beta must be positive, got {beta}")

    def reward_model(
        completions: Sequence[Completion], prompts: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """See `get_reward_model`."""
        if rate is None:
            raise UserError("reward_model scores in runs of stage = 'grpo' and 'rejection_sampling' alone")
        texts = read_texts(completions)
        shown = [cut_answer(text) for text in texts] if part == "answer" else texts
        scores = rate(model, prompts, shown, template=template, reference=reference, beta=beta)
        return [1 / (1 + math.exp(-min(max(score, -500), 500))) if squash else score for score in scores]

    reward_model.__name__ = name
    reward: WrappedFunction[..., list[float | None]] = WrappedFunction(reward_model)
    reward.collective = True
    return reward
