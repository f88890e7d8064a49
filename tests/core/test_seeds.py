"""Seeds are the same for ever: runs of earlier versions resume with the same bits."""

import zlib

import numpy as np
import pytest

from r1jax.core.seeds import derive_seed


@pytest.mark.parametrize(
    ("parts", "text", "seed"),
    [
        (("eval", 0, 7), "eval 0 7", 1151015191),
        (("pools", 1, 12), "pools 1 12", 3789809760),
        (("judge", 0, 3, 15), "judge 0 3 15", 251369732),
        ((0, 25, 1, 3), "0 25 1 3", 2699969013),
        ((-1, np.int64(25), 3), "-1 25 3", 1865887435),
    ],
)
def test_seeds_do_not_change(parts: tuple[str | int, ...], text: str, seed: int) -> None:
    assert derive_seed(*parts) == zlib.crc32(text.encode()) == seed
