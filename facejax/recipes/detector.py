"""The run of a detector: the sum of its loss terms, trained on padded boxes and evaluated by the data's protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.errors import FlaxError

from facejax.data.detection import DetectionImages
from facejax.detection.base import Detector, Truth
from facejax.evaluate import detection
from facejax.metrics import detection as metrics
from facejax.metrics import wider_face
from facejax.train import AXIS, Experiment, Mean, Options, Report, TrainState, supervised_step, warm_start


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The `eval` section of a detector's experiment.

    Attributes:
      batch_size: images a call.
      image_size: side of the network's input, pixels; 0: that of training.
      protocol: "faces" (WIDER FACE's matching, by face height), "wider" (its official subsets), "coco", "voc2007" or
        "voc2012".
      truth: with "wider", folder of the four .mat files of the official evaluation tools.
      stretch: stretch images to the square; false: keep their aspect ratio.
      timed: also measure the milliseconds of one image, network and post-processing.
    """

    batch_size: int = 50
    image_size: int = 0
    protocol: str = "faces"
    truth: str = ""
    stretch: bool = False
    timed: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in detection.PROTOCOLS:
            raise ValueError(f"eval.protocol is {self.protocol!r}: expected one of {', '.join(detection.PROTOCOLS)}")
        if self.protocol == "wider" and not self.truth:
            raise ValueError("eval.truth is empty: protocol wider needs the folder of the official .mat files")


def detector(
    model: Detector,
    data: DetectionImages,
    tx: optax.GradientTransformation,
    options: Options,
    evaluation: Evaluation,
    *,
    seed: int,
    ema: float = 0.0,
    start: Callable[[Any], Any] | None = None,
    load: Callable[[Any], Any] | None = None,
) -> Experiment:
    """A detector trained with the sum of its loss terms.

    Args:
      model: the detector.
      data, options, evaluation: sections of the configuration.
      tx: the optimizer.
      seed: of the data's order and augmentation.
      ema: decay of the moving average of the parameters, which is then evaluated; 0 keeps none.
      start: shapes of the variables -> those to begin with, such as a published trunk: a tree that may lack branches,
        which then begin as usual.
      load: shapes of the variables -> pretrained variables to evaluate in place of the trained ones.
    """
    size, batch = data.image_size, options.batch_size
    if model.classes != data.classes:
        raise ValueError(f"the detector has {model.classes} classes and the data {data.classes}: expected as many")
    if model.points not in (0, data.points):
        raise ValueError(f"the detector has {model.points} points and the data {data.points}: expected none or as many")

    def fresh(rng: jax.Array) -> Any:
        return model.net.init(rng, jnp.zeros((2, size, size, 3)), train=False)

    def init(rng: jax.Array, given: Any = None) -> TrainState:
        variables = _replaced(fresh(rng), given or {})
        params = variables.pop("params")
        return TrainState.create(rng, params, tx, ema=bool(ema), model_state=variables)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        raw, updated = model.net.apply(
            {"params": params, **model_state},
            model.preprocess(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        terms = model.losses(raw, Truth.of(batch), (size, size))
        total = sum(term.value(AXIS) for term in terms.values())
        metrics = {name: Mean(term.weight * term.total.sum(), term.count.sum()) for name, term in terms.items()}
        return total, ({**model_state, **updated}, metrics)

    def check_evaluation_size() -> None:
        side = evaluation.image_size
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        try:
            variables = jax.eval_shape(fresh, jax.random.key(0))
            jax.eval_shape(lambda v, x: model.net.apply(v, x, train=False), variables, images)
        except (ValueError, TypeError, FlaxError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"eval.image_size is {side}: a network for {size} does not take it: {reason}") from error

    def check_protocol() -> None:
        if evaluation.protocol == "wider":
            wider_face.read_truth(evaluation.truth)
        if evaluation.protocol == "coco":
            try:
                metrics.pycocotools()
            except ImportError as error:
                raise ValueError(f"eval.protocol is 'coco': {error}") from error

    def train_data() -> Any:
        check_protocol()  # a missing file or package is an error now, not after the training
        if evaluation.image_size not in (0, size):
            check_evaluation_size()
        test = data.test()  # missing images likewise
        if evaluation.protocol == "wider":
            detection.check_name(test[0]["name"], wider_face.read_truth(evaluation.truth).names, evaluation.truth)
        return data.batches(batch, seed)

    def evaluate(state: TrainState) -> Report:
        check_protocol()
        variables = {"params": state.ema if ema else state.params, **state.model_state}
        if load is not None:
            variables = load(jax.eval_shape(lambda: variables))
        return detection.report(
            model,
            variables,
            data.test(),
            evaluation.image_size or size,
            protocol=evaluation.protocol,
            batch_size=evaluation.batch_size,
            stretch=evaluation.stretch,
            timed=evaluation.timed,
            truth=evaluation.truth,
        )

    boxes, points = (batch, data.max_boxes), data.points
    shapes = {
        "image": ((batch, size, size, 3), jnp.uint8),
        "boxes": ((*boxes, 4), jnp.float32),
        "labels": (boxes, jnp.int32),
        "points": ((*boxes, points, 2), jnp.float32),
        "visible": ((*boxes, points), jnp.bool_),
        "mask": (boxes, jnp.bool_),
    }
    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=(lambda: start(jax.eval_shape(fresh, jax.random.key(0)))) if start else None,
        train_step=supervised_step(loss_fn, tx, microbatches=options.microbatches, ema_decay=ema),
        train_data=train_data,
        batch={name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()},
    )


def _replaced(variables: Any, given: Any) -> dict[str, Any]:
    """The variables with the branches that `given` has, whose leaves must have the same shapes."""
    unknown = set(given) - set(variables)
    if unknown:
        raise ValueError(f"the variables to begin with have {min(unknown)!r}: expected some of {', '.join(variables)}")
    return {
        name: x
        if name not in given
        else _replaced(x, given[name])
        if isinstance(x, dict)
        else warm_start.taken(given[name], x)
        for name, x in variables.items()
    }
