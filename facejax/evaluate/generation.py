"""Generators evaluated: distances of generated to real images, sheets of samples, paths through the latent space."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import facejax
from facejax.data import normalize
from facejax.data.generation import GenerationImages
from facejax.interop import torchvision
from facejax.metrics import generative
from facejax.metrics.generative import Moments
from facejax.ops import pooling, scaled_conv
from facejax.train import Report, image_grid, map_batches

Draw = Callable[[Any, jax.Array], jax.Array]
"""(variables, latents [N, Z]) -> images [N, S, S, 3] in -1..1."""

WIDTHS, RANDOM_FEATURES = (16, 32, 64, 128), 128
"""Channels of the layers of `random_cnn`, each of stride two, and the number of its features."""
SHOWN, CHUNK, CHUNK_BYTES = 64, 2000, 1 << 28
"""Images of a sheet; images, and their bytes, that are in memory at once."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Features of images, on which distances between sets of images are measured.

    Attributes:
      name: in the names of the measures, `frechet_NAME@N`.
      apply: (variables, images [N, S, S, 3] in -1..1) -> [N, D].
      variables: of the network.
    """

    name: str
    apply: Callable[[Any, jax.Array], jax.Array]
    variables: Any


@dataclasses.dataclass(frozen=True)
class GenerationProtocol:
    """The `eval` section of a generator's experiment.

    Attributes:
      images: N, generated and real images of the Frechet distance; the published number is 50,000.
      batch_size: images a call.
      inception: file of torchvision's Inception V3, whose features are then used; empty: a small convolutional network
        with fixed random weights. Neither gives FID, whose network has other weights.
      swd_images: of PG-GAN's sliced Wasserstein distance, at most `images`; published 16,384; 0 leaves it out.
    """

    images: int = 1000
    batch_size: int = 100
    inception: str = ""
    swd_images: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.swd_images <= self.images:
            raise ValueError(f"eval.swd_images is {self.swd_images}: expected 0 to eval.images, {self.images}")

    def extractor(self) -> Extractor:
        """The section's extractor."""
        return inception(self.inception) if self.inception else random_cnn()

    def assess(self, draw: Draw, variables: Any, latent_size: int, data: GenerationImages) -> Report:
        """Compares generated with real images; image i is that of `latents([i])`.

        Returns:
          "frechet_NAME@N", the same between two sets of real images ("real"; where there are as many), "kid_NAME@N",
          precision and recall of the k-NN manifolds, and "swd@N", the mean over the levels.
        """
        extractor, side = self.extractor(), data.image_size

        def generated(variables: Any, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
            images = to_uint8(draw(variables["net"], latents))
            return images, extractor.apply(variables["extractor"], normalize.symmetric(images))

        def measured(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            return images, extractor.apply(variables["extractor"], normalize.symmetric(images))

        both = {"net": variables, "extractor": extractor.variables}
        real, others = data.real(self.images)
        fake = self._collected(generated, both, lambda part: latents(part, latent_size), side, seed=1)
        true = self._collected(measured, both, lambda part: real[part.start : part.stop], side, seed=0)
        at, name = f"@{self.images}", extractor.name
        distance = functools.partial(generative.frechet_distance, Moments.of(true.features))
        metrics = {f"frechet_{name}{at}": distance(Moments.of(fake.features))}
        if others is not None:
            found = map_batches(measured, both, others, self.batch_size, load=lambda part: part)[1]
            metrics[f"frechet_{name}{at}_real"] = distance(Moments.of(found))
        metrics[f"kid_{name}{at}"] = generative.kernel_distance(true.features, fake.features)
        metrics |= generative.precision_recall(true.features, fake.features)._asdict()
        if self.swd_images:
            levels = generative.sliced_wasserstein(true.patches, fake.patches)
            metrics[f"swd@{self.swd_images}"] = float(np.mean(list(levels.values())))
        return Report(
            metrics,
            images={
                f"Generated images, seeds 0 to {len(fake.shown) - 1}": image_grid(fake.shown, 16),
                "Real images": image_grid(true.shown, 16),
            },
            arrays={"generated": fake.shown},
            notes={
                f"frechet_{name}{at}": f"Frechet distance of {name} features of {self.images} generated and as many "
                "real images; '_real': between two sets of real images. No FID, and not comparable with one"
            },
        )

    def _collected(
        self, apply: Callable[..., Any], variables: Any, load: Callable[[range], np.ndarray], side: int, seed: int
    ) -> _Collected:
        """The images 0 to N - 1 of `load`, in parts of limited size."""
        patches = generative.Patches(side, seed=seed) if self.swd_images else None
        features, shown, size = [], [], max(1, min(CHUNK, CHUNK_BYTES // (3 * side**2)))
        for start in range(0, self.images, size):
            part = range(start, min(start + size, self.images))
            images, found = map_batches(apply, variables, load(part), self.batch_size)
            features.append(found)
            shown.append(images[: max(0, SHOWN - start)])
            if start < self.swd_images:
                patches.add(images[: self.swd_images - start])
        return _Collected(np.concatenate(features), np.concatenate(shown), patches)


class _Collected(NamedTuple):
    """Features of all images, the first images themselves, and patches."""

    features: np.ndarray
    shown: np.ndarray
    patches: generative.Patches | None


def random_cnn() -> Extractor:
    """Four convolutions with fixed random weights, which NumPy draws, so that they are the same everywhere.

    Features are a random projection of all maps, averaged over 2 x 2 fields: colours, textures and their rough places.
    """
    rng, inputs, variables = np.random.default_rng(0), 3, []
    for width in WIDTHS:
        kernel = rng.normal(size=(3, 3, inputs, width)) * np.sqrt(2 / (9 * inputs))
        variables.append(kernel.astype(np.float32))
        inputs = width
    size = 4 * sum(WIDTHS)
    variables.append((rng.normal(size=(size, RANDOM_FEATURES)) / np.sqrt(size)).astype(np.float32))

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        x, fields = images, []
        for kernel in variables[:-1]:
            x = jax.nn.leaky_relu(scaled_conv.conv(x, kernel), 0.2)[:, ::2, ::2]
            fields.append(pooling.adaptive_avg_pool(x, (2, 2)).reshape(len(x), -1))
        return jnp.concatenate(fields, 1) @ variables[-1]

    return Extractor("random_cnn", apply, variables)


def inception(path: str) -> Extractor:
    """The last pool of torchvision's Inception V3, of images resized to 299 pixels.

    Args:
      path: torchvision's state dict, `inception_v3_google-*.pth`.
    """
    name = "inception_v3_torchvision"
    net = facejax.create_model(name)
    variables = torchvision.load(path, facejax.models.variable_shapes(name))

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        resized = pooling.resize_bilinear(images, (299, 299))
        return net.apply(variables, resized, train=False, features=True)["pooled"]

    return Extractor("inception_torchvision", apply, variables)


def latents(seeds: Iterable[int], size: int) -> np.ndarray:
    """One normal vector for each seed, [N, size] float32; a seed's vector depends on no other seed and no machine."""
    return np.stack([np.random.default_rng(seed).normal(size=size) for seed in seeds]).astype(np.float32)


def to_uint8(images: jax.Array) -> jax.Array:
    """Images in -1..1 to 0..255, rounded; what lies outside is cut."""
    return jnp.clip(jnp.rint((images.astype(jnp.float32) + 1) * 127.5), 0, 255).astype(jnp.uint8)


def enlarged(images: Any, size: int) -> Any:
    """Images [N, S, S, C] at `size` pixels, repeated or averaged; S and `size` are powers of two."""
    if images.shape[1] <= size:
        return pooling.upsample_nearest(images, size // images.shape[1])
    factor = images.shape[1] // size
    return pooling.avg_pool(images, (factor, factor), (factor, factor))


def perceptual_path_length(
    draw: Draw,
    variables: Any,
    extractor: Extractor,
    ends: tuple[np.ndarray, np.ndarray],
    *,
    between: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = generative.slerp,
    epsilon: float = 1e-4,
    full: bool = True,
    crop: bool = False,
    batch_size: int = 100,
    seed: int = 0,
) -> float:
    """Perceptual path length, with squared distances of features of unit length in place of LPIPS.

    Args:
      draw: a generator whose noise, if any, is fixed.
      variables: its first argument.
      extractor: of the features.
      ends: latents [N, Z] where paths begin, and where they end; 100,000 in the paper.
      between: (begin, end, t [N]) -> latents; spherical for z, a straight line for StyleGAN's w.
      epsilon: step along a path; small networks in float32 need more than the published 1e-4.
      full: steps at random places; otherwise at the beginning.
      crop: compare the middle of the face only: rows 3/8 to 7/8, columns 1/4 to 3/4.
      batch_size: pairs a call.
      seed: of the places.
    """
    begin, end = ends
    t = np.random.default_rng(seed).random(len(begin)) * full
    pairs = [between(begin, end, t + step).astype(np.float32) for step in (0, epsilon)]

    def distance(variables: Any, pair: Sequence[jax.Array]) -> jax.Array:
        first, second = (measured(variables, latents) for latents in pair)
        return jnp.sum((first - second) ** 2, -1)

    def measured(variables: Any, latents: jax.Array) -> jax.Array:
        images = draw(variables["net"], latents)
        if crop:
            part = images.shape[1] // 8
            images = images[:, 3 * part : 7 * part, 2 * part : 6 * part]
        features = extractor.apply(variables["extractor"], images)
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    both = {"net": variables, "extractor": extractor.variables}
    return generative.path_length(map_batches(distance, both, pairs, batch_size), epsilon)
