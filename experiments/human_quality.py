"""Human face quality: comparisons by many workers are completed to scores, and a regression predicts these for faces.

    python -m experiments.human_quality                                      # rendered faces, simulated workers
    python -m experiments.human_quality --config=matcher                     # scores of a matcher as the target
    python -m experiments.human_quality --config=sharpness                   # or: exposure, contrast, light_symmetry,
                                                                             # frontality, eye_distance
    python -m experiments.human_quality --config=lfw --config.data.path=DIR --config.recogniser.weights=r50.pth \
        --config.comparisons.path=answers.csv        # worker,better,worse; the last two "person/file.jpg"

Paper: discarding the faces of lowest quality reduces the FNMR of a commercial and a network matcher by 13 % or more at
an FMR of 1 %.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from facejax.data import sources
from facejax.data.quality_faces import Faces, QualityFaces
from facejax.data.readers import tables
from facejax.evaluate.quality import QualityProtocol, measure
from facejax.metrics import quality
from facejax.quality import factors, human_quality
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.train import Experiment, Options, Report, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(QualityFaces()),
    "recogniser": asdict(Recogniser()),
    "score": "human",  # "human" or "matcher" (learnt targets), or one of `MEASURES`
    "comparisons": {
        "path": "",  # a CSV of answers with the columns worker, better and worse; empty simulates workers
        "workers": 30,  # simulated workers
        "pairs": 300,  # comparisons by each
        "noise": 0.3,  # scale of the logistic error of one answer, in standard deviations of the true quality
        "preference": 0.3,  # standard deviation of a worker's own rating of each face, in the same unit
    },
    "completion": {
        "rank": 2,  # of the matrix of what workers differ in
        "penalty": 1e-3,  # weight of the sum of squares
        "steps": 500,  # of Adam
    },
    "regression": {
        "c": 1.0,  # weight of errors in the support vector regression
        "epsilon": 0.05,  # error without a penalty, in standard deviations of the target
    },
    "train": asdict(Options(batch_size=64, steps=300)),
    "eval": asdict(QualityProtocol()),
}
PRESETS = {
    "synthetic": {},
    "matcher": {"score": "matcher"},
    "sharpness": {"score": "sharpness"},
    "exposure": {"score": "exposure"},
    "contrast": {"score": "contrast"},
    "light_symmetry": {"score": "light_symmetry"},
    "frontality": {"score": "frontality"},
    "eye_distance": {"score": "eye_distance"},
    "lfw": {
        "data": {"source": "path", "image_size": 112, "people": 4000, "test_people": 1749},
        "recogniser": PUBLISHED,
        "comparisons": {"path": "answers.csv"},
        "completion": {"rank": 10},
    },
}
CLAIM = Claim(
    "human_quality.regression",
    "workers' comparisons of other faces, regressed on an embedding, rank face quality better than hand-made measures",
    metric="aoc",
    better="higher",
    method="synthetic",
    baseline=("sharpness", "exposure", "contrast", "light_symmetry", "frontality", "eye_distance"),
)


MEASURES = (*factors.IMAGE_MEASURES, *factors.LANDMARK_MEASURES)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the evaluation; this experiment has no training loop."""
    if config.score not in ("human", "matcher", *MEASURES):
        raise ValueError(f"score is {config.score!r}: expected 'human', 'matcher' or one of {', '.join(MEASURES)}")
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    recogniser = Recogniser(**config.recogniser)

    def human(known: Faces) -> np.ndarray:
        given, key = answers(known, config.seed, **config.comparisons), jax.random.key(config.seed)
        ratings = human_quality.complete_ratings(key, given, len(known.people), **config.completion)
        return human_quality.human_quality(ratings)

    def evaluate(_: Any) -> Report:
        test, evaluator = data.load("test"), recogniser.evaluator(**data.view)
        if config.score in factors.IMAGE_MEASURES:
            return protocol.assess(measure(factors.IMAGE_MEASURES[config.score], test.images), test, evaluator)
        if config.score in factors.LANDMARK_MEASURES:
            scores = factors.LANDMARK_MEASURES[config.score](test.landmarks)
            return protocol.assess(np.asarray(scores), test, evaluator)
        known, embed = data.load("train"), recogniser.embedder(config.seed, **data.view)
        features = embed(known.images)
        targets = human(known) if config.score == "human" else matcher(features, known.people)
        scores = regress(features, targets, embed(test.images), **config.regression)
        report = protocol.assess(scores, test, evaluator, {"targets": targets})
        if np.isfinite(known.fault).all():
            rated = np.isfinite(targets)
            report.metrics["target_correlation"] = quality.spearman(targets[rated], -known.fault[rated])
        return report

    return Experiment(evaluate)


def answers(known: Faces, seed: int, path: str, **simulation: float) -> human_quality.Comparisons:
    """Comparisons of images: read from a CSV, whose names are `sources.names`, or by simulated workers.

    The true quality of the simulation falls with the strength of the degradation and with half the absolute yaw.
    """
    if path:
        rows = tables.read(path, ("worker", "better", "worse"))
        return human_quality.comparisons(rows, sources.names(known.images))
    truth = -known.fault - 0.5 * np.abs(known.yaw)
    if not truth.std() > 0:
        raise ValueError("the quality of these images is unknown: expected a CSV of answers in comparisons.path")
    return human_quality.simulate(np.random.default_rng(seed), (truth - truth.mean()) / truth.std(), **simulation)


def matcher(features: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Matcher quality values [N]; the gallery image of a person is the one with the longest embedding."""
    length = np.linalg.norm(features, axis=1)
    order = np.lexsort((-length, people))
    first = order[np.r_[True, np.diff(people[order]) > 0]]
    return human_quality.matcher_quality(features, people, first[people])


def regress(features: np.ndarray, targets: np.ndarray, new: np.ndarray, c: float, epsilon: float) -> np.ndarray:
    """Support vector regression with a Gaussian kernel from features [N, D] to targets [N]; predictions for [M, D].

    Rows whose target is NaN are left out; targets are divided by their standard deviation.
    """
    from sklearn.pipeline import make_pipeline  # takes a second to import
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    rated = np.isfinite(targets)
    machine = make_pipeline(StandardScaler(), SVR(C=c, epsilon=epsilon))
    return machine.fit(features[rated], targets[rated] / targets[rated].std()).predict(new)


if __name__ == "__main__":
    app.main(get_config, build)
