"""The run of an estimator of age or head pose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from facejax.data import pipeline
from facejax.data.attribute_images import AttributeImages, Photographs
from facejax.data.pipeline import Source
from facejax.evaluate import attributes
from facejax.train import Experiment, Mean, Options, Report, TrainState, supervised_step, warm_start

REPORTS = {"age": attributes.age_report, "pose": attributes.pose_report}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The `eval` section of an estimator's experiment.

    Attributes:
      batch_size: images a call.
      photographs: folder of the 2,000 crops of AFLW2000-3D, on whose yaw an estimator of pose is evaluated too.
    """

    batch_size: int = 100
    photographs: str = ""


def raw(images: jax.Array) -> jax.Array:
    """uint8 -> float32, 0..255: the networks normalise by their first batch norm."""
    return images.astype(jnp.float32)


def predictor(net: nn.Module, decode: Callable[[Any], dict[str, jax.Array]]) -> attributes.Predict:
    """(variables, uint8 RGB images) -> what `decode` makes of the network's outputs."""
    return lambda variables, images: decode(net.apply(variables, raw(images), train=False))


def evaluated(predict: attributes.Predict, variables: Any, data: AttributeImages, evaluation: Evaluation) -> Report:
    """The report of `facejax.evaluate.attributes` on the data's test faces.

    Args:
      predict: (variables, uint8 RGB [n, S, S, 3]) -> {"number": [n] or [n, 3], ...further estimates}.
      variables: of the network.
      data, evaluation: sections of the configuration.
    """

    def report(source: Source, make: Callable[..., Report]) -> Report:
        def crops(rows: Sequence[int]) -> np.ndarray:
            return data.load_test(pipeline.fetch(source, rows))["image"]

        found, truth = attributes.find(predict, variables, source, data, evaluation.batch_size)
        return make(found, truth, crops)

    result = report(data.source("test"), REPORTS[data.attribute])
    if evaluation.photographs:
        if data.attribute != "pose":
            raise ValueError(
                f"eval.photographs: their yaw is known: expected data.attribute 'pose', not {data.attribute!r}"
            )
        result |= report(Photographs(evaluation.photographs), attributes.yaw_report)
    return result


def estimator(
    net: nn.Module,
    data: AttributeImages,
    tx: optax.GradientTransformation,
    options: Options,
    *,
    loss: Callable[[Any, jax.Array], jax.Array],
    decode: Callable[[Any], dict[str, jax.Array]],
    evaluate: Callable[[attributes.Predict, Any], Report],
    seed: int,
    prepare: Callable[[], Any] | None = None,
) -> Experiment:
    """A network trained on faces with a target.

    Args:
      net: Linen module, (images in 0..255, train=) -> outputs.
      data, options: sections of the configuration.
      tx: the optimizer.
      loss: (outputs, targets) -> [n].
      decode: outputs -> {"number": [n] or [n, 3], ...further estimates}.
      evaluate: (predict, variables) -> report.
      seed: of the data's order and augmentation.
      prepare: () -> variables that training begins with; None: fresh ones.
    """
    size = data.image_size

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        variables = variables if start is None else warm_start.taken(start, variables)
        return TrainState.create(rng, variables["params"], tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        outputs, updated = net.apply(
            {"params": params, "batch_stats": batch_stats},
            raw(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        losses = loss(outputs, batch["target"])
        return losses.mean(), (updated["batch_stats"], {"loss": Mean.of(losses)})

    predict = predictor(net, decode)
    return Experiment(
        evaluate=lambda state: evaluate(predict, {"params": state.params, "batch_stats": state.model_state}),
        init=init,
        prepare=prepare,
        train_step=supervised_step(loss_fn, tx, microbatches=options.microbatches),
        train_data=lambda: data.batches(options.batch_size, seed),
        batch=data.shapes(options.batch_size),
    )
