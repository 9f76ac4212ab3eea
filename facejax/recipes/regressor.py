"""A network that is trained to regress the parameters of a morphable model from a crop of a face."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from facejax.data import normalize
from facejax.data.pipeline import Load
from facejax.data.readers.aflw2000_crops import Aflw2000Crops
from facejax.data.reconstruction import LAYOUT, ReconstructionFaces
from facejax.evaluate import reconstruction as evaluation
from facejax.evaluate.reconstruction import Surfaces
from facejax.morphable.parameters import LinearFace, Whitening
from facejax.train import Experiment, Mean, Options, Report, TrainState, supervised_step

Apply = Callable[..., Any]
Loss = Callable[[Any, jax.Array, dict[str, jax.Array], LinearFace, Whitening, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The `eval` section of an experiment that reconstructs faces.

    Attributes:
      batch_size: crops a call.
      protocol: "face_world", or "aflw2000", the 2,000 crops of AFLW2000-3D.
      path: folder of the crops of AFLW2000-3D (`facejax.data.readers.aflw2000_crops`); with "face_world" and a path,
        the network is evaluated on both.
    """

    batch_size: int = 120
    protocol: str = "face_world"
    path: str = ""

    def __post_init__(self) -> None:
        if self.protocol not in ("face_world", "aflw2000"):
            raise ValueError(f"eval.protocol is {self.protocol!r}: expected face_world or aflw2000")
        if self.protocol == "aflw2000" and not self.path:
            raise ValueError("eval.path is empty: protocol aflw2000 needs the folder of its crops")

    def benchmark(self) -> Aflw2000Crops | None:
        """The crops of AFLW2000-3D, if there is a path."""
        return Aflw2000Crops(self.path) if self.path else None


def no_whitening() -> Whitening:
    """In place of statistics that are not known yet."""
    return Whitening(jnp.zeros(LAYOUT.size), jnp.ones(LAYOUT.size))


def without_face(net: nn.Module) -> Apply:
    """`net.apply` of a network (images, train=) as `regressor` calls it."""

    def apply(variables: Any, images: jax.Array, face: LinearFace, whitening: Whitening, **options: Any) -> Any:
        del face, whitening
        return net.apply(variables, images, **options)

    return apply


def regressor(
    fresh: Callable[[jax.Array], Any],
    apply: Apply,
    loss: Loss | Mapping[str, Loss],
    decode: Callable[[Any, LinearFace, Whitening], jax.Array],
    data: ReconstructionFaces,
    tx: optax.GradientTransformation,
    options: Options,
    evaluated: Evaluation,
    *,
    seed: int,
    choose: Callable[[int], str] | None = None,
    fields: Mapping[str, Any] | None = None,
    load: Load | None = None,
    preprocess: Callable[[jax.Array], jax.Array] = normalize.bgr_symmetric,
    others: Callable[[], dict[str, Surfaces]] | None = None,
) -> Experiment:
    """An experiment of a network whose outputs become parameters.

    The state holds the whitening of its training vectors, since weights decode with no other.

    Args:
      fresh: key -> variables of the network.
      apply: (variables, images, face, whitening, train=, **options) -> outputs, as `flax.linen.Module.apply`, of
        preprocessed crops [N, S, S, 3]. Networks that render the face use its linear model and the whitening.
      loss: (outputs, whitened targets [N, D], batch, face, whitening, key) -> losses [N]; or several by name.
      decode: (outputs, face, whitening) -> vectors [N, D], whitening undone.
      data, options, evaluated: sections of the configuration.
      tx: the optimizer.
      seed: of the data's order and augmentation.
      choose: of several losses, that of a step; see `Experiment`.
      fields: what a batch holds besides "image" and "parameters", and shapes of arrays [N, ...] that replace them.
      load: see `ReconstructionFaces.batches`.
      preprocess: uint8 crops -> the network's input.
      others: () -> further results on the face world for the report, such as a baseline's.
    """
    batch, size = options.batch_size, data.image_size
    losses = loss if isinstance(loss, Mapping) else {"loss": loss}

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        variables = dict(fresh(rng))
        params = variables.pop("params")
        model_state = {"variables": variables, "whitening": no_whitening() if start is None else start}
        return TrainState.create(rng, params, tx, model_state=model_state)

    def loss_fn(
        loss: Loss, face: LinearFace, params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> Any:
        whitening, variables = model_state["whitening"], model_state["variables"]
        outputs, updated = apply(
            {"params": params, **variables},
            preprocess(batch["image"]),
            face,
            whitening,
            train=True,
            mutable=list(variables),
        )
        losses = loss(outputs, whitening.whiten(batch["parameters"]), batch, face, whitening, rng)
        return losses.mean(), ({**model_state, "variables": updated}, {"loss": Mean.of(losses)})

    def step_of(loss: Loss) -> Any:
        def train_step(state: TrainState, batch: dict[str, Any], rng: jax.Array) -> Any:
            crops = {name: value for name, value in batch.items() if name != "face"}  # the face has no batch axis
            step = supervised_step(partial(loss_fn, loss, batch["face"]), tx, microbatches=options.microbatches)
            return step(state, crops, rng)

        return train_step

    def predict(given: Any, images: jax.Array) -> jax.Array:
        variables, whitening, face = given
        return decode(apply(variables, preprocess(images), face, whitening, train=False), face, whitening)

    def evaluate(state: TrainState) -> Report:
        face, whitening = data.face(), state.model_state["whitening"]
        variables = {"params": state.params, **state.model_state["variables"]}
        given, benchmark, report = (variables, whitening, face), evaluated.benchmark(), None
        if evaluated.protocol == "face_world":
            test = data.test()
            vectors = evaluation.regress(predict, given, test.images, evaluated.batch_size)
            found = evaluation.surfaces(face, vectors, size)
            report = evaluation.faces_report(test, found, face, others() if others else None)
        if benchmark is None:
            return report
        vectors = evaluation.aflw2000_surfaces(benchmark, predict, given, size, evaluated.batch_size)
        points = evaluation.surfaces(_marks(face), vectors, size, convention=data.convention).landmarks68
        real = evaluation.aflw2000_report(benchmark, evaluation.aflw2000_points(benchmark, points, size))
        return real if report is None else report | _renamed(real)

    def train_data() -> Any:
        evaluated.benchmark()  # missing files are an error now, not after the training
        return data.batches(batch, seed, load)

    shapes = {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        "parameters": jax.ShapeDtypeStruct((batch, LAYOUT.size), jnp.float32),
        **(fields or {}),
    }
    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=data.whitening,
        train_step={name: step_of(one) for name, one in losses.items()},
        choose=choose or (lambda step: next(iter(losses))),
        train_data=train_data,
        batch=dict.fromkeys(losses, shapes),
        resident=lambda: {"face": data.resident_face()},
    )


def _marks(face: LinearFace) -> LinearFace:
    """The 68 landmarks alone."""
    rows = np.asarray(face.landmarks68)
    return LinearFace(face.mean[rows], face.bases[rows], face.triangles[:0], jnp.arange(68), face.layout)


def _renamed(report: Report) -> Report:
    """The benchmark's metrics under names of their own."""
    metrics = {f"aflw2000_{name}": value for name, value in report.metrics.items()}
    return dataclasses.replace(report, metrics=metrics, arrays={})
