"""Useful FLOPs of a model by formula, independent of the compiler.

Per token 2 for every weight that the token uses (of E experts the A active ones), and per query-key pair 4 per unit of
head width, a query attending to keys up to its own; a backward pass costs twice the forward pass. Recomputation, masked
pairs and padding do not count. Embedding look-ups, norms and softmax are not counted, as is conventional.
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
    """

    body: float
    head: float
    pair: float
    ahead: float = 0.0

    def forward(self, tokens: float, targets: float, pairs: float) -> float:
        """Forward FLOPs of a batch with these numbers of input tokens, positions with logits and query-key pairs."""
        return self.body * tokens + self.head * targets + self.pair * pairs

    def train(self, tokens: float, targets: float, pairs: float, *, ahead: bool = False) -> float:
        """FLOPs of forward and backward pass. ahead: include the prediction depths and their logits."""
        depths = (self.ahead * tokens + self.head * targets) if ahead and self.ahead else 0.0
        return 3 * (self.forward(tokens, targets, pairs) + depths)


def count_work(params: Params, config: Any) -> Work:
    """Forward FLOPs of a model, from its config and the shapes of its parameters."""
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
    """FLOPs of one query-key-value pair in one layer, over all heads."""
    if (latents := getattr(config, "latents", None)) is not None:
        return 2.0 * config.num_heads * (latents.plain_dim + latents.rotary_dim + latents.value_dim)
    return 4.0 * config.num_heads * config.head_dim
