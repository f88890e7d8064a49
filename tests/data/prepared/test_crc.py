"""Checksums of concatenations equal zlib's of the bytes."""

import zlib

import numpy as np
import pytest

from r1jax.data.prepared.crc import append_crc, join_crcs


@pytest.mark.parametrize("lengths", [[], [0], [5], [1, 0, 700, 3, 65_537, 0, 12], [8] * 300])
def test_joined_parts_are_the_whole(lengths: list[int]) -> None:
    generator = np.random.default_rng(sum(lengths))
    parts = [generator.bytes(length) for length in lengths]
    whole = b"".join(parts)
    crcs = np.array([zlib.crc32(part) for part in parts], np.uint32)
    assert join_crcs(crcs, np.array(lengths)) == (zlib.crc32(whole), len(whole))
    assert append_crc(zlib.crc32(b"head"), zlib.crc32(whole), len(whole)) == zlib.crc32(b"head" + whole)
