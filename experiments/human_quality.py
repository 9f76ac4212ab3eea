"""Human face quality: comparisons by many workers are completed to scores, and a regression tells them for new faces.

    python -m experiments.human_quality                                      # rendered faces, simulated workers
    python -m experiments.human_quality --config=matcher                     # a matcher's scores are learnt instead
    python -m experiments.human_quality --config=sharpness                   # or: exposure, contrast, light_symmetry,
                                                                             # frontality, eye_distance
    python -m experiments.human_quality --config=lfw --config.data.path=DIR --config.recogniser.weights=r50.pth \
        --config.comparisons.path=answers.csv        # worker,better,worse; the last two "person/file.jpg"

Paper: dropping the worst faces lowers the FNMR of a commercial and a network matcher by 13 % or more at an FMR of 1 %.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import quality_common as common
from facejax.data.readers import tables
from facejax.metrics import quality
from facejax.quality import factors, human_quality
from facejax.train import Experiment, Report, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "score": "human",  # or "matcher", or one of `MEASURES`
    "comparisons": {"path": "", "workers": 30, "pairs": 300, "noise": 0.3, "taste": 0.3},
    "completion": {"rank": 2, "penalty": 1e-3, "steps": 500},
    "regression": {"c": 1.0, "epsilon": 0.05},
    "train": common.TRAIN,
    "eval": common.EVAL,
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
        "data": {"source": "path", "image_size": 112, "people": 4000, "judged": 1749},
        "recogniser": common.PUBLISHED,
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
    """Wires the run; nothing here needs a training loop."""
    if config.score not in ("human", "matcher", *MEASURES):
        raise ValueError(f"score is {config.score!r}: expected 'human', 'matcher' or one of {', '.join(MEASURES)}")

    def evaluate(_: Any) -> Report:
        test = common.people(config.data, "test")
        if config.score in factors.IMAGE_MEASURES:
            return common.assess(config, common.measured(factors.IMAGE_MEASURES[config.score], test.images))
        if config.score in factors.LANDMARK_MEASURES:
            return common.assess(config, np.asarray(factors.LANDMARK_MEASURES[config.score](test.landmarks)))
        known = common.people(config.data, "train")
        recogniser = common.recogniser(config, config.seed)
        features, unseen = recogniser(known.images), recogniser(test.images)
        targets = human(config, known) if config.score == "human" else matcher(features, known)
        report = common.assess(config, regress(config, features, targets, unseen), {"targets": targets})
        if np.isfinite(known.fault).all():
            rated = np.isfinite(targets)
            report.metrics["target_correlation"] = quality.spearman(targets[rated], -known.fault[rated])
        return report

    return Experiment(evaluate)


def human(config: ConfigDict, known: common.Faces) -> np.ndarray:
    """Human quality values [N] from answers read (pictures by `common.names`), or from simulated workers.

    These see the fault and the turn of the head.
    """
    answers = config.comparisons
    if answers.path:
        rows = tables.read(answers.path, ("worker", "better", "worse"))
        given = human_quality.comparisons(rows, common.names(known.images))
    else:
        truth = -known.fault - 0.5 * np.abs(known.yaw)
        if not truth.std() > 0:
            raise ValueError("nobody knows which pictures are better: expected a CSV of answers in comparisons.path")
        given = human_quality.simulate(
            np.random.default_rng(config.seed),
            (truth - truth.mean()) / truth.std(),
            workers=answers.workers,
            pairs=answers.pairs,
            noise=answers.noise,
            taste=answers.taste,
        )
    ratings = human_quality.complete_ratings(jax.random.key(config.seed), given, len(known.people), **config.completion)
    return human_quality.human_quality(ratings)


def matcher(features: np.ndarray, known: common.Faces) -> np.ndarray:
    """Matcher quality values [N]; the gallery picture of a person is the one with the longest embedding."""
    length = np.linalg.norm(features, axis=1)
    order = np.lexsort((-length, known.people))
    first = order[np.r_[True, np.diff(known.people[order]) > 0]]
    return human_quality.matcher_quality(features, known.people, first[known.people])


def regress(config: ConfigDict, features: np.ndarray, targets: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Support vector regression with a Gaussian kernel: targets of features [N, D], told for others [M, D]."""
    from sklearn.pipeline import make_pipeline  # takes a second to import
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    rated = np.isfinite(targets)
    machine = make_pipeline(StandardScaler(), SVR(C=config.regression.c, epsilon=config.regression.epsilon))
    scale = targets[rated].std()
    return machine.fit(features[rated], targets[rated] / scale).predict(unseen)


if __name__ == "__main__":
    app.main(get_config, build)
