"""What the experiments with sets of pictures share: sets of one person, their training and how pooling is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from sklearn.metrics import roc_auc_score

from experiments import quality_common as common
from facejax.data import transforms
from facejax.metrics import verification
from facejax.ops import vectors
from facejax.quality.pooling import Weighting, set_pool
from facejax.quality.qan import set_triplet_loss
from facejax.train import Experiment, Mean, Report, TrainState, image_grid, map_batches, new_figure, supervised_step

SETS = {"size": 8, "margin": 1.2}


class Sets(NamedTuple):
    """Sets of T pictures of one person.

    Attributes:
      images: [M, T, S, S, 3] uint8; `Pictures` where they come from a path.
      people: [M] int.
      fault: [M, T] 0..1; NaN where that is not known.
    """

    images: np.ndarray | common.Pictures
    people: np.ndarray
    fault: np.ndarray


def sets(config: ConfigDict, split: str) -> Sets:
    """Every person's pictures in sets of `config.sets.size`; what is left over stays out."""
    known, size = common.people(config.data, split, "sets"), config.sets.size
    own = (np.flatnonzero(known.people == person) for person in np.unique(known.people))
    rows = np.concatenate([mine[: len(mine) // size * size].reshape(-1, size) for mine in own])
    if not len(rows):
        raise ValueError(f"nobody has sets.size {size} pictures: expected a smaller number")
    return Sets(common.take(known.images, rows), known.people[rows[:, 0]], known.fault[rows])


class Seen(NamedTuple):
    """What a network makes of pictures [N, ...]: embeddings [N, D], weights [N], scores of people [N, C] or None."""

    features: jax.Array
    weights: jax.Array
    scores: jax.Array | None


Look = Callable[[Any, Any, jax.Array, bool, Any], tuple[Seen, Any]]


def training(
    config: ConfigDict,
    init: Callable[[jax.Array], tuple[Any, Any]],
    look: Look,
    tx: optax.GradientTransformation,
    weighting: Weighting,
    before: Callable[[], Any],
) -> Experiment:
    """Trains pooling on sets: the triplet loss of pooled sets and, where there are scores, softmax of every picture.

    Args:
      config: with sections data, recogniser, sets, train and eval.
      init: key -> (params, model_state).
      look: (params, model_state, pictures [N, S, S, 3] uint8, train, rng) -> (what is seen, model_state).
      tx: the optimizer.
      weighting: of `set_pool`.
      before: called where the training data are opened, to train what `init` reads.
    """
    batch, size, pixels = config.train.batch_size, config.sets.size, config.data.image_size
    if batch % 2:
        raise ValueError(f"train.batch_size is {batch} sets: expected an even number, two sets of every person")

    def start(rng: jax.Array) -> TrainState:
        params, model_state = init(rng)
        return TrainState.create(rng, params, tx, model_state=model_state)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        images, meet = batch["image"], len(batch["person"])
        if meet < 4 or meet % 2:
            raise ValueError(f"{meet} sets meet on a device: expected 4 or more, two of every person")
        seen, model_state = look(params, model_state, images.reshape(-1, *images.shape[2:]), True, rng)
        pooled = pool(seen, size, weighting)
        triplet = set_triplet_loss(pooled, batch["person"], margin=config.sets.margin)
        losses = {"triplet": triplet}
        if seen.scores is not None:
            labels = jnp.repeat(batch["person"], size)
            losses["softmax"] = optax.softmax_cross_entropy_with_integer_labels(seen.scores, labels).mean()
        return sum(losses.values()), (model_state, {name: Mean.of(value) for name, value in losses.items()})

    def train_data() -> Any:
        before()
        known = sets(config, "train")
        groups = [np.flatnonzero(known.people == person) for person in np.unique(known.people)]
        groups = [rows for rows in groups if len(rows) > 1]
        if not groups:
            raise ValueError(f"nobody has two sets of sets.size {size} pictures: expected a smaller number")

        def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
            pairs = [rng.permutation(rows)[:2] for rows, rng in zip(examples, rngs, strict=True)]
            rows = np.concatenate(pairs)
            images = [
                np.stack([transforms.random_flip(x, rng) for x in known.images[row]])
                for row, rng in zip(rows, np.repeat(rngs, 2), strict=True)
            ]
            return {"image": np.stack(images), "person": known.people[rows].astype(np.int32)}

        return common.batches(config, groups, load, batch // 2)

    def evaluate(state: TrainState) -> Report:
        def one(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            seen, _ = look(*variables, images, False, None)
            return {"features": seen.features, "weights": seen.weights}

        def over(images: np.ndarray) -> dict[str, np.ndarray]:
            return map_batches(one, (state.params, state.model_state), images, config.eval.batch_size)

        found = over(sets(config, "test").images.reshape(-1, pixels, pixels, 3))
        pooled = assess(config, found["features"], found["weights"], weighting)
        if np.ptp(found["weights"]) == 0:
            return pooled
        return common.together(
            pooled, common.assess(config, over(common.people(config.data, "test").images)["weights"])
        )

    return Experiment(
        evaluate=evaluate,
        init=start,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, pixels, pixels, 3), jnp.uint8),
            "person": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


def pool(seen: Seen, size: int, weighting: Weighting) -> jax.Array:
    """Sets' embeddings [M, D] from those of their pictures [M * size, ...]."""
    features = seen.features.reshape(-1, size, seen.features.shape[-1])
    return set_pool(features, seen.weights.reshape(-1, size), weighting=weighting)


def fused(config: ConfigDict, weigh: Callable[[Any], np.ndarray]) -> Report:
    """Verification of sets whose pictures `config.recogniser` embeds, their directions weighed by a score of each.

    Args:
      config: of the experiment.
      weigh: pictures [N, S, S, 3] uint8 -> weights [N].
    """
    images = sets(config, "test").images
    images = images.reshape(-1, *images.shape[2:])
    features = vectors.unit_rows(common.recogniser(config, config.seed)(images, config.eval.batch_size))
    return assess(config, features, weigh(images), "l1")


def assess(config: ConfigDict, features: np.ndarray, weights: np.ndarray, weighting: Weighting) -> Report:
    """Verification of all pairs of the sets to be judged, pooled by these weights and by the plain mean.

    Args:
      config: of the experiment.
      features: [M * T, D] of `sets(config, "test")`.
      weights: [M * T].
      weighting: of `set_pool`.
    """
    test, fars = sets(config, "test"), (1e-1, 1e-2, 1e-3)
    size = config.sets.size
    metrics = {}
    for name, chosen in (("set", weights), ("mean", np.ones_like(weights))):
        pooled = np.asarray(pool(Seen(jnp.asarray(features), jnp.asarray(chosen), None), size, weighting))
        for far, rate in zip(fars, verification.all_pairs_tar(pooled, test.people, fars), strict=True):
            metrics[f"{name}_tar_at_far_{far:.0e}".replace("e-0", "e-")] = float(rate)
    metrics = {"set_tar_at_far_1e-2": metrics["set_tar_at_far_1e-2"], **metrics}
    figures = {}
    if np.isfinite(test.fault).all() and np.ptp(weights) > 0:
        bad = test.fault.ravel() > 0.5
        metrics["clean_auc"] = float(roc_auc_score(~bad, weights))
        figure, axis = new_figure(5, 3)
        axis.plot(test.fault.ravel(), weights, ".", ms=3)
        axis.set(xlabel="fault", ylabel="weight")
        figures["Weight over fault"] = figure
    order = np.argsort(-weights.reshape(-1, size), 1)[:8]
    shown = np.take_along_axis(test.images[:8], order[:, :, None, None, None], 1)
    picture = image_grid(shown.reshape(-1, *shown.shape[2:]), size)
    return Report(
        metrics,
        figures=figures,
        images={"Sets, from the heaviest picture to the lightest": picture},
        arrays={"features": features, "weights": weights},
    )
