"""Distances between sets of generated and real images, and measures of a latent space. NumPy on the host.

Features are rows [N, D] of any extractor: the measures have no network of their own, and their values belong to the
extractor and to the number of images. The Frechet distance of few images is too large, so numbers at different N do not
compare; "FID" is this distance with one published Inception network at 50,000 images, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from sklearn.svm import LinearSVC

SMALLEST_LEVEL = 16
"""Side of the smallest images in the pyramid of `sliced_wasserstein`, pixels."""
PATCH = 7
BLOCK, PYRAMIDS = 1024, 64
"""Rows of distances and images of a pyramid that are computed at once."""
BINOMIAL = np.float32([1, 4, 6, 4, 1]) / 16


class Moments(NamedTuple):
    """Mean and scatter of features, mergeable: those of two sets together are the sum of the two.

    Attributes:
      count: number of features.
      mean: [D] float64.
      scatter: [D, D] float64, sum of outer products of deviations from the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: ArrayLike) -> Moments:
        """Of features [N, D]. Raises ValueError for other shapes and values that are not finite."""
        rows = _checked(features).astype(np.float64)
        mean = rows.mean(0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        step = other.mean - self.mean
        between = np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], unbiased."""
        if self.count < 2:
            raise ValueError(f"a covariance of {self.count} features: expected 2 or more")
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """||m1 - m2||^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)): of two Gaussians (Heusel et al., arXiv:1706.08500).

    The root's trace is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which are real also where there
    are fewer features than dimensions.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of {len(first.mean)} and of {len(second.mean)} dimensions: expected as many")
    a, b = first.covariance, second.covariance
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(np.sum((first.mean - second.mean) ** 2) + np.trace(a) + np.trace(b) - 2 * common)


def kernel_distance(real: ArrayLike, fake: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """KID: the unbiased squared MMD with the kernel (x y / D + 1)^3, mean over random subsets (arXiv:1801.01401).

    Args:
      real, fake: features [N, D], [M, D].
      subsets, size: number of subsets and features of each; at most N and M, without repetition.
      seed: of the subsets.
    """
    real, fake = _pair(real, fake)
    size, rng = min(size, len(real), len(fake)), np.random.default_rng(seed)
    if size < 2:
        raise ValueError("kernel_distance: a set of one feature, expected 2 or more")
    total = 0.0
    for _ in range(subsets):
        x, y = (rows[rng.choice(len(rows), size, replace=False)] for rows in (fake, real))
        own = (x @ x.T / x.shape[1] + 1) ** 3 + (y @ y.T / x.shape[1] + 1) ** 3
        across = (x @ y.T / x.shape[1] + 1) ** 3
        total += (own.sum() - own.trace()) / (size - 1) - 2 * across.sum() / size
    return float(total / (subsets * size))


class PrecisionRecall(NamedTuple):
    """Shares in 0..1 of generated images that lie among the real ones, and of real ones among the generated."""

    precision: float
    recall: float


def precision_recall(real: ArrayLike, fake: ArrayLike, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., arXiv:1904.06991).

    A feature lies among those of a set if its distance to one of them is at most that one's distance to its k-th
    nearest neighbour in the set.

    Args:
      real, fake: features [N, D], [M, D].
      neighbours: k.
    """
    real, fake = _pair(real, fake)
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f"precision_recall: {len(real)} and {len(fake)} features, expected more than {neighbours}")

    def radii(rows: np.ndarray) -> np.ndarray:
        """Squared distance to the k-th nearest other row; the row itself comes first."""
        parts = (np.partition(part, neighbours, 1)[:, neighbours] for part in _squared_distances(rows, rows))
        return np.concatenate(list(parts))

    def inside(rows: np.ndarray, others: np.ndarray) -> float:
        reach = radii(others)
        return float(np.concatenate([(part <= reach).any(1) for part in _squared_distances(rows, others)]).mean())

    return PrecisionRecall(inside(fake, real), inside(real, fake))


class Patches:
    """Random patches of 7x7 pixels at every level of the Laplacian pyramids of many images, for `sliced_wasserstein`.

    Args:
      side: S of the images, 16 times a power of two.
      patches: of an image at each level.
      seed: of their places.
    """

    def __init__(self, side: int, *, patches: int = 128, seed: int = 0):
        if side < SMALLEST_LEVEL or side & (side - 1):
            raise ValueError(f"Patches: images of {side} pixels, expected a power of two, {SMALLEST_LEVEL} or more")
        self._patches, self._rng = patches, np.random.default_rng(seed)
        self._found: dict[int, list[np.ndarray]] = {}
        while side >= SMALLEST_LEVEL:
            self._found[side], side = [], side // 2

    def add(self, images: np.ndarray) -> None:
        """Adds images [N, S, S, 3] in 0..255."""
        side = max(self._found)
        if images.shape[1:] != (side, side, 3):
            raise ValueError(f"Patches: images {images.shape}, expected [N, {side}, {side}, 3]")
        for start in range(0, len(images), PYRAMIDS):
            pyramid = laplacian_pyramid(images[start : start + PYRAMIDS], len(self._found))
            for kept, level in zip(self._found.values(), pyramid, strict=True):
                windows = np.lib.stride_tricks.sliding_window_view(level, (PATCH, PATCH), (1, 2))  # [n, H, W, C, 7, 7]
                places = (self._rng.integers(0, end, (len(level), self._patches)) for end in windows.shape[1:3])
                kept.append(windows[np.arange(len(level))[:, None], *places].reshape(-1, 3, PATCH, PATCH))

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the levels, the largest first."""
        return tuple(self._found)

    def standardised(self, side: int) -> np.ndarray:
        """All patches of a level, [N * patches, 147], with mean 0 and deviation 1 of every channel."""
        found = np.concatenate(self._found[side])
        found -= found.mean((0, 2, 3), keepdims=True)
        deviation = found.std((0, 2, 3), keepdims=True)
        return (found / np.where(deviation > 0, deviation, 1)).reshape(len(found), -1)


def sliced_wasserstein(
    real: Patches, fake: Patches, *, repeats: int = 4, directions: int = 128, seed: int = 0
) -> dict[int, float]:
    """PG-GAN's sliced Wasserstein distance, times 1000: mean difference of sorted projections of patches.

    Args:
      real, fake: of as many images; the published number is 16,384.
      repeats, directions: rounds, and random unit vectors of each.
      seed: of the vectors.

    Returns:
      Side of the level, from that of the images down to 16, to distance.
    """
    rng, found = np.random.default_rng(seed), {}
    for side in real.sides:
        a, b = real.standardised(side), fake.standardised(side)
        if a.shape != b.shape:
            raise ValueError(f"sliced_wasserstein: {len(a)} and {len(b)} patches, expected as many")
        distances = []
        for _ in range(repeats):
            way = rng.normal(size=(a.shape[1], directions))
            way = (way / np.linalg.norm(way, axis=0)).astype(np.float32)
            distances.append(np.abs(np.sort(a @ way, 0) - np.sort(b @ way, 0)).mean())
        found[side] = 1e3 * float(np.mean(distances))
    return found


def laplacian_pyramid(images: np.ndarray, levels: int) -> list[np.ndarray]:
    """Details of images [N, H, W, C] at every scale, and last what remains: float32, each level half as large."""
    found = [images.astype(np.float32)]
    for _ in range(levels - 1):
        smaller = _blurred(found[-1], 1)[:, ::2, ::2]
        stuffed = np.zeros_like(found[-1])
        stuffed[:, ::2, ::2] = smaller
        found[-1] = found[-1] - _blurred(stuffed, 2)
        found.append(smaller)
    return found


def slerp(first: np.ndarray, second: np.ndarray, t: ArrayLike) -> np.ndarray:
    """Unit vectors [N, D] on the great circle from `first` (at `t` 0) to `second` (at 1), which have any length."""
    a, b = (np.asarray(x, np.float64) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second))
    cosine = np.sum(a * b, -1, keepdims=True).clip(-1, 1)
    angle, across = np.asarray(t)[..., None] * np.arccos(cosine), b - cosine * a
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    return np.cos(angle) * a + np.sin(angle) * across


