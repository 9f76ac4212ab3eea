"""Runs of GANs of one resolution whose regularisers have their own updates in some steps (StyleGAN2, appendix B)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from facejax.data.generation import GenerationImages
from facejax.evaluate.generation import GenerationProtocol
from facejax.recipes import gan
from facejax.recipes.gan import GENERATOR, Adam, GanState, Params, Play
from facejax.train import Experiment, Mean, Options, Report


@dataclasses.dataclass(frozen=True)
class Regularised:
    """Such a run.

    Attributes:
      latent_size: Z.
      init: key -> (parameters by player, model_state).
      plays: names of the regularisers of a step -> its plays, on batches {"image": float32 [N, R, R, 3] in -1..1}.
      regularisers: name -> (player, interval in steps); a player has one at most, whose loss it multiplies by the
        interval.
      draw: (average of the generator's parameters, model_state, latents [N, Z]) -> images [N, R, R, 3] in -1..1.
      data, adam, options, evaluation: sections of the configuration.
      average: of the generator's parameters: below 1 the decay of a step, else a half-life in images.
      seed: of the data's order.
    """

    latent_size: int
    init: Callable[[jax.Array], tuple[Params, Any]]
    plays: Callable[[Sequence[str]], Sequence[Play]]
    regularisers: Mapping[str, tuple[str, int]]
    draw: Callable[[Any, Any, jax.Array], jax.Array]
    data: GenerationImages
    adam: Adam
    options: Options
    evaluation: GenerationProtocol
    average: float
    seed: int

    def __post_init__(self) -> None:
        for name, (_, interval) in self.regularisers.items():
            if interval < 1:
                raise ValueError(f"the regulariser {name} has an interval of {interval} steps: expected 1 or more")

    def experiment(self) -> Experiment:
        """The experiment."""
        intervals = {name: interval for name, (_, interval) in self.regularisers.items()}
        side = self.data.image_size
        batch = {"image": jax.ShapeDtypeStruct((self.options.batch_size, side, side, 3), jnp.uint8)}
        names = gan.lazy_names(intervals)
        return Experiment(
            evaluate=self.evaluate,
            init=self.begin,
            train_step={name: self._step(name.split("+")) for name in names},
            train_data=lambda: self.data.batches(self.options.batch_size, self.seed),
            batch=dict.fromkeys(names, batch),
            choose=gan.lazy_choice(intervals),
        )

    def begin(self, rng: jax.Array) -> GanState:
        """The state before the first step."""
        params, model_state = self.init(rng)
        state = GanState.begin(rng, params, model_state, self.data.image_size)
        return state.replace(opt_state={name: tx.init(params[name]) for name, tx in self.optimizers.items()})

    @property
    def optimizers(self) -> dict[str, optax.GradientTransformation]:
        """By player."""
        lazy = {player: self.adam.lazy(interval) for player, interval in self.regularisers.values()}
        return {player: lazy.get(player, self.adam).make() for player in (gan.GENERATOR, gan.DISCRIMINATOR)}

    def evaluate(self, state: GanState) -> Report:
        """The protocol's report, with the strip of progress."""

        def draw(variables: Any, latents: jax.Array) -> jax.Array:
            return self.draw(*variables, latents)

        variables = (state.ema[GENERATOR], state.model_state)
        return self.evaluation.assess(draw, variables, self.latent_size, self.data) | gan.film(state)

    def _step(self, active: Sequence[str]) -> Any:
        decay = gan.average_decay(self.average, self.options.batch_size)

        def step(state: GanState, batch: dict[str, jax.Array], rng: jax.Array) -> tuple[GanState, dict[str, Mean]]:
            real = batch["image"].astype(jnp.float32) / 127.5 - 1
            plays, microbatches = self.plays(active), self.options.microbatches
            state, metrics = gan.play(
                state, {"image": real}, rng, plays, self.optimizers, decay=decay, microbatches=microbatches
            )

            def draw(latents: jax.Array) -> jax.Array:
                return self.draw(state.ema[GENERATOR], state.model_state, latents)

            return gan.filmed(state, self.options.steps, draw, self.latent_size), metrics

        return step
