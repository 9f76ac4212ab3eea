"""Landmark permutations under a horizontal flip, for the layouts of 300W (68 points) and WFLW (98)."""

from __future__ import annotations

import numpy as np


def _partners(count: int, pairs: str) -> np.ndarray:
    """[count] int32, each point's mirror partner; a point outside `pairs` is its own partner."""
    partners = np.arange(count, dtype=np.int32)
    for pair in pairs.split():
        left, right = map(int, pair.split("-"))
        partners[[left, right]] = right, left
    return partners


MIRROR_68 = _partners(
    68,
    "0-16 1-15 2-14 3-13 4-12 5-11 6-10 7-9 17-26 18-25 19-24 20-23 21-22 36-45 37-44 38-43 39-42 41-46 40-47 31-35 "
    "32-34 48-54 49-53 50-52 60-64 61-63 67-65 59-55 58-56",
)
MIRROR_98 = _partners(
    98,
    " ".join(f"{i}-{32 - i}" for i in range(16)) + " 33-46 34-45 35-44 36-43 37-42 38-50 39-49 40-48 41-47 60-72 61-71 "
    "62-70 63-69 64-68 65-75 66-74 67-73 96-97 55-59 56-58 76-82 77-81 78-80 87-83 86-84 88-92 89-91 95-93",
)
MIRRORS = {68: MIRROR_68, 98: MIRROR_98}
"""By the number of landmarks."""
