"""Seeds derived from names, so that everything random is a function of what it is for and not of the order of calls."""

import zlib


def derive_seed(*parts: str | int) -> int:
    """A seed in 0..2**32 - 1 from a purpose and its numbers: `derive_seed("eval", seed, index)`.

    CRC-32 of the parts with spaces between them: the same on every machine and in every version, so runs resume.
    """
    return zlib.crc32(" ".join(map(str, parts)).encode())
