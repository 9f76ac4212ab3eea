"""1:1 verification of embeddings: people held out from training, and InsightFace's 10-fold packs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy import stats

from facejax.data import sources
from facejax.data.identities import Identities
from facejax.data.pipeline import Source
from facejax.data.readers.verification import read_pack
from facejax.data.sources import Images
from facejax.metrics import verification
from facejax.train import Report, image_grid, new_figure

FARS = (1e-1, 1e-2, 1e-3)
CONVENTION = {"TAR at FAR": "the highest true acceptance rate, all pairs, at a FAR of at most the stated one"}
"""The `notes` of every report with a TAR."""
DEFINITIONS = CONVENTION | {
    "equal error rate": "the rate at which as many impostor pairs are accepted as genuine pairs are refused",
    "rank 1": "the share of images whose nearest other image, by cosine, shows the same person",
    "angles": "means over the genuine and over the impostor pairs, degrees",
}
PACK_DEFINITIONS = {
    "accuracy": "share of pairs decided rightly, each tenth at the threshold that is best on the other nine",
    "from, to": "95 % interval of the accuracy, by the t distribution over the ten folds",
    "genuine cosine": "mean over the pairs of one person",
}
MOST = 4000
"""Images whose pairs are all held in memory at once."""
Embed = Callable[[np.ndarray | Images], np.ndarray]


def tar_metrics(features: np.ndarray, labels: np.ndarray, name: str = "tar_at_far_{}") -> dict[str, float]:
    """TAR of all pairs at the FARs 1e-1, 1e-2 and 1e-3.

    Args:
      features: [N, D] embeddings of any length.
      labels: [N] identities.
      name: of the metrics; "{}" becomes "1e-1" and so on.
    """
    return named(verification.all_pairs_tar(features, labels, FARS).tolist(), name)


def named(rates: Iterable[Any], name: str = "tar_at_far_{}") -> dict[str, Any]:
    """What there is of each of `FARS`, by name."""
    return {name.format(f"{far:.0e}".replace("e-0", "e-")): rate for far, rate in zip(FARS, rates, strict=True)}


def verify(data: Identities, packs: str, seed: int, embed: Embed) -> Report:
    """`verify_packs` where there are packs, else `verify_held_out` of the people that `data` holds out for `seed`."""
    if packs:
        return verify_packs(packs, data.image_size, embed)
    return verify_held_out(data.split(seed)[1], data.image_size, embed)


def verify_held_out(source: Source | None, image_size: int, embed: Embed) -> Report:
    """Verifies all pairs of held-out people by cosine.

    The figure, the equal error rate, the angles and the impostors shown are of at most `MOST` images, evenly spaced.

    Args:
      source: of the held-out people's images.
      image_size: pixels.
      embed: images [N, S, S, 3] uint8, decoded batch by batch -> unit embeddings [N, D].

    Returns:
      The report of `all_pairs_report`.

    Raises:
      ValueError: `source` is None.
    """
    images, labels = held_out_images(source, image_size)
    return all_pairs_report(images, embed(images), labels)


def held_out_images(source: Source | None, image_size: int) -> tuple[Images, np.ndarray]:
    """The images of a source, decoded when they are asked for, and their labels [N].

    Raises:
      ValueError: `source` is None.
    """
    if source is None:
        raise ValueError("no identity is held out for verification: set data.held_out or eval.packs")
    return Images(source, np.arange(len(source)), image_size), sources.labels(source)


def all_pairs_report(images: Images, features: np.ndarray, labels: np.ndarray) -> Report:
    """Verification of all pairs of images by the cosine of their unit embeddings [N, D].

    Returns:
      "tar_at_far_1e-1" and so on, "equal_error_rate", "rank1" (leave-one-out) and the mean "genuine_angle" and
      "impostor_angle" in degrees; the ROC; the embeddings and labels.
    """
    some = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), MOST)).astype(int))
    upper = np.triu_indices(len(some), 1)
    cosine, same = (features[some] @ features[some].T)[upper], (labels[some, None] == labels[some])[upper]
    metrics = tar_metrics(features, labels) | {
        "equal_error_rate": verification.equal_error_rate(cosine, same),
        "rank1": verification.leave_one_out_rank1(features, labels),
        "genuine_angle": float(np.degrees(np.arccos(np.clip(cosine[same], -1, 1))).mean()),
        "impostor_angle": float(np.degrees(np.arccos(np.clip(cosine[~same], -1, 1))).mean()),
    }
    return Report(
        metrics,
        figures={"Verification of held-out people": roc_figure(cosine, same)},
        images={
            "Held-out people": image_grid(images[: 8 * 12], 12),
            "Most similar impostors": hardest_impostors(images.take(some), features[some], labels[some]),
        },
        tables={"Held-out images": [census(labels)], **intervals(metrics, features, labels)},
        arrays={"embeddings": features, "labels": labels},
        notes=DEFINITIONS,
    )


def intervals(metrics: dict[str, float], features: np.ndarray, labels: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Table of `metrics` with 95 % bootstrap intervals over people; none of more than `MOST` images."""
    if len(labels) > MOST:
        return {}
    found = verification.bootstrap_intervals(features, labels, FARS)
    ends = named(found.tar) | {"equal_error_rate": found.equal_error_rate, "rank1": found.rank1}
    rows = [{"metric": name, "value": metrics[name], "from": low, "to": high} for name, (low, high) in ends.items()]
    return {"95 % intervals, by a bootstrap over people": rows}


