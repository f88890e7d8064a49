"""Losses of single targets in float64, with their derivatives worked out by hand."""

import numpy as np

LOW, HIGH, BETA = 0.8, 1.2, 0.05


def draw(size: int = 64) -> dict[str, np.ndarray]:
    """Log-probs and what belongs to them, with ratios on both sides of the bounds."""
    generator = np.random.default_rng(0)
    logprobs = -generator.exponential(1.0, (1, size))
    names = ("weights", "advantages", "gap")
    return {"logprobs": logprobs, **{name: generator.normal(size=(1, size)) for name in names}}


def formula(loss: str, x: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Losses, and their derivatives by the log-probs."""
    logprobs, advantages, ratio = x["logprobs"], x["advantages"], np.exp(x["gap"])
    clipped = np.clip(ratio, LOW, HIGH)
    if loss == "cross_entropy":
        return -x["weights"] * logprobs, -x["weights"]
    if loss == "importance_sampling":
        return -ratio * advantages, -ratio * advantages
    if loss == "ppo":
        is_free = ratio * advantages <= clipped * advantages
        return -np.minimum(ratio * advantages, clipped * advantages), np.where(is_free, -ratio * advantages, 0.0)
    if loss == "cispo":
        return -clipped * advantages * logprobs, -clipped * advantages
    return -(logprobs * advantages - BETA / 2 * x["gap"] ** 2), -(advantages - BETA * x["gap"])
