"""Verification of sets of images of one person, pooled by weights of their images."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from facejax.data.quality_faces import Sets
from facejax.evaluate.verification import CONVENTION, tar_metrics
from facejax.quality.pooling import Weighting, set_pool
from facejax.train import Report, image_grid, new_figure


def pool(features: np.ndarray, weights: np.ndarray, size: int, weighting: Weighting) -> np.ndarray:
    """Embeddings [M, D] of sets from those [M * size, D] of their images and weights [M * size]."""
    features = jnp.asarray(features).reshape(-1, size, features.shape[-1])
    return np.asarray(set_pool(features, jnp.asarray(weights).reshape(-1, size), weighting=weighting))


def assess(features: np.ndarray, weights: np.ndarray, weighting: Weighting, test: Sets) -> Report:
    """Verifies all pairs of sets, pooled by weights and by the plain mean.

    Args:
      features: [M * T, D] embeddings of the images of `test`.
      weights: [M * T].
      weighting: of `set_pool`.
      test: sets of people that nothing was trained on.

    Returns:
      "set_tar_at_far_1e-2" first, those of the other FARs, the same as "mean_tar_at_far_" of the plain mean, and, where
      degradations are known, "clean_auc" (ROC area of the weights as a detector of images with strength 0.5 or less).
    """
    size, metrics = test.images.shape[1], {}
    for name, chosen in (("set", weights), ("mean", np.ones_like(weights))):
        metrics |= tar_metrics(pool(features, chosen, size, weighting), test.people, name + "_tar_at_far_{}")
    metrics = {"set_tar_at_far_1e-2": metrics["set_tar_at_far_1e-2"], **metrics}
    figures = {}
    if np.isfinite(test.fault).all() and np.ptp(weights) > 0:
        from sklearn.metrics import roc_auc_score  # takes a second to import

        metrics["clean_auc"] = float(roc_auc_score(test.fault.ravel() <= 0.5, weights))
        figure, axis = new_figure(5, 3)
        axis.plot(test.fault.ravel(), weights, ".", ms=3)
        axis.set(xlabel="fault", ylabel="weight")
        figures["Weight over fault"] = figure
    order = np.argsort(-weights.reshape(-1, size), 1)[:8]
    shown = np.take_along_axis(test.images[:8], order[:, :, None, None, None], 1)
    return Report(
        metrics,
        figures=figures,
        images={"Sets, from the heaviest image to the lightest": image_grid(shown.reshape(-1, *shown.shape[2:]), size)},
        arrays={"features": features, "weights": weights},
        notes=CONVENTION,
    )
