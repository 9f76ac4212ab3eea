"""What StyleGAN's papers measure of the latent space: path lengths, separability, mixed styles, truncation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from facejax.data import normalize, pipeline
from facejax.data.generation import Decoded, GenerationImages
from facejax.evaluate import generation
from facejax.evaluate.generation import Extractor
from facejax.metrics import generative
from facejax.train import Report, image_grid, map_batches

SHEET, COARSE = 6, 4
"""Rows and columns of a sheet of mixed styles, and the layers, up to 8 pixels, that are coarse there."""
SWEEP = (1.0, 0.7, 0.5, 0.0, -0.5)
"""Values of psi shown."""
FACTORS: dict[str, Callable[[dict[str, Any]], float]] = {
    "yaw": lambda example: example["pose"][1],
    "light": lambda example: example["light"][0],
    "skin": lambda example: example["albedo"][0],
}
"""Factors of the face world that a linear function of an extractor's features can read off an image of 32 pixels."""


@dataclasses.dataclass(frozen=True)
class StyleNet:
    """A trained generator in two parts.

    Attributes:
      map: (variables, latents [N, Z]) -> w [N, W].
      synthesize: (variables, styles [N, L, W]) -> images [N, S, S, 3] in -1..1, with fixed noise.
      truncate: (styles [N, L, W], average [W], psi) -> styles.
      variables: first argument of the first two.
      average: [W], of w.
      layers: L.
      latent_size: Z.
      batch_size: images a call.
    """

    map: Callable[[Any, jax.Array], jax.Array]
    synthesize: Callable[[Any, jax.Array], jax.Array]
    truncate: Callable[[jax.Array, jax.Array, Any], jax.Array]
    variables: Any
    average: np.ndarray
    layers: int
    latent_size: int
    batch_size: int

    def styles(self, seeds: Sequence[int]) -> np.ndarray:
        """Styles [N, L, W] of the latents of seeds."""
        return np.repeat(self.w(generation.latents(seeds, self.latent_size))[:, None], self.layers, 1)

    def w(self, latents: np.ndarray) -> np.ndarray:
        """[N, Z] -> [N, W]."""
        return map_batches(self.map, self.variables, latents, self.batch_size)

    def images(self, styles: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3] of styles [N, L, W]."""
        return map_batches(self._draw, self.variables, styles, self.batch_size)

    @functools.cached_property
    def _draw(self) -> Callable[[Any, jax.Array], jax.Array]:
        """One function, so that it is compiled once."""
        return lambda variables, styles: generation.to_uint8(self.synthesize(variables, styles))


@dataclasses.dataclass(frozen=True)
class StyleProtocol:
    """The `styles` section of a configuration.

    Attributes:
      pairs: paths of the perceptual path length; published 100,000 (StyleGAN2: 50,000); 0 leaves it out.
      space: "w" or "z", where the paths of the one number "ppl" lie; all are reported.
      epsilon: step along a path; small networks in float32 need more than the published 1e-4.
      crop: compare the middle of the face only, as published.
      images: generated images of the table of truncation, pairs of that of mixed styles; 0 leaves both out.
      separable: generated images of separability, of which half, the surest, are used; published 200,000; 0 leaves it
        out. With few images for each latent number any halves can be separated.

    Mixed styles and separability need the face world, whose factors are known.
    """

    pairs: int = 1000
    space: str = "w"
    epsilon: float = 1e-2
    crop: bool = False
    images: int = 500
    separable: int = 4000

    def __post_init__(self) -> None:
        if self.space not in ("w", "z"):
            raise ValueError(f"styles.space is {self.space!r}: expected w or z")

    def assess(self, net: StyleNet, data: GenerationImages, extractor: Extractor) -> Report:
        """Measures a generator.

        Args:
          net: the generator.
          data: its training data.
          extractor: of the features that are compared.

        Returns:
          "ppl" and "ppl_SPACE_PLACES", path lengths in Z and W, at full paths and at their ends; "separability_SPACE";
          tables of mixed styles and truncation, and their pictures.
        """
        report, features = pictures(net), Features(extractor, net.batch_size)
        if self.pairs:
            report |= self.path_lengths(net, extractor)
        if self.images:
            report |= self.truncation(net, features, data)
        if data.source == "face_world" and (self.images or self.separable):
            readers = Readers.fit(data, features)
            report |= self.mixing(net, readers) if self.images else Report({})
            report |= self.separability(net, readers) if self.separable else Report({})
        return report

    def path_lengths(self, net: StyleNet, extractor: Extractor) -> Report:
        """Perceptual path lengths."""
        ends = [generation.latents(range(i, 2 * self.pairs, 2), net.latent_size) for i in range(2)]
        settings = {"epsilon": self.epsilon, "crop": self.crop, "batch_size": net.batch_size}

        def from_w(variables: Any, w: jax.Array) -> jax.Array:
            return net.synthesize(variables, jnp.repeat(w[:, None], net.layers, 1))

        def from_z(variables: Any, latents: jax.Array) -> jax.Array:
            return from_w(variables, net.map(variables, latents))

        spaces = {"z": (from_z, tuple(ends), generative.slerp), "w": (from_w, tuple(map(net.w, ends)), lerp)}
        found = {}
        for space, (draw, both, between) in spaces.items():
            for places, full in (("full", True), ("end", False)):
                found[f"ppl_{space}_{places}"] = generation.perceptual_path_length(
                    draw, net.variables, extractor, both, between=between, full=full, **settings
                )
        about = f"perceptual path length of {self.pairs} paths, {extractor.name} features in place of LPIPS, steps of "
        found = {"ppl": found[f"ppl_{self.space}_full"], **found}
        return Report(found, notes={"ppl": about + f"{self.epsilon}; not comparable with published ones"})

    def truncation(self, net: StyleNet, features: Features, data: GenerationImages) -> Report:
        """The table of truncation: what better images cost in variety."""
        real = features.of(data.real(self.images)[0])
        styles, rows = net.styles(range(self.images)), []
        for psi in (psi for psi in SWEEP if psi > 0):
            images = net.images(np.asarray(net.truncate(styles, net.average, psi)))
            rows.append({"psi": psi, **generative.precision_recall(real, features.of(images))._asdict()})
        return Report({}, tables={f"Truncation, {self.images} images": rows})

    def mixing(self, net: StyleNet, readers: Readers) -> Report:
        """The table of mixed styles: the share of a factor's change that layers of one resolution bring alone."""
        styles = net.styles(range(2 * self.images))
        first, second = styles[::2], styles[1::2]
        begin, end = (readers.values(net.images(part)) for part in (first, second))
        rows = []
        for layer in range(0, net.layers, 2):
            swapped = first.copy()
            swapped[:, layer : layer + 2] = second[:, layer : layer + 2]
            found = readers.values(net.images(swapped))
            moved = {
                name: mean_change(begin[name], x) / mean_change(begin[name], end[name]) for name, x in found.items()
            }
            rows.append({"styles of another image at": f"{4 << layer // 2} pixels", **moved})
        return Report({}, tables={"Mixed styles: mean change, relative to that between the images": rows})

    def separability(self, net: StyleNet, readers: Readers) -> Report:
        """Separability of the factors' halves in Z and W."""
        seeds = range(self.separable)
        styles = net.styles(seeds)
        found = readers.probabilities(net.images(styles))
        spaces = {"z": generation.latents(seeds, net.latent_size), "w": styles[:, 0]}
        metrics = {f"separability_{name}": generative.separability(x, found) for name, x in spaces.items()}
        note = f"two to the entropy of {', '.join(FACTORS)}, halved, given the side of a linear boundary; 1 is best"
        rows = [{"factor": name, **quality} for name, quality in readers.quality.items()]
        return Report(metrics, tables={"Readers of factors, held-out real images": rows}, notes={"separability": note})


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of stored images.

    Attributes:
      extractor: of the features.
      batch_size: images a call.
    """

    extractor: Extractor
    batch_size: int

    def of(self, images: Any) -> np.ndarray:
        """[N, D] of images uint8 [N, S, S, 3]."""
        return map_batches(self._measure, self.extractor.variables, images, self.batch_size, load=np.asarray)

    @functools.cached_property
    def _measure(self) -> Callable[[Any, jax.Array], jax.Array]:
        """One function, so that it is compiled once."""
        return lambda variables, images: self.extractor.apply(variables, normalize.symmetric(images))


@dataclasses.dataclass(frozen=True)
class Readers:
    """Linear functions of an extractor's features that read factors of the face world off an image.

    Attributes:
      features: of the images.
      regressors: name of a factor -> its value.
      classifiers: name of a factor -> the probability that it is above its median.
      quality: name of a factor -> accuracy and R2 on real images that were not used.
    """

    features: Features
    regressors: dict[str, Any]
    classifiers: dict[str, Any]
    quality: dict[str, dict[str, float]]

    @classmethod
    def fit(cls, data: GenerationImages, features: Features) -> Readers:
        """Fits them on two thirds of the training images."""
        source = data.training()
        rows = np.arange(len(source))
        seen = features.of(Decoded(source, rows, data.image_size))
        examples, train = pipeline.fetch(source, rows), 2 * len(rows) // 3
        regressors, classifiers, quality = {}, {}, {}
        for name, value in FACTORS.items():
            values = np.array([value(example) for example in examples], np.float64)
            above = values > np.median(values)
            regressors[name] = make_pipeline(StandardScaler(), Ridge()).fit(seen[:train], values[:train])
            both = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
            classifiers[name] = both.fit(seen[:train], above[:train])
            quality[name] = {
                "accuracy": classifiers[name].score(seen[train:], above[train:]),
                "R2": regressors[name].score(seen[train:], values[train:]),
            }
        return cls(features, regressors, classifiers, quality)

    def values(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Factors [N] of images uint8 [N, S, S, 3]."""
        seen = self.features.of(images)
        return {name: regressor.predict(seen) for name, regressor in self.regressors.items()}

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """[N, factors] of images uint8 [N, S, S, 3]."""
        seen = self.features.of(images)
        return np.stack([each.predict_proba(seen)[:, 1] for each in self.classifiers.values()], 1)


