"""Top-1 and top-5 accuracy of classifiers, linear SVMs on their features, and figures of their mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data import normalize, pipeline
from facejax.data.classification import LabelledImages
from facejax.data.pipeline import Source
from facejax.metrics.classification import top_k_correct
from facejax.train import Report, image_grid, map_batches, new_figure
from facejax.train.dry_run import count, multiply_adds


def report(
    net: Any,
    variables: Any,
    source: Source,
    data: LabelledImages,
    *,
    batch_size: int,
    preprocess: Callable[[jax.Array], jax.Array] = normalize.symmetric,
) -> Report:
    """Accuracy of a network on labelled images, its cost, ranks of the true classes and the most confident mistakes.

    Args:
      net, variables: the network, (images, train=) -> logits [N, C].
      source: images with "label".
      data: how the images are cropped, and C.
      batch_size: images a call.
      preprocess: uint8 [N, H, W, 3] -> the network's input.
    """

    def load(rows: Sequence[int]) -> dict[str, np.ndarray]:
        return data.test_batch(pipeline.fetch(source, rows))

    def predict(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits = net.apply(variables, preprocess(batch["image"]), train=False)
        probability = jax.nn.softmax(logits)
        truth = jnp.take_along_axis(probability, batch["label"][:, None], 1)
        return {
            "rank": jnp.sum(probability > truth, 1),
            "guess": probability.argmax(1),
            "probability": probability.max(1),
            "label": batch["label"],
            "top1": top_k_correct(logits, batch["label"]),
            "top5": top_k_correct(logits, batch["label"], min(5, data.classes)),
        }

    found = map_batches(predict, variables, range(len(source)), batch_size, load)
    metrics = {
        "accuracy": 100 * float(found["top1"].mean()),
        "top5_accuracy": 100 * float(found["top5"].mean()),
        "million_multiply_adds": multiply_adds(net, variables, data.image_size),
        "million_parameters": count(variables["params"]) / 1e6,
    }
    return Report(
        metrics,
        figures={"Images whose true class is among the k most probable": rank_figure(found["rank"], data.classes)},
        images=mistakes(lambda rows: load(rows)["image"], found["guess"], found["label"], found["probability"]),
        arrays={name: found[name] for name in ("guess", "label", "probability")},
    )


def rank_figure(ranks: np.ndarray, classes: int) -> Any:
    """Share of the images whose true class is among the k most probable, over k. Ranks [N] count from 0."""
    figure, axis = new_figure(5, 3.2)
    k = np.arange(1, min(classes, 20) + 1)
    axis.plot(k, [100 * np.mean(ranks < n) for n in k], marker="o", markersize=3)
    axis.set(xlabel="k", ylabel="true class among the first k, %", ylim=(0, 101), xticks=k[::2])
    return figure


def confusion_figure(scores: np.ndarray, labels: np.ndarray) -> Any:
    """True against predicted classes, and a histogram of the classes' accuracies, of scores [N, C] and labels [N]."""
    classes, predicted = scores.shape[1], scores.argmax(1)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels, predicted), 1)
    figure, (left, right) = new_figure(9, 3.8, 1, 2)
    left.imshow(counts, cmap="magma_r")
    left.set(xlabel="predicted", ylabel="true class")
    left.grid(False)
    right.hist(100 * counts.diagonal() / np.maximum(counts.sum(1), 1), bins=np.linspace(0, 100, 13))
    right.set(xlabel="accuracy of a class, %", ylabel="classes")
    return figure


def mistakes(
    load: Callable[[Sequence[int]], np.ndarray],
    guess: np.ndarray,
    label: np.ndarray,
    confidence: np.ndarray,
    columns: int = 10,
) -> dict[str, np.ndarray]:
    """The most confident wrong predictions, each above an image of the predicted class.

    Args:
      load: rows -> their images [n, H, W, 3] uint8.
      guess, label: [N] int, predicted and true classes.
      confidence: [N], by which mistakes are ordered.
      columns: mistakes shown at most; those of a class that no image has are left out.

    Returns:
      {title: image}, empty where there is no mistake.
    """
    wrong = [i for i in np.argsort(-confidence, kind="stable") if guess[i] != label[i] and guess[i] in label][:columns]
    if not wrong:
        return {}
    examples = [int(np.flatnonzero(label == guess[i])[0]) for i in wrong]
    grid = image_grid(load([*wrong, *examples]), len(wrong))
    return {"Most confident mistakes, each above an image of the predicted class": grid}


def svm_scores(known: np.ndarray, labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Scores of one-against-all linear SVMs (C = 1) by the protocol of bilinear CNNs (Sec. 4).

    The SVMs are solved in the Gram matrix, because descriptors are longer than data sets are large. Each one is shifted
    and scaled so that on its training set the median negative scores 0 and the median positive 1.

    Args:
      known: [M, D] descriptors to train on.
      labels: [M] int, 0..C-1.
      features: [N, D] descriptors to score.

    Returns:
      [N, C].
    """
    from sklearn.svm import SVC

    gram, cross, scores = known @ known.T, features @ known.T, []
    for label in range(labels.max() + 1):
        positive = labels == label
        machine = SVC(kernel="precomputed", C=1.0).fit(gram, positive)
        own = machine.decision_function(gram)
        low, high = np.median(own[~positive]), np.median(own[positive])
        scores.append((machine.decision_function(cross) - low) / (high - low))
    return np.stack(scores, 1)
