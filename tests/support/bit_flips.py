"""Files with one bit flipped, as a bad disk or a bad transfer leaves them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path


def with_a_bit_flipped(path: Path, times: int) -> Iterator[int]:
    """Flips one bit of the file, a different one each time, and at the end puts the contents back.

    Yields the byte in which it is.
    """
    contents, rng = path.read_bytes(), random.Random(0)
    try:
        for _ in range(times):
            damaged, place = bytearray(contents), rng.randrange(len(contents))
            damaged[place] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            yield place
    finally:
        path.write_bytes(contents)
