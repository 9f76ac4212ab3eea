"""Adversarial training: one step in which players take turns, and runs whose images grow.

A step is a sequence of updates (`Play`), each of one player by its own loss and optimizer: PG-GAN's is the
discriminator's, then the generator's; StyleGAN2's has a regulariser's update after them in every fourth or sixteenth
step. Everything is in one state: parameters and optimizers by player, the average of the generator.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax

from facejax.data.generation import GenerationImages, check_size
from facejax.evaluate import generation
from facejax.evaluate.generation import GenerationProtocol
from facejax.train import (
    AXIS,
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    ema_update,
    image_grid,
    map_batches,
    optim,
    reduce_gradients,
    value_and_grad,
)

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
FRAMES, FACES, FRAME_SIDE = 8, 16, 64
"""Rows of the strip of progress, latents of a row, and the largest side of its images."""

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Adam:
    """The `optim` section of a GAN: both players have such an optimizer.

    Attributes:
      rate: learning rate.
      b1, b2, eps: of Adam.
    """

    rate: float = 1e-3
    b1: float = 0.0
    b2: float = 0.99
    eps: float = 1e-8

    def make(self) -> optax.GradientTransformation:
        """The optimizer."""
        return optim.optimizer("adam", self.rate, momentum=self.b1, b2=self.b2, eps=self.eps)

    def lazy(self, interval: int) -> Adam:
        """For a player with a regulariser in every `interval`-th step only (StyleGAN2, appendix B).

        Such a player makes (interval + 1) / interval updates a step; rate and memory are reduced by that.
        """
        c = interval / (interval + 1)
        return dataclasses.replace(self, rate=c * self.rate, b1=self.b1**c, b2=self.b2**c)


def lazy_choice(intervals: Mapping[str, int]) -> Callable[[int], str]:
    """`Experiment.choose` for regularisers in every so-many-th step, the first included.

    Args:
      intervals: name of a regulariser -> interval in steps.

    Returns:
      Step number, from 1 -> names of the regularisers of that step, joined by "+", or "plain".
    """

    def choose(number: int) -> str:
        return "+".join(name for name, every in intervals.items() if (number - 1) % every == 0) or "plain"

    return choose


def lazy_names(intervals: Mapping[str, int]) -> set[str]:
    """All names that `lazy_choice` gives."""
    return set(map(lazy_choice(intervals), range(1, 1 + math.lcm(*intervals.values()))))


class Play(NamedTuple):
    """An update of one player.

    Attributes:
      player: name of its parameters.
      loss: (parameters of all players, model_state, batch, rng) -> (mean loss [], (model_state, metrics)), of this
        device's batch; it is differentiated with respect to the player's own parameters.
    """

    player: str
    loss: Callable[[Params, Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, tuple[Any, dict[str, Mean]]]]


@struct.dataclass
class GanState(TrainState):
    """The state of a GAN: `params`, `opt_state` and `ema` are dicts by player, `ema` of the generator alone.

    Attributes:
      frames: uint8 [FRAMES, FACES, S, S, 3], images of the same latents at equal intervals of the training.
    """

    frames: Any = None

    @classmethod
    def begin(cls, rng: jax.Array, params: Params, model_state: Any, side: int) -> GanState:
        """The state before the first step, without optimizers; `side` is that of the largest images."""
        side = min(side, FRAME_SIDE)
        return cls(
            step=jnp.zeros((), jnp.int32),
            rng=rng,
            params=params,
            opt_state={},
            model_state=model_state,
            ema={GENERATOR: jax.tree.map(jnp.copy, params[GENERATOR])},
            frames=jnp.zeros((FRAMES, FACES, side, side, 3), jnp.uint8),
        )


def play(
    state: GanState,
    batch: dict[str, jax.Array],
    rng: jax.Array,
    plays: Sequence[Play],
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    decay: float,
    microbatches: int = 1,
) -> tuple[GanState, dict[str, Mean]]:
    """One step: the plays in turn, each after the updates of those before, then the generator's average.

    Args:
      state, batch, rng: as of a step of `Experiment`.
      plays: the updates.
      optimizers: by player.
      decay: of the average, see `average_decay`.
      microbatches: slices of the batch for the accumulation of each update's gradient.
    """
    params, opt_state, model_state = dict(state.params), dict(state.opt_state), state.model_state
    metrics: dict[str, Mean] = {}
    for number, (player, loss) in enumerate(plays):

        def own_loss(own: Any, *rest: Any, player: str = player, loss: Any = loss) -> Any:
            return loss({**params, player: own}, *rest)

        gradients = value_and_grad(own_loss, microbatches)
        grads, model_state, found = gradients(params[player], model_state, batch, jax.random.fold_in(rng, number))
        grads, model_state = reduce_gradients(grads), lax.pmean(model_state, AXIS)
        updates, opt_state[player] = optimizers[player].update(grads, opt_state[player], params[player])
        params[player] = optax.apply_updates(params[player], updates)
        metrics |= found
    average = ema_update(state.ema, {GENERATOR: params[GENERATOR]}, decay)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, model_state=model_state, ema=average)
    return state, metrics


def average_decay(average: float, batch_size: int) -> float:
    """Decay a step of the generator's average: `average` itself below 1, else that of a half-life in images."""
    return average if average < 1 else 0.5 ** (batch_size / average)


