"""VPL: variational prototype learning for deep face recognition.

Deng, Guo, Yang, Lattas, Zafeiriou. CVPR 2021, pages 11906-11915.
A class centre is the mean of a class; the last feature seen of it, kept in a memory, is a sample. Every centre is mixed
with its own sample before a margin softmax compares it, so pictures are compared with pictures, too, at the price of a
softmax. Features drift slowly, so a sample may be some steps old; one that is too old is left out.

Differs from the authors' code: the same class twice in a batch writes its last feature (theirs leaves the order open);
a class that was never seen has no sample, whatever the limits (theirs would mix in a random vector if `start` were
below `lifetime`, which no published setting has); cosines are clipped before their arccos is taken.
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
    """The last feature seen of every class. Rows may be those of one device's classes only.

    Attributes:
      features: [C, D] float32 of length 1; a random direction for a class that was never seen.
      written: [C] int32, number of the step that wrote the feature, from 1; 0 for a class that was never seen.
    """

    features: jax.Array
    written: jax.Array

    @classmethod
    def create(cls, rng: jax.Array, classes: int, width: int) -> Memory:
        """Nothing seen yet."""
        return cls(vectors.unit(jax.random.normal(rng, (classes, width))), jnp.zeros(classes, jnp.int32))


def injection_rates(
    memory: Memory, step: jax.Array | int, *, rate: float = 0.15, start: int = 8000, lifetime: int = 200
) -> jax.Array:
    """How much of its sample each class gets: `rate` if that is fresh, 0 if not.

    Args:
      memory: as the steps before this one left it.
      step: this step's number, from 1.
      rate: lambda, 0..1.
      start: the last step without any injection.
      lifetime: Delta t, the age in steps up to which a sample is fresh.

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
    """Prototypes (1 - lambda) w / |w| + lambda M, made length 1; no gradient reaches the memory.

    Args:
      centres: [C, D] class centres w, of any length.
      memory: of the same classes.
      rates: [C] lambda of each class, see `injection_rates`.

    Returns:
      [C, D], at least float32; what a margin softmax takes in place of the centres.
    """
    if centres.shape != memory.features.shape or rates.shape != centres.shape[:1]:
        raise ValueError(
            f"inject: centres {centres.shape}, memory {memory.features.shape} and rates {rates.shape}, "
            "expected [C, D], [C, D] and [C]"
        )
    rates = rates[:, None]
    return vectors.unit((1 - rates) * vectors.unit(centres) + rates * lax.stop_gradient(memory.features))


def remember(memory: Memory, labels: jax.Array, features: jax.Array, step: jax.Array | int) -> Memory:
    """Writes a batch's features, made length 1, over those of their classes.

    Args:
      memory: of C classes.
      labels: [N] int; those outside 0..C-1 are written nowhere: classes of another device. Of equal ones the last
        counts, so that every device that sees the batch in the same order writes the same.
      features: [N, D], of any length, after the loss has used the memory.
      step: this step's number, from 1.
    """
    classes, width = memory.features.shape
    if labels.ndim != 1 or features.shape != (labels.shape[0], width):
        raise ValueError(
            f"remember: labels {labels.shape} and features {features.shape}, expected [N] and [N, {width}]"
        )
    place = last_of_equal(labels, classes)
    rows = vectors.unit(lax.stop_gradient(features))
    return Memory(
        memory.features.at[place].set(rows, mode="drop"),
        memory.written.at[place].set(jnp.asarray(step, jnp.int32), mode="drop"),
    )
