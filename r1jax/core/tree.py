"""Questions to a nested dict of parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax


class Sizes(NamedTuple):
    """Parameters: all of them, those every token meets in the blocks, those of the output head (the table where it is
    tied).
    """

    total: int
    body: int
    head: int


def count_parameters(params: dict[str, Any]) -> Sizes:
    """Counts from shapes; works on abstract parameters too."""
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    head = count(params["head"]) if params.get("head") else count(params["embed"])
    return Sizes(count(params), count(params.get("layers") or params["stacks"]), head)
