"""Checksums of concatenations from the checksums of their parts, without the bytes (the algebra of CRC-32: appending n
bytes multiplies a checksum by x^8n modulo the polynomial, and adds that of the bytes).
"""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31  # x^0; bit 31 - k is the coefficient of x^k


def append_crc(crc: int, other: int, length: int) -> int:
    """`zlib.crc32(a + b)` of crc(a), crc(b) and the bytes of b."""
    power, k = _ONE, 3  # x^(8 length)
    while length:
        if length & 1:
            power = _multiply(_square(k), power)
        length, k = length >> 1, k + 1
    return _multiply(power, crc) ^ other


def join_crcs(crcs: np.ndarray, lengths: np.ndarray) -> tuple[int, int]:
    """Checksum and bytes of the concatenation of parts, from the checksums and lengths of the parts [n]."""
    lengths = np.asarray(lengths, np.int64)
    behind = lengths[::-1].cumsum()[::-1] - lengths  # bytes after each part
    shifted = np.asarray(crcs, np.uint32).copy()
    for bit in range(int(behind.max(initial=0)).bit_length()):
        places = np.flatnonzero((behind >> bit) & 1)
        shifted[places] = _multiply_all(shifted[places], bit + 3)
    return int(np.bitwise_xor.reduce(shifted, initial=0)), int(lengths.sum())


def _multiply(a: int, b: int) -> int:
    product, place = 0, 1 << 31
    while place:
        if a & place:
            product ^= b
        place >>= 1
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.cache
def _square(k: int) -> int:
    """x^(2^k)."""
    return 1 << 30 if k == 0 else _multiply(_square(k - 1), _square(k - 1))


@functools.cache
def _table(k: int) -> np.ndarray:
    """Products of x^(2^k) with every byte at each of its four places, uint32 [4, 256]."""
    table = np.zeros((4, 256), np.uint32)
    for place in range(4):
        for bit in range(8):
            table[place, 1 << bit : 2 << bit] = table[place, : 1 << bit] ^ np.uint32(
                _multiply(_square(k), 1 << (8 * place + bit))
            )
    return table


def _multiply_all(values: np.ndarray, k: int) -> np.ndarray:
    table = _table(k)
    parts = [table[place][(values >> np.uint32(8 * place)) & np.uint32(255)] for place in range(4)]
    return parts[0] ^ parts[1] ^ parts[2] ^ parts[3]
