"""Verification by embeddings with latent groups (GroupFace), and what the groups hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from facejax.data import pipeline
from facejax.data.pipeline import Source
from facejax.data.sources import Images
from facejax.evaluate import verification as held_out
from facejax.metrics import verification
from facejax.metrics.clustering import normalized_mutual_information
from facejax.recognition.groupface import group_aware_similarity
from facejax.train import Report, image_grid, new_figure


class Grouped(NamedTuple):
    """What a network with K groups makes of N images.

    Attributes:
      embedding: [N, D] of unit length.
      decision: [N, H] outputs of the group decision network that distances are taken of.
      probability: [N, K] of the groups.
    """

    embedding: np.ndarray
    decision: np.ndarray
    probability: np.ndarray


def verify_held_out(
    source: Source | None,
    image_size: int,
    embed: Callable[[np.ndarray | Images], Grouped],
    *,
    beta: float,
    gamma: float,
) -> Report:
    """`facejax.evaluate.verification.verify_held_out`, with the groups and the group-aware similarity.

    "group_entropy" is the entropy of group sizes by the most probable group, over the greatest possible: 1 for even
    groups, 0 for one; "nmi_..." compares groups with known attributes of the images; "tar_at_far_..._group_aware".

    Args:
      source: of the held-out people's images.
      image_size: pixels.
      embed: images [N, S, S, 3] uint8 -> `Grouped`.
      beta, gamma: of `group_aware_similarity`.
    """
    images, labels = held_out.held_out_images(source, image_size)
    found = embed(images)
    report = held_out.all_pairs_report(images, found.embedding, labels)
    count, group = found.probability.shape[1], found.probability.argmax(1)
    shares = np.bincount(group, minlength=count) / len(group)
    metrics = {"group_entropy": entropy(shares), "largest_group": float(shares.max())}
    known = attributes(source, labels)
    metrics |= {f"nmi_{name}": normalized_mutual_information(truth, group) for name, truth in known.items()}
    rates = group_aware_pairs(found, labels, beta=beta, gamma=gamma).tar(held_out.FARS).tolist()
    metrics |= held_out.named(rates, "tar_at_far_{}_group_aware")
    return report | Report(
        metrics,
        figures={"What the groups hold": groups_figure(group, known, count)},
        images={"Groups, the most probable images": most_probable(images, found.probability, labels)},
        arrays={"probabilities": found.probability, "decisions": found.decision},
    )


def verify_packs(
    packs: str, image_size: int, embed: Callable[[np.ndarray | Images], Grouped], *, beta: float, gamma: float
) -> Report:
    """The 10-fold protocol on InsightFace's .bin packs, by cosine and by the group-aware similarity."""
    metrics, arrays = {}, {}
    for name, images, same in held_out.read_packs(packs, image_size):
        found = embed(images)
        squared = verification.squared_distances(found.embedding[::2], found.embedding[1::2])
        apart = np.linalg.norm(found.decision[::2] - found.decision[1::2], axis=1)
        aware = group_aware_similarity(1 - squared / 2, apart, beta=beta, gamma=gamma)
        metrics[f"{name}_accuracy"] = verification.kfold_accuracy(squared, same).mean
        metrics[f"{name}_accuracy_group_aware"] = verification.kfold_accuracy(2 - 2 * aware, same).mean
        arrays[f"{name}_embeddings"] = found.embedding
    return Report(metrics, arrays=arrays)


def entropy(shares: np.ndarray) -> float:
    """Entropy of shares [K] that sum to 1 over that of even ones; 1 where there is one group only."""
    some = shares[shares > 0]
    return float(np.sum(some * np.log(1 / some)) / np.log(len(shares))) if len(shares) > 1 else 1.0


def attributes(source: Source, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Known attributes of images as classes [N]: the person and, in the face world, what was rendered."""
    known = {"person": labels}
    if "glasses" in source[0]:
        examples = pipeline.fetch(source, range(len(source)))
        measured = {
            "age": [e["age"] for e in examples],
            "skin": [e["albedo"][0] for e in examples],
            "yaw": [e["pose"][1] for e in examples],
            "light": [e["light"][0] for e in examples],
        }
        known["glasses"] = np.array([int(e["glasses"] > 0) for e in examples])
        known |= {name: np.digitize(x, np.quantile(x, (1 / 3, 2 / 3))) for name, x in measured.items()}
    return known


def group_aware_pairs(found: Grouped, labels: np.ndarray, *, beta: float, gamma: float) -> verification.FalseAccepts:
    """Exact ROC of the group-aware similarities of all pairs of images."""
    order = np.argsort(labels, kind="stable")
    embedding, decision = found.embedding[order], found.decision[order]

    def similarity(rows: slice, columns: slice) -> np.ndarray:
        cosine, distance = embedding[rows] @ embedding[columns].T, cdist(decision[rows], decision[columns])
        return group_aware_similarity(cosine, distance, beta=beta, gamma=gamma)

    return verification.false_accepts(labels[order], similarity)


def groups_figure(group: np.ndarray, known: Mapping[str, np.ndarray], groups: int) -> Any:
    """Sizes of the groups and, for each attribute of few classes, its shares in every group."""
    few = {name: truth for name, truth in known.items() if name != "person"}
    figure, axes = new_figure(2.4 * (1 + len(few)), 3.4, 1, 1 + len(few))
    first, *others = np.ravel(axes)
    places, sizes = np.arange(groups), np.bincount(group, minlength=groups)
    first.bar(places, sizes)
    numbers = {"xlabel": "group", "xticks": places[:: -(-groups // 8)]}
    first.set(title="images", **numbers)
    for axis, (name, truth) in zip(others, few.items(), strict=True):
        below = np.zeros(groups)
        names = ("without", "with") if name == "glasses" else ("lowest third", "middle third", "highest third")
        for value in np.unique(truth):
            share = np.bincount(group[truth == value], minlength=groups) / np.maximum(sizes, 1)
            axis.bar(places, share, bottom=below, label=names[value])
            below += share
        axis.set(title=name, **numbers, ylim=(0, 1))
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def most_probable(
    images: Images, probabilities: np.ndarray, labels: np.ndarray, rows: int = 8, columns: int = 12
) -> Any:
    """A row for each of the first `rows` groups: images of different people, the most probable in the group first."""
    grid = np.full((min(rows, probabilities.shape[1]), columns, *images.shape[1:]), 255, np.uint8)
    for k in range(len(grid)):
        order = np.argsort(-probabilities[:, k], kind="stable")
        _, first = np.unique(labels[order], return_index=True)
        best = order[np.sort(first)][:columns]
        grid[k, : len(best)] = images[best]
    return image_grid(grid.reshape(-1, *images.shape[1:]), columns)