def filmed(state: GanState, steps: int, draw: Callable[[jax.Array], jax.Array], latent_size: int) -> GanState:
    """The state with the next row of the strip of progress, if one is due after this step.

    Args:
      state: after the step.
      steps: of the training.
      draw: latents [N, Z] -> images [N, S, S, 3] in -1..1 by the averaged generator; runs only when a row is due.
      latent_size: Z.
    """
    due = jnp.asarray([math.ceil(steps * (i + 1) / FRAMES) for i in range(FRAMES)])
    latents = generation.latents(range(FACES), latent_size)

    def add() -> jax.Array:
        images = generation.enlarged(draw(jnp.asarray(latents)), state.frames.shape[2])
        return state.frames.at[jnp.argmax(due == state.step)].set(generation.to_uint8(images))

    return state.replace(frames=lax.cond(jnp.any(due == state.step), add, lambda: state.frames))


def film(state: GanState) -> Report:
    """The strip of progress: each row after another eighth of the training."""
    frames = np.asarray(state.frames)
    strip = image_grid(frames.reshape(-1, *frames.shape[2:]), FACES)
    return Report({}, images={f"Progress of seeds 0 to {FACES - 1}, row by row": strip})


def merged(new: Mapping[str, Any], old: Mapping[str, Any]) -> Params:
    """`new` with the leaves of `old` in place of its own, at any depth."""
    both = dict(new)
    for name, part in old.items():
        both[name] = merged(both.get(name, {}), part) if isinstance(part, Mapping) else part
    return both


