"""Policy-gradient losses of GRPO and related algorithms: one formula, each variant a row of settings in `PRESETS`.

Per token, with the ratio r = exp(log-prob - old log-prob), the advantage A and the weight w of losses/aggregation.py:

    loss = sum w (c S(r, A) + kl_coefficient K - entropy_coefficient H)

Surrogate S: "clip" is -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO); clip_delta also caps r at clip_delta,
which bounds the loss for A < 0 (INTELLECT-2, 2505.07291). "cispo" is -stop_gradient(clip(r)) A log-prob, so that
clipped tokens keep a gradient (MiniMax-M1, 2506.13585). "sapo" is -sigmoid(t (r - 1)) 4 A / t, a soft gate around r =
1 whose temperature t depends on the sign of A (2511.20347). "vespo" is -stop_gradient(phi(W)) A log-prob with the
product W of the sequence's ratios and phi(W) = W^k exp(lambda (1 - W)), k and lambda by the sign of A (2602.10693). The
ratio is the token's, or the geometric mean over the sequence (GSPO, 2507.18071).

Two masks leave the surrogate of some tokens out and change no denominator: off_policy_mask_threshold drops sequences
with A < 0 whose mean of sampler's log-prob - log-prob exceeds it (DeepSeek-V3.2, 2512.02556, eq. 9);
top_entropy_quantile keeps the tokens of highest entropy of an update (2506.01939), which the caller selects.

K estimates the KL from g = reference log-prob - log-prob (Schulman's estimators): k1 = -g, k2 = g^2 / 2, k3 = exp(g) -
g - 1. kl_unbiased multiplies it by the token's ratio, which makes its gradient that of the divergence off-policy too
(DeepSeek-V3.2, 2512.02556). kl_in="reward" subtracts the sum over the sequence from the reward instead (as in RLHF).

Importance correction c, for samplers that do not compute the trainer's distribution exactly: the weight exp(old
log-prob - sampler's log-prob), of the token or the product over the sequence, truncated to [importance_correction_low,
importance_correction_high] (TIS) or set to zero outside of it (MIS, IcePop). On-policy the old log-probs are the
stopped new ones and r is exactly 1.

kl_in="reward" with a critic subtracts each token's estimate at that token.

Choices of the presets where papers leave room: `grpo` and `r1` use sequence means with k3 in the loss; `cispo` has only
the upper bound, at r <= 5 (ScaleRL, 2510.13786); `rloo` and `reinforce++` have no KL (0.05 and 0.01 are common) and use
PPO's clip on the token ratio, for steps of several updates; `rloo` sums over tokens, here divided by the constant
length, which only scales the loss; `luspo` clips as `gspo`; `bnpo` is TRL's name for the token mean over a local batch,
here the update's, since denominators are global. Settings that a preset implies for the run (updates per step) are in
rl/grpo_config.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from r1jax.losses.advantage import Baseline, Scale
from r1jax.losses.aggregation import Aggregation

LOG_RATIO_LIMIT = 20.0

LEAST_LOG_WEIGHT = math.log(1e-8)  # of a sequence, in vespo

Preset = Literal[
    "", "grpo", "r1", "dr_grpo", "dapo", "bnpo", "gspo", "luspo", "cispo", "sapo", "vespo", "rloo", "reinforce++", "ppo"
]
ImportanceCorrection = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig:
    """Parameters of the policy loss.

    Attributes:
      preset: named set of values for the keys that a config leaves out (PRESETS, and RUN_PRESETS in rl/grpo_config.py).
      baseline: mean that is subtracted from rewards (losses/advantage.py), or "critic", a learned value of each token.
      scale: standard deviation that advantages are divided by (losses/advantage.py).
      aggregation: weights of tokens in the loss: every token alike, every sequence alike, by a constant length, or sums
        over the tokens of a sequence.
      surrogate: surrogate objective: PPO's clipping, CISPO's stopped weights, SAPO's soft gate, or VESPO's stopped
        weights of sequences.
      ratio: importance ratio that is clipped: each token's, or the sequence's geometric mean.
      clip_low: lower clipping distance: ratios below 1 - clip_low have no gradient where the advantage is negative.
      clip_high: upper clipping distance: ratios above 1 + clip_high have no gradient where the advantage is positive.
      clip_delta: upper bound on every ratio, also where the advantage is negative; 0 is no bound.
      sapo_temperature_pos: temperature of SAPO's gate where the advantage is positive.
      sapo_temperature_neg: temperature of SAPO's gate elsewhere.
      vespo_k_pos: power of a sequence's ratio in VESPO's weights where the advantage is not negative.
      vespo_lambda_pos: decay of these weights with the ratio.
      vespo_k_neg: power where the advantage is negative.
      vespo_lambda_neg: decay where the advantage is negative.
      off_policy_mask_threshold: mean log-ratio of sampler to trainer above which a sequence of negative advantage is
        left out of the surrogate; 0 leaves none out.
      top_entropy_quantile: share of an update's tokens, those of highest entropy, that have a surrogate; 1 is all.
      kl_coefficient: weight of the KL divergence from the reference model; 0 needs no reference.
      kl_estimator: estimator of that divergence by Schulman's names.
      kl_unbiased: whether the estimate is multiplied by the ratio, so that its gradient is correct off-policy.
      kl_in: place of the divergence: a term of the loss, or subtracted from the reward.
      entropy_coefficient: weight of the entropy, which the loss rewards; with a target its first value.
      entropy_target: entropy (nats) below which the bonus is applied and its weight grows, and above which the weight
        shrinks (Skywork-OR1, 2505.22312); 0 is no target.
      entropy_coefficient_delta: change of the weight in each update.
      entropy_coefficient_min: smallest weight.
      entropy_coefficient_max: largest weight.
      importance_correction: correction for a sampler whose distribution is not the trainer's: weights by token or
        sequence, truncated (TIS) or masked (MIS).
      importance_correction_low: lower end of the interval of correction weights; may be 0.
      importance_correction_high: upper end of the interval of correction weights.
    """

    preset: Preset = ""
    baseline: Baseline = "group"
    scale: Scale = "group"
    aggregation: Aggregation = "token"
    surrogate: Literal["clip", "cispo", "sapo", "vespo"] = "clip"
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_delta: float = 0.0
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    off_policy_mask_threshold: float = 0.0
    top_entropy_quantile: float = 1.0
    kl_coefficient: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_unbiased: bool = False
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coefficient: float = 0.0
    entropy_target: float = 0.0
    entropy_coefficient_delta: float = 0.005
    entropy_coefficient_min: float = 0.0
    entropy_coefficient_max: float = 1.0
    importance_correction: ImportanceCorrection = "none"
    importance_correction_low: float = 0.0
    importance_correction_high: float = 2.0

    @property
    def needs_sequences(self) -> bool:
        """Whether the loss needs to know which completion each token belongs to."""
        by_sequence = self.ratio == "sequence" or self.surrogate == "vespo" or self.off_policy_mask_threshold > 0
        return by_sequence or self.importance_correction.startswith("sequence")

    @property
    def has_entropy_bonus(self) -> bool:
        """Whether the loss rewards entropy, in every update or below a target."""
        return self.entropy_coefficient != 0 or self.entropy_target > 0

    @property
    def needs_all_tokens(self) -> bool:
        """Whether tokens with advantage 0 have a gradient too."""
        selects = self.top_entropy_quantile < 1  # among the tokens of the whole update
        return (
            selects
            or self.baseline == "critic"
            or self.has_entropy_bonus
            or (self.kl_coefficient != 0 and self.kl_in == "loss")
        )


PRESETS: dict[str, dict[str, Any]] = {
    "grpo": dict(aggregation="sequence", kl_coefficient=0.04),  # DeepSeekMath, 2402.03300
    "r1": dict(aggregation="sequence", clip_low=10.0, clip_high=10.0, kl_coefficient=0.001),  # 2501.12948
    "dr_grpo": dict(scale="none", aggregation="constant"),  # 2503.20783
    "dapo": dict(clip_high=0.28),  # 2503.14476
    "bnpo": dict(clip_high=0.2),
    "gspo": dict(aggregation="sequence", ratio="sequence", clip_low=3e-4, clip_high=4e-4),  # 2507.18071
    "luspo": dict(aggregation="sum", ratio="sequence", clip_low=3e-4, clip_high=4e-4),  # 2602.05261
    "cispo": dict(surrogate="cispo", clip_low=1.0, clip_high=4.0),  # 2506.13585
    "sapo": dict(surrogate="sapo", aggregation="sequence"),  # 2511.20347
    "vespo": dict(surrogate="vespo"),  # 2602.10693
    "rloo": dict(baseline="leave_one_out", scale="none", aggregation="constant"),  # 2402.14740
    "reinforce++": dict(baseline="batch", scale="batch"),  # 2501.03262
    "ppo": dict(  # 1707.06347, with the KL in the reward as in 2203.02155
        baseline="critic", scale="none", kl_coefficient=0.02, kl_estimator="k1", kl_in="reward"
    ),
}


def policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    config: PolicyLossConfig,
    *,
    reference_logprobs: jax.Array | None = None,
    sampler_logprobs: jax.Array | None = None,
    entropy: jax.Array | None = None,
    sequences: jax.Array | None = None,
    selected: jax.Array | None = None,
    entropy_coefficient: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one micro-batch, and metrics summed over its tokens; all arrays are [B, R] of one floating dtype.

    weights: share of each token in the update's loss, 0 at padding, where NaN inputs have no effect. sequences: int32,
    index within its row of the completion that a token belongs to (a completion lies in one row). selected: 1 at the
    tokens of the update's highest entropies, else 0. These and the log-probs beside them are required where the config
    uses them; ValueError if one is missing. entropy_coefficient: scalar in place of the config's.
    """
    arrays = (logprobs, old_logprobs, advantages, weights, reference_logprobs, sampler_logprobs, entropy, sequences)
    chex.assert_rank(logprobs, 2)
    chex.assert_equal_shape(
        [array for array in (*arrays, selected) if array is not None],
        custom_message="log-probs, advantages, weights and what else is given must be [B, R], a value for each target",
    )
    inside = weights > 0
    mask = lambda x: jnp.where(inside, x, 0.0)
    mean = lambda x: _over_sequences(x, sequences) / jnp.maximum(_over_sequences(1.0 * inside, sequences), 1.0)
    logprobs, old_logprobs, advantages = mask(logprobs), mask(old_logprobs), mask(advantages)
    log_ratio = logprobs - old_logprobs
    ratio = token_ratio = _exp(log_ratio)
    if config.ratio == "sequence":
        ratio = _exp(mean(log_ratio))
    if config.clip_delta:
        ratio = jnp.minimum(ratio, config.clip_delta)
    correction = None
    metrics: dict[str, jax.Array] = {}
    if config.importance_correction != "none":
        gap = jax.lax.stop_gradient(old_logprobs - mask(_require(sampler_logprobs, "sampler_logprobs")))
        correction, outside = _correct(gap, config, sequences)
        metrics |= {"correction/weight_mean": correction, "correction/outside_mean": outside}
    if config.surrogate == "vespo":
        phi = _weigh_sequences(log_ratio, advantages, correction, inside, config, sequences)
        per_token, correction = -phi * advantages * logprobs, None  # the weight contains the correction
        metrics["vespo/phi_seq_mean"] = phi
    else:
        per_token = _find_surrogate(ratio, logprobs, advantages, config)
    clips = config.surrogate in ("clip", "cispo")
    low = inside & (ratio < 1.0 - config.clip_low) & (advantages < 0) & clips
    high = inside & (ratio > 1.0 + config.clip_high) & (advantages > 0) & clips
    metrics |= {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}
    if config.off_policy_mask_threshold:
        drift = mean(jax.lax.stop_gradient(mask(_require(sampler_logprobs, "sampler_logprobs")) - logprobs))
        dropped = (advantages < 0) & (drift > config.off_policy_mask_threshold)
        per_token = jnp.where(dropped, 0.0, per_token)
        metrics["off_policy/masked_mean"] = dropped
    if config.top_entropy_quantile < 1:
        per_token = per_token * _require(selected, "selected")
    if correction is not None:
        per_token = per_token * correction
    if reference_logprobs is not None:
        kl = estimate_kl(logprobs, mask(reference_logprobs), config)
        metrics["kl"] = kl
        if config.kl_in == "loss":
            per_token += config.kl_coefficient * (kl * token_ratio if config.kl_unbiased else kl)
    if config.has_entropy_bonus:
        scale = config.entropy_coefficient if entropy_coefficient is None else entropy_coefficient
        shared = 1.0 if config.top_entropy_quantile == 1 else _require(selected, "selected")
        per_token -= scale * shared * mask(_require(entropy, "entropy"))
    sums = {name: jax.lax.stop_gradient((value * inside).sum()) for name, value in metrics.items()}
    return (per_token * weights).sum(), sums


