"""Landmark permutations under a horizontal flip, by number of points.

Layouts: 19 of AFLW, 29 of COFW, 68 of 300W, 98 of WFLW, 106 of LaPa and JD-landmark. The pairs of 68 and 98 are those
of AdaptiveWingLoss's utils.py; those of 19, 29 and 106 are the `swap` entries of MMPose's
configs/_base_/datasets/{aflw,cofw,lapa}.py.
"""

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
MIRROR_19 = _partners(19, "0-5 1-4 2-3 6-11 7-10 8-9 12-14 15-17")
MIRROR_29 = _partners(29, "0-1 2-3 4-6 5-7 8-9 10-11 12-14 13-15 16-17 18-19 22-23")
MIRROR_106 = _partners(
    106,
    " ".join(f"{i}-{32 - i}" for i in range(16)) + " 33-46 34-45 35-44 36-43 37-42 38-50 39-49 40-48 41-47 55-65 56-64 "
    "57-63 58-62 59-61 66-79 67-78 68-77 69-76 70-75 71-82 72-81 73-80 74-83 84-90 85-89 86-88 91-95 92-94 96-100 "
    "97-99 101-103 104-105",
)
MIRRORS = {len(map_): map_ for map_ in (MIRROR_19, MIRROR_29, MIRROR_68, MIRROR_98, MIRROR_106)}
"""By the number of landmarks."""
