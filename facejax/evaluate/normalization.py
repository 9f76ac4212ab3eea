"""Normalised faces made from photographs of held-out people, beside the true ones and the mean face."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from facejax.data.normal_faces import People
from facejax.metrics import landmarks as metrics
from facejax.ops.vectors import unit_rows
from facejax.train import Report, image_grid

Embed = Callable[[np.ndarray], np.ndarray]
SHOWN, PHOTOGRAPHS = 8, 3


def spread(outputs: np.ndarray, person: np.ndarray) -> tuple[float, float]:
    """Variance of outputs within people and across them.

    Args:
      outputs: [N, ...] of N photographs.
      person: [N] int, whose.

    Returns:
      The mean squared distance from the mean output of the same person, and that of the people's means from their own
      mean, each of one number.
    """
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    names, which = np.unique(person, return_inverse=True)
    means = np.stack([flat[which == i].mean(0) for i in range(len(names))])
    return float(np.mean((flat - means[which]) ** 2)), float(np.mean((means - means.mean(0)) ** 2))


def cosines(embed: Embed, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N] cosines of the embeddings of images [N, S, S, 3]."""
    return np.sum(unit_rows(embed(first)) * unit_rows(embed(second)), -1)


def assess(
    people: People,
    outputs: np.ndarray,
    landmarks: np.ndarray,
    of_means: np.ndarray,
    mean_face: np.ndarray,
    mean_landmarks: np.ndarray,
    recogniser: Embed,
    independent: Embed | None = None,
) -> Report:
    """Errors of normalised faces, what is left of the identity, and how little the photograph matters.

    Args:
      people: held out.
      outputs: [N, S, S, 3] uint8 of their photographs.
      landmarks: [N, 68, 2] in the outputs, pixels.
      of_means: [P, S, S, 3] uint8 of the mean features of each person's photographs.
      mean_face, mean_landmarks: [S, S, 3] and [68, 2] of the training people, the baseline.
      recogniser: the network of the features, images -> embeddings.
      independent: a recogniser that took no part in training the decoder.
    """
    truth = people.images[people.person].astype(np.float64)
    true_landmarks = people.landmarks[people.person]
    sizes = metrics.face_sizes(true_landmarks, "inter_ocular")
    constant = np.broadcast_to(mean_landmarks, true_landmarks.shape)
    within, across = spread(outputs, people.person)
    photographs_within, photographs_across = spread(people.photographs, people.person)
    found = {
        "mae": float(np.abs(outputs - truth).mean()),
        "mae_of_means": float(np.abs(of_means - people.images.astype(np.float64)).mean()),
        "mae_mean_face": float(np.abs(mean_face - truth).mean()),
        "nme": 100 * float(metrics.normalized_mean_error(landmarks, true_landmarks, sizes).mean()),
        "nme_mean_face": 100 * float(metrics.normalized_mean_error(constant, true_landmarks, sizes).mean()),
        "identity_cosine": float(cosines(recogniser, outputs, people.photographs).mean()),
        "identity_cosine_truth": float(cosines(recogniser, truth.astype(np.uint8), people.photographs).mean()),
    }
    if independent is not None:
        found["independent_cosine"] = float(cosines(independent, outputs, people.photographs).mean())
        found["independent_cosine_truth"] = float(
            cosines(independent, truth.astype(np.uint8), people.photographs).mean()
        )
    found |= {
        "variance_ratio": within / max(across, 1e-12),
        "variance_ratio_photographs": photographs_within / max(photographs_across, 1e-12),
    }
    return Report(
        found,
        images={
            "Photographs, their normalised faces, that of their mean features, the true one": rows(
                people, outputs, of_means
            )
        },
        arrays={"outputs": outputs, "landmarks": landmarks, "person": people.person},
        notes={
            "mae": "mean absolute error of the outputs, grey levels of 255; of_means: of mean features, mean_face: of "
            "the mean of the training faces",
            "nme": "mean landmark error, percent of the distance between the outer corners of the eyes",
            "identity_cosine": "of the recogniser's embeddings of output and photograph; truth: the true normalised "
            "face in place of the output; independent: of a recogniser that took no part",
            "variance_ratio": "variance of a person's outputs over that of the people's mean outputs; photographs: of "
            "the inputs",
        },
    )


def rows(people: People, outputs: np.ndarray, of_means: np.ndarray) -> np.ndarray:
    """A row for each of some people: photographs, their outputs, the output of the mean features, the true face."""
    shown = []
    count = len(people.images)
    for person in np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int):
        mine = np.resize(np.flatnonzero(people.person == person), PHOTOGRAPHS)
        shown += [*people.photographs[mine], *outputs[mine], of_means[person], people.images[person]]
    return image_grid(np.stack(shown), 2 * PHOTOGRAPHS + 2)
