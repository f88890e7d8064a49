"""Losses of preferences: a chosen and a rejected completion of one prompt, each method a row of settings in `METHODS`.

With the log-probs of a completion's tokens summed, c and r those of the chosen and the rejected one, c' and r' those of
the reference, n their lengths, b = beta, and h = (c - c') - (r - r'):

    dpo    -log sigmoid(b h)                                              Rafailov et al. 2023, 2305.18290, eq. 7
    cdpo   -(1 - e) log sigmoid(b h) - e log sigmoid(-b h)                Mitchell 2023, e = label_smoothing
    ipo    (h - 1 / 2b)^2, of means over tokens                           Azar et al. 2023, 2310.12036, eq. 17
    kto    D (1 - sigmoid(b (c - c' - z))) + U (1 - sigmoid(b (z - r + r')))    Ethayarajh et al. 2024, 2402.01306
    orpo   -log p(chosen) / n - b log sigmoid(odds(c / n) - odds(r / n))  Hong et al. 2024, 2403.07691, eq. 6
    simpo  -log sigmoid(b (c / n - r / n) - target_margin)                Meng et al. 2024, 2405.14734, eq. 6

odds(x) = x - log(1 - exp x). z is the reference point of KTO, max(0, mean log-ratio of completions to other prompts),
without gradient. `length_normalized` takes means over tokens in place of sums in any of them (as for ipo, after its
authors' and TRL's reading); nll_weight adds -log p(chosen) / n (RPO, Pang et al. 2024, 2404.19733).

A reward model's loss is Bradley and Terry's (1952): -log sigmoid(s(chosen) - s(rejected) - margin) (Llama 2,
2307.09288, eq. 2), plus centre (s(chosen) + s(rejected))^2 (Eisenstein et al. 2023, 2312.09244).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

Method = Literal["dpo", "cdpo", "ipo", "kto", "orpo", "simpo"]
LARGEST_LOGPROB = -1e-6  # of a mean over tokens, where the odds would be infinite


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Parameters of the preference loss.

    Attributes:
      type: method; it sets the keys that a config leaves out (METHODS).
      beta: strength of the pull to the reference, or scale of the log-probs where there is none.
      label_smoothing: assumed share of pairs in the wrong order.
      target_margin: gamma of SimPO, the margin between the rewards of a pair.
      length_normalized: whether log-probs are means over tokens.
      nll_weight: weight of the chosen completion's negative log-prob per token.
      desirable_weight: weight of chosen completions in KTO.
      undesirable_weight: weight of rejected completions in KTO.
      reference: origin of the reference's log-probs: "kept" computes them once, before the first step, and keeps them
        in the workdir; "base" computes them in every step by the frozen model under the adapters.
    """

    type: Method = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    target_margin: float = 0.0
    length_normalized: bool = False
    nll_weight: float = 0.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: Literal["kept", "base"] = "kept"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the model with a reference."""
        return self.type not in ("orpo", "simpo")

    @property
    def sequences(self) -> int:
        """Sequences of a pair: chosen and rejected, and for KTO the prompt with a completion to another one."""
        return 3 if self.type == "kto" else 2


METHODS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "cdpo": dict(label_smoothing=0.1),
    "ipo": dict(length_normalized=True),
    "kto": {},
    "orpo": dict(length_normalized=True, nll_weight=1.0),
    "simpo": dict(length_normalized=True, beta=2.0, target_margin=1.0),
}


@dataclasses.dataclass(frozen=True)
class RewardLossConfig:
    """Parameters of a reward model's loss.

    Attributes:
      use_margin: whether the margins of the data, where it has some, are subtracted from the difference of scores.
      center_coefficient: weight of the squared sum of a pair's scores, which keeps them around 0.
    """

    use_margin: bool = True
    center_coefficient: float = 0.0


def preference_loss(
    logps: jax.Array,
    lengths: jax.Array,
    config: PreferenceConfig,
    *,
    reference: jax.Array | None = None,
    kl: jax.Array | float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of each pair [...], and its `rewards` [..., 2], which the method implies, and `nll` [...].

    logps [..., 2]: summed log-probs of chosen and rejected completion. lengths [..., 2]: their tokens. reference: the
    log-probs of the reference model; ValueError where they are missing. kl: the reference point of KTO.
    """
    chex.assert_equal_shape([logps, lengths], custom_message="log-probs and lengths must be [..., 2]")
    lengths = jnp.maximum(lengths, 1)
    nll = -(logps / lengths)[..., 0]
    scale = lengths if config.length_normalized else jnp.ones_like(lengths)
    if config.needs_reference:
        if reference is None:
            raise ValueError(f"{config.type} needs the log-probs of a reference")
        ratios = (logps - reference) / scale
    else:
        ratios = logps / scale
    rewards = config.beta * ratios
    gap = rewards[..., 0] - rewards[..., 1]
    log_sigmoid = jax.nn.log_sigmoid
    if config.type == "ipo":
        loss = (ratios[..., 0] - ratios[..., 1] - 1 / (2 * config.beta)) ** 2
    elif config.type == "kto":
        point = config.beta * jax.lax.stop_gradient(jnp.asarray(kl))
        loss = config.desirable_weight * (1 - jax.nn.sigmoid(rewards[..., 0] - point))
        loss += config.undesirable_weight * (1 - jax.nn.sigmoid(point - rewards[..., 1]))
    elif config.type == "orpo":
        loss = -config.beta * log_sigmoid(_log_odds(ratios[..., 0]) - _log_odds(ratios[..., 1]))
    else:
        gap, smoothing = gap - config.target_margin, config.label_smoothing
        loss = -(1 - smoothing) * log_sigmoid(gap) - smoothing * log_sigmoid(-gap)
    if config.nll_weight:
        loss += config.nll_weight * nll
    return loss, {"rewards": rewards, "nll": nll}


def _log_odds(logprob: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of log p."""
    logprob = jnp.minimum(logprob, LARGEST_LOGPROB)
    near = jnp.log(-jnp.expm1(jnp.maximum(logprob, -math.log(2))))
    far = jnp.log1p(-jnp.exp(jnp.minimum(logprob, -math.log(2))))
    return logprob - jnp.where(logprob > -math.log(2), near, far)


def bradley_terry_loss(scores: jax.Array, margins: jax.Array | float, config: RewardLossConfig) -> jax.Array:
    """Loss of each pair [...] of a reward model, of scores [..., 2] of chosen and rejected completion."""
    chosen, rejected = scores[..., 0], scores[..., 1]
    loss = -jax.nn.log_sigmoid(chosen - rejected - (margins if config.use_margin else 0.0))
    return loss + config.center_coefficient * (chosen + rejected) ** 2
