"""Template-based protocols, IJB-B and IJB-C: one-to-one verification and one-to-many identification.

A template is a set of images and video frames of one subject. The frames of one medium (a video or a single photo) are
averaged first, so a long video has the weight of one photo; then the media are pooled. The semantics follow
insightface's evaluation code (arcface_torch eval_ijbc.py, recognition/_evaluation_/ijb) and MagFace's eval_ijb.py. For
TAR at FAR of the scores use `verification.tar_at_far` with mode "ijb".
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from facejax.metrics.verification import BLOCK_ELEMENTS, angular_distances, check_fars
from facejax.ops.vectors import check_finite, unit_rows

Pooling = Literal["arcface", "magface", "magface+"]


class Identification(NamedTuple):
    """Open-set one-to-many identification. To merge galleries, add `hits` and `mated`.

    Attributes:
      hits: [R] number of mated probes whose mate is among the best `ranks`.
      mated: the number of probes whose subject is in the gallery.
      tpir: [F] fraction of mated probes whose mate ranks first and scores above the threshold of each FAR.
      thresholds: [F].
    """

    hits: np.ndarray
    mated: int
    tpir: np.ndarray
    thresholds: np.ndarray


def image_features(
    features: ArrayLike,
    flipped: ArrayLike | None = None,
    detector_scores: ArrayLike | None = None,
    *,
    keep_norm: bool = True,
) -> np.ndarray:
    """Image features before pooling; published arcface_torch results use all three options: N1 D1 F1.

    The options are named as in arcface_torch's eval_ijbc.py. In ijb_evals.py, N has the opposite meaning: N1
    normalises.

    Args:
      features: [N, D] raw features.
      flipped: [N, D] features of the mirrored images, added (F1); None leaves them out (F0).
      detector_scores: [N] confidence of the face detector, multiplied last (D1); None leaves it out (D0).
      keep_norm: keeps the norms of the features (N1); False normalises each to unit length (N0).

    Returns:
      [N, D].

    Raises:
      ValueError: other shapes, or features that are not finite.
    """
    features = np.asarray(features)
    check_finite(features)
    if flipped is not None:
        features = features + _matching("flipped", flipped, features.shape)
    if not keep_norm:
        features = unit_rows(features)
    if detector_scores is not None:
        features = features * _matching("detector_scores", detector_scores, features.shape[:1])[:, None]
    return features


def template_features(
    features: ArrayLike, templates: ArrayLike, media: ArrayLike, pooling: Pooling = "arcface"
) -> tuple[np.ndarray, np.ndarray]:
    """Pools image features into templates: mean within a medium, then over the media of the template.

    Args:
      features: [N, D] from `image_features`.
      templates, media: [N] integer ids; media ids are local to a template.
      pooling: "arcface" sums the media and normalises the sum to unit length. "magface" takes the mean of normalised
        media features, "magface+" the mean of media features weighted by their magnitude; neither normalises the
        result.

    Returns:
      features [T, D] float64 and the template ids [T], ascending.
    """
    features = np.asarray(features, np.float64)
    templates = _matching("templates", templates, features.shape[:1])
    media = _matching("media", media, features.shape[:1])
    if features.ndim != 2 or not len(features) or not np.isfinite(features).all():
        raise ValueError(f"features: shape {features.shape}; expected [N, D], finite and not empty")
    order = np.lexsort((media, templates))
    features, templates, media = features[order], templates[order], media[order]
    new_template = np.r_[True, templates[1:] != templates[:-1]]
    starts = np.flatnonzero(new_template | np.r_[True, media[1:] != media[:-1]])
    pooled = _segment_mean(features, starts)
    firsts = np.flatnonzero(new_template[starts])
    if pooling == "arcface":
        pooled = unit_rows(np.add.reduceat(pooled, firsts))
    elif pooling in ("magface", "magface+"):
        pooled = _segment_mean(unit_rows(pooled) if pooling == "magface" else pooled, firsts)
    else:
        raise ValueError(f"pooling {pooling!r}; expected 'arcface', 'magface' or 'magface+'")
    return pooled, templates[new_template]


def rows_of(ids: np.ndarray, wanted: ArrayLike) -> np.ndarray:
    """Row of each wanted id in the ascending ids [T]; ValueError names a missing id. [M] -> [M]."""
    wanted = np.asarray(wanted)
    rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    if (ids[rows] != wanted).any():
        raise ValueError(
            f"template {wanted[ids[rows] != wanted][0]} has no images; expected one of the {len(ids)} known"
        )
    return rows


def pair_scores(
    features: np.ndarray,
    ids: np.ndarray,
    first: ArrayLike,
    second: ArrayLike,
    score: Literal["dot", "angle"] = "dot",
) -> np.ndarray:
    """Scores of pairs of templates, computed in blocks of pairs.

    Args:
      features, ids: [T, D] and [T] from `template_features`.
      first, second: [M] template ids.
      score: "dot" product, or MagFace's 1 - arccos(cosine) / pi as "angle".

    Returns:
      [M] float64.
    """
    first, second = rows_of(ids, first), rows_of(ids, second)
    scores = np.empty(len(first))
    step = max(1, BLOCK_ELEMENTS // features.shape[1])
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        left, right = features[first[part]], features[second[part]]
        scores[part] = np.einsum("md,md->m", left, right) if score == "dot" else 1 - angular_distances(left, right)
    return scores


def identify(
    probes: ArrayLike,
    probe_subjects: ArrayLike,
    gallery: ArrayLike,
    gallery_subjects: ArrayLike,
    fars: ArrayLike,
    ranks: tuple[int, ...] = (1, 5, 10),
) -> Identification:
    """One-to-many identification by dot product: closed set (ranks) and open set (TPIR at FAR).

    With the best scores of the n probes that have no mate, the threshold of a FAR is the floor(n * FAR)-th highest (at
    least the first). A mate must score strictly above it and above all other subjects; a tie is an error.

    Args:
      probes: [P, D]; probe_subjects: [P].
      gallery: [G, D], one template per subject; gallery_subjects: [G].
      fars: [F] in 0..1; may be empty, then no probes without a mate are needed.
      ranks: [R].
    """
    probes, gallery = np.asarray(probes, np.float64), np.asarray(gallery, np.float64)
    if not (np.isfinite(probes).all() and np.isfinite(gallery).all()):
        raise ValueError("identify: probe or gallery features are not finite")
    probe_subjects = _matching("probe_subjects", probe_subjects, probes.shape[:1])
    gallery_subjects = _matching("gallery_subjects", gallery_subjects, gallery.shape[:1])
    fars = check_fars(fars)
    order = np.argsort(gallery_subjects, kind="stable")
    gallery, gallery_subjects = gallery[order], gallery_subjects[order]
    if len(gallery) < 2 or (gallery_subjects[1:] == gallery_subjects[:-1]).any():
        raise ValueError("gallery: expected two or more templates of distinct subjects")
    column = np.minimum(np.searchsorted(gallery_subjects, probe_subjects), len(gallery) - 1)
    mated = gallery_subjects[column] == probe_subjects
    if not mated.any():
        raise ValueError(f"probes: none of the {len(probes)} has its subject in the gallery")
    mate, best_other, better = np.empty(len(probes)), np.empty(len(probes)), np.empty(len(probes), np.int64)
    step = max(1, BLOCK_ELEMENTS // len(gallery))
    for start in range(0, len(probes), step):
        part = slice(start, start + step)
        scores = probes[part] @ gallery.T
        rows = np.arange(len(scores))
        mate[part] = own = scores[rows, column[part]]
        scores[rows[mated[part]], column[part][mated[part]]] = -np.inf
        best_other[part] = scores.max(1)
        better[part] = (scores >= own[:, None]).sum(1)
    alarms = np.sort(best_other[~mated])[::-1]
    if len(fars) and not len(alarms):
        raise ValueError("probes: all have their subject in the gallery; expected some without for TPIR at FAR")
    mate, best_other, better = mate[mated], best_other[mated], better[mated]
    thresholds = alarms[np.maximum((len(alarms) * fars).astype(int) - 1, 0)] if len(fars) else np.empty(0)
    tpir = np.array([np.mean((mate > best_other) & (mate > threshold)) for threshold in thresholds])
    return Identification(np.array([np.sum(better < rank) for rank in ranks]), len(mate), tpir, thresholds)


def read_template_media(path: str | os.PathLike) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reads ijb?_face_tid_mid.txt: one line per image: image name, template id, medium id.

    Returns:
      names (N), templates [N] int64, media [N] int64.

    Raises:
      ValueError: names the file and the line of the error.
    """
    rows = _read_fields(path, 3, "image name, template id, medium id")
    numbers = _numbers(path, [row[1:] for row in rows], np.int64)
    return [row[0] for row in rows], numbers[:, 0], numbers[:, 1]


