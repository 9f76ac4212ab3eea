"""Generators with factors to choose: whether images show the factors asked for, and whether other factors stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from facejax.data import normalize
from facejax.evaluate.generation import latents
from facejax.generation import discofacegan
from facejax.generation.discofacegan import FACTORS, Latents, Layout, SmallNet
from facejax.ops import rotation
from facejax.train import Report, image_grid, map_batches

SWEEP, PSIS, SHEET = (-2.0, -1.0, 0.0, 1.0, 2.0), (1.0, 0.7, 0.4, 0.0), 6
"""Values along a latent direction, truncations, and faces of a sheet."""


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How a `SmallNet` is trained: the `perception` section.

    Attributes:
      steps: Adam steps; the rate falls to 0 along a cosine.
      batch_size: images a step.
      rate: at the beginning.
    """

    steps: int = 600
    batch_size: int = 64
    rate: float = 2e-3


class Reader(NamedTuple):
    """A perception net.

    Attributes:
      apply: (variables, images uint8 [N, S, S, 3]) -> coefficients and translation [N, D + 3].
      variables: its first argument.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    variables: Any

    def read(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """[N, D + 3]."""
        return map_batches(self.apply, self.variables, images, batch_size)


def fit(
    loss: Callable[..., jax.Array], params: Any, rows: int, steps: int, batch_size: int, rate: Any, seed: int
) -> Any:
    """Parameters after Adam steps on batches of row numbers.

    Args:
      loss: (params, numbers [n], key) -> [].
      params: to begin with.
      rows: number of rows.
      steps, batch_size: of the training; batches are drawn with replacement.
      rate: learning rate, or a schedule.
      seed: of batches and keys.
    """
    tx, (flat, unravel) = optax.adam(rate), ravel_pytree(params)  # one array instead of many small ones

    @jax.jit
    def step(flat: jax.Array, state: Any, number: jax.Array) -> Any:
        first, second = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
        chosen = jax.random.randint(first, (batch_size,), 0, rows)
        grads = jax.grad(lambda flat: loss(unravel(flat), chosen, second))(flat)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(flat, updates), state

    state = tx.init(flat)
    for number in range(steps):
        flat, state = step(flat, state, number)
    return unravel(flat)


def fit_reader(net: SmallNet, images: np.ndarray, coefficients: np.ndarray, fitting: Fitting, seed: int) -> Any:
    """Variables of a small net that reads coefficients from images; all factors have the same weight.

    Args:
      net: the net.
      images: uint8 [N, S, S, 3].
      coefficients: [N, D] of the images; a translation of 0 is learnt beside them.
      fitting: the training.
      seed: of parameters and batches.
    """
    targets = np.pad(coefficients.astype(np.float32), ((0, 0), (0, discofacegan.SHIFT)))
    whitening = {"mean": jnp.asarray(targets.mean(0)), "std": jnp.asarray(np.maximum(targets.std(0), 1e-3))}
    first = jax.jit(net.init)(jax.random.key(seed), jnp.zeros((1, *images.shape[1:])))["params"]
    images, targets = jnp.asarray(images), jnp.asarray(targets)
    places = net.layout.slices()

    def loss(params: Any, chosen: jax.Array, key: jax.Array) -> jax.Array:
        del key
        found = net.apply({"params": params, "whitening": whitening}, normalize.symmetric(images[chosen]))
        squares = jnp.square((found - targets[chosen]) / whitening["std"])
        return sum(squares[:, places[name]].mean() for name in FACTORS) + squares[:, net.layout.size :].mean()

    schedule = optax.cosine_decay_schedule(fitting.rate, fitting.steps)
    params = fit(loss, first, len(images), fitting.steps, fitting.batch_size, schedule, seed)
    return {"params": params, "whitening": whitening}


class Controlled(NamedTuple):
    """A trained generator with factors.

    Attributes:
      decode: (variables, latents [N, Z]) -> coefficients and noise [N, D + noise].
      draw: (variables, (coefficients and noise, psi [N])) -> images uint8 [N, S, S, 3] of truncated styles, with fixed
        noise in the layers.
      render: (variables, coefficients and noise) -> images of the face model, uint8.
      variables: first argument of these.
      latents, layout: sizes of latents and of coefficients.
    """

    decode: Callable[[Any, jax.Array], jax.Array]
    draw: Callable[[Any, tuple[jax.Array, jax.Array]], jax.Array]
    render: Callable[[Any, jax.Array], jax.Array]
    variables: Any
    latents: Latents
    layout: Layout

    def inputs(self, latents: np.ndarray, batch_size: int) -> np.ndarray:
        """Coefficients and noise [N, D + noise] of latents [N, Z]."""
        return map_batches(self.decode, self.variables, np.asarray(latents, np.float32), batch_size)

    def images(self, inputs: np.ndarray, batch_size: int, psi: float = 1.0) -> np.ndarray:
        """Images uint8 [N, S, S, 3] of coefficients and noise."""
        both = np.asarray(inputs, np.float32), np.full(len(inputs), psi, np.float32)
        return map_batches(self.draw, self.variables, both, batch_size)


@dataclasses.dataclass(frozen=True)
class ControlProtocol:
    """The `control` section of a configuration.

    Attributes:
      images: whose factors are compared with those asked for.
      settings, values: M and K of the disentanglement score: M images, each with K values of every factor.
      batch_size: images a call.
    """

    images: int = 500
    settings: int = 60
    values: int = 8
    batch_size: int = 100

    def assess(self, net: Controlled, reader: Reader, real: np.ndarray) -> Report:
        """Measures a generator.

        Args:
          net: the generator.
          reader: a perception net that had no part in the training.
          real: [N, D] coefficients that the reader finds in real images.

        Returns:
          "pose_error" in degrees; "relative_pose_error", of what an image of any other pose would have; the same of the
          coefficients of each factor; "ds_FACTOR" and "ds", their geometric mean; sheets of sweeps.
        """
        asked = net.inputs(latents(range(self.images), net.latents.size), self.batch_size)
        found = self._found(net, reader, asked)
        places = net.layout.slices()
        metrics = {"pose_error": pose_error(asked[:, places["pose"]], found[:, places["pose"]])}
        others = np.roll(asked, 1, 0)
        metrics["relative_pose_error"] = metrics["pose_error"] / pose_error(
            asked[:, places["pose"]], others[:, places["pose"]]
        )
        for name in FACTORS:
            metrics[f"explained_{name}"] = explained(asked[:, places[name]], found[:, places[name]])
        own = [discofacegan.spread(real[None, :, places[name]]) for name in FACTORS]
        spreads = np.array([self._spreads(net, reader, name) for name in FACTORS])
        scores = discofacegan.disentanglement(spreads, own)
        metrics |= {f"ds_{name}": score for name, score in zip(FACTORS, scores, strict=True)}
        metrics["ds"] = float(np.exp(np.log(scores).mean()))
        rows = [
            {"varied": name, **dict(zip(FACTORS, row / own, strict=True))}
            for name, row in zip(FACTORS, spreads, strict=True)
        ]
        notes = {
            "pose_error": "mean angle in degrees between the pose asked for and that which a perception net finds; "
            "relative: to the distance between the poses asked for of two images",
            "ds": "geometric mean of the factors' disentanglement scores, a variant of the paper's",
            "explained": "share of the variance of the coefficients asked for that those found explain, 1 at best",
        }
        table = {"Spread of estimated factors relative to that of real images": rows}
        return Report(metrics, tables=table, notes=notes) | self.sheets(net)

    def _found(self, net: Controlled, reader: Reader, asked: np.ndarray) -> np.ndarray:
        """[N, D + 3] read off the images of coefficients and noise [N, D + noise]."""
        return reader.read(net.images(asked, self.batch_size), self.batch_size)

    def _spreads(self, net: Controlled, reader: Reader, varied: str) -> list[float]:
        """Of every factor's estimates while one varies."""
        base = latents(range(self.settings), net.latents.size).repeat(self.values, 0)
        fresh = latents(range(10**6, 10**6 + len(base)), net.latents.size)
        place = net.latents.slices()[varied]
        base[:, place] = fresh[:, place]
        found = self._found(net, reader, net.inputs(base, self.batch_size)).reshape(self.settings, self.values, -1)
        return [discofacegan.spread(found[..., net.layout.slices()[name]]) for name in FACTORS]

    def sheets(self, net: Controlled) -> Report:
        """Sheets: renderings beside images, each factor swept, truncation."""
        z, size = latents(range(SHEET), net.latents.size), self.batch_size
        asked = net.inputs(z, size)
        both = np.stack([map_batches(net.render, net.variables, asked, size), net.images(asked, size)])
        title = "Renderings, and images of the same coefficients"
        images = {title: image_grid(both.reshape(-1, *both.shape[2:]), SHEET)}
        for name in FACTORS:
            place = net.latents.slices()[name]
            direction = _turning(net, size) if name == "pose" else latents([77], net.latents.size)[0, place]
            swept = z[:, None].repeat(len(SWEEP), 1)
            swept[..., place] = np.array(SWEEP)[:, None] * direction / np.abs(direction).max()
            rows = net.inputs(swept.reshape(-1, z.shape[1]), size)
            images[f"{name.capitalize()} from left to right"] = image_grid(net.images(rows, size), len(SWEEP))
        cells = np.stack([net.images(asked, size, psi) for psi in PSIS], 1)
        title = f"Truncation that keeps expression, light and pose, psi {', '.join(map(str, PSIS))} from left to right"
        images[title] = image_grid(cells.reshape(-1, *cells.shape[2:]), len(PSIS))
        return Report({}, images=images)