def _find_surrogate(
    ratio: jax.Array, logprobs: jax.Array, advantages: jax.Array, config: PolicyLossConfig
) -> jax.Array:
    """The surrogate S of each token, but that of vespo."""
    if config.surrogate == "sapo":
        heat = jnp.where(advantages > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
        return -jax.nn.sigmoid(heat * (ratio - 1.0)) * 4.0 / heat * advantages
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    if config.surrogate == "cispo":
        return -jax.lax.stop_gradient(clipped) * advantages * logprobs
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def _weigh_sequences(
    log_ratio: jax.Array,
    advantages: jax.Array,
    correction: jax.Array | None,
    inside: jax.Array,
    config: PolicyLossConfig,
    sequences: jax.Array | None,
) -> jax.Array:
    """VESPO's weight phi of each token's sequence, without gradient; correction: weights of tokens, part of W."""
    log_ratio = jnp.clip(jax.lax.stop_gradient(log_ratio), -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if correction is not None:
        log_ratio += jnp.where(inside, jnp.maximum(jnp.log(correction), LEAST_LOG_WEIGHT), 0.0)
    log_weight = jnp.clip(_over_sequences(log_ratio, sequences), LEAST_LOG_WEIGHT, LOG_RATIO_LIMIT)
    power = jnp.where(advantages >= 0, config.vespo_k_pos, config.vespo_k_neg)
    decay = jnp.where(advantages >= 0, config.vespo_lambda_pos, config.vespo_lambda_neg)
    return jnp.exp(power * log_weight + decay * (1.0 - jnp.exp(log_weight)))


def estimate_kl(logprobs: Any, reference_logprobs: Any, config: PolicyLossConfig) -> Any:
    """Per-token estimate of the KL from the reference policy, by config.kl_estimator; of NumPy's arrays by NumPy, which
    compiles nothing for their length.
    """
    space = logprobs.__array_namespace__()
    gap = space.clip(reference_logprobs - logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return {"k1": -gap, "k2": 0.5 * gap**2, "k3": space.exp(gap) - gap - 1.0}[config.kl_estimator]


def _correct(gap: jax.Array, config: PolicyLossConfig, sequences: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Importance weight of each token's surrogate, and whether it was outside the bounds."""
    level, _, way = config.importance_correction.partition("_")
    weight = _exp(gap if level == "token" else _over_sequences(gap, sequences))
    outside = (weight < config.importance_correction_low) | (weight > config.importance_correction_high)
    if way == "mask":
        return jnp.where(outside, 0.0, weight), outside
    return jnp.clip(weight, config.importance_correction_low, config.importance_correction_high), outside


def _exp(log_ratio: jax.Array) -> jax.Array:
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def _over_sequences(values: jax.Array, sequences: jax.Array | None) -> jax.Array:
    """Sum of `values` over the completion of each token, at every token [B, R]."""
    count = values.shape[1]

    def add(values: jax.Array, sequences: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, sequences, count)[sequences]

    return jax.vmap(add)(values, _require(sequences, "sequences"))


def _require(array: jax.Array | None, name: str) -> jax.Array:
    if array is None:
        raise ValueError(f"this loss needs {name}")
    return array