def path_length(distances: ArrayLike, epsilon: float) -> float:
    """PPL from distances [N] between images that lie `epsilon` apart on their paths (StyleGAN, Sec. 4.1).

    Distances are quadratic (LPIPS is, without a root). The lowest and the highest hundredth are left out.
    """
    slopes = np.asarray(distances, np.float64) / epsilon**2
    low, high = np.percentile(slopes, 1, method="lower"), np.percentile(slopes, 99, method="higher")
    return float(slopes[(low <= slopes) & (slopes <= high)].mean())


def separability(latents: ArrayLike, probabilities: ArrayLike, keep: float = 0.5) -> float:
    """Two to the sum of entropies of attributes given the side of a linear boundary (StyleGAN, Sec. 4.2); 1 is best.

    Args:
      latents: [N, D].
      probabilities: [N, A] of A binary attributes of the images, by classifiers.
      keep: share of the images, those of which a classifier is surest, that are used for its attribute.
    """
    latents, probabilities = _checked(latents), _checked(probabilities)
    count, total = max(1, round(keep * len(latents))), 0.0
    for attribute in probabilities.T:
        surest = np.argsort(-np.abs(attribute - 0.5), kind="stable")[:count]
        truth = attribute[surest] > 0.5
        if truth.all() or not truth.any():
            continue  # no entropy is left
        sides = LinearSVC(random_state=0).fit(latents[surest], truth).predict(latents[surest])
        table = np.array([[np.mean((sides == s) & (truth == t)) for t in (False, True)] for s in (False, True)])
        total += _entropy(table) - _entropy(table.sum(1))
    return float(2**total)


def _entropy(probabilities: np.ndarray) -> float:
    """Bits."""
    positive = probabilities[probabilities > 0]
    return -float(np.sum(positive * np.log2(positive)))


def _blurred(images: np.ndarray, gain: float) -> np.ndarray:
    """Binomial blur along both axes, mirrored at the borders without repeating the edge."""
    for axis in (1, 2):
        images = ndimage.correlate1d(images, gain * BINOMIAL, axis, mode="mirror")
    return images


def _squared_distances(rows: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks [B, M] of squared distances of rows [N, D] to `others` [M, D]."""
    lengths = np.sum(others**2, 1)
    parts = (rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK))
    return ((np.sum(part**2, 1)[:, None] - 2 * part @ others.T + lengths).clip(0) for part in parts)


def _pair(real: ArrayLike, fake: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    real, fake = _checked(real).astype(np.float64), _checked(fake).astype(np.float64)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features of {real.shape[1]} and of {fake.shape[1]} dimensions: expected as many")
    return real, fake


def _checked(features: ArrayLike) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features are {features.shape}: expected [N, D]")
    if not np.isfinite(features).all():
        raise ValueError(f"features: row {int(np.argmin(np.isfinite(features).all(1)))} is not finite")
    return features