def verify_packs(packs: str, image_size: int, embed: Embed) -> Report:
    """The 10-fold protocol on InsightFace's .bin packs: `packs` are paths with commas between; `embed` as above."""
    metrics, arrays, rows = {}, {}, []
    for name, images, same in read_packs(packs, image_size):
        features = embed(images)
        distances = verification.squared_distances(features[::2], features[1::2])
        accuracy = {}
        if len(same) >= 10:
            folds = verification.kfold_accuracy(distances, same)
            metrics[f"{name}_accuracy"] = float(folds.mean)
            reach = stats.t.ppf(0.975, len(folds.folds) - 1) * stats.sem(folds.folds)
            accuracy = {"accuracy": folds.mean, "from": folds.mean - reach, "to": folds.mean + reach}
        metrics[f"{name}_genuine_cosine"] = float(1 - distances[same].mean() / 2)
        arrays[f"{name}_embeddings"] = features
        genuine = int(same.sum())
        row = {"pack": name, "images": len(images), "genuine pairs": genuine, "others": len(same) - genuine}
        rows.append(row | accuracy)
    return Report(metrics, {"Packs": rows}, arrays=arrays, notes=PACK_DEFINITIONS)


def census(labels: np.ndarray) -> dict[str, int]:
    """Row of a table: numbers of people and images in labels [N], and of their pairs of one person and of two."""
    counts = np.unique(labels, return_counts=True)[1]
    genuine, pairs = int((counts * (counts - 1) // 2).sum()), len(labels) * (len(labels) - 1) // 2
    return {"people": len(counts), "images": len(labels), "genuine pairs": genuine, "impostor pairs": pairs - genuine}


def read_packs(packs: str, image_size: int) -> Iterable[tuple[str, np.ndarray, np.ndarray]]:
    """Name, images [2 P, S, S, 3] uint8 (pairs side by side) and whether each pair is genuine [P], pack by pack."""
    for path in packs.split(","):
        pack = read_pack(path)
        sources.warn_unaligned(pack.images, image_size, path)
        images = np.stack([sources.image({"image": data}, image_size) for data in pack.images])
        yield pathlib.Path(path).stem, images, pack.same


def roc_figure(cosine: np.ndarray, same: np.ndarray) -> Any:
    """The ROC of pairs [P] with a logarithmic axis, beside the histograms of genuine and impostor angles."""
    figure, (left, right) = new_figure(9, 3.6, 1, 2)
    far, tar, _ = verification.roc(cosine, same)
    left.semilogx(np.maximum(far, 1e-6), tar)
    left.set(xlabel="false acceptance rate", ylabel="true acceptance rate", xlim=(1e-5, 1), ylim=(0, 1.01))
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    for mask, name in ((same, "genuine"), (~same, "impostor")):
        right.hist(angles[mask], bins=90, range=(0, 180), density=True, alpha=0.6, label=name)
    right.set(xlabel="angle between embeddings, degrees", yticks=[])
    right.legend(frameon=False)
    return figure


def hardest_impostors(images: Images, features: np.ndarray, labels: np.ndarray, pairs: int = 8) -> np.ndarray:
    """A grid of the pairs of different people with the nearest embeddings, one above the other."""
    scores = np.where(labels[:, None] == labels, -np.inf, features @ features.T)
    order = np.argsort(scores, axis=None)[::-1][: 2 * pairs * len(labels)]
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for i, j in zip(*np.unravel_index(order, scores.shape), strict=True):
        found.setdefault(tuple(sorted((labels[i], labels[j]))), (i, j))
        if len(found) == pairs:
            break
    return image_grid(images[[i for i, _ in found.values()] + [j for _, j in found.values()]], len(found))
