"""Few faces with the parameters of a morphable model, and more of which only noisy 2D landmarks are known."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data import landmark_images, pipeline, sources, streams
from facejax.data.landmark_images import Augmentation, LandmarkImages
from facejax.data.pipeline import Load
from facejax.data.reconstruction import LAYOUT, Faces, Jitter, ReconstructionFaces, cropped_batch


@dataclasses.dataclass(frozen=True)
class AssistedFaces(ReconstructionFaces):
    """The `data` section of an experiment on faces with parameters and faces with 2D landmarks alone.

    Attributes:
      people: of the face world, training identities with parameters; of all others, only landmarks are known.
      noise: deviation of each coordinate of a detected landmark, relative to the side of the crop.
      wild: with kind "crops", the folder of the faces with landmarks alone, in 300W's layout
        (`landmark_images.LandmarkImages.path`).
      rotation: with kind "crops", largest rotation of these in either direction, degrees.
    """

    people: int = 20
    noise: float = 0.02
    wild: str = ""
    rotation: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "crops" and not self.wild:
            raise ValueError("data.wild is empty: kind crops needs the folder of the faces with landmarks alone")

    def others(self) -> Faces:
        """The face world's training pictures of people whose parameters are not used."""
        everyone = dataclasses.replace(self, people=0).load("train")
        rows = ~np.isin(everyone.person, self.load("train").person)
        if not rows.any():
            raise ValueError(f"data.people is {self.people}: expected fewer than all, 1 or more")
        return Faces(*(array[rows] for array in everyone))

    def detected(self, known: Faces, seed: int) -> Faces:
        """Faces whose landmarks have the errors of a detector, the same in every call."""
        sides = (known.roi[:, 2] - known.roi[:, 0])[:, None, None]
        errors = np.random.default_rng([seed, 11]).normal(size=known.landmarks68.shape)
        return known._replace(landmarks68=(known.landmarks68 + self.noise * sides * errors).astype(np.float32))

    def batches(self, batch_size: int, seed: int, load: Load | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches of as many faces with parameters as with landmarks alone; see `shapes`."""
        options = {"threads": self.threads, "workers": self.workers}
        if self.kind == "crops":
            labelled, size = super().batches(batch_size, seed, load), self.image_size
            augment = Augmentation(rotation=self.rotation, scale=self.scale, shift=self.shift, colour=0.0)
            wild = LandmarkImages("300w", str(pathlib.Path(self.wild)), image_size=size, enlarge=2**0.5)
            loader = functools.partial(photographs_batch, landmark_images.loader(size, wild.partners, augment))
            source = wild.source("train")
        else:
            known = sources.Rows(self.detected(self.load("train"), 0)._asdict())
            labelled = pipeline.train_batches(known, load or self.loader(), batch_size, seed=seed, **options)
            source = sources.Rows(self.detected(self.others(), 1)._asdict())
            loader = functools.partial(wild_batch, self.image_size, self.jitter)
        return streams.Zip(labelled, pipeline.train_batches(source, loader, batch_size, seed=seed + 1, **options))

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch: "image", "parameters" and, in the face world, "landmarks68" (detected) of faces with
        parameters; "wild_image", "wild_landmarks68" (detected) and "wild_visible68" of the others.
        """
        image, marks = ((self.image_size, self.image_size, 3), jnp.uint8), ((68, 2), jnp.float32)
        shapes = {
            "image": image,
            "parameters": ((LAYOUT.size,), jnp.float32),
            **({"landmarks68": marks} if self.kind == "face_world" else {}),
            "wild_image": image,
            "wild_landmarks68": marks,
            "wild_visible68": ((68,), jnp.bool_),
        }
        return {name: jax.ShapeDtypeStruct((batch_size, *shape), kind) for name, (shape, kind) in shapes.items()}


def wild_batch(
    size: int, jitter: Jitter, examples: Sequence[Any], rngs: Sequence[np.random.Generator]
) -> dict[str, np.ndarray]:
    """Crops of `Faces` rows without their parameters."""
    found = cropped_batch(size, jitter, examples, rngs)
    visible = np.stack([e["visible68"] for e in examples])
    return {"wild_image": found["image"], "wild_landmarks68": found["landmarks68"], "wild_visible68": visible}


def photographs_batch(
    load: Load, examples: Sequence[Any], rngs: Sequence[np.random.Generator]
) -> dict[str, np.ndarray]:
    """Crops of annotated photographs; `load` is `landmark_images.loader`, whose integers are pixel centres."""
    found = load(examples, rngs)
    marks = np.float32(found["points"] + 0.5)
    return {"wild_image": found["image"], "wild_landmarks68": marks, "wild_visible68": found["visible"]}
