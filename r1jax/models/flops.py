"""Useful FLOPs of a model by formula: what a perfect implementation would have to multiply, whatever the compiler does.

2 a weight that a token meets (of E experts the A active ones), and 4 a pair of query and key and unit of head width, a
query meeting the keys up to its own; a gradient costs twice the forward pass. Recomputation, masked pairs and padding
are no use. Embedding look-ups, norms and softmax are left out, as everybody leaves them out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from r1jax.models.transformer import Params


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass: `body` a token fed, `head` a position whose logits are computed, `pair` a pair of query
    and key in all layers; `ahead` a token fed, for what predicts further ahead.
    """

    body: float
    head: float
    pair: float
    ahead: float = 0.0

    def forward(self, tokens: float, targets: float, pairs: float) -> float:
        """Of so many tokens, positions with logits, and pairs of query and key."""
        return self.body * tokens + self.head * targets + self.pair * pairs

    def train(self, tokens: float, targets: float, pairs: float, *, ahead: bool = False) -> float:
        """Forward and backward. ahead: also of the prediction depths, which have logits too, where there are any."""
        depths = (self.ahead * tokens + self.head * targets) if ahead and self.ahead else 0.0
        return 3 * (self.forward(tokens, targets, pairs) + depths)


def count_work(params: Params, config: Any) -> Work:
    """The work of a model from the shapes of its parameters and its sizes."""
    share = getattr(config, "active_experts", 1) / getattr(config, "num_experts", 1)
    totals = {"embed": 0.0, "head": 0.0, "mtp": 0.0, "body": 0.0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [str(getattr(entry, "key", entry)) for entry in path]
        if keys[-1] in ("scale", "bias", "correction_bias"):
            continue
        part = keys[0] if keys[0] in totals else "body"
        totals[part] += 2.0 * math.prod(leaf.shape) * (share if "experts" in keys else 1.0)
    head = totals["head"] or totals["embed"]
    return Work(totals["body"], head, config.num_layers * _pair(config), totals["mtp"])


def _pair(config: Any) -> float:
    """A query, a key and its value in one layer, by all heads."""
    if (latents := getattr(config, "latents", None)) is not None:
        return 2.0 * config.num_heads * (latents.plain_dim + latents.rotary_dim + latents.value_dim)
    return 4.0 * config.num_heads * config.head_dim
