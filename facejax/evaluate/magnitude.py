"""Embeddings whose length tells the quality of the image (MagFace): lengths as a score, templates weighted by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from facejax.data.quality_faces import FAULTS, Faces
from facejax.evaluate.quality import Pairs, QualityProtocol, edc_figure, fault_figure, ranked
from facejax.evaluate.verification import CONVENTION, read_packs, tar_metrics
from facejax.metrics import quality, template, verification
from facejax.train import Report, new_figure


def assess(features: np.ndarray, test: Faces, protocol: QualityProtocol, images: int, seed: int) -> Report:
    """Lengths as a quality score, and embeddings as a means of verification.

    "fault_correlation", "yaw_correlation", "aoc" and "edc_area" are of `QualityProtocol.measures`, with the embeddings'
    own errors; of photographs, which may be few and without an error to begin with, "edc_area" only.
    "edc_area_random" is that of random scores. "recognisable", of rendered images, is the rank correlation of lengths
    with the mean cosine to the person's other images. "template_" is the TAR of templates: of unit embeddings ("plain")
    and of raw ones, which weighs by length ("weighted"). "accuracy" is of the reference's own 1:1 evaluation.

    Args:
      features: [N, D] raw embeddings of `test`.
      test: faces of held-out people.
      protocol: of the quality measures.
      images: in a template.
      seed: of the templates and of the pairs of the 1:1 evaluation.

    Raises:
      ValueError: embeddings that are zero or not finite.
    """
    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError(f"{np.sum(~(lengths > 0))} of {len(lengths)} embeddings are zero or not finite, expected none")
    pairs = protocol.compare(features, test.people)
    rendered = bool(np.isfinite(test.fault).all())
    scores = {"length": lengths, "random": np.random.default_rng(0).random(len(lengths))}
    scores |= {"true fault": -test.fault} if rendered else {}
    curves = {name: protocol.curve(s, pairs) for name, s in scores.items()}
    metrics = {"edc_area": quality.excess_area(curves["length"], protocol.limit)}
    metrics = protocol.measures(lengths, test, pairs) if rendered else metrics
    metrics["edc_area_random"] = quality.excess_area(curves["random"], protocol.limit)
    metrics |= tar_metrics(features, test.people)
    metrics |= template_rates(features, test.people, images, seed)
    metrics["accuracy"] = accuracy_1v1(features, pairs, seed)
    metrics |= {"length_mean": float(lengths.mean()), "length_std": float(lengths.std())}
    figures = {}
    if rendered:
        metrics["recognisable"] = quality.spearman(lengths, own_cosine(pairs, len(lengths)))
        figures["Lengths by degradation"] = lengths_figure(lengths, test)
        figures["Length over strength of the degradation"] = fault_figure(lengths, test)
    figures["Error over discarded"] = edc_figure(curves, protocol.start)
    return Report(
        metrics,
        figures=figures,
        images={"From the shortest to the longest": ranked(lengths, test.images)},
        arrays={"embeddings": features, "labels": test.people},
        notes=CONVENTION,
    )


def verify_packs(packs: str, image_size: int, embed: Callable[[np.ndarray], np.ndarray]) -> Report:
    """The reference's evaluation of InsightFace's .bin packs: raw embeddings, no mirror image, centred."""
    metrics, arrays = {}, {}
    for name, images, same in read_packs(packs, image_size):
        features = embed(images)
        metrics[f"{name}_accuracy"] = verification.kfold_accuracy_centered(features[::2], features[1::2], same).mean
        arrays[f"{name}_embeddings"] = features
    return Report(metrics, arrays=arrays)


def own_cosine(pairs: Pairs, count: int) -> np.ndarray:
    """Mean cosine [N] of each of `count` images with the others of its person."""
    ends = np.concatenate([pairs.first[pairs.same], pairs.second[pairs.same]])
    cosine = np.tile(np.cos(np.pi * pairs.distance[pairs.same]), 2)
    return np.bincount(ends, cosine, count) / np.bincount(ends, minlength=count)


def template_rates(features: np.ndarray, people: np.ndarray, images: int, seed: int, far: float = 1e-3) -> dict:
    """TAR of all pairs of templates of `images` random images of a person each, by both poolings of the paper."""
    order = np.random.default_rng(seed).permutation(len(people))
    order = order[np.argsort(people[order], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(people[order], people[order])
    names = np.unique(np.stack([people[order], place // images]), axis=1, return_inverse=True)
    subjects, templates = names[0][0], names[1].ravel()
    rates = {}
    for name, pooling in (("plain", "magface"), ("weighted", "magface+")):
        pooled, _ = template.template_features(features[order], templates, np.arange(len(order)), pooling)
        rates[f"template_{name}"] = float(verification.all_pairs_tar(pooled, subjects, far)[0])
    return rates


def accuracy_1v1(features: np.ndarray, pairs: Pairs, seed: int, most: int = 3000) -> float:
    """Ten-fold accuracy as the reference has it, of as many genuine as impostor pairs drawn at random."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same)]
    each = min(most, *map(len, groups))
    chosen = rng.permutation(np.concatenate([rng.choice(group, each, replace=False) for group in groups]))
    left, right = features[pairs.first[chosen]], features[pairs.second[chosen]]
    return verification.kfold_accuracy_centered(left, right, pairs.same[chosen]).mean


def lengths_figure(lengths: np.ndarray, test: Faces) -> Any:
    """Histograms of lengths: undegraded images, and those with a weak and a strong degradation of each kind."""
    figure, axes = new_figure(11, 2.6, 1, len(FAULTS))
    span = (lengths.min(), lengths.max())
    for kind, axis in enumerate(axes):
        strong = test.fault > 0.5
        groups = {
            "none": test.kind == -1,
            "weak": (test.kind == kind) & ~strong,
            "strong": (test.kind == kind) & strong,
        }
        for name, rows in groups.items():
            axis.hist(lengths[rows], bins=25, range=span, density=True, histtype="step", lw=1.5, label=name)
        axis.set(title=FAULTS[kind], xlabel="length", yticks=[])
    axes[0].legend(frameon=False, fontsize=8)
    return figure
