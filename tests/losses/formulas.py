"""The losses of the papers in float64, preset by preset and token by token, with their gradients worked out by hand.

Nothing of the package is used, neither its table of presets nor its advantages and weights.
"""

import dataclasses
import math

import numpy as np

CONSTANT = 12  # the length that dr_grpo and rloo divide by
BOUNDS = {
    "grpo": (0.8, 1.2),
    "r1": (-9.0, 11.0),
    "dr_grpo": (0.8, 1.2),
    "dapo": (0.8, 1.28),
    "bnpo": (0.8, 1.2),
    "luspo": (1 - 3e-4, 1 + 4e-4),
    "sapo": (-math.inf, math.inf),
    "vespo": (-math.inf, math.inf),
    "gspo": (1 - 3e-4, 1 + 4e-4),
    "cispo": (0.0, 5.0),
    "rloo": (0.8, 1.2),
    "reinforce++": (0.8, 1.2),
}
KL = {"grpo": 0.04, "r1": 0.001}
SAPO = (1.0, 1.05)  # temperature where the advantage is positive, elsewhere
VESPO = ((2.0, 3.0), (3.0, 2.0))  # (k, lambda) where the advantage is not negative, elsewhere
CORRECTION = (0.7, 1.4)  # the bounds of importance weights


@dataclasses.dataclass
class Completions:
    """Log-probs of each completion of an update, ragged; rewards of its groups [P, G]; which take no part."""

    logprobs: list[np.ndarray]
    old: list[np.ndarray]
    reference: list[np.ndarray]
    sampler: list[np.ndarray]
    rewards: np.ndarray
    excluded: np.ndarray


def draw(seed: int = 0, groups: int = 3, size: int = 4, longest: int = 9, spread: float = 0.3) -> Completions:
    """Ratios on both sides of every bound, except that of `cispo` and `r1`, which some tokens are pushed over."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, groups * size)
    near = lambda x, size: x + random.normal(0, size, len(x))
    logprobs = [-random.exponential(2, length) for length in lengths]
    old = [near(x, spread) for x in logprobs]
    for x in old[::3]:
        x[0] -= 2.6  # a ratio of about 13
    return Completions(
        logprobs,
        old,
        [near(x, 0.4) for x in logprobs],
        [near(x, 0.3) for x in old],
        random.normal(size=(groups, size)),
        np.zeros(groups * size, bool),
    )


def advantages(preset: str, rewards: np.ndarray) -> np.ndarray:
    """[P, G]."""
    deviation = lambda values: math.sqrt(sum((v - sum(values) / len(values)) ** 2 for v in values) / (len(values) - 1))
    everything = rewards.ravel().tolist()
    result = np.zeros(rewards.shape)
    for p, group in enumerate(rewards.tolist()):
        for g, reward in enumerate(group):
            mean = sum(group) / len(group)
            others = [other for i, other in enumerate(group) if i != g]
            result[p, g] = {
                "dr_grpo": reward - mean,
                "rloo": reward - sum(others) / len(others),
                "reinforce++": (reward - sum(everything) / len(everything)) / (deviation(everything) + 1e-4),
            }.get(preset, (reward - mean) / (deviation(group) + 1e-4))
    return result


def loss_and_gradient(
    preset: str, completions: Completions, correction: str = "none"
) -> tuple[float, list[np.ndarray]]:
    """The update's loss, and its derivative by the log-prob of every token."""
    A = advantages(preset, completions.rewards).ravel()
    taking_part = [i for i in range(len(A)) if not completions.excluded[i]]
    tokens = sum(len(completions.logprobs[i]) for i in taking_part)
    low, high = BOUNDS[preset]
    loss, gradients = 0.0, [np.zeros(len(x)) for x in completions.logprobs]
    for i in taking_part:
        logprobs, old, reference, sampler = (
            getattr(completions, name)[i] for name in ("logprobs", "old", "reference", "sampler")
        )
        length = len(logprobs)
        if preset in ("grpo", "r1", "gspo", "sapo"):
            weight = 1 / (len(taking_part) * length)
        elif preset == "luspo":
            weight = 1 / len(taking_part)
        elif preset in ("dr_grpo", "rloo"):
            weight = 1 / (len(taking_part) * CONSTANT)
        else:
            weight = 1 / tokens
        importance = np.exp(old - sampler)
        if correction.startswith("sequence"):
            importance[:] = math.exp(sum(old - sampler))
        scales = [correct(float(c), correction) for c in importance]
        product = sum(logprobs - old) + sum(math.log(max(c, 1e-8)) for c in scales)
        for t in range(length):
            c = scales[t]
            share = 1.0
            ratio = math.exp(logprobs[t] - old[t])
            if preset in ("gspo", "luspo"):
                ratio, share = math.exp(sum(logprobs - old) / length), 1 / length
            clipped = min(max(ratio, low), high)
            if preset == "sapo":
                heat = SAPO[0] if A[i] > 0 else SAPO[1]
                gate = 1 / (1 + math.exp(-heat * (ratio - 1)))
                loss -= weight * c * 4 / heat * gate * A[i]
                gradients[i][t] -= weight * c * 4 * gate * (1 - gate) * ratio * A[i]
            elif preset == "vespo":
                k, decay = VESPO[0] if A[i] >= 0 else VESPO[1]
                W = min(max(math.exp(min(product, 20)), 1e-8), math.exp(20))
                phi = W**k * math.exp(decay * (1 - W))
                loss -= weight * phi * A[i] * logprobs[t]
                gradients[i][t] -= weight * phi * A[i]
            elif preset == "cispo":
                loss -= weight * c * clipped * A[i] * logprobs[t]
                gradients[i][t] -= weight * c * clipped * A[i]
            else:
                loss -= weight * c * min(ratio * A[i], clipped * A[i])
                if ratio * A[i] <= clipped * A[i]:
                    # The ratio of a sequence moves with each of its tokens.
                    moved = range(length) if preset in ("gspo", "luspo") else [t]
                    for u in moved:
                        gradients[i][u] -= weight * c * ratio * A[i] * share
            gap = reference[t] - logprobs[t]
            loss += KL.get(preset, 0.0) * weight * (math.exp(gap) - gap - 1)
            gradients[i][t] += KL.get(preset, 0.0) * weight * (1 - math.exp(gap))
    return loss, gradients


def correct(weight: float, correction: str) -> float:
    """An importance weight, truncated or masked."""
    low, high = CORRECTION
    if correction == "none":
        return 1.0
    if correction.endswith("mask"):
        return weight if low <= weight <= high else 0.0
    return min(max(weight, low), high)