def _turning(net: Controlled, batch_size: int) -> np.ndarray:
    """The direction of the pose's latents along which the head turns to a side most."""
    place = net.latents.slices()["pose"]
    probe = np.zeros((2 * (place.stop - place.start), net.latents.size), np.float32)
    for i, column in enumerate(range(place.start, place.stop)):
        probe[2 * i : 2 * i + 2, column] = 1, -1
    yaw = net.inputs(probe, batch_size)[:, net.layout.slices()["pose"]][:, 1]
    return yaw[::2] - yaw[1::2]


def pose_error(asked: np.ndarray, found: np.ndarray) -> float:
    """Mean angle in degrees between poses [N, 3]."""
    turns = (discofacegan.turn(jnp.asarray(x)) for x in (asked, found))
    return float(np.degrees(rotation.geodesic_distance(*turns)).mean())


def explained(asked: np.ndarray, found: np.ndarray) -> float:
    """1 - squared error / variance of coefficients [N, d], all together; may be negative."""
    asked, found = (np.asarray(x, np.float64) for x in (asked, found))
    return float(1 - ((asked - found) ** 2).mean(0).sum() / asked.var(0).sum())


def quality(asked: np.ndarray, found: np.ndarray, layout: Layout) -> Mapping[str, float]:
    """A reader's errors: true coefficients [N, D] and those found [N, D + 3]."""
    places = layout.slices()
    errors = {f"{name} explained": explained(asked[:, places[name]], found[:, places[name]]) for name in FACTORS}
    return {"pose error": pose_error(asked[:, places["pose"]], found[:, places["pose"]]), **errors}
