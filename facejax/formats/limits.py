"""What a file may ask for; `FACEJAX_MAX_GIB` (4) and `FACEJAX_MAX_MEGAPIXELS` (200) in the environment raise it."""

from __future__ import annotations

import math
import os

MEMORY, PIXELS = "FACEJAX_MAX_GIB", "FACEJAX_MAX_MEGAPIXELS"
_DEFAULTS = {MEMORY: 4.0, PIXELS: 200.0}


def memory(count: int, what: str) -> int:
    """`count`, the bytes that `what` takes; ValueError if they are more than the limit."""
    limit = _limit(MEMORY)
    if count > limit * 2**30:
        raise ValueError(f"{what}: {count / 2**30:.3g} GiB, expected at most {limit:g} ({MEMORY} sets the limit)")
    return count


def pixels(width: int, height: int) -> None:
    """ValueError if a picture has more pixels than the limit."""
    limit = _limit(PIXELS)
    if width * height > limit * 1e6:
        raise ValueError(f"{width} x {height} pixels: expected at most {limit:g} million ({PIXELS} sets the limit)")


def _limit(name: str) -> float:
    text = os.environ.get(name)
    if text is None:
        return _DEFAULTS[name]
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise ValueError(f"{name}={text!r} in the environment: expected a number above 0")
    return limit
