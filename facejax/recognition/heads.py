"""Classification head of the recognition papers: class centres and a softmax with or without margins."""

from __future__ import annotations

import dataclasses

import jax
import optax

from facejax.recognition import arcface, arcnegface


@dataclasses.dataclass(frozen=True)
class Head:
    """The `loss` section of a recognition experiment.

    Attributes:
      kind: "margin" (ArcFace, CosFace, SphereFace and combinations), "arcnegface", or "softmax" (inner products without
        normalisation or margin).
      scale: s, factor of the cosines.
      multiply: m1, factor of the angle (SphereFace).
      angle: m2, radians added to the angle (ArcFace).
      cosine: m3, subtracted from the cosine (CosFace).
      grad_mode: "exact", or "straight_through" as in the released arcface_torch.
      filter_above: above 0, ignores negatives with a larger cosine (noisy labels).
      sharded: whether class centres are sharded over the devices (partial FC).
      sample_rate: fraction of the centres used in a step, 0..1, with `sharded`.
      chunk: above 0, classes per chunk on one device, for very many classes.
    """

    kind: str = "margin"
    scale: float = 16.0
    multiply: float = 1.0
    angle: float = 0.5
    cosine: float = 0.0
    grad_mode: str = "exact"
    filter_above: float = 0.0
    sharded: bool = False
    sample_rate: float = 1.0
    chunk: int = 0

    def rows(self, num_classes: int, devices: int) -> int:
        """Number of class centres to allocate; with `sharded` padded to a multiple of the number of devices."""
        return -(-num_classes // devices) * devices if self.sharded else num_classes

    def loss(
        self,
        features: jax.Array,
        centres: jax.Array,
        labels: jax.Array,
        *,
        num_classes: int,
        rng: jax.Array,
        axis_name: str = "data",
    ) -> jax.Array:
        """Losses of embeddings.

        Args:
          features: [N, D], of any norm.
          centres: [C, D], or the part of this device with `sharded`.
          labels: [N] int, 0..num_classes - 1.
          num_classes: C without padding.
          rng: key for the sampled negatives.
          axis_name: mapped axis over which the centres are sharded.

        Returns:
          [N].

        Raises:
          ValueError: an unknown kind, or options that exclude each other.
        """
        if self.kind == "softmax":
            return optax.softmax_cross_entropy_with_integer_labels(features @ centres.T, labels)
        if self.kind == "arcnegface":
            if self.sharded or self.chunk:
                raise ValueError(
                    "loss.kind 'arcnegface' needs the dense head: set loss.sharded to False, loss.chunk to 0"
                )
            return arcnegface.arcnegface_loss(features, centres, labels, scale=self.scale, angle=self.angle)
        if self.kind != "margin":
            raise ValueError(f"loss.kind is {self.kind!r}: expected 'margin', 'arcnegface' or 'softmax'")
        margins = arcface.Margins(self.multiply, self.angle, self.cosine)
        options = {"scale": self.scale, "margins": margins, "grad_mode": self.grad_mode}
        if self.sharded:
            return arcface.sharded_margin_softmax_loss(
                features,
                centres,
                labels,
                axis_name=axis_name,
                num_classes=num_classes,
                sample_rate=self.sample_rate,
                rng=rng,
                filter_above=self.filter_above,
                **options,
            )
        if self.chunk:
            if self.filter_above:
                raise ValueError("loss.filter_above needs the dense or the sharded head: set loss.chunk to 0")
            return arcface.chunked_margin_softmax_loss(features, centres, labels, chunk=self.chunk, **options)
        return arcface.margin_softmax_loss(features, centres, labels, filter_above=self.filter_above, **options)
