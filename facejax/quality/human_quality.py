"""Face quality from comparisons by people or from a matcher's scores: targets of a regression.

Best-Rowden & Jain. "Learning face image quality from human assessments". TIFS 2018. arXiv:1706.09887. Workers choose
the better of two faces; each worker's ratings of all faces are completed as a matrix of low rank; a support vector
regression on a face embedding predicts the ratings of a new face.

Differs from the paper: the completion is a logistic model (Bradley-Terry with a matrix of low rank) fitted by Adam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from facejax.ops import vectors


class Comparisons(NamedTuple):
    """Answers of workers.

    Attributes:
      worker, first, second: [P] int, indices of a worker and of two faces.
      better: [P] bool, whether the worker chose the first.
    """

    worker: np.ndarray
    first: np.ndarray
    second: np.ndarray
    better: np.ndarray


def simulate(
    rng: np.random.Generator, quality: np.ndarray, *, workers: int, pairs: int, noise: float, preference: float
) -> Comparisons:
    """Comparisons of faces of known quality by simulated workers.

    Args:
      rng: of all draws.
      quality: [N] true values, of standard deviation about 1.
      workers, pairs: number of workers, and of comparisons by each.
      noise: scale of the logistic error of one answer.
      preference: standard deviation of each worker's own rating of each face.
    """
    ratings = quality + preference * rng.normal(size=(workers, len(quality)))
    worker = np.repeat(np.arange(workers), pairs)
    first = rng.integers(0, len(quality), workers * pairs)
    second = (first + rng.integers(1, len(quality), workers * pairs)) % len(quality)
    lead = ratings[worker, first] - ratings[worker, second]
    return Comparisons(worker, first, second, lead + noise * rng.logistic(size=len(worker)) > 0)


def comparisons(rows: Sequence[tuple[str, Mapping[str, str]]], names: Sequence[str]) -> Comparisons:
    """Comparisons from lines of a table.

    Args:
      rows: position of each line, and its fields "worker", "better" and "worse"; the last two are names of images.
      names: [N] of all images.

    Raises:
      ValueError: an image is unknown or compared with itself; the message names the line.
    """
    place = {name: i for i, name in enumerate(names)}
    workers: dict[str, int] = {}
    found = []
    for where, row in rows:
        if row["better"] not in place or row["worse"] not in place or row["better"] == row["worse"]:
            raise ValueError(f"{where}: {row['better']!r} and {row['worse']!r}: expected two known images")
        worker = workers.setdefault(row["worker"], len(workers))
        found.append((worker, place[row["better"]], place[row["worse"]]))
    worker, first, second = np.array(found).T
    return Comparisons(worker, first, second, np.ones(len(found), bool))


def complete_ratings(
    rng: jax.Array,
    answers: Comparisons,
    faces: int,
    *,
    rank: int = 2,
    penalty: float = 1e-3,
    steps: int = 500,
    learning_rate: float = 0.05,
) -> np.ndarray:
    """Ratings [W, N] of all faces by all workers: a common rating of each face plus a matrix of low rank.

    P(a better than b | w) = sigmoid(r_wa - r_wb); the mean log-likelihood less the penalty on all factors is maximised.

    Args:
      rng: of the initialisation.
      answers: over W workers.
      faces: N.
      rank: of the matrix in which workers differ.
      penalty: on the sum of squares, for each answer's likelihood.
      steps, learning_rate: of Adam.
    """
    workers = int(answers.worker.max()) + 1
    sign = jnp.where(jnp.asarray(answers.better), 1.0, -1.0)
    worker, first, second = (jnp.asarray(x) for x in answers[:3])
    keys = jax.random.split(rng)
    params = {
        "common": jnp.zeros(faces),
        "worker": 0.1 * jax.random.normal(keys[0], (workers, rank)),
        "face": 0.1 * jax.random.normal(keys[1], (faces, rank)),
    }
    tx = optax.adam(learning_rate)

    def loss(p: dict[str, jax.Array]) -> jax.Array:
        lead = p["common"][first] - p["common"][second]
        lead += jnp.sum(p["worker"][worker] * (p["face"][first] - p["face"][second]), 1)
        squares = sum(jnp.sum(x * x) for x in jax.tree.leaves(p))
        return -jax.nn.log_sigmoid(sign * lead).mean() + penalty * squares / len(worker)

    def step(carry: tuple, _: None) -> tuple:
        params, opt = carry
        updates, opt = tx.update(jax.grad(loss)(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    params = jax.jit(lambda p: lax.scan(step, (p, tx.init(p)), None, steps)[0][0])(params)
    return np.asarray(params["common"] + params["worker"] @ params["face"].T)


def human_quality(ratings: np.ndarray) -> np.ndarray:
    """Human quality values [N] in 0..1: the median over workers of ratings [W, N], each worker's min-max scaled."""
    low, span = ratings.min(1, keepdims=True), np.ptp(ratings, axis=1)[:, None]
    if (span == 0).any():
        raise ValueError(
            f"worker {int(np.flatnonzero(span[:, 0] == 0)[0])} gives all faces the same rating: expected different ones"
        )
    return np.median((ratings - low) / span, axis=0).astype(np.float32)


def matcher_quality(features: np.ndarray, people: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Matcher quality values [N]: z-score of the similarity to the gallery image under the impostor similarities.

    Args:
      features: [N, D], of any length.
      people: [N] int.
      gallery: [N] index of each face's gallery image.

    Returns:
      z = (s - mean) / deviation, mean and deviation of the face's cosines to all images of other people; NaN for
      gallery images and where the impostors' cosines do not vary.
    """
    unit = vectors.unit_rows(features)
    mean, deviation = np.empty(len(unit)), np.empty(len(unit))
    for first in range(0, len(unit), 1024):
        rows = slice(first, first + 1024)
        cosine, other = unit[rows] @ unit.T, people[rows, None] != people
        count = np.maximum(other.sum(1), 1)
        mean[rows] = np.sum(cosine * other, 1) / count
        deviation[rows] = np.sqrt(np.sum((cosine - mean[rows, None]) ** 2 * other, 1) / count)
    own = gallery == np.arange(len(people))
    genuine = np.sum(unit * unit[gallery], 1)
    valid = ~own & (deviation > 1e-6)
    return np.where(valid, (genuine - mean) / np.where(valid, deviation, 1.0), np.nan)