def read_template_pairs(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads ijb?_template_pair_label.txt: one line per pair: two template ids and 1 (same subject) or 0.

    Returns:
      first [M] int64, second [M] int64, same [M] bool.

    Raises:
      ValueError: names the file and the error.
    """
    try:
        pairs = np.loadtxt(path, np.int64, comments=None, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if pairs.shape[1] != 3 or not len(pairs):
        raise ValueError(f"{path}: {pairs.shape[1]} columns, {len(pairs)} lines; expected template, template, label")
    odd = (pairs[:, 2] != 0) & (pairs[:, 2] != 1)
    if odd.any():
        raise ValueError(f"{path}, pair {np.flatnonzero(odd)[0] + 1}: label {pairs[odd, 2][0]}; expected 0 or 1")
    return pairs[:, 0], pairs[:, 1], pairs[:, 2].astype(bool)


def read_landmarks(path: str | os.PathLike) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reads ijb?_name_5pts_score.txt: one line per image: image name, five points (x, y) in pixels, detector score.

    Returns:
      names (N), points [N, 5, 2] float32, detector scores [N] float32.

    Raises:
      ValueError: names the file and the line of the error.
    """
    rows = _read_fields(path, 12, "image name, 10 coordinates, detector score")
    numbers = _numbers(path, [row[1:] for row in rows], np.float32)
    return [row[0] for row in rows], numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10]


