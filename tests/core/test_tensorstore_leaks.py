"""Saves that leave nothing on the heap of Python."""

import gc
import sys
from pathlib import Path

import jax.numpy as jnp

from r1jax.core.checkpoint import Checkpoints

ARRAYS, SAVES = 40, 10


def test_a_save_leaves_no_memory_behind_for_each_array(tmp_path: Path) -> None:
    state, checkpoints = {f"a{index}": jnp.ones((4, 4)) for index in range(ARRAYS)}, Checkpoints(tmp_path)

    def save(first: int) -> int:
        for step in range(first, first + SAVES):
            checkpoints.save(step, state, {})
        gc.collect()
        return sys.getallocatedblocks()

    save(1)
    before = save(1 + SAVES)
    left = (save(1 + 2 * SAVES) - before) / SAVES
    checkpoints.close()
    assert left < ARRAYS, f"{left} blocks a save"  # 4 an array and more where tensorstore leaks
