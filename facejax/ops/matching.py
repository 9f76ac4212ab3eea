"""Assignment of ground truth to anchors, and the selection of hard samples."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Matches(NamedTuple):
    """What each anchor is trained on.

    Attributes:
      box: [A] int32, row of the ground truth; meaningful where `positive`.
      positive: [A] bool.
      negative: [A] bool; anchors that are neither are ignored.
    """

    box: jax.Array
    positive: jax.Array
    negative: jax.Array


def match_by_overlap(
    overlaps: jax.Array,
    mask: jax.Array,
    *,
    positive: float,
    negative: float | None = None,
    forced: float | None = None,
) -> Matches:
    """Every anchor takes the box that it overlaps most, if by at least `positive`.

    Args:
      overlaps: [G, A] IoU of boxes and anchors.
      mask: [G] bool, real boxes.
      positive: smallest IoU of a positive anchor.
      negative: anchors below are negative, those between are ignored; None: `positive`.
      forced: a box whose best IoU is at least this makes its best anchor positive, whatever `positive`; of several
        boxes with the same best anchor the last has it. None: no anchor is forced.
    """
    overlaps = jnp.where(mask[:, None], overlaps, -1.0)
    best, box = overlaps.max(0), overlaps.argmax(0).astype(jnp.int32)
    positives = best >= positive
    negatives = best < (positive if negative is None else negative)
    if forced is not None:
        forces = mask & (overlaps.max(1) >= forced)
        chosen = forces[:, None] & (jnp.arange(overlaps.shape[1]) == overlaps.argmax(1)[:, None])
        last = len(mask) - 1 - jnp.argmax(chosen[::-1], 0)
        taken = chosen.any(0)
        box = jnp.where(taken, last, box).astype(jnp.int32)
        positives, negatives = positives | taken, negatives & ~taken
    return Matches(box, positives, negatives)


def hardest(losses: jax.Array, where: jax.Array, count: jax.Array | int) -> jax.Array:
    """Mask [A] of the `count` largest losses [A] among those that `where` [A] marks; equal ones by the lower row."""
    order = jnp.argsort(jnp.where(where, -losses, jnp.inf), stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    return where & (rank < count)
