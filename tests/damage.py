"""Copies of a file's bytes with a little harmless damage, made anew in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def mutants(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged copies: bytes changed, bits turned, parts cut out, doubled, zeroed, or the end cut off."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        bad = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(0, max(len(bad), 1)))
            width = int(rng.integers(1, 17))
            kind = rng.integers(0, 8)
            if kind < 2 and bad:
                bad[place] = rng.integers(0, 256)
            elif kind < 4 and bad:
                bad[place] ^= 1 << int(rng.integers(0, 8))
            elif kind == 4:
                del bad[place : place + width]
            elif kind == 5:
                bad[place:place] = bad[place : place + width]
            elif kind == 6:
                bad[place : place + width] = bytes(len(bad[place : place + width]))
            elif rng.random() < 0.3:
                del bad[place:]
        yield bytes(bad)


def check(path: Any, data: bytes, read: Callable[[Any], Any], count: int, seed: int = 0, name: str = "") -> int:
    """Reads damaged copies: each is read, or refused in a line that names the file. Returns how many are refused."""
    refused = 0
    for bad in mutants(data, count, seed):
        path.write_bytes(bad)
        try:
            read(path)
        except ValueError as error:
            refused += 1
            assert (name or path.name) in str(error), error
            assert "\n" not in str(error), error
    path.write_bytes(data)
    return refused
