"""SCRFD's search: how a budget of multiply-adds is distributed over stages, neck and head.

Guo, Deng, Lattas, Zafeiriou, ICLR 2022, arXiv:2105.04714, Sec. 4.2, with the ranges of the authors' scripts
(`search_tools/generate_configs_2.5g.py`). The first step draws trunks at random and keeps neck and head; the second
scales the best trunk, with the shares of its stages, and draws neck and head. Every candidate costs the budget within
2 %. All draws are arrays over N candidates, since few of them fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from facejax.detection.scrfd import Net, ResidualTrunk

PARTS = ("stem", "c2", "c3", "c4", "c5", "neck", "head")


@dataclasses.dataclass(frozen=True)
class Candidates:
    """N architectures.

    Attributes:
      bottleneck: [N] bool, blocks of the trunk.
      widths, depths: [N, 4] int, inner channels and blocks of stages 2 to 5; the stem has the width of stage 2.
      neck, head, head_depth: [N] int, channels of neck and head, convolutions of the head.
    """

    bottleneck: np.ndarray
    widths: np.ndarray
    depths: np.ndarray
    neck: np.ndarray
    head: np.ndarray
    head_depth: np.ndarray

    def __len__(self) -> int:
        return len(self.neck)

    def take(self, rows: np.ndarray) -> Candidates:
        """The candidates at `rows`."""
        return Candidates(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def net(self, row: int, *, pool: bool = True, **options: object) -> Net:
        """The network of one candidate; `options` are fields of `Net`. Group norms have the most groups of 4 to 64."""
        widths, depths = (tuple(int(x) for x in values[row]) for values in (self.widths, self.depths))
        trunk = partial(ResidualTrunk, widths[0], widths, depths, bool(self.bottleneck[row]), pool)
        neck, head, head_depth = (int(values[row]) for values in (self.neck, self.head, self.head_depth))
        groups = max(g for g in (4, 8, 16, 32, 64) if head % g == 0)
        return Net(trunk, neck, head, head_depth, **{"norm_groups": groups, **options})


@dataclasses.dataclass(frozen=True)
class Space:
    """Ranges of the draws, both ends included.

    Attributes:
      base: width of stage 2.
      depth: blocks of each stage.
      ratio: width of a stage over that of the stage before.
      scale: change of depths and widths in the second step.
      neck, head, head_depth: of the second step.
      divisor: of all widths.
      tolerance: largest deviation from the budget, relative.
      share_tolerance: largest deviation of a stage's cost over the stem's in the second step, relative.
    """

    base: tuple[int, int] = (8, 64)
    depth: tuple[int, int] = (1, 10)
    ratio: tuple[float, float] = (1.0, 4.0)
    scale: tuple[float, float] = (0.5, 3.0)
    neck: tuple[int, int] = (8, 128)
    head: tuple[int, int] = (8, 256)
    head_depth: tuple[int, int] = (1, 4)
    divisor: int = 8
    tolerance: float = 0.02
    share_tolerance: float = 0.1


def costs(
    candidates: Candidates, size: tuple[int, int], *, points: int = 0, pool: bool = True, anchors: int = 2
) -> np.ndarray:
    """Multiply-adds [N, 7] of the convolutions of `PARTS` for an image of `size` (height, width), multiples of 32."""
    area, c = size[0] * size[1], candidates
    widths = c.widths.astype(np.int64)
    outputs = widths * np.where(c.bottleneck, 4, 1)[:, None]
    stem, half = widths[:, 0], widths[:, 0] // 2
    parts = [area // 4 * 9 * (3 * half + half * half + half * stem)]
    pixels, before = area // (16 if pool else 4), stem
    levels = []
    for stage in range(4):
        after = pixels // (4 if stage else 1)
        width, out, more = widths[:, stage], outputs[:, stage], c.depths[:, stage] - 1
        shortcut = np.where((before != out) | (stage > 0), before * out, 0)
        first = np.where(
            c.bottleneck,
            pixels * before * width + after * (9 * width * width + width * out + shortcut),
            after * (9 * before * width + 9 * width * width + shortcut),
        )
        other = np.where(c.bottleneck, 2 * width * out + 9 * width * width, 18 * width * width)
        parts.append(first + more * after * other)
        levels.append(after)
        pixels, before = after, out
    neck, head, deeper = c.neck.astype(np.int64), c.head.astype(np.int64), c.head_depth - 1
    tops = levels[1:]
    lateral = sum(pixels * outputs[:, stage] * neck for stage, pixels in enumerate(tops, 1))
    parts.append(lateral + 9 * neck * neck * (sum(tops) + 2 * sum(tops[1:])))
    parts.append(sum(tops) * 9 * (neck * head + deeper * head * head + head * anchors * (5 + 2 * points)))
    return np.stack(parts, 1)


Cost = Callable[[Candidates], np.ndarray]


def draw_trunks(
    rng: np.random.Generator, count: int, budget: float, cost: Cost, template: Candidates, space: Space
) -> Candidates:
    """The first step: `count` random trunks with neck and head of `template` [1] that cost `budget` in sum.

    Raises:
      ValueError: fewer fit among many draws.
    """

    def draw(n: int) -> Candidates:
        return Candidates(*_trunks(rng, n, space), *(np.repeat(x, n) for x in _rest(template)))

    return _fitting(draw, count, budget, cost, space.tolerance)


def draw_whole(
    rng: np.random.Generator, count: int, budget: float, cost: Cost, template: Candidates, space: Space
) -> Candidates:
    """The second step: `count` detectors with the trunk of `template` [1], scaled, and any neck and head.

    One factor scales all widths and one all depths; the stages' costs over the stem's stay near those of the template.

    Raises:
      ValueError: fewer fit among many draws.
    """

    def draw(n: int) -> Candidates:
        wider, deeper = rng.uniform(*space.scale, (2, n, 1))
        widths = _floor(np.rint(template.widths * wider), space.divisor)
        depths = np.maximum(np.rint(template.depths * deeper).astype(int), 1)
        return Candidates(np.repeat(template.bottleneck, n), widths, depths, *_heads(rng, n, space))

    shares = over_stem(cost(template))
    return _fitting(
        draw,
        count,
        budget,
        cost,
        space.tolerance,
        lambda costs: (np.abs(shares / over_stem(costs) - 1) <= space.share_tolerance).all(1),
    )


def draw_any(rng: np.random.Generator, count: int, budget: float, cost: Cost, space: Space) -> Candidates:
    """The baseline: `count` detectors whose trunk, neck and head are drawn at once.

    Raises:
      ValueError: fewer fit among many draws.
    """
    return _fitting(
        lambda n: Candidates(*_trunks(rng, n, space), *_heads(rng, n, space)), count, budget, cost, space.tolerance
    )


def _trunks(rng: np.random.Generator, n: int, space: Space) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kinds of blocks, widths and depths."""
    widths = [rng.integers(space.base[0] // space.divisor, space.base[1] // space.divisor + 1, n) * space.divisor]
    for ratio in rng.uniform(*space.ratio, (3, n)):
        widths.append(_floor(widths[-1] * ratio, space.divisor))
    depths = rng.integers(space.depth[0], space.depth[1] + 1, (n, 4))
    return rng.random(n) < 0.5, np.stack(widths, 1), depths


def _heads(rng: np.random.Generator, n: int, space: Space) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Widths of neck and head, and depths of the head."""
    neck, head = (
        rng.integers(low // space.divisor, high // space.divisor + 1, n) * space.divisor
        for low, high in (space.neck, space.head)
    )
    return neck, head, rng.integers(space.head_depth[0], space.head_depth[1] + 1, n)


def _rest(candidates: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return candidates.neck, candidates.head, candidates.head_depth


def over_stem(costs: np.ndarray) -> np.ndarray:
    """[N, 7] costs -> [N, 4] those of stages 2 to 5 over that of the stem."""
    return costs[:, 1:5] / costs[:, :1]


def _floor(widths: np.ndarray, divisor: int) -> np.ndarray:
    return np.maximum((widths // divisor).astype(int) * divisor, divisor)


def _fitting(
    draw: Callable[[int], Candidates],
    count: int,
    budget: float,
    cost: Cost,
    tolerance: float,
    also: Callable[[np.ndarray], np.ndarray] | None = None,
    block: int = 20_000,
    blocks: int = 500,
) -> Candidates:
    """The first `count` draws that cost the budget and fulfil `also`."""
    found: list[Candidates] = []
    for _ in range(blocks):
        drawn = draw(block)
        parts = cost(drawn)
        fits = np.abs(parts.sum(1) / budget - 1) <= tolerance
        fits = fits if also is None else fits & also(parts)
        found.append(drawn.take(np.flatnonzero(fits)))
        if sum(map(len, found)) >= count:
            break
    merged = Candidates(*(np.concatenate([getattr(f, x.name) for f in found]) for x in dataclasses.fields(Candidates)))
    if len(merged) < count:
        raise ValueError(
            f"search: {len(merged)} of {block * blocks} draws cost {budget:.4g} multiply-adds, not {count}"
        )
    return merged.take(np.arange(count))
