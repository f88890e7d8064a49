"""Seeds derived from names, so that randomness depends on its purpose and not on the order of calls."""

import zlib


def derive_seed(*parts: str | int) -> int:
    """A seed in 0..2**32 - 1 from a purpose and its numbers: `derive_seed("eval", seed, index)`.

    CRC-32 of the parts joined by spaces: equal on every machine and in every version, so that runs resume.
    """
    return zlib.crc32(" ".join(map(str, parts)).encode())
