"""Embeddings of identities: simulated on the hypersphere, or read from files.

Simulated sets model long-tailed image counts, noise, hubs, images of low quality that drift towards a common direction,
and several networks.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from facejax.data.readers import learn_to_cluster
from facejax.formats import arrays
from facejax.ops.vectors import unit_rows


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of N images of identities.

    Attributes:
      views: [V, N, D] float32 of length 1: the same images embedded by V recognition networks.
      labels: [N] identities, from 0; None where they are unknown.
      quality: [N], 0 (poor) to 1.
      stored: files of their nearest neighbours, any number of them each.
    """

    views: np.ndarray
    labels: np.ndarray | None
    quality: np.ndarray
    stored: tuple[pathlib.Path, ...] = ()

    @property
    def features(self) -> np.ndarray:
        """[N, D]: the first view."""
        return self.views[0]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The `eval` section of a clustering experiment: the held-out identities to cluster.

    Attributes:
      people: with data.source "hypersphere", number of identities.
      test: with "files", NAME of the held-out identities, in the form of `Source.train`.
    """

    people: int = 100
    test: str = "part1_test"


@dataclasses.dataclass(frozen=True)
class Source:
    """The `data` section of a clustering experiment: labelled training identities, and the source of all identities.

    Attributes:
      source: "hypersphere" (simulated by `hypersphere`), "files" (of `read`) or "arrays" (embeddings.npy and labels.npy
        that a run saved in `path`).
      path: folder of the files or arrays.
      train: with "files", NAME of the labelled identities; one NAME per network, separated by commas.
      labelled: with "hypersphere", number of labelled identities.
      width: features per embedding, where they are not "arrays": see `columns`.
      noise: with "hypersphere", length of an average image's noise; identity vectors have length 1.
      drift: with "hypersphere", shift of the images of lowest quality along a common direction.
      views: with "hypersphere", number of networks.
    """

    source: str = "hypersphere"
    path: str = ""
    train: str = "part0_train"
    labelled: int = 100
    width: int = 64
    noise: float = 0.9
    drift: float = 0.5
    views: int = 1

    def __post_init__(self) -> None:
        if self.source not in ("hypersphere", "files", "arrays"):
            raise ValueError(f"data.source is {self.source!r}: expected hypersphere, files or arrays")

    def columns(self) -> int:
        """Features per embedding: `width`, or as many as the arrays have."""
        return self._features().shape[1] if self.source == "arrays" else self.width

    def known(self, seed: int) -> Embeddings:
        """The labelled identities; with "arrays", a half selected by the seed."""
        if self.source == "arrays":
            return split(self._arrays(), 0.5, seed)[0]
        if self.source == "files":
            return read(self.path, self.train, self.width)
        return self._simulate(self.labelled, seed + 1000)

    def unseen(self, seed: int, held_out: HeldOut, *, unlabelled: bool = False) -> Embeddings:
        """The held-out identities; with "arrays", the other half.

        With "files" and `unlabelled`, the file of their labels may be missing.
        """
        if self.source == "arrays":
            return split(self._arrays(), 0.5, seed)[1]
        if self.source == "files":
            return read(self.path, held_out.test, self.width, unlabelled=unlabelled)
        return self._simulate(held_out.people, seed)

    def _simulate(self, people: int, seed: int) -> Embeddings:
        return hypersphere(people, seed, width=self.width, noise=self.noise, drift=self.drift, views=self.views)

    def _features(self) -> np.ndarray:
        return learn_to_cluster.read_features(pathlib.Path(self.path) / "embeddings.npy")

    def _arrays(self) -> Embeddings:
        folder, features = pathlib.Path(self.path), unit_rows(self._features())
        labels = arrays.load(folder / "labels.npy")
        if labels.shape != (len(features),):
            raise ValueError(f"{folder}: labels of shape {labels.shape} for {len(features)} embeddings: expected [N]")
        return Embeddings(features[None], labels, np.ones(len(labels), np.float32))


def split(people: Embeddings, part: float, seed: int) -> tuple[Embeddings, Embeddings]:
    """A random fraction `part` of the identities, and the rest."""
    names = np.random.default_rng(seed).permutation(np.unique(people.labels))
    first = np.isin(people.labels, names[: round(part * len(names))])
    return tuple(Embeddings(people.views[:, m], people.labels[m], people.quality[m]) for m in (first, ~first))


def read(path: str, names: str, width: int, *, unlabelled: bool = False) -> Embeddings:
    """Reads learn-to-cluster's `path`/features/NAME.bin, and `path`/labels/NAME.meta of the first NAME.

    `path`/knns/NAME/*.npz of the first NAME, if there, are the stored neighbours.

    A NAME with a folder, FOLDER/NETWORK, is CDP's: `path`/FOLDER/features/NETWORK.bin and `path`/FOLDER/meta.txt.

    Args:
      path: folder.
      names: one NAME per network, separated by commas.
      width: features per embedding.
      unlabelled: the file of labels may be missing.

    Raises:
      ValueError: the files differ in the number of rows.
    """
    files, labels = zip(*(_files(pathlib.Path(path), name) for name in names.split(",")), strict=True)
    views = [unit_rows(learn_to_cluster.read_features(file, width)) for file in files]
    for file, view in zip(files, views, strict=True):
        if len(view) != len(views[0]):
            raise ValueError(f"{file}: {len(view)} rows: expected {len(views[0])} as in {files[0]}")
    unknown = unlabelled and not labels[0].exists()
    people = None if unknown else learn_to_cluster.read_labels(labels[0], len(views[0]))
    stored = tuple(sorted((pathlib.Path(path) / "knns" / names.split(",")[0]).glob("*.npz")))
    return Embeddings(np.stack(views), people, np.ones(len(views[0]), np.float32), stored)


def _files(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Files of the features and of the labels."""
    own, _, network = name.rpartition("/")
    if own:
        return folder / own / "features" / f"{network}.bin", folder / own / "meta.txt"
    return folder / "features" / f"{name}.bin", folder / "labels" / f"{name}.meta"


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
    """Simulates identities and their images.

    Args:
      people: number of identities.
      seed: seed of everything except the directions of drift and relatives: these are fixed, so that a network trained
        on some identities applies to others.
      images: smallest and largest number of images per identity; counts are log-uniform, which gives a long tail.
      width: D.
      noise: length of an average image's noise; an identity's vector has length 1.
      spread: standard deviation over images of the logarithm of the noise's length.
      drift: shift of the images of lowest quality along a direction common to all identities, a hub.
      relatives: length of the vector that the identities of a family share; a family has five on average.
      views: number of networks; each adds independent noise, half of the variance.
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
    embedded = []
    for _ in range(views):
        own = rng.normal(size=(len(labels), width))
        blurred = (common + own) / np.sqrt(2 * width)
        embedded.append(unit_rows(centres[labels] + length * blurred + drift * ((1 - quality) ** 2)[:, None] * hub))
    return Embeddings(np.stack(embedded).astype(np.float32), labels, quality.astype(np.float32))


def modes(people: int, angle: float, noise: float, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Identities with two modes: 8 to 20 samples around each of two directions, `angle` degrees apart.

    Args:
      people: number of identities, in random directions.
      angle: degrees.
      noise: length of a sample's noise; the directions have length 1.
      width: D.
      seed: seed of all draws.

    Returns:
      features: [N, D] float32 of length 1.
      labels: [N] identities.
    """
    rng = np.random.default_rng(seed)
    first = unit_rows(rng.normal(size=(people, width)), np.float32)
    across = rng.normal(size=(people, width))
    across = unit_rows(across - np.sum(across * first, 1, keepdims=True) * first, np.float32)
    second = np.cos(np.radians(angle)) * first + np.sin(np.radians(angle)) * across
    centres = np.stack([first, second], 1).reshape(-1, width)
    mode = np.repeat(np.arange(2 * people), rng.integers(8, 21, 2 * people))
    features = centres[mode] + noise * rng.normal(size=(len(mode), width)) / np.sqrt(width)
    return unit_rows(features, np.float32), mode // 2
