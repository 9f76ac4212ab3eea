"""Suppression of overlapping detections with fixed-size results: greedy, soft and box voting.

All functions take one image; `jax.vmap` gives the batched form. Boxes are [A, 4] corners, scores [A]. A result has
`count` rows, of which a mask marks the real ones. Scores must be finite where `mask` is true.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from facejax.ops import boxes as box

MATRIX = 2048
"""Number of candidates up to which accelerators suppress by a matrix of all pairs."""
TILE, CHUNK = 64, 128
"""Candidates, and kept boxes, that are compared at once elsewhere."""


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    threshold: float,
    count: int,
    mask: jax.Array | None = None,
    labels: jax.Array | None = None,
    candidates: int | None = None,
    plus_one: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Greedy suppression: keeps the best box and drops all that overlap it with an IoU above `threshold`, repeatedly.

    Args:
      boxes: [A, 4].
      scores: [A]; of equal scores the lower row is first.
      threshold: largest IoU of two kept boxes.
      count: K, rows of the result.
      mask: [A] bool, boxes that take part; all when None.
      labels: [A] int; boxes of different labels never suppress each other. None: one label.
      candidates: only that many boxes of the highest scores take part; all when None.
      plus_one: whether sides are counted in inclusive pixels.

    Returns:
      rows: [K] int32 into `boxes`, by falling score.
      kept: [K] bool.
    """
    rows, alive = _best(jnp.asarray(scores), mask, candidates)
    columns = jnp.moveaxis(jnp.asarray(boxes)[rows], -1, 0)
    if labels is not None:
        columns = jnp.concatenate([columns, jnp.asarray(labels)[rows].astype(columns.dtype)[None]])
    hit = partial(_hit, threshold=threshold, plus_one=plus_one)
    by_matrix = _matrix if len(rows) <= MATRIX else _tiled
    places, kept = lax.platform_dependent(
        cpu=lambda: _tiled(columns, alive, hit, count), default=lambda: by_matrix(columns, alive, hit, count)
    )
    return jnp.where(kept, rows[places], 0), kept


def _hit(a: jax.Array, b: jax.Array, *, threshold: float, plus_one: bool) -> jax.Array:
    """Whether boxes suppress each other: [4 or 5, ...] (sides, and the label if there is one), broadcast -> [...] bool.

    Separate arrays for the sides let the compiler use vectors, which is ten times as fast as `boxes.iou` on rows.
    """
    width, height = (
        jnp.maximum(jnp.minimum(a[i + 2], b[i + 2]) - jnp.maximum(a[i], b[i]) + plus_one, 0) for i in (0, 1)
    )
    shared = width * height
    areas = (jnp.maximum(x[2] - x[0] + plus_one, 0) * jnp.maximum(x[3] - x[1] + plus_one, 0) for x in (a, b))
    found = shared / jnp.maximum(sum(areas) - shared, box.EPSILON) > threshold
    return found & (a[4] == b[4]) if len(a) > 4 else found


def _survivors(hits: jax.Array, alive: jax.Array) -> jax.Array:
    """Boxes [A] that stay: those that no staying box before them hits. The fixed point of that rule is greedy NMS."""
    order = jnp.arange(len(alive))
    earlier = hits & (order[:, None] < order)

    def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        after = alive & ~jnp.any(earlier & state[0][:, None], 0)
        return after, jnp.any(after != state[0])

    return lax.while_loop(lambda state: state[1], body, (alive, jnp.bool_(True)))[0]


def _matrix(columns: jax.Array, alive: jax.Array, hit: Callable, count: int) -> tuple[jax.Array, jax.Array]:
    """The first `count` survivors among sorted boxes, from all pairs: places [count] and whether they are real."""
    kept = _survivors(hit(columns[:, :, None], columns[:, None]), alive)
    places = jnp.flatnonzero(kept, size=min(count, len(kept)), fill_value=0).astype(jnp.int32)
    return jnp.pad(places, (0, count - len(places))), jnp.arange(count) < kept.sum()