@dataclasses.dataclass(frozen=True)
class Growth:
    """The `growth` section: the schedule of a GAN whose images grow.

    At every resolution but the first, new layers are faded in during `fading` images; then `stable` images are shown
    before the next doubling. Optimizers begin anew at the beginning and at the end of every fading.

    Attributes:
      first: side of the images at the beginning, a power of two; that of the data: no growth.
      stable, fading: images.
      batch_sizes: images of a step at the first resolution, the next, ...; empty: train.batch_size at all of them.
      rates: learning rates likewise; empty: optim.rate.
    """

    first: int = 4
    stable: int = 600_000
    fading: int = 600_000
    batch_sizes: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()

    def stages(self, resolution: int, batch_size: int, rate: float) -> tuple[Stage, ...]:
        """The stages up to `resolution`; batch size and rate hold where this section gives none."""
        check_size(self.first, "growth.first")
        if self.first > resolution:
            raise ValueError(f"growth.first is {self.first}: expected at most the {resolution} pixels of the data")
        count = 1 + (resolution // self.first).bit_length() - 1
        for name, given in (("batch_sizes", self.batch_sizes), ("rates", self.rates)):
            if len(given) not in (0, count):
                raise ValueError(f"growth.{name} has {len(given)} values: expected {count}, for {self.first} pixels up")
        if min(self.stable, self.fading) < 0:
            raise ValueError(f"growth.stable is {self.stable}, growth.fading {self.fading}: expected 0 or more")
        sizes = self.batch_sizes or (batch_size,) * count
        if min(sizes) < 1:
            raise ValueError(f"growth.batch_sizes is {sizes}: expected 1 or more of each")
        rates = self.rates or (rate,) * count
        made, begin, images = [], 0, 0
        for i, (size, each) in enumerate(zip(sizes, rates, strict=True)):
            fades_at = i * (self.stable + self.fading) - self.fading
            made.append(Stage(self.first << i, size, each, begin, images, fades_at, self.fading if i else 0))
            until = fades_at + self.fading + self.stable
            steps = max(0, (until - images) // size + 1)  # the next stage begins beyond `until`, not at it
            begin, images = begin + steps, images + steps * size
        return tuple(made)


@dataclasses.dataclass(frozen=True)
class Stage:
    """The steps at one resolution.

    Attributes:
      resolution: side of the images.
      batch_size: images of a step on all devices.
      rate: learning rate.
      begin: steps before the stage.
      images: images shown before the stage.
      fades_at: images shown in all when the fading begins.
      fading: images of the fading; 0 for none.
    """

    resolution: int
    batch_size: int
    rate: float
    begin: int
    images: int
    fades_at: int
    fading: int

    @property
    def name(self) -> str:
        return f"{self.resolution}x{self.resolution}"

    def alpha(self, done: jax.Array) -> jax.Array:
        """[] weight of the new layers in the step after `done` steps, 0..1."""
        if not self.fading:
            return jnp.ones(())
        shown = self.images - self.fades_at + (done - self.begin) * self.batch_size
        return jnp.clip(shown / self.fading, 0, 1)

    def faded(self, done: jax.Array) -> jax.Array:
        """[] bool: the step after `done` steps is the first with alpha 1, before which optimizers begin anew."""
        if not self.fading:
            return jnp.zeros((), bool)
        return done == self.begin + -(-(self.fades_at + self.fading - self.images) // self.batch_size)


@dataclasses.dataclass(frozen=True)
class Gan:
    """What a paper brings to `Progressive`.

    Attributes:
      latent_size: Z.
      init: (key, resolution) -> (parameters by player, model_state), all dicts; a lower resolution has some of the
        entries of a higher one.
      plays: (resolution R, weight of the new layers []) -> the plays of a step, on batches {"image": float32
        [N, R, R, 3] in -1..1}.
      draw: (average of the generator's parameters, model_state, latents [N, Z], resolution R, weight of the new layers)
        -> images [N, R, R, 3] in -1..1.
    """

    latent_size: int
    init: Callable[[jax.Array, int], tuple[Params, Any]]
    plays: Callable[[int, jax.Array], Sequence[Play]]
    draw: Callable[[Any, Any, jax.Array, int, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Progressive:
    """The run of a GAN that grows: parameters appear with their resolution, each of which is one compiled step.

    Attributes:
      gan: the paper's networks and losses.
      data, growth, adam, options, evaluation: sections of the configuration.
      average: of the generator's parameters: below 1 the decay of a step, else a half-life in images.
      faded: (real images, weight of the new layers) -> what the discriminator sees of them.
      seed: of the data's order.
    """

    gan: Gan
    data: GenerationImages
    growth: Growth
    adam: Adam
    options: Options
    evaluation: GenerationProtocol
    average: float
    faded: Callable[[jax.Array, jax.Array], jax.Array]
    seed: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the growth."""
        return self.growth.stages(self.data.image_size, self.options.batch_size, self.adam.rate)

    def reached(self, step: int) -> Stage:
        """The stage of step number `step`, from 1."""
        return [stage for stage in self.stages if stage.begin < max(step, 1)][-1]

    def experiment(self) -> Experiment:
        """The experiment."""
        return Experiment(
            evaluate=self.evaluate,
            init=self.init,
            train_step={stage.name: self._step(stage) for stage in self.stages},
            train_data=self.train_data,
            batch={stage.name: {"image": _images(stage)} for stage in self.stages},
            choose=lambda number: self.reached(number).name,
            grow={stage.begin + 1: functools.partial(self._grown, stage) for stage in self.stages[1:]},
        )

    def init(self, rng: jax.Array) -> GanState:
        """The state before the first step, of the networks of the first stage."""
        params, model_state = self.gan.init(rng, self.stages[0].resolution)
        return self.restarted(GanState.begin(rng, params, model_state, self.data.image_size))

    def _grown(self, stage: Stage, state: GanState) -> GanState:
        """The state with the parameters that the stage adds, and new optimizers."""
        params, model_state = self.gan.init(jax.random.fold_in(state.rng, stage.resolution), stage.resolution)
        state = state.replace(
            params=merged(params, state.params),
            model_state=merged(model_state, state.model_state),
            ema=merged({GENERATOR: params[GENERATOR]}, state.ema),
        )
        return self.restarted(state)

    def restarted(self, state: GanState) -> GanState:
        """The state with new optimizers."""
        optimizer = self.adam.make()
        return state.replace(opt_state={player: optimizer.init(own) for player, own in state.params.items()})

    def train_data(self) -> Any:
        """The batches of all stages. Raises ValueError where a batch exceeds the data or does not fit the devices."""
        devices = self.options.devices or jax.device_count()
        for stage in self.stages:
            if stage.batch_size % devices:
                raise ValueError(
                    f"a batch at {stage.name} has {stage.batch_size} images: expected a multiple of {devices} devices"
                )
        ends = [*(stage.begin for stage in self.stages[1:]), self.options.steps]
        sizes = [(s.resolution, s.batch_size, end - s.begin) for s, end in zip(self.stages, ends, strict=True)]
        return self.data.staged_batches(sizes, self.seed)

    def drawn(self, state: GanState) -> tuple[generation.Draw, Any]:
        """The averaged generator of a state, with images of the data's size, and the variables to call it with."""
        step, size = int(state.step), self.data.image_size
        stage = self.reached(step)
        alpha = float(stage.alpha(step - 1))

        def draw(variables: Any, latents: jax.Array) -> jax.Array:
            images = self.gan.draw(*variables, latents, stage.resolution, alpha)
            return generation.enlarged(images, size)

        return draw, (state.ema[GENERATOR], state.model_state)

    def sample(self, state: GanState, seeds: Sequence[int]) -> np.ndarray:
        """Images uint8 [N, S, S, 3] of the averaged generator, one for each seed."""
        draw, variables = self.drawn(state)
        latents = generation.latents(seeds, self.gan.latent_size)

        def images(variables: Any, latents: jax.Array) -> jax.Array:
            return generation.to_uint8(draw(variables, latents))

        return map_batches(images, variables, latents, self.evaluation.batch_size)

    def evaluate(self, state: GanState) -> Report:
        """The protocol's report, with the strip of progress: each row after another eighth of the training."""
        report = self.evaluation.assess(*self.drawn(state), self.gan.latent_size, self.data)
        return report | film(state)

    def _step(self, stage: Stage) -> Any:
        optimizer = dataclasses.replace(self.adam, rate=stage.rate).make()
        decay = average_decay(self.average, stage.batch_size)

        def step(state: GanState, batch: dict[str, jax.Array], rng: jax.Array) -> tuple[GanState, dict[str, Mean]]:
            alpha, faded = stage.alpha(state.step), stage.faded(state.step)
            fresh = self.restarted(state).opt_state
            opt_state = jax.tree.map(lambda new, old: jnp.where(faded, new, old), fresh, state.opt_state)
            real = self.faded(batch["image"].astype(jnp.float32) / 127.5 - 1, alpha)
            state, metrics = play(
                state.replace(opt_state=opt_state),
                {"image": real},
                rng,
                self.gan.plays(stage.resolution, alpha),
                dict.fromkeys(state.params, optimizer),
                decay=decay,
                microbatches=self.options.microbatches,
            )

            def draw(latents: jax.Array) -> jax.Array:
                return self.gan.draw(state.ema[GENERATOR], state.model_state, latents, stage.resolution, alpha)

            state = filmed(state, self.options.steps, draw, self.gan.latent_size)
            return state, metrics | {"resolution": Mean.of(stage.resolution), "alpha": Mean.of(alpha)}

        return step


def _images(stage: Stage) -> jax.ShapeDtypeStruct:
    side = stage.resolution
    return jax.ShapeDtypeStruct((stage.batch_size, side, side, 3), jnp.uint8)
