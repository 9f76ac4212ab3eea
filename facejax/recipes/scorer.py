"""A network that is trained to give every image of a face one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from facejax.data import normalize
from facejax.data.quality_faces import QualityFaces
from facejax.evaluate.quality import QualityProtocol, score
from facejax.recipes.recogniser import Recogniser
from facejax.train import Mean, Report, TrainState, supervised_step


def training(
    net: nn.Module,
    loss: Callable[[jax.Array, dict[str, jax.Array]], jax.Array],
    tx: optax.GradientTransformation,
    *,
    image_size: int,
    batch_size: int,
    fields: Mapping[str, jax.ShapeDtypeStruct],
    microbatches: int = 1,
    prepare: Callable[[], Any] | None = None,
    begin: Callable[[Any, Any], Any] | None = None,
) -> dict[str, Any]:
    """The parts of an `Experiment` that trains a scorer.

    Args:
      net: (images -1..1 [N, S, S, 3], train) -> [N].
      loss: (scores [N], batch) -> losses, any shape; their mean is minimised. The batch holds "step", [N] int, too.
      tx: the optimizer.
      image_size: S, pixels.
      batch_size: images a step on all devices.
      fields: what a batch holds besides "image", with global shapes.
      microbatches: see `supervised_step`.
      prepare: see `Experiment`.
      begin: (variables, what `prepare` gave or None) -> variables that training begins with.
    """

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, image_size, image_size, 3)), train=False)
        variables = begin(variables, start) if begin else variables
        model_state = {name: part for name, part in variables.items() if name != "params"}
        return TrainState.create(rng, variables["params"], tx, model_state=model_state)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        scores, updated = net.apply(
            {"params": params, **model_state},
            normalize.symmetric(batch["image"]),
            train=True,
            mutable=list(model_state),
            rngs={"dropout": rng},
        )
        losses = loss(scores, batch)
        return losses.mean(), (updated, {"loss": Mean.of(losses)})

    step = supervised_step(loss_fn, tx, microbatches=microbatches)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        return step(state, {**batch, "step": jnp.full(len(batch["image"]), state.step)}, rng)

    return {
        "init": init,
        "train_step": train_step,
        "batch": {"image": jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8), **fields},
        "prepare": prepare,
    }


def shapes(net: nn.Module, image_size: int) -> Any:
    """Shapes of the variables of a network (images [N, S, S, 3], train)."""
    images = jnp.zeros((2, image_size, image_size, 3))
    return jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))


def variables(state: TrainState) -> dict[str, Any]:
    """What the trained network is applied with."""
    return {"params": state.params, **state.model_state}


def report(
    net: nn.Module, state: TrainState, data: QualityFaces, protocol: QualityProtocol, recogniser: Recogniser
) -> Report:
    """Evaluates the trained network on the test people of `data`, by errors of the section's evaluation recogniser."""
    test = data.load("test")
    scores = score(net, variables(state), test.images, protocol.batch_size)
    return protocol.assess(scores, test, recogniser.evaluator(**data.view))
