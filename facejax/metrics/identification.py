"""Closed-set identification and the MegaFace challenge: rank of the mate among a million distractors.

MegaFace's probes are images of FaceScrub identities. Every ordered pair of images of one identity is a search: the
first image is the probe, the second its mate, hidden among all distractors. State with every result whether the
refined (noise-removed) lists were used: they change rank 1 by about 17 points. Feature files follow the challenge's
development kit.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from facejax.metrics.verification import BLOCK_ELEMENTS, FalseAccepts, count_at_least
from facejax.ops.vectors import check_finite, unit_rows

NOISY_DISTRACTOR = 100.0
PROBE_JITTER = 1e-3


class MegaFace(NamedTuple):
    """Result of `megaface`.

    Attributes:
      identification: [R] fraction of searches whose mate is among the best `ranks`.
      false_accepts: ROC of genuine pairs against all probe-distractor pairs; `false_accepts.tar(1e-6)` is the
        challenge's verification rate.
    """

    identification: np.ndarray
    false_accepts: FalseAccepts


def megaface(
    probes: ArrayLike, identities: ArrayLike, distractors: np.ndarray, ranks: tuple[int, ...] = (1,)
) -> MegaFace:
    """Identification with distractors and verification, scored by squared Euclidean distance.

    The function does not normalise: plain features should have unit length, refined ones come from `refine_probes` and
    `refine_distractors`. A distractor at the same distance as the mate ranks above it. Distractors are read in blocks,
    so they may be a memory map; memory does not grow with the number of scores.

    Args:
      probes: [P, D].
      identities: [P]; identities with a single probe are ignored.
      distractors: [M, D].
      ranks: [R].

    Raises:
      ValueError: wrong shapes, or no identity has two probes.
    """
    probes, identities = np.asarray(probes), np.asarray(identities)
    if probes.ndim != 2 or identities.shape != probes.shape[:1] or distractors.shape[1:] != probes.shape[1:]:
        raise ValueError(
            f"megaface: probes {probes.shape}, identities {identities.shape}, distractors {distractors.shape}; "
            "expected [P, D], [P], [M, D]"
        )
    if min(ranks) < 1 or max(ranks) > len(distractors):
        raise ValueError(f"ranks {ranks}: expected 1..{len(distractors)}, the number of distractors")
    searcher, mate = np.nonzero((identities[:, None] == identities) & ~np.eye(len(probes), dtype=bool))
    if not len(searcher):
        raise ValueError(f"identities: none of the {len(probes)} occurs twice; expected an identity with two probes")
    lengths = np.sum(np.square(probes), 1)
    scores = -np.sum(np.square(probes[searcher] - probes[mate]), 1)
    genuine = np.sort(scores)
    counts = np.zeros(len(genuine), np.int64)
    best = np.full((len(probes), max(ranks)), -np.inf, scores.dtype)
    step = max(1, BLOCK_ELEMENTS // len(probes))
    for start in range(0, len(distractors), step):
        block = np.asarray(distractors[start : start + step])
        found = 2 * probes @ block.T - lengths[:, None] - np.sum(np.square(block), 1)
        if not np.isfinite(found).all():
            raise ValueError(f"megaface: features of the probes or near distractor {start} are not finite")
        counts += count_at_least(genuine, found)
        best = np.partition(np.concatenate([best, found], 1), -max(ranks), axis=1)[:, -max(ranks) :]
    best = np.sort(best, axis=1)[:, ::-1]
    identification = np.array([np.mean(scores > best[searcher, rank - 1]) for rank in ranks])
    return MegaFace(identification, FalseAccepts(counts[::-1], len(probes) * len(distractors)))


def refine_probes(features: ArrayLike, identities: ArrayLike, noisy: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    """Probe features of the refined list: the sum of an identity's clean features replaces each mislabelled image.

    Args:
      features: [P, D]; identities: [P]; noisy: [P] bool.
      rng: draws the jitter, uniform in +-0.001 on each of the D dimensions, that is added before normalising.

    Returns:
      [P, D + 1] float32, the last dimension 0.

    Raises:
      ValueError: an identity has no clean image, or a feature is not finite.
    """
    check_finite(features)
    features, identities, noisy = np.asarray(features, np.float32), np.asarray(identities), np.asarray(noisy, bool)
    people, index = np.unique(identities, return_inverse=True)
    orphans = np.bincount(index, ~noisy, len(people)) == 0
    if orphans.any():
        raise ValueError(
            f"identity {people[orphans][0]}: all images are marked noisy; expected at least one clean image"
        )
    centers = np.zeros((len(people), features.shape[1]), np.float32)
    np.add.at(centers, index[~noisy], features[~noisy])
    jitter = rng.uniform(-PROBE_JITTER, PROBE_JITTER, (int(noisy.sum()), features.shape[1]))
    refined = features.copy()
    refined[noisy] = unit_rows(centers[index[noisy]] + jitter)
    return np.pad(refined, ((0, 0), (0, 1)))


def refine_distractors(features: ArrayLike, noisy: ArrayLike) -> np.ndarray:
    """Distractor features of the refined list: the added dimension is 100 where the image shows a probe's identity.

    Args:
      features: [M, D]; noisy: [M] bool.

    Returns:
      [M, D + 1] float32; noisy distractors are at least 100 away from all other features.

    Raises:
      ValueError: a feature is not finite.
    """
    check_finite(features)
    added = np.where(np.asarray(noisy, bool), NOISY_DISTRACTOR, 0.0)
    return np.concatenate([features, added[:, None]], 1, dtype=np.float32, casting="same_kind")


def cmc(
    probes: ArrayLike, probe_labels: ArrayLike, gallery: ArrayLike, gallery_labels: ArrayLike, max_rank: int = 10
) -> np.ndarray:
    """Cumulative match characteristic of a closed-set search by cosine similarity; the first entry is rank 1.

    A probe's rank is one plus the number of gallery images of other identities that score at least as high as its mate.

    Args:
      probes: [P, D]; probe_labels: [P].
      gallery: [G, D]; gallery_labels: [G]; every probe has a mate.
      max_rank: K.

    Returns:
      [K] fraction of probes of rank at most 1, 2, ..., K.
    """
    probes, gallery = unit_rows(probes), unit_rows(gallery)
    probe_labels, gallery_labels = np.asarray(probe_labels), np.asarray(gallery_labels)
    if probe_labels.shape != probes.shape[:1] or gallery_labels.shape != gallery.shape[:1]:
        raise ValueError(
            f"labels: {probe_labels.shape} and {gallery_labels.shape} for {len(probes)} probes and a gallery of "
            f"{len(gallery)}; expected one each"
        )
    lost = ~np.isin(probe_labels, gallery_labels)
    if lost.any() or not len(probes):
        raise ValueError(f"probes: {lost.sum()} of {len(probes)} have no mate in the gallery; expected a mate for each")
    ranks = []
    step = max(1, BLOCK_ELEMENTS // len(gallery))
    for start in range(0, len(probes), step):
        scores = probes[start : start + step] @ gallery.T
        mates = probe_labels[start : start + step, None] == gallery_labels
        best = np.max(scores, axis=1, where=mates, initial=-np.inf, keepdims=True)
        ranks.append(np.sum((scores >= best) & ~mates, axis=1))
    return np.cumsum(np.bincount(np.concatenate(ranks), minlength=max_rank)[:max_rank]) / len(probes)


def read_feature(path: str | os.PathLike) -> np.ndarray:
    """Reads one feature of the development kit: int32 n, 1, 4, 5, then n float32, little-endian. Returns [n].

    Raises:
      ValueError: names the file and the offset of the error.
    """
    with open(path, "rb") as file:
        data = file.read()
    header = np.frombuffer(data[: len(data) // 4 * 4][:16], "<i4")
    if len(header) < 4 or header[0] < 1 or header[1:].tolist() != [1, 4, 5]:
        raise ValueError(f"{path}, offset 0: header {header.tolist()}; expected int32 n, 1, 4, 5 with n > 0")
    if len(data) != 16 + 4 * int(header[0]):
        raise ValueError(
            f"{path}, offset 16: {len(data) - 16} bytes; expected {4 * int(header[0])} for n = {header[0]}"
        )
    return np.frombuffer(data, "<f4", offset=16).astype(np.float32)


def write_feature(path: str | os.PathLike, feature: ArrayLike) -> None:
    """Writes one feature [n] as `read_feature` reads it."""
    feature = np.asarray(feature)
    if feature.ndim != 1 or not len(feature):
        raise ValueError(f"feature: shape {feature.shape}; expected [n] with n > 0")
    with open(path, "wb") as file:
        file.write(np.array([len(feature), 1, 4, 5], "<i4").tobytes() + feature.astype("<f4").tobytes())
