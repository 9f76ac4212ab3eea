"""One-to-one face verification: does a pair of images show the same person?

The ten-fold accuracy of LFW-style tables, with the exact semantics of the insightface evaluation code (arcface_torch,
eval/verification.py) and of MagFace's (eval_1v1.py); ROC, TAR at FAR and equal error rate of a list of scored pairs;
and the same over all pairs of a set of embeddings, without a matrix of all pairs.

Everything runs on the host in NumPy. Genuine pairs (same person) have small *distances* and large *scores*. TAR is the
fraction of genuine pairs accepted, FAR the fraction of impostor pairs accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from facejax.ops.vectors import unit_rows

ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
TAR_THRESHOLDS = np.arange(0, 4, 0.001)
BLOCK_ELEMENTS = 2**24


class KFoldAccuracy(NamedTuple):
    """Accuracy over folds.

    Attributes:
      mean, std: over the folds; population standard deviation.
      folds: [F] accuracy of each fold at the threshold that is best on the other folds.
      thresholds: [F] those thresholds.
    """

    mean: float
    std: float
    folds: np.ndarray
    thresholds: np.ndarray


class KFoldTar(NamedTuple):
    """TAR over folds, its threshold set on the other folds: mean, population standard deviation, and mean FAR."""

    mean: float
    std: float
    far: float


class Intervals(NamedTuple):
    """Lower and upper ends.

    Attributes:
      tar: [F, 2] of the TAR at each FAR.
      equal_error_rate, rank1: [2].
    """

    tar: np.ndarray
    equal_error_rate: np.ndarray
    rank1: np.ndarray


class FalseAccepts(NamedTuple):
    """Compact exact ROC: for each genuine pair, the number of impostor pairs accepted at its score.

    Attributes:
      counts: [G] number of impostor pairs that score at least as high as each genuine pair; ascending.
      impostors: the number of impostor pairs.
    """

    counts: np.ndarray
    impostors: int

    def tar(self, fars: ArrayLike) -> np.ndarray:
        """The highest TAR whose FAR is at most each of `fars`, in 0..1. [F] -> [F].

        A threshold that accepts a genuine pair and at most k impostors exists if and only if at most k impostors score
        at least as high as the pair.
        """
        fars = check_fars(fars)
        allowed = np.floor(fars * self.impostors)
        allowed += (allowed + 1) / self.impostors <= fars  # in floating point 0.29 * 100 is below 29
        return np.searchsorted(self.counts, allowed, side="right") / len(self.counts)

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """(FAR [G], TAR [G]) with the threshold at each genuine score, strictest first."""
        ranks = np.searchsorted(self.counts, self.counts, side="right")
        return self.counts / self.impostors, ranks / len(self.counts)


def check_pairs(values: ArrayLike, same: ArrayLike, *, both: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Validates pairs and converts them to arrays.

    Args:
      values: [N] distances or scores.
      same: [N] True (or 1) for genuine pairs, False (or 0) for impostor pairs.
      both: whether genuine and impostor pairs must both occur.

    Returns:
      values as float64 [N], same as bool [N].

    Raises:
      ValueError: the shapes differ, a value is not finite, a label is neither 0 nor 1, or one kind of pair is missing.
    """
    values, same = np.asarray(values, np.float64), np.asarray(same)
    if values.ndim != 1 or values.shape != same.shape:
        raise ValueError(f"pairs: values {values.shape} and same {same.shape}; expected two vectors of one length")
    if not np.isfinite(values).all():
        raise ValueError(
            f"pairs: value {values[~np.isfinite(values)][0]} at {_first(~np.isfinite(values))} is not finite"
        )
    odd = (same != 0) & (same != 1)
    if odd.any():
        raise ValueError(f"pairs: label {same[odd][0]} at {_first(odd)}; expected booleans or 0 and 1")
    same = same.astype(bool)
    if both and (same.all() or not same.any()):
        raise ValueError(f"pairs: none of the {len(same)} is {'an impostor' if same.any() else 'a genuine'} pair")
    return values, same


