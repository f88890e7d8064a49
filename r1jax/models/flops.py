"""Useful FLOPs of a model by formula, independent of the compiler.

Per token 2 for every weight that the token uses (of E experts the A active ones), and per query-key pair 4 per unit of
head width, a query attending to keys up to its own; a backward pass costs twice the forward pass, and half of that
where weights are frozen. Recomputation, masked pairs and padding do not count. Embedding look-ups, norms and softmax
are not counted, as is conventional. The metrics `mfu` and `flops`, a pipeline's work and `compile_check` count by these
formulas.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from r1jax.models.transformer import Params


@dataclasses.dataclass(frozen=True)
class Work:
    """Forward FLOPs of a model: `body` per input token, `head` per position with logits, `pair` per query-key pair in
    all layers; `ahead` per input token for the prediction depths.

    adapters: the same of the adapters that are trained in place of the model's weights (None: the weights are trained).
    """

    body: float = 0.0
    head: float = 0.0
    pair: float = 0.0
    ahead: float = 0.0
    adapters: Work | None = None

    def forward(self, tokens: float, targets: float, pairs: float) -> float:
        """Forward FLOPs of a batch with these numbers of input tokens, positions with logits and query-key pairs."""
        beside = 0.0 if self.adapters is None else self.adapters.forward(tokens, 0, 0)
        return self.body * tokens + self.head * targets + self.pair * pairs + beside

    def sample(self, prompt: float, lengths: list[int]) -> float:
        """FLOPs of completions of these lengths after one prompt of so many tokens, which is fed once."""
        said = float(sum(lengths))
        pairs = prompt * (prompt + 1) / 2 + sum(length * prompt + length * (length + 1) / 2 for length in lengths)
        return self.forward(prompt + said, said, pairs)

    def train(self, tokens: float, targets: float, pairs: float, *, ahead: bool = False) -> float:
        """FLOPs of forward and backward pass. ahead: include the prediction depths and their logits.

        A trained weight costs its product, the gradient of its input and its own gradient; a frozen one the first two.
        Attention has no weights: both operands of its products need a gradient.
        """
        depths = (self.ahead * tokens + self.head * targets) if ahead and self.ahead else 0.0
        if self.adapters is None:
            return 3 * (self.forward(tokens, targets, pairs) + depths)
        frozen = self.body * tokens + self.head * targets + depths
        return 2 * frozen + 3 * self.pair * pairs + self.adapters.train(tokens, 0, 0, ahead=ahead)


def count_work(params: Params, config: Any, adapters: Params | None = None) -> Work:
    """Forward FLOPs of a model, from its config and the shapes of its parameters. adapters: those that are trained
    beside frozen `params` (models/adapters/lora.py). A score (models/scores.py), which is tiny, counts in the body.
    """
    layers = getattr(config, "attention_layers", config.num_layers)
    totals, pair = _count_products(params, config), layers * _pair(config)
    low_rank = None if adapters is None else _count_products(adapters, config)
    return Work(
        totals["body"],
        0.0 if "score" in params else totals["head"] or totals["embed"],
        pair,
        totals["mtp"],
        None if low_rank is None else Work(low_rank["body"], ahead=low_rank["mtp"]),
    )


def _count_products(params: Params, config: Any) -> dict[str, float]:
    """FLOPs per token of the matrix products with `params`, by the part of the model."""
    share = getattr(config, "active_experts", 1) / getattr(config, "num_experts", 1)
    totals = {"embed": 0.0, "head": 0.0, "mtp": 0.0, "body": 0.0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [str(getattr(entry, "key", entry)) for entry in path]
        if keys[-1] in ("scale", "sinks", "table") or keys[-1].endswith("bias"):
            continue
        part = keys[0] if keys[0] in totals else "body"
        totals[part] += 2.0 * math.prod(leaf.shape) * (share if "experts" in keys else 1.0)
    return totals


def _pair(config: Any) -> float:
    """FLOPs of one query-key-value pair in one layer, over all heads."""
    if (latents := getattr(config, "latents", None)) is not None:
        return 2.0 * config.num_heads * (latents.plain_dim + latents.rotary_dim + latents.value_dim)
    return 4.0 * config.num_heads * config.head_dim
