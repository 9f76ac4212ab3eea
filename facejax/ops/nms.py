"""Suppression of overlapping detections with fixed-size results: greedy, soft and box voting.

All functions take one image; `jax.vmap` gives the batched form. Boxes are [A, 4] corners, scores [A]. A result has
`count` rows, of which a mask marks the real ones. Scores must be finite where `mask` is true.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from facejax.ops import boxes as box

MATRIX = 2048  # candidates up to which accelerators suppress by a matrix of all pairs


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
    sorted_boxes = jnp.asarray(boxes)[rows]
    sorted_labels = None if labels is None else jnp.asarray(labels)[rows]

    def overlaps(i: jax.Array) -> jax.Array:
        """Whether box i suppresses each of the candidates."""
        hit = box.iou(sorted_boxes[i], sorted_boxes, plus_one=plus_one) > threshold
        return hit if labels is None else hit & (sorted_labels[i] == sorted_labels)

    def sequential() -> jax.Array:
        def body(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            alive, kept, n = state
            i = jnp.argmax(alive)
            return (alive & ~overlaps(i)).at[i].set(False), kept.at[i].set(True), n + 1

        def more(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            return state[0].any() & (state[2] < count)

        return lax.while_loop(more, body, (alive, jnp.zeros_like(alive), jnp.int32(0)))[1]

    def matrix() -> jax.Array:
        """Fixed point of: a box stays if no kept box before it suppresses it."""
        order = jnp.arange(len(rows))
        hits = jax.vmap(overlaps)(order) & (order[:, None] < order)

        def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            kept = state[0]
            after = alive & ~jnp.any(hits & kept[:, None], 0)
            return after, jnp.any(after != kept)

        return lax.while_loop(lambda state: state[1], body, (alive, jnp.bool_(True)))[0]

    by_matrix = matrix if len(rows) <= MATRIX else sequential
    kept = lax.platform_dependent(cpu=sequential, default=by_matrix)
    return _compact(rows, kept, count)


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


def _compact(rows: jax.Array, kept: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The first `count` kept rows."""
    places = jnp.flatnonzero(kept, size=min(count, len(rows)), fill_value=0)
    places = jnp.pad(places, (0, count - len(places)))
    real = jnp.arange(count) < kept.sum()
    return jnp.where(real, rows[places], 0), real