def check_fars(fars: ArrayLike) -> np.ndarray:
    """False accept rates as float64 [F]; ValueError unless all lie in 0..1."""
    fars = np.atleast_1d(np.asarray(fars, np.float64))
    if not ((fars >= 0) & (fars <= 1)).all():
        raise ValueError(f"fars: {fars.tolist()}; expected false accept rates in 0..1")
    return fars


def flip_embedding(features: ArrayLike, flipped: ArrayLike) -> np.ndarray:
    """Embedding of an image and its mirror image: the sum of the two raw features, normalised to unit length.

    The features are not normalised before the sum, so the view with the larger norm has more weight.

    Args:
      features, flipped: [N, D].

    Returns:
      [N, D].
    """
    return unit_rows(sum(_same_shape(features, flipped)))


def xnorm(features: ArrayLike, flipped: ArrayLike) -> float:
    """Mean norm of the raw features of both views; insightface logs it as XNorm."""
    return float(np.mean([np.linalg.norm(view, axis=1) for view in _same_shape(features, flipped)]))


def squared_distances(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Squared Euclidean distance of each row to its partner; 0..4 for unit rows. [N, D], [N, D] -> [N]."""
    first, second = _same_shape(first, second)
    return np.sum(np.square(first - second), axis=1)


def angular_distances(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Angle between each row and its partner over pi, in 0..1; 0.5 for a zero row. [N, D], [N, D] -> [N]."""
    first, second = (unit_rows(x, np.float64) for x in _same_shape(first, second))
    return np.arccos(np.clip(np.sum(first * second, axis=1), -1, 1)) / np.pi


def kfold_accuracy(
    distances: ArrayLike, same: ArrayLike, folds: int = 10, thresholds: np.ndarray = ACCURACY_THRESHOLDS
) -> KFoldAccuracy:
    """Verification accuracy as arcface_torch reports it.

    Folds are contiguous in input order (the order in the packs gives the official folds); the first N % folds of them
    have one pair more. A pair is accepted if its distance is strictly below the threshold. Each fold is evaluated at
    the threshold that is best on the other folds, the smallest in a tie.

    Args:
      distances: [N] squared Euclidean distances of unit embeddings.
      same: [N] bool.
      folds: 2..N.
      thresholds: [T] ascending.

    Raises:
      ValueError: invalid pairs (see `check_pairs`) or folds.
    """
    distances, same = check_pairs(distances, same, both=False)
    return _kfold_accuracy(lambda train: distances, same, folds, thresholds)


def kfold_accuracy_centered(
    first: ArrayLike, second: ArrayLike, same: ArrayLike, folds: int = 10, thresholds: np.ndarray = ACCURACY_THRESHOLDS
) -> KFoldAccuracy:
    """Verification accuracy as MagFace's code reports it.

    Like `kfold_accuracy`, but the distance is the angle over pi (at most 1, so larger thresholds have no effect) after
    subtraction of the mean embedding of the other folds, both images of each pair. Mirror images are not used.

    Args:
      first, second: [N, D] raw embeddings of the pairs.
      same: [N] bool.
      folds: 2..N.
      thresholds: [T] ascending.
    """
    first, second = (x.astype(np.float64) for x in _same_shape(first, second))
    _, same = check_pairs(np.zeros(len(first)), same, both=False)

    def distances(train: np.ndarray) -> np.ndarray:
        mean = np.concatenate([first[train], second[train]]).mean(0)
        return angular_distances(first - mean, second - mean)

    return _kfold_accuracy(distances, same, folds, thresholds)


def tar_at_far_kfold(
    distances: ArrayLike, same: ArrayLike, far: float = 1e-3, folds: int = 10, thresholds: np.ndarray = TAR_THRESHOLDS
) -> KFoldTar:
    """TAR of each fold at the threshold that gives `far` on the other folds, as arcface_torch's calculate_val.

    The threshold comes from linear interpolation of threshold over FAR. On a plateau of FAR the largest threshold is
    used, like the original's call of a SciPy spline (current SciPy rejects repeated values). If the other folds never
    reach `far`, the threshold is 0, which accepts nothing.

    Args:
      distances: [N].
      same: [N] bool; every fold needs both kinds of pair.
      far: in 0..1.
      folds: 2..N.
      thresholds: [T] ascending from 0.
    """
    distances, same = check_pairs(distances, same)
    (far,) = check_fars(far)
    tests = list(_folds(len(same), folds))
    for index, test in enumerate(tests):
        if same[test].all() or not same[test].any():
            raise ValueError(
                f"fold {index}: all pairs are of one kind; expected genuine and impostor pairs in each fold"
            )
    tars, fars = [], []
    for test in tests:
        impostors = np.sort(distances[~same & ~test])
        reached = np.searchsorted(impostors, thresholds) / len(impostors)
        threshold = np.interp(far, reached, thresholds) if reached.max() >= far else 0.0
        accepted = distances[test] < threshold
        tars.append(accepted[same[test]].mean())
        fars.append(accepted[~same[test]].mean())
    return KFoldTar(float(np.mean(tars)), float(np.std(tars)), float(np.mean(fars)))


def roc(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(FAR, TAR, thresholds), each [P], strictest threshold first; a pair with score >= threshold is accepted.

    As in scikit-learn, pairs of equal score form one point and collinear points are dropped.
    """
    scores, same = check_pairs(scores, same)
    return roc_curve(same, scores)


def tar_at_far(
    scores: ArrayLike, same: ArrayLike, fars: ArrayLike, mode: Literal["conservative", "ijb"] = "conservative"
) -> np.ndarray:
    """TAR at each FAR.

    Args:
      scores: [N].
      same: [N] bool.
      fars: [F] in 0..1.
      mode: "conservative" is exact: the highest TAR at a FAR of at most the requested value. "ijb" is the convention of
        the IJB tables: the point of `roc`, a thinned curve, with the nearest FAR, which may exceed the requested one;
        in a tie the point with the highest FAR, then TAR.

    Returns:
      [F] in 0..1.
    """
    fars = check_fars(fars)
    if mode == "ijb":
        reached, tar, _ = roc(scores, same)
        reached, tar = reached[::-1], tar[::-1]
        return np.array([tar[np.argmin(np.abs(reached - far))] for far in fars])
    if mode != "conservative":
        raise ValueError(f"mode {mode!r}; expected 'conservative' or 'ijb'")
    scores, same = check_pairs(scores, same)
    impostors = np.sort(scores[~same])
    counts = len(impostors) - np.searchsorted(impostors, scores[same])
    return FalseAccepts(np.sort(counts), len(impostors)).tar(fars)


def equal_error_rate(scores: ArrayLike, same: ArrayLike) -> float:
    """The rate at which FAR equals 1 - TAR, with linear interpolation between the points of the ROC."""
    far, tar, _ = roc(scores, same)
    return _crossing(far, tar)


def all_pairs(embeddings: ArrayLike, labels: ArrayLike) -> FalseAccepts:
    """`false_accepts` of the cosine similarities of all N (N - 1) / 2 pairs.

    Args:
      embeddings: [N, D]; the function normalises them to unit length.
      labels: [N] identities.

    Raises:
      ValueError: wrong shapes, values that are not finite, or no genuine or no impostor pair.
    """
    embeddings, labels = _labelled(embeddings, labels)
    order = np.argsort(labels, kind="stable")
    embeddings = embeddings[order]
    return false_accepts(labels[order], lambda rows, columns: embeddings[rows] @ embeddings[columns].T)


def false_accepts(labels: np.ndarray, similarity: Callable[[slice, slice], np.ndarray]) -> FalseAccepts:
    """Exact ROC of a similarity of all N (N - 1) / 2 pairs.

    The genuine scores, which are few, are sorted first; the impostor scores are then computed in blocks of rows, sorted
    and counted against them, without bins. Memory: the genuine scores and one block of 2**24 scores.

    Args:
      labels: [N] identities, ascending.
      similarity: rows and columns, two ranges of 0..N - 1 -> scores [rows, columns].

    Raises:
      ValueError: no genuine or no impostor pair.
    """
    ends = np.searchsorted(labels, labels, side="right")
    total = len(labels)
    genuine = []
    for rows in _blocks(total, total):
        scores = similarity(rows, slice(rows.start, ends[rows.stop - 1]))
        column = np.arange(rows.start, ends[rows.stop - 1])
        row = np.arange(rows.start, rows.stop)[:, None]
        genuine.append(scores[(column > row) & (column < ends[rows, None])])
    genuine = np.sort(np.concatenate(genuine))
    impostors = total * (total - 1) // 2 - len(genuine)
    if not len(genuine) or not impostors:
        raise ValueError(
            f"labels: all {total} are {'equal' if len(genuine) else 'distinct'}; expected both kinds of pair"
        )
    counts = np.zeros(len(genuine), np.int64)
    for rows in _blocks(total, total):
        scores = similarity(rows, slice(ends[rows.start], total))
        scores = scores[np.arange(ends[rows.start], total) >= ends[rows, None]]
        counts += count_at_least(genuine, scores)
    return FalseAccepts(counts[::-1], impostors)


def all_pairs_tar(embeddings: ArrayLike, labels: ArrayLike, fars: ArrayLike) -> np.ndarray:
    """The highest TAR at a FAR of at most `fars`, over all pairs of embeddings by cosine; see `all_pairs`.

    Args:
      embeddings: [N, D].
      labels: [N].
      fars: [F] in 0..1.

    Returns:
      [F] in 0..1.
    """
    return all_pairs(embeddings, labels).tar(fars)


def bootstrap_intervals(
    embeddings: ArrayLike, labels: ArrayLike, fars: ArrayLike, *, samples: int = 200, seed: int = 0
) -> Intervals:
    """95 % bootstrap intervals over people, of at most a few thousand embeddings.

    A sample draws as many people as there are, with replacement. A person drawn w times counts w times in the genuine
    pairs and among the probes of rank 1, whose gallery stays whole, and w v times in the impostor pairs with one drawn
    v times; two copies of a person are no impostors.

    Args:
      embeddings: [N, D].
      labels: [N].
      fars: [F] in 0..1.
      samples: number of samples.
      seed: of the draws.

    Returns:
      The 2.5th and the 97.5th percentile; NaN where the samples have no genuine or no impostor pair.
    """
    embeddings, labels = _labelled(embeddings, labels)
    fars = check_fars(fars)
    _, person, counts = np.unique(labels, return_inverse=True, return_counts=True)
    first, second = np.triu_indices(len(labels), 1)
    scores, same = (embeddings @ embeddings.T)[first, second], person[first] == person[second]
    decisive = 2 * max(fars.max(initial=0), 0.05)  # the best impostor pairs decide
    if 0 < same.sum() < len(same):
        decisive = max(decisive, 2 * equal_error_rate(scores, same))
    kept = int(min(decisive, 1) * (~same).sum()) + 1
    order = np.flatnonzero(~same)[np.argsort(-scores[~same], kind="stable")[:kept]]
    impostors, pairs = scores[order], (person[first[order]], person[second[order]])
    order = np.flatnonzero(same)[np.argsort(-scores[same], kind="stable")]
    genuine, owner = -scores[order], person[first[order]]
    merged = np.concatenate([genuine, -impostors])
    falling = np.argsort(merged, kind="stable")
    last = np.flatnonzero(np.append(np.diff(merged[falling]) > 0, True))  # of the pairs of one score
    hit, probe = (np.bincount(person, weights, len(counts)) for weights in _rank1(embeddings, labels))
    rng, found = np.random.default_rng(seed), np.full((samples, len(fars) + 2), np.nan)
    for row in found:
        drawn = np.bincount(rng.integers(len(counts), size=len(counts)), minlength=len(counts)).astype(np.float64)
        if drawn @ probe:
            row[-1] = (drawn @ hit) / (drawn @ probe)
        weights = drawn[pairs[0]] * drawn[pairs[1]]
        accepted = np.cumsum(weights)
        images = drawn * counts
        total = (images.sum() ** 2 - np.square(images).sum()) / 2
        accepting = np.append(0, np.cumsum(drawn[owner]))
        if total > 0 and accepting[-1] > 0:
            place = np.searchsorted(accepted, fars * total * (1 + 1e-12), side="right")
            worst = np.where(place < len(impostors), impostors[np.minimum(place, len(impostors) - 1)], -np.inf)
            row[:-2] = accepting[np.searchsorted(genuine, -worst)] / accepting[-1]
            of_genuine = np.concatenate([drawn[owner], np.zeros(len(weights))])[falling]
            of_impostors = np.concatenate([np.zeros(len(owner)), weights])[falling]
            far, tar = (np.append(0, np.cumsum(w)[last]) for w in (of_impostors / total, of_genuine / accepting[-1]))
            row[-2] = _crossing(far, tar)
    ends = np.full((len(fars) + 2, 2), np.nan)
    known = ~np.isnan(found).all(0)
    if known.any():
        ends[known] = np.nanpercentile(found[:, known], (2.5, 97.5), axis=0).T
    return Intervals(ends[:-2], ends[-2], ends[-1])


def leave_one_out_rank1(embeddings: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of embeddings whose nearest other embedding, by cosine, has the same identity.

    Identities with a single embedding are in the gallery but are not probes. A tie between a mate and another identity
    is an error.

    Args:
      embeddings: [N, D].
      labels: [N].
    """
    embeddings, labels = _labelled(embeddings, labels)
    hit, probe = _rank1(embeddings, labels)
    if not probe.any():
        raise ValueError(f"labels: none of the {len(labels)} occurs twice; expected an identity with two embeddings")
    return float(hit.sum() / probe.sum())


def count_at_least(thresholds: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Number of `scores` (any shape) at or above each of the ascending `thresholds`. [G] -> [G] int64."""
    scores = np.sort(scores[scores >= thresholds[0]])
    return len(scores) - np.searchsorted(scores, thresholds)


def _crossing(far: np.ndarray, tar: np.ndarray) -> float:
    """The rate at which FAR equals 1 - TAR on a curve that begins at (0, 0); NaN where it ends before."""
    excess = far - (1 - tar)
    after = int(np.argmax(excess >= 0))
    if excess[after] < 0:
        return np.nan
    before = after - 1
    share = -excess[before] / (excess[after] - excess[before])
    return float(far[before] + share * (far[after] - far[before]))


def _rank1(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the nearest other of each unit embedding [N, D] has its label, and whether any other has: [N], [N]."""
    hits, probes = [], []
    for rows in _blocks(len(labels), len(labels)):
        scores = embeddings[rows] @ embeddings.T
        same = labels[rows, None] == labels
        impostor = np.max(scores, axis=1, where=~same, initial=-np.inf)
        same[np.arange(len(same)), np.arange(rows.start, rows.stop)] = False
        mate = np.max(scores, axis=1, where=same, initial=-np.inf)
        hits.append(mate > impostor)
        probes.append(same.any(1))
    return np.concatenate(hits), np.concatenate(probes)


def _kfold_accuracy(
    distances: Callable[[np.ndarray], np.ndarray], same: np.ndarray, folds: int, thresholds: np.ndarray
) -> KFoldAccuracy:
    accuracies, chosen = [], []
    for test in _folds(len(same), folds):
        values = distances(~test)
        genuine, impostors = np.sort(values[same & ~test]), np.sort(values[~same & ~test])
        right = np.searchsorted(genuine, thresholds) - np.searchsorted(impostors, thresholds)
        chosen.append(thresholds[np.argmax(right)])
        accuracies.append(np.mean((values[test] < chosen[-1]) == same[test]))
    return KFoldAccuracy(float(np.mean(accuracies)), float(np.std(accuracies)), np.array(accuracies), np.array(chosen))


def _folds(total: int, folds: int) -> Iterator[np.ndarray]:
    """The test mask [N] of each fold: contiguous, the first total % folds of them longer by one."""
    if not 2 <= folds <= total:
        raise ValueError(f"folds: {folds} of {total} pairs; expected 2..{total}")
    for part in np.array_split(np.arange(total), folds):
        mask = np.zeros(total, bool)
        mask[part] = True
        yield mask


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices over `rows`, each of at most BLOCK_ELEMENTS elements of a [rows, columns] array but at least one row."""
    step = max(1, BLOCK_ELEMENTS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _labelled(embeddings: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    embeddings, labels = unit_rows(embeddings), np.asarray(labels)
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels: shape {labels.shape}; expected {embeddings.shape[:1]}, one per embedding")
    return embeddings, labels


def _same_shape(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"embeddings: shapes {first.shape} and {second.shape}; expected twice [N, D]")
    return first, second


def _first(mask: np.ndarray) -> int:
    return int(np.flatnonzero(mask)[0])