def _tiled(columns: jax.Array, alive: jax.Array, hit: Callable, count: int) -> tuple[jax.Array, jax.Array]:
    """As `_matrix`, tile by tile: against the boxes kept so far, then within the tile. Ends after `count` boxes."""
    more = -len(alive) % TILE
    tiles = jnp.pad(columns, ((0, 0), (0, more))).reshape(len(columns), -1, TILE)
    alive = jnp.pad(alive, (0, more)).reshape(-1, TILE)
    room = -(-count // CHUNK) * CHUNK + TILE

    def body(state: tuple) -> tuple:
        i, n, kept_columns, places = state
        tile = tiles[:, i]

        def against(j: jax.Array, dead: jax.Array) -> jax.Array:
            chunk = lax.dynamic_slice_in_dim(kept_columns, j * CHUNK, CHUNK, 1)
            real = (j * CHUNK + jnp.arange(CHUNK))[:, None] < n
            return dead | jnp.any(hit(chunk[:, :, None], tile[:, None]) & real, 0)

        dead = lax.fori_loop(0, (n + CHUNK - 1) // CHUNK, against, jnp.zeros(TILE, bool))
        kept = _survivors(hit(tile[:, :, None], tile[:, None]), alive[i] & ~dead)
        to = jnp.where(kept, n + jnp.cumsum(kept) - 1, room)
        kept_columns = kept_columns.at[:, to].set(tile, mode="drop")
        places = places.at[to].set(i * TILE + jnp.arange(TILE, dtype=jnp.int32), mode="drop")
        return i + 1, jnp.minimum(n + kept.sum(dtype=jnp.int32), count), kept_columns, places

    def unfinished(state: tuple) -> jax.Array:
        left = (state[0] < len(alive)) & (state[1] < count)
        return left & alive[jnp.minimum(state[0], len(alive) - 1), 0]  # candidates are sorted: none after the first gap

    start = jnp.int32(0), jnp.int32(0), jnp.zeros((len(columns), room), columns.dtype), jnp.zeros(room, jnp.int32)
    _, n, _, places = lax.while_loop(unfinished, body, start)
    return places[:count], jnp.arange(count) < n


def soft_nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    count: int,
    method: str = "linear",
    threshold: float = 0.3,
    sigma: float = 0.5,
    lowest: float = 1e-3,
    mask: jax.Array | None = None,
    plus_one: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Soft-NMS: lowers the scores of overlapping boxes (Bodla et al., arXiv:1704.04503).

    Args:
      boxes: [A, 4].
      scores: [A], at least 0.
      count: K.
      method: "linear": times 1 - IoU above `threshold`; "gaussian": times exp(-IoU^2 / sigma) at any overlap.
      threshold: of "linear".
      sigma: of "gaussian".
      lowest: boxes whose score falls below are dropped.
      mask: [A] bool, boxes that take part.
      plus_one: whether sides are counted in inclusive pixels.

    Returns:
      rows: [K] int32 into `boxes`, in the order of their selection.
      scores: [K] lowered scores, 0 for rows that are not real.
      kept: [K] bool.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"soft_nms: method is {method!r}, expected linear or gaussian")
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    left = scores if mask is None else jnp.where(mask, scores, -1.0)

    def body(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        i = jnp.argmax(left)
        overlap = box.iou(boxes[i], boxes, plus_one=plus_one)
        if method == "linear":
            factor = jnp.where(overlap > threshold, 1 - overlap, 1.0)
        else:
            factor = jnp.exp(-(overlap**2) / sigma)
        lowered = jnp.where(left > 0, left * factor, left)
        lowered = jnp.where(lowered < lowest, -1.0, lowered).at[i].set(-1.0)
        return lowered, (i.astype(jnp.int32), left[i])

    _, (rows, found) = lax.scan(body, jnp.where(left < lowest, -1.0, left), length=min(count, len(boxes)))
    rows, found = (jnp.pad(x, (0, count - len(x)), constant_values=fill) for x, fill in ((rows, 0), (found, -1.0)))
    kept = found > 0
    return rows, jnp.where(kept, found, 0), kept


def vote(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    count: int,
    threshold: float = 0.3,
    singles: bool = True,
    mask: jax.Array | None = None,
    plus_one: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Box voting: merges the best box with all that overlap it into their mean, weighted by score, repeatedly.

    Args:
      boxes: [A, 4].
      scores: [A].
      count: K.
      threshold: smallest IoU with the best box of those that join it.
      singles: whether a box without others is kept; DSFD's script drops it.
      mask: [A] bool, boxes that take part.
      plus_one: whether sides are counted in inclusive pixels.

    Returns:
      boxes [K, 4]; scores [K], the highest of each group; and kept [K] bool, in the order of their selection.
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    rows, alive = _best(scores, mask, None)
    sorted_boxes, sorted_scores = boxes[rows], scores[rows]
    place = jnp.zeros((count, 4), boxes.dtype), jnp.zeros(count, scores.dtype)

    def more(state: tuple) -> jax.Array:
        return state[0].any() & (state[3] < count)

    def body(state: tuple) -> tuple:
        alive, found, best, n = state
        i = jnp.argmax(alive)
        group = alive & (box.iou(sorted_boxes[i], sorted_boxes, plus_one=plus_one) >= threshold)
        group = group.at[i].set(True)
        weight = jnp.where(group, sorted_scores, 0)
        mean = weight @ sorted_boxes / jnp.maximum(weight.sum(), box.EPSILON)
        real = (group.sum() > 1) | singles
        found = jnp.where(real, found.at[n].set(mean), found)
        best = jnp.where(real, best.at[n].set(sorted_scores[i]), best)
        return alive & ~group, found, best, n + real

    _, found, best, n = lax.while_loop(more, body, (alive, *place, jnp.int32(0)))
    return found, best, jnp.arange(count) < n


def _best(scores: jax.Array, mask: jax.Array | None, candidates: int | None) -> tuple[jax.Array, jax.Array]:
    """Rows of the `candidates` highest scores, by falling score, and whether they take part."""
    ranked = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
    found, rows = lax.top_k(ranked, min(candidates or len(scores), len(scores)))
    return rows.astype(jnp.int32), found > -jnp.inf
