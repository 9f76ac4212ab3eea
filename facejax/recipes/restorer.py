"""Training of networks that enlarge images: by pixels, and then against a discriminator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import lax

from facejax.backbones.vgg import VGG
from facejax.data.restoration import RestorationImages
from facejax.restoration import srgan
from facejax.train import (
    AXIS,
    Mean,
    TrainState,
    ema_update,
    reduce_gradients,
    supervised_step,
)

Losses = dict[str, jax.Array]
Batch = dict[str, jax.Array]


def unit(images: jax.Array) -> jax.Array:
    """uint8 -> float32 in 0..1."""
    return images.astype(jnp.float32) / 255


def batch_fields(data: RestorationImages, net: nn.Module, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch; with landmarks, of as many points and maps as the network has."""
    large, half = data.patch, data.patch // 2
    shapes = {"low": (large // data.scale, large // data.scale, 3), "high": (large, large, 3)}
    if data.points:
        shapes |= {"points": (net.landmarks, 2), "parsing": (half, half, net.parsing)}
    types = {"points": jnp.float32}
    return {k: jax.ShapeDtypeStruct((batch_size, *shape), types.get(k, jnp.uint8)) for k, shape in shapes.items()}


def begun(made: Any, start: Any) -> Any:
    """`made`, with the parameters of `start` that have the same name and shape, as of another scale.

    Raises:
      ValueError: none has.
    """
    own, given = (traverse_util.flatten_dict(tree) for tree in (made, start))
    same = {name for name in own if name in given and own[name].shape == given[name].shape}
    if not same:
        raise ValueError("start: no parameter has the name and shape of one of this network")
    return traverse_util.unflatten_dict({k: jnp.asarray(given[k]) if k in same else v for k, v in own.items()})


def vgg_weights(vgg: VGG, path: str, field: str) -> Any:
    """Parameters of a VGG's convolutions from a file in torchvision's layout.

    Args:
      vgg: without dense layers.
      path: of the file.
      field: of the configuration, in which the path stands.

    Raises:
      ValueError: no path, or a file of other layers.
    """
    if not path:
        raise ValueError(f"{field} is empty: expected a file of VGG's weights, in torchvision's layout")
    from facejax.interop import torchvision  # only published weights need it

    shapes = jax.eval_shape(lambda key: vgg.init(key, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0))
    return torchvision.load_vgg_convolutions(path, shapes["params"])


def by_pixels(
    net: nn.Module,
    loss: Callable[[Any, Batch], Losses],
    tx: optax.GradientTransformation,
    fields: Mapping[str, jax.ShapeDtypeStruct],
    *,
    microbatches: int = 1,
    prepare: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """The parts of an `Experiment` that trains a network on pairs.

    Args:
      net: RGB images [N, h, w, 3] in 0..1 -> what `loss` takes.
      loss: (output, batch) -> losses [N] by name; the mean of their sum is minimised.
      tx: the optimizer.
      fields: of a batch, with global shapes.
      microbatches: see `supervised_step`.
      prepare: () -> parameters to begin with, see `begun`.
    """

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, *fields["low"].shape[1:])))
        model_state = {name: part for name, part in variables.items() if name != "params"}
        params = variables["params"] if start is None else begun(variables["params"], start)
        return TrainState.create(rng, params, tx, model_state=model_state)

    def loss_fn(params: Any, model_state: Any, batch: Batch, rng: jax.Array) -> Any:
        del rng
        variables = {"params": params, **model_state}
        found, updated = net.apply(variables, unit(batch["low"]), train=True, mutable=list(model_state))
        losses = loss(found, batch)
        total = sum(losses.values())
        return total.mean(), (updated, {"loss": Mean.of(total), **{k: Mean.of(v) for k, v in losses.items()}})

    step = supervised_step(loss_fn, tx, microbatches=microbatches)
    return {"init": init, "train_step": step, "batch": fields, "prepare": prepare}


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The `adversary` section of an experiment.

    Attributes:
      kind: "relativistic" (ESRGAN) or "plain" (SRGAN).
      weight: of the generator's adversarial loss.
      pixel_weight: of the L1 loss of pixels.
      feature_weight: of the distance of VGG-19's features.
      feature_loss: "l1" or "l2"; see `srgan.perceptual_loss`.
      layer: of VGG-19.
      before_relu: takes the layer's output before its ReLU.
      ema_decay: of the generator's moving average, which is evaluated; 0: none.
    """

    kind: str = "relativistic"
    weight: float = 5e-3
    pixel_weight: float = 1e-2
    feature_weight: float = 1.0
    feature_loss: str = "l1"
    layer: str = "5_4"
    before_relu: bool = True
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.kind not in ("relativistic", "plain"):
            raise ValueError(f"adversary.kind is {self.kind!r}: expected 'relativistic' or 'plain'")


def adversarial(
    net: nn.Module,
    discriminator: nn.Module,
    vgg: VGG,
    options: Adversary,
    tx: optax.GradientTransformation,
    fields: Mapping[str, jax.ShapeDtypeStruct],
    prepare: Callable[[], Any],
) -> dict[str, Any]:
    """The parts of an `Experiment` that trains a generator and a discriminator, both at the old parameters of a step.

    Args:
      net: the generator, as in `by_pixels`, whose output is an image.
      discriminator: (images, train) -> logits [N].
      vgg: for the features; its parameters stay fixed.
      options: of the losses.
      tx: the optimizer of either.
      fields: of a batch, with global shapes.
      prepare: () -> {"generator": parameters, "generator_stats": batch statistics, "vgg": parameters}.
    """
    relativistic = options.kind == "relativistic"

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        low, high = (jnp.zeros((2, *fields[name].shape[1:])) for name in ("low", "high"))
        made, adversary = net.init(rng, low), discriminator.init(jax.random.fold_in(rng, 1), high, train=False)
        frozen = vgg.init(jax.random.key(0), high, train=False)["params"]
        begin = start or {}
        params = {"generator": begin.get("generator", made["params"]), "discriminator": adversary["params"]}
        state = {
            "generator": begin.get("generator_stats", made.get("batch_stats", {})),
            "discriminator": adversary.get("batch_stats", {}),
            "vgg": begin.get("vgg") or frozen,
        }
        own, state = jax.tree.map(jnp.asarray, (params, state))
        made = TrainState.create(rng, own, optax.identity(), ema=options.ema_decay > 0, model_state=state)
        return made.replace(opt_state={name: tx.init(part) for name, part in own.items()})

    def step(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict[str, Mean]]:
        del rng
        truth, stats = unit(batch["high"]), state.model_state

        def scored(params: Any, images: jax.Array, running: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": running}
            scores, updated = discriminator.apply(variables, images, train=True, mutable=["batch_stats"])
            return scores, updated.get("batch_stats", {})

        def features(images: jax.Array) -> jax.Array:
            return srgan.vgg_features(vgg, stats["vgg"], images, options.layer, options.before_relu)

        def generator_loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": stats["generator"]}
            fake, updated = net.apply(variables, unit(batch["low"]), train=True, mutable=["batch_stats"])
            scores, _ = scored(state.params["discriminator"], fake, stats["discriminator"])
            if relativistic:
                real, _ = scored(state.params["discriminator"], truth, stats["discriminator"])
                fooled = srgan.relativistic_loss(scores, real, AXIS)
            else:
                fooled = srgan.generator_loss(scores)
            losses = {
                "adversarial": options.weight * fooled,
                "features": options.feature_weight
                * srgan.perceptual_loss(features(fake), features(truth), options.feature_loss),
                "pixels": options.pixel_weight * jnp.abs(fake - truth).mean((1, 2, 3)),
            }
            return sum(losses.values()).mean(), (losses, fake, updated.get("batch_stats", {}))

        def discriminator_loss(params: Any, fake: jax.Array) -> tuple[jax.Array, Any]:
            real, running = scored(params, truth, stats["discriminator"])
            false, running = scored(params, fake, running)
            both = srgan.relativistic_loss(real, false, AXIS) if relativistic else srgan.discriminator_loss(real, false)
            return both.mean(), (both, real > false, running)

        grads, (losses, fake, generator_stats) = jax.grad(generator_loss, has_aux=True)(state.params["generator"])
        discriminator_grads, (discriminator_losses, right, discriminator_stats) = jax.grad(
            discriminator_loss, has_aux=True
        )(state.params["discriminator"], lax.stop_gradient(fake))
        params, opt_state = {}, {}
        for name, gradient in reduce_gradients({"generator": grads, "discriminator": discriminator_grads}).items():
            updates, opt_state[name] = tx.update(gradient, state.opt_state[name], state.params[name])
            params[name] = optax.apply_updates(state.params[name], updates)
        running = lax.pmean({"generator": generator_stats, "discriminator": discriminator_stats}, AXIS)
        ema = ema_update(state.ema, params, options.ema_decay) if options.ema_decay else state.ema
        metrics = {"loss": Mean.of(sum(losses.values())), **{name: Mean.of(x) for name, x in losses.items()}}
        metrics |= {"discriminator": Mean.of(discriminator_losses), "right": Mean.of(right)}
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            model_state={**running, "vgg": stats["vgg"]},
            ema=ema,
        )
        return state, metrics

    return {"init": init, "train_step": step, "batch": fields, "prepare": prepare}
