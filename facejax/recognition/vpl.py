"""VPL: variational prototype learning for deep face recognition.

Deng, Guo, Yang, Lattas, Zafeiriou. CVPR 2021, pages 11906-11915.
A memory keeps the latest feature of every class. The prototype in the margin softmax is a mixture of the class centre
and this feature, which adds comparisons between samples at the cost of a softmax. Features drift slowly, so a stored
feature stays valid for some steps; older ones are not used.

Differs from the authors' code: if a class occurs twice in a batch, its last feature is stored (in theirs the order is
undefined); a class without a stored feature uses its centre (theirs would mix in a random vector if `start` were below
`lifetime`, which is not the case in any published setting); cosines are clipped before arccos.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from facejax.ops import vectors
from facejax.ops.scatter import last_of_equal


@struct.dataclass
class Memory:
    """The latest feature of every class, possibly only for the classes of one device.

    Attributes:
      features: [C, D] float32 of unit length; a random direction if nothing is stored.
      written: [C] int32, step that stored the feature, from 1; 0 if nothing is stored.
    """

    features: jax.Array
    written: jax.Array

    @classmethod
    def create(cls, rng: jax.Array, classes: int, width: int) -> Memory:
        """An empty memory."""
        return cls(vectors.unit(jax.random.normal(rng, (classes, width))), jnp.zeros(classes, jnp.int32))


def injection_rates(
    memory: Memory, step: jax.Array | int, *, rate: float = 0.15, start: int = 8000, lifetime: int = 200
) -> jax.Array:
    """Mixing weight of each class: `rate` if its stored feature is valid, else 0.

    Args:
      memory: after the previous step.
      step: number of this step, from 1.
      rate: lambda, 0..1.
      start: last step without injection.
      lifetime: Delta t, maximum age of a valid feature, steps.

    Returns:
      [C] float32.
    """
    if not 0 <= rate <= 1 or start < 0 or lifetime < 0:
        raise ValueError(
            f"injection_rates: rate {rate}, start {start} and lifetime {lifetime}, expected a rate in 0..1 and two "
            "numbers of steps, not below 0"
        )
    fresh = (memory.written > 0) & (step - memory.written <= lifetime)
    return jnp.where(fresh & (step > start), jnp.float32(rate), 0.0)


def inject(centres: jax.Array, memory: Memory, rates: jax.Array) -> jax.Array:
    """Prototypes (1 - lambda) w / |w| + lambda M, normalised to unit length; no gradient in the memory.

    Args:
      centres: [C, D] class centres w, of any norm.
      memory: of the same classes.
      rates: [C] lambda of each class, from `injection_rates`.

    Returns:
      [C, D], at least float32; use them as the centres of a margin softmax.
    """
    if centres.shape != memory.features.shape or rates.shape != centres.shape[:1]:
        raise ValueError(
            f"inject: centres {centres.shape}, memory {memory.features.shape} and rates {rates.shape}, "
            "expected [C, D], [C, D] and [C]"
        )
    rates = rates[:, None]
    return vectors.unit((1 - rates) * vectors.unit(centres) + rates * lax.stop_gradient(memory.features))


def remember(memory: Memory, labels: jax.Array, features: jax.Array, step: jax.Array | int) -> Memory:
    """Stores the features of a batch, normalised to unit length, in the rows of their classes.

    Args:
      memory: of C classes.
      labels: [N] int; those outside 0..C-1 (classes of another device) are ignored. Of equal labels the last one is
        stored, so all devices agree if the batch has the same order on each.
      features: [N, D], of any norm; rows that are not finite are ignored. Call this after the loss has used the memory.
      step: number of this step, from 1.
    """
    classes, width = memory.features.shape
    if labels.ndim != 1 or features.shape != (labels.shape[0], width):
        raise ValueError(
            f"remember: labels {labels.shape} and features {features.shape}, expected [N] and [N, {width}]"
        )
    place = last_of_equal(jnp.where(jnp.isfinite(features).all(1), labels, -1), classes)
    rows = vectors.unit(lax.stop_gradient(features))
    return Memory(
        memory.features.at[place].set(rows, mode="drop"),
        memory.written.at[place].set(jnp.asarray(step, jnp.int32), mode="drop"),
    )
