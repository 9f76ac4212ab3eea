"""Node classification: scores over several trainings, linear probes of embeddings, and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from facejax.data.readers.planetoid import Citations
from facejax.graph.graphsage import micro_f1
from facejax.ops.graph import Graph
from facejax.train import new_figure


def spread(name: str, test: np.ndarray, validation: np.ndarray, epochs: np.ndarray) -> dict[str, float]:
    """Metrics of a report from R trainings: test_NAME, its standard deviation, validation_NAME and mean epochs.

    Args:
      name: of the score.
      test, validation: [R] scores.
      epochs: [R] epochs until training stopped.
    """
    return {
        f"test_{name}": float(test.mean()),
        f"test_{name}_std": float(test.std()),
        f"validation_{name}": float(validation.mean()),
        "epochs": float(epochs.mean()),
    }


def named(predictions: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The classes of predictions [N] by name, where they have names."""
    return np.array(names)[predictions] if names else predictions


def indicators(labels: np.ndarray) -> np.ndarray:
    """Labels [N] or [N, C] as [N, C] bool."""
    return labels > 0 if labels.ndim == 2 else np.eye(labels.max() + 1, dtype=bool)[labels]


def decide(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Predictions [N, C] bool from logits [N, C]: the largest one; for labels [N, C] every sigmoid above one half."""
    return logits > 0 if labels.ndim == 2 else np.eye(logits.shape[1], dtype=bool)[logits.argmax(1)]


def f1_of_splits(predicted: np.ndarray, data: Citations) -> dict[str, float]:
    """Micro-F1 of predictions [N, C] bool as test_f1, validation_f1 and train_f1."""
    truth = indicators(data.labels)
    return {f"{k}_f1": float(micro_f1(predicted, truth, getattr(data, k))) for k in ("test", "validation", "train")}


def linear_probe(features: np.ndarray, data: Citations) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression on the training nodes, its L2 strength selected by micro-F1 on the validation nodes.

    Args:
      features: [N, F] of the nodes of `data`.
      data: labels and split.

    Returns:
      features [M, F] -> predictions [M, C] bool.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    classes = indicators(data.labels).shape[1]

    def predict(model: Any, rows: np.ndarray) -> np.ndarray:
        found = model.predict(rows)
        return found > 0 if found.ndim == 2 else np.eye(classes, dtype=bool)[found]

    best, chosen = -1.0, None
    for strength in 10.0 ** np.arange(-4, 5, 2):
        model = LogisticRegression(C=strength, max_iter=300)
        model = model if data.labels.ndim == 1 else OneVsRestClassifier(model)
        model.fit(features[data.train], data.labels[data.train])
        score = f1_of_splits(predict(model, features), data)["validation_f1"]
        if score > best:
            best, chosen = score, model
    return lambda rows: predict(chosen, rows)


def principal_plane(hidden: np.ndarray, data: Citations) -> Any:
    """Figure of hidden features [N, D] in their first two principal components, coloured by class.

    Training nodes are ringed, edges are grey.
    """
    centred = hidden.astype(np.float64) - hidden.mean(0, dtype=np.float64)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    many = len(hidden) > 100
    figure, axis = new_figure(5.5, 4.5)
    ends = np.stack([plane[data.source], plane[data.destination], np.full((len(data.source), 2), np.nan)], 1)
    axis.plot(*ends.reshape(-1, 2).T, color="lightgrey", lw=0.3 if many else 1, zorder=0)
    axis.scatter(*plane.T, c=data.labels, cmap="tab10", vmax=9, s=6 if many else 60)
    axis.scatter(*plane[data.train].T, s=40 if many else 160, facecolors="none", edgecolors="black", lw=1)
    axis.set(xticks=[], yticks=[])
    return figure


def tsne(embeddings: np.ndarray, labels: np.ndarray) -> Any:
    """Figure of embeddings [N, D] by t-SNE, coloured by class [N]."""
    from sklearn.manifold import TSNE

    places = TSNE(init="pca", random_state=0).fit_transform(embeddings)
    figure, axis = new_figure(5, 4)
    axis.scatter(*places.T, s=8, c=labels, cmap="tab10")
    axis.set(xlabel="t-SNE of the hidden layer, colours are classes", xticks=[], yticks=[])
    return figure


def attention_histogram(attention: np.ndarray, graph: Graph, labels: np.ndarray) -> Any:
    """Figure of attention [E] relative to equal weights, for neighbours of the same and of another class [N]."""
    source, destination = np.asarray(graph.source), np.asarray(graph.destination)
    relative = attention * np.bincount(destination, minlength=graph.num_nodes)[destination]
    figure, axis = new_figure(5, 3)
    kinds = {"same class": labels[source] == labels[destination], "other class": labels[source] != labels[destination]}
    bins = np.linspace(0, max(2.0, float(np.quantile(relative, 0.99))), 50)
    for name, kind in kinds.items():
        axis.hist(relative[kind & (source != destination)], bins, alpha=0.6, density=True, label=name)
    axis.axvline(1, color="black", linewidth=1)
    axis.legend()
    axis.set(xlabel="attention times the number of neighbours (1: equal weights)", ylabel="density")
    return figure


def f1_bars(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Figure of "train_f1" and "test_f1" for every row's "aggregator"."""
    figure, axis = new_figure(5, 3.2)
    place = np.arange(len(rows))
    for shift, part in ((-0.2, "train_f1"), (0.2, "test_f1")):
        axis.bar(place + shift, [row[part] for row in rows], 0.4, label=part)
    axis.set_xticks(place, [row["aggregator"] for row in rows], fontsize=8)
    axis.set(ylabel="micro-F1", ylim=(0, 1.18))
    axis.legend(fontsize=7, ncols=2, loc="upper center")
    return figure
