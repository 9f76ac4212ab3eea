"""How well a quality score of faces predicts the errors of a recogniser that it was not fitted to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from facejax.data import normalize
from facejax.data.quality_faces import FAULTS, Faces
from facejax.data.sources import Images
from facejax.metrics import quality
from facejax.ops import vectors
from facejax.quality import factors
from facejax.train import Report, image_grid, map_batches, new_figure


class Pairs(NamedTuple):
    """Pairs of images: rows [P] of both, angular distance [P] as a share of pi, whether the person is the same."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    same: np.ndarray


@dataclasses.dataclass(frozen=True)
class QualityProtocol:
    """The `eval` section of a quality experiment.

    Attributes:
      batch_size: images a call.
      fmr: false match rate at which curve B (FNMR over discarded pairs) is taken, 0..1.
      start: FNMR at which curve A begins, 0..1.
      limit: share of pairs up to which areas under curves are taken, 0..1.
      pairs: impostor pairs at most; where all pairs are more, they are drawn at random.
    """

    batch_size: int = 128
    fmr: float = 1e-2
    start: float = 0.05
    limit: float = 0.3
    pairs: int = 5_000_000

    def compare(self, features: np.ndarray, people: np.ndarray) -> Pairs:
        """Pairs of images with embeddings [N, D] of any length, of `people` [N]."""
        return compare(features, people, *choose_pairs(people, self.pairs))

    def measures(self, scores: np.ndarray, test: Faces, pairs: Pairs) -> dict[str, float]:
        """The numbers of a score [N].

        "aoc" (curve B at `fmr`; higher is better) and "partial_auc" (mean error of that curve up to `limit`, over its
        first; lower is better; neither where no pair is rejected to begin with), "edc_area" (curve A from `start` up to
        `limit`, above the theoretical best; lower is better) and, where degradations are known, rank correlations with
        their absence and with a frontal pose.
        """
        low = quality.pair_quality(scores[pairs.first], scores[pairs.second])
        curve = quality.fnmr_discard_curve(pairs.distance, pairs.same, low, self.fmr)
        found = {}
        if curve.errors[0] > 0:
            found["aoc"] = quality.area_over_curve(curve)
            found["partial_auc"] = quality.relative_partial_area(curve, self.limit)
        found["edc_area"] = quality.excess_area(self.curve(scores, pairs), self.limit)
        if np.isfinite(test.fault).all():
            found["fault_correlation"] = quality.spearman(scores, -test.fault)
        if np.isfinite(test.yaw).all():
            found["yaw_correlation"] = quality.spearman(scores, -np.abs(test.yaw))
        return found

    def curve(self, scores: np.ndarray, pairs: Pairs) -> quality.DiscardCurve:
        """Curve A of a score [N] over the genuine pairs."""
        same = pairs.same
        low = quality.pair_quality(scores[pairs.first[same]], scores[pairs.second[same]])
        similarity = -pairs.distance[same]
        return quality.error_discard_curve(similarity, low, quality.starting_threshold(similarity, self.start))

    def assess(
        self,
        scores: np.ndarray,
        test: Faces,
        embed: Callable[[Any, int], np.ndarray],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> Report:
        """The report of a score.

        Args:
          scores: [N] of `test`.
          test: faces of people that nothing was trained on.
          embed: (images, batch size) -> embeddings [N, D], of the recogniser whose errors count.
          arrays: for the report.

        Raises:
          ValueError: scores of another shape, or not finite.
        """
        if scores.shape != test.people.shape or not np.isfinite(scores).all():
            raise ValueError(f"scores of shape {scores.shape}: expected {test.people.shape}, all finite")
        pairs = self.compare(embed(test.images, self.batch_size), test.people)
        others = baseline_scores(test)
        rendered = bool(np.isfinite(test.fault).all())
        if rendered:
            others["true fault"] = -test.fault
        curves = {name: self.curve(s, pairs) for name, s in {"this": scores, **others}.items()}
        figures = {"Error over discarded": edc_figure(curves, self.start)}
        if rendered:
            figures["Score over fault"] = fault_figure(scores, test)
        return Report(
            self.measures(scores, test, pairs),
            figures=figures,
            images={"From the lowest score to the highest": ranked(scores, test.images)},
            arrays={"scores": scores, **(arrays or {})},
        )


def compare(features: np.ndarray, people: np.ndarray, first: np.ndarray, second: np.ndarray) -> Pairs:
    """Compares images at rows `first` [P] with those at `second` [P], by embeddings [N, D] of any length."""
    unit, block = vectors.unit_rows(features), 1 << 17
    parts = [(first[i : i + block], second[i : i + block]) for i in range(0, len(first), block)]
    cosine = np.concatenate([np.einsum("pd,pd->p", unit[a], unit[b]) for a, b in parts])
    return Pairs(first, second, np.arccos(np.clip(cosine, -1, 1)) / np.pi, people[first] == people[second])


def choose_pairs(people: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of images of `people` [N] or, where these are more than `most`, the genuine and `most` random ones."""
    count = len(people)
    if count * (count - 1) // 2 <= most:
        return np.triu_indices(count, 1)
    groups = [np.flatnonzero(people == person) for person in np.unique(people)]
    genuine = np.concatenate([rows[np.stack(np.triu_indices(len(rows), 1))] for rows in groups], 1)
    drawn = np.random.default_rng(0).integers(0, count, (2, most))
    return tuple(np.concatenate([genuine, drawn[:, people[drawn[0]] != people[drawn[1]]]], 1))


def score(net: nn.Module, variables: Any, images: np.ndarray | Images, batch_size: int) -> np.ndarray:
    """Scores [N] of images [N, S, S, 3] uint8 by a network (images -1..1, train) -> [N]."""

    def one(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"score": net.apply(variables, normalize.symmetric(images), train=False)}

    return map_batches(one, variables, images, batch_size)["score"]


def baseline_scores(test: Faces, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores [N] without learning: random numbers and sharpness."""
    return {
        "random": np.random.default_rng(seed).random(len(test.people)),
        "sharpness": measure(factors.sharpness, test.images),
    }


def measure(function: Callable[[jax.Array], jax.Array], images: np.ndarray | Images) -> np.ndarray:
    """A measure of `facejax.quality.factors` of all images, [N]."""
    return map_batches(lambda _, batch: {"value": function(batch)}, {}, images, 256)["value"]


def min_max(values: np.ndarray) -> np.ndarray:
    """Values [N] scaled to 0..1; all 0 where they are equal."""
    return (values - values.min()) / (np.ptp(values) or 1)


def edc_figure(curves: Mapping[str, quality.DiscardCurve], start: float) -> Any:
    """FNMR over the share of genuine pairs discarded, one line a score; curves begin at an FNMR of `start`."""
    from matplotlib import colormaps  # takes a while to import

    figure, axis = new_figure(7, 3.6)
    plain = {"random": "0.7", "sharpness": "0.5", "true fault": "black"}
    own = [name for name in curves if name not in plain]
    palette = [c for c in colormaps["tab10" if len(own) < 10 else "tab20"].colors if np.ptp(c) > 0.1]  # no greys
    colours = dict(zip(own, palette, strict=False))
    for name, curve in curves.items():
        style = {"color": plain[name], "ls": "--", "lw": 1.2} if name in plain else {"color": colours[name], "lw": 1.6}
        axis.step(curve.discarded, curve.errors, where="post", label=name, **style)
    axis.set(xlabel="share of genuine pairs discarded", ylabel="false non-match rate", xlim=(0, 0.8))
    axis.set_ylim(0, 2 * start)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def fault_figure(scores: np.ndarray, test: Faces, kinds: tuple[str, ...] = FAULTS) -> Any:
    """One panel for each degradation: score over its strength, with undegraded images at 0."""
    figure, axes = new_figure(2.2 * len(kinds), 2.6, 1, len(kinds))
    for kind, axis in enumerate(axes):
        for rows, colour in ((test.kind == -1, "lightgrey"), (test.kind == kind, None)):
            axis.plot(test.fault[rows], scores[rows], ".", ms=3, color=colour)
        axis.set_xlabel(kinds[kind])
        axis.tick_params(labelleft=kind == 0)
        if kind:
            axis.sharey(axes[0])
    axes[0].set_ylabel("score")
    return figure


def ranked(scores: np.ndarray, images: np.ndarray | Images, rows: int = 5, columns: int = 12) -> np.ndarray:
    """A grid of images, row by row from the lowest score to the highest, evenly spread over the ranks."""
    count = min(rows * columns, len(scores))
    places = np.linspace(0, len(scores) - 1, count).astype(int)
    return image_grid(images[np.argsort(scores, kind="stable")[places]], columns)
