"""Embeddings of people on the hypersphere: long-tailed counts, noise, hubs, poor images that drift one way, views."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from facejax.data.readers import learn_to_cluster
from facejax.ops.vectors import unit_rows

SETTINGS = {
    "source": "hypersphere",  # or "files" of learn-to-cluster, or "arrays": embeddings.npy and labels.npy of a run
    "path": "",
    "train": "part0_train",
    "test": "part1_test",
    "labelled": 100,
    "people": 100,
    "width": 64,
    "noise": 0.9,
    "drift": 0.5,
    "views": 1,
}


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """N images of people.

    Attributes:
      views: [V, N, D] float32 of length 1: the same images as V recognition nets see them.
      labels: [N] people, from 0.
      quality: [N], 0 (poor) to 1.
    """

    views: np.ndarray
    labels: np.ndarray
    quality: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """[N, D]: the first view."""
        return self.views[0]


def load(data: Any, seed: int) -> tuple[Embeddings, Embeddings]:
    """Labelled people to learn from and other people to cluster, as SETTINGS-like `data` says.

    "files": `path`/features/NAME.bin and `path`/labels/NAME.meta; several nets' names with commas between them.
    "arrays": people are split in halves by the seed.
    """
    if data.source == "hypersphere":
        options = {"width": data.width, "noise": data.noise, "drift": data.drift, "views": data.views}
        return hypersphere(data.labelled, seed + 1000, **options), hypersphere(data.people, seed, **options)
    folder = pathlib.Path(data.path)
    if data.source == "files":
        return _read(folder, data.train.split(",")), _read(folder, data.test.split(","))
    if data.source != "arrays":
        raise ValueError(f"data.source is {data.source!r}: expected hypersphere, files or arrays")
    features = unit_rows(learn_to_cluster.read_features(folder / "embeddings.npy"))
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    if labels.shape != (len(features),):
        raise ValueError(f"{folder}: labels are {labels.shape} for {len(features)} embeddings")
    return split(Embeddings(features[None], labels, np.ones(len(labels), np.float32)), 0.5, seed)


def split(people: Embeddings, part: float, seed: int) -> tuple[Embeddings, Embeddings]:
    """Some of the people, a share `part` of them, and all others."""
    names = np.random.default_rng(seed).permutation(np.unique(people.labels))
    first = np.isin(people.labels, names[: round(part * len(names))])
    return tuple(Embeddings(people.views[:, m], people.labels[m], people.quality[m]) for m in (first, ~first))


def _read(folder: pathlib.Path, names: list[str]) -> Embeddings:
    views = np.stack([unit_rows(learn_to_cluster.read_features(folder / "features" / f"{name}.bin")) for name in names])
    labels = learn_to_cluster.read_labels(folder / "labels" / f"{names[0]}.meta", views.shape[1])
    return Embeddings(views, labels, np.ones(len(labels), np.float32))


def hypersphere(
    people: int,
    seed: int,
    *,
    images: tuple[int, int] = (5, 40),
    width: int = 64,
    noise: float = 0.8,
    spread: float = 0.4,
    drift: float = 0.5,
    relatives: float = 0.3,
    views: int = 1,
) -> Embeddings:
    """Draws people and their images.

    Args:
      people: how many.
      seed: of everything; the directions of drift and of relatives do not depend on it, so that what is learnt on
        some people may serve others.
      images: fewest and most images of a person; counts are log-uniform between them, a long tail.
      width: D.
      noise: length of an average image's noise beside its person's unit vector.
      spread: standard deviation, in logarithms, of that length over images.
      drift: how far the poorest images move along one direction that all people share: a hub.
      relatives: part of a person's vector that it shares with some fifth of the others.
      views: how many nets look; each has noise of its own on half of the variance.
    """
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(12345)
    hub, families = (unit_rows(fixed.normal(size=(count, width))) for count in (1, max(people // 5, 1)))
    centres = unit_rows(rng.normal(size=(people, width)))
    centres = unit_rows(centres + relatives * families[rng.integers(len(families), size=people)])
    low, high = np.log(images[0]), np.log(images[1] + 1)
    counts = np.exp(rng.uniform(low, high, people)).astype(int)
    labels = rng.permutation(np.repeat(np.arange(people), counts))
    deviation = rng.normal(size=len(labels))
    quality = 1 / (1 + np.exp(1.7 * deviation))
    length = noise * np.exp(spread * deviation)[:, None]
    common = rng.normal(size=(len(labels), width))
    seen = []
    for _ in range(views):
        own = rng.normal(size=(len(labels), width))
        blurred = (common + own) / np.sqrt(2 * width)
        seen.append(unit_rows(centres[labels] + length * blurred + drift * ((1 - quality) ** 2)[:, None] * hub))
    return Embeddings(np.stack(seen).astype(np.float32), labels, quality.astype(np.float32))
