"""Training of what weighs the images of a set: the triplet loss of pooled sets (QAN)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facejax.data import transforms
from facejax.data.quality_faces import QualityFaces
from facejax.evaluate import sets as set_evaluation
from facejax.evaluate.quality import QualityProtocol
from facejax.quality.pooling import Weighting, set_pool
from facejax.quality.qan import set_triplet_loss
from facejax.recipes.recogniser import Recogniser
from facejax.train import Mean, Report, TrainState, map_batches, supervised_step


@dataclasses.dataclass(frozen=True)
class SetOptions:
    """The `sets` section.

    Attributes:
      size: images in a set.
      margin: of the triplet loss, on squared distances of pooled embeddings.
    """

    size: int = 8
    margin: float = 1.2


class Weighed(NamedTuple):
    """What a network makes of images [N, ...]: embeddings [N, D], weights [N], logits of people [N, C] or None."""

    features: jax.Array
    weights: jax.Array
    logits: jax.Array | None


Apply = Callable[[Any, Any, jax.Array, bool, Any], tuple[Weighed, Any]]


def training(
    data: QualityFaces,
    sets: SetOptions,
    init: Callable[..., tuple[Any, Any]],
    apply: Apply,
    tx: optax.GradientTransformation,
    weighting: Weighting,
    *,
    batch_size: int,
    seed: int,
    microbatches: int = 1,
    prepare: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """The parts of an `Experiment` that trains pooling: triplets of sets and, with logits, softmax of every image.

    Args:
      data, sets: where sets come from.
      init: (key, what `prepare` gave or None) -> (params, model_state).
      apply: (params, model_state, images [N, S, S, 3] uint8, train, rng) -> (`Weighed`, model_state).
      tx: the optimizer.
      weighting: of `set_pool`.
      batch_size: sets a step on all devices; even, two of every person.
      seed: of the batches.
      microbatches: see `supervised_step`.
      prepare: see `Experiment`.
    """
    size, pixels = sets.size, data.image_size
    if batch_size % 2:
        raise ValueError(f"train.batch_size is {batch_size} sets: expected an even number, two sets of every person")

    def begin(rng: jax.Array, start: Any = None) -> TrainState:
        params, model_state = init(rng, start)
        return TrainState.create(rng, params, tx, model_state=model_state)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        images, meet = batch["image"], len(batch["person"])
        if meet < 4 or meet % 2:
            raise ValueError(f"{meet} sets meet on a device: expected 4 or more, two of every person")
        found, model_state = apply(params, model_state, images.reshape(-1, *images.shape[2:]), True, rng)
        features = found.features.reshape(-1, size, found.features.shape[-1])
        pooled = set_pool(features, found.weights.reshape(-1, size), weighting=weighting)
        losses = {"triplet": set_triplet_loss(pooled, batch["person"], margin=sets.margin)}
        if found.logits is not None:
            labels = jnp.repeat(batch["person"], size)
            losses["softmax"] = optax.softmax_cross_entropy_with_integer_labels(found.logits, labels).mean()
        return sum(losses.values()), (model_state, {name: Mean.of(value) for name, value in losses.items()})

    def train_data() -> Any:
        known = data.sets("train", size)
        groups = [np.flatnonzero(known.people == person) for person in np.unique(known.people)]
        groups = [rows for rows in groups if len(rows) > 1]
        if not groups:
            raise ValueError(f"no identity has two sets of sets.size {size} images: expected a smaller number")

        def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
            pairs = [rng.permutation(rows)[:2] for rows, rng in zip(examples, rngs, strict=True)]
            rows = np.concatenate(pairs)
            images = [
                np.stack([transforms.random_flip(x, rng) for x in known.images[row]])
                for row, rng in zip(rows, np.repeat(rngs, 2), strict=True)
            ]
            return {"image": np.stack(images), "person": known.people[rows].astype(np.int32)}

        return data.batches(groups, batch_size // 2, seed, load)

    return {
        "init": begin,
        "train_step": supervised_step(loss_fn, tx, microbatches=microbatches),
        "train_data": train_data,
        "batch": {
            "image": jax.ShapeDtypeStruct((batch_size, size, pixels, pixels, 3), jnp.uint8),
            "person": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        },
        "prepare": prepare,
    }


def weigh(apply: Apply, state: TrainState, images: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, D] and weights [N] of images [N, S, S, 3] uint8 by the trained network."""

    def one(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        found, _ = apply(*variables, images, False, None)
        return {"features": found.features, "weights": found.weights}

    found = map_batches(one, (state.params, state.model_state), images, batch_size)
    return found["features"], found["weights"]


def report(
    apply: Apply,
    state: TrainState,
    weighting: Weighting,
    data: QualityFaces,
    sets: SetOptions,
    protocol: QualityProtocol,
    recogniser: Recogniser,
) -> Report:
    """Verification of pooled sets of test people; unless all weights are equal, also the weights as a quality score."""
    test = data.sets("test", sets.size)
    features, weights = weigh(apply, state, test.flat, protocol.batch_size)
    pooled = set_evaluation.assess(features, weights, weighting, test)
    if np.ptp(weights) == 0:
        return pooled
    single = data.load("test")
    _, scores = weigh(apply, state, single.images, protocol.batch_size)
    return pooled | protocol.assess(scores, single, recogniser.evaluator(**data.view))
