"""The run of an aligner: one network, trained on crops with landmarks and evaluated by the normalised error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from facejax.data import landmark_images
from facejax.data.landmark_images import LandmarkImages
from facejax.evaluate import alignment
from facejax.metrics import landmarks
from facejax.train import Experiment, Mean, Options, Report, TrainState, supervised_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The `eval` section of an aligner's experiment.

    Attributes:
      batch_size: crops a call.
      normalizer: face size that divides the errors: "inter_ocular", "inter_pupil", "box" or "box_diagonal"; the box is
        the data set's, or that of the landmarks where it gives none.
      limit: error at which a face counts as failed and the curve ends, a fraction of the face's size.
      timed: also measure the milliseconds of one crop.
      photographs: folder of the 2,000 crops of AFLW2000-3D, on which a network of 68 landmarks is evaluated too.
    """

    batch_size: int = 100
    normalizer: str = "box"
    limit: float = 0.08
    timed: bool = False
    photographs: str = ""

    def __post_init__(self) -> None:
        if self.normalizer not in landmarks.NORMALIZERS:
            raise ValueError(
                f"eval.normalizer is {self.normalizer!r}: expected one of {', '.join(landmarks.NORMALIZERS)}"
            )
        if self.limit <= 0:
            raise ValueError(f"eval.limit is {self.limit}: expected above 0")


def evaluated(predict: alignment.Predict, variables: Any, data: LandmarkImages, evaluation: Evaluation) -> Report:
    """The report of `facejax.evaluate.alignment` on the data's test faces, with the cost if `timed`.

    Args:
      predict: (variables, uint8 crops) -> {"points": [n, L, 2] in pixels of the crops, ...other estimates}.
      variables: of the network.
      data, evaluation: sections of the configuration.
    """
    faces = data.test()
    found = alignment.find(predict, variables, faces, evaluation.batch_size)
    result = alignment.report(faces, found, normalizer=evaluation.normalizer, limit=evaluation.limit)
    if evaluation.timed:
        result.metrics.update(alignment.cost(predict, variables, data.image_size))
    return result | photographed(predict, variables, data, evaluation) if evaluation.photographs else result


def photographed(predict: alignment.Predict, variables: Any, data: LandmarkImages, evaluation: Evaluation) -> Report:
    """The report on photographs, whose names begin with "photographs"; errors are over sqrt(width * height)."""
    if data.landmarks != 68:
        raise ValueError(f"eval.photographs has 68 landmarks: expected data.landmarks 68, not {data.landmarks}")
    faces = landmark_images.photographs(evaluation.photographs, data.image_size, data.enlarge)
    found = alignment.find(predict, variables, faces, evaluation.batch_size)
    made = alignment.report(faces, found, normalizer="box", limit=evaluation.limit)
    return Report(
        {f"photographs_{name}": value for name, value in made.metrics.items()},
        tables={f"Photographs: {title}": rows for title, rows in made.tables.items()},
        figures={f"Photographs: {title}": figure for title, figure in made.figures.items()},
    )


def aligner(
    net: nn.Module,
    data: LandmarkImages,
    tx: optax.GradientTransformation,
    options: Options,
    evaluation: Evaluation,
    *,
    losses: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    decode: Callable[[Any], dict[str, jax.Array]],
    preprocess: Callable[[jax.Array], jax.Array],
    seed: int,
    ema: float = 0.0,
) -> Experiment:
    """A network trained with the sum of its losses.

    Args:
      net: Linen module, (images, train=) -> outputs.
      data, options, evaluation: sections of the configuration.
      tx: the optimizer.
      losses: (outputs, batch) -> name -> [n]; the loss is the sum of their means. A batch is that of `data.batches`.
      decode: outputs -> {"points": [n, L, 2] in pixels of the crop, ...other estimates}.
      preprocess: uint8 RGB [n, S, S, 3] -> the network's input.
      seed: of the data's order and augmentation.
      ema: decay of the moving average of the parameters, which is then evaluated; 0 keeps none.
    """
    size = data.image_size

    def init(rng: jax.Array) -> TrainState:
        image = preprocess(jnp.zeros((2, size, size, 3), jnp.uint8))
        variables = dict(net.init({"params": rng, "dropout": rng}, image, train=False))
        params = variables.pop("params")
        return TrainState.create(rng, params, tx, ema=bool(ema), model_state=variables)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        outputs, updated = net.apply(
            {"params": params, **model_state},
            preprocess(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        terms = losses(outputs, batch)
        total = sum(term.mean() for term in terms.values())
        return total, ({**model_state, **updated}, {name: Mean.of(term) for name, term in terms.items()})

    def predict(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return decode(net.apply(variables, preprocess(images), train=False))

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.ema if ema else state.params, **state.model_state}
        return evaluated(predict, variables, data, evaluation)

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=options.microbatches, ema_decay=ema),
        train_data=lambda: data.batches(options.batch_size, seed),
        batch=data.shapes(options.batch_size),
    )