def pictures(net: StyleNet) -> Report:
    """Sheets of mixed styles and of truncation."""
    styles = net.styles(range(2 * SHEET))
    originals = net.images(styles)
    columns, rows = originals[:SHEET], originals[SHEET:]
    first, second = styles[SHEET:], styles[:SHEET]
    sheets, blank = {}, np.full_like(columns[:1], 255)
    coarse = np.arange(net.layers)[:, None] < COARSE
    for name, taken in (("up to 8 pixels", coarse), ("above 8 pixels", ~coarse)):
        mixes = np.where(taken, second[None], first[:, None]).reshape(-1, *styles.shape[1:])
        cells = net.images(mixes).reshape(SHEET, SHEET, *columns.shape[1:])
        table = np.concatenate([np.concatenate([blank, columns])[None], np.concatenate([rows[:, None], cells], 1)])
        title = f"Mixed styles: those of layers {name} from the top row, the others from the first column"
        sheets[title] = image_grid(table.reshape(-1, *columns.shape[1:]), SHEET + 1)
    swept = np.stack([np.asarray(net.truncate(second, net.average, psi)) for psi in SWEEP], 1)
    cells = net.images(swept.reshape(-1, *styles.shape[1:]))
    sheets[f"Truncation, psi {', '.join(map(str, SWEEP))} from left to right"] = image_grid(cells, len(SWEEP))
    return Report({}, images=sheets)


def mean_change(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference."""
    return float(np.abs(second - first).mean())


def lerp(first: np.ndarray, second: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points between vectors [N, D], `first` at t = 0 [N], in float64."""
    return first + t[:, None] * (second.astype(np.float64) - first)