def read_template_subjects(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads a gallery or probe list, ijb?_1N_*.csv: a heading, then one line per image: template id, subject id, ...

    Returns:
      templates [T] int64, ascending and unique, and their subjects [T] int64.

    Raises:
      ValueError: names the file and the line of the error, or a template with two subjects.
    """
    with open(path, encoding="utf-8") as file:
        rows = [line.rstrip("\n").split(",")[:2] for line in file][1:]
    for number, row in enumerate(rows, 2):
        if len(row) != 2:
            raise ValueError(f"{path}, line {number}: {row}; expected template id, subject id, ...")
    if not rows:
        raise ValueError(f"{path}: no lines after the heading; expected template id, subject id, ...")
    pairs = np.unique(_numbers(path, rows, np.int64, first_line=2), axis=0)
    twice = pairs[1:, 0] == pairs[:-1, 0]
    if twice.any():
        raise ValueError(f"{path}: template {pairs[1:][twice][0, 0]} has two subjects; expected one")
    return pairs[:, 0], pairs[:, 1]


def _segment_mean(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, starts) / np.diff(starts, append=len(values))[:, None]


def _matching(name: str, values: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != shape:
        raise ValueError(f"{name}: shape {values.shape}; expected {shape}")
    return values


def _read_fields(path: str | os.PathLike, columns: int, expected: str) -> list[list[str]]:
    with open(path, encoding="utf-8") as file:
        rows = [line.split() for line in file]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise ValueError(f"{path}, line {number}: {len(row)} fields; expected {columns}: {expected}")
    if not rows:
        raise ValueError(f"{path}: no lines; expected {expected}")
    return rows


def _numbers(path: str | os.PathLike, rows: list[list[str]], dtype: type, first_line: int = 1) -> np.ndarray:
    def parse(fields: list) -> np.ndarray | None:
        try:
            numbers = np.array(fields).astype(dtype)
        except (ValueError, OverflowError):
            return None
        return numbers if np.isfinite(numbers).all() else None

    numbers = parse(rows)
    if numbers is None:
        line, row = next((line, row) for line, row in enumerate(rows, first_line) if parse(row) is None)
        raise ValueError(f"{path}, line {line}: {' '.join(row)!r}; expected finite numbers of type {np.dtype(dtype)}")
    return numbers
