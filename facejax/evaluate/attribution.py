"""Which pixels a classifier's decision depends on: maps by occlusion, gradients and deconvnets, hits on parts, figures.

Zeiler & Fergus. Visualizing and understanding convolutional networks. ECCV 2014. arXiv:1311.2901.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data import normalize, transforms
from facejax.foundations import deconvnet
from facejax.train import image_grid, new_figure

METHODS = {
    "gradient": deconvnet.GRADIENT,
    "deconvnet": deconvnet.DECONVNET,
    "no_switches": deconvnet.NO_SWITCHES,
}
"""Rules that send the true class's score back to the pixels, by name."""


@partial(jax.jit, static_argnames=("net", "layer"))
def activations(net: Any, variables: Any, x: jax.Array, layer: str) -> jax.Array:
    """Output of a layer [N, ..., C]; the class scores if its name is empty."""
    return deconvnet.layer_of(net, variables, layer, train=False)(x)


@partial(jax.jit, static_argnames=("net", "layer", "method"))
def project(
    net: Any, variables: Any, x: jax.Array, units: jax.Array, layer: str, method: str = "deconvnet"
) -> jax.Array:
    """`facejax.foundations.deconvnet.project` of one activation per image, by a method's rules. [N, H, W, 3]."""
    return deconvnet.project(deconvnet.layer_of(net, variables, layer, train=False), x, units, METHODS[method])


@dataclasses.dataclass(frozen=True)
class Probe:
    """A network under inspection.

    Attributes:
      net, variables: (images, train=) -> logits [N, C].
      last: path of its last convolution.
      preprocess: uint8 [N, H, W, 3] -> the network's input, in which 0 is grey.
      square: side of the square that covers a part of the image, pixels.
      stride: between two positions of the square, pixels.
    """

    net: Any
    variables: Any
    last: str
    preprocess: Callable[[jax.Array], jax.Array] = normalize.centred
    square: int = 24
    stride: int = 6

    def input(self, images: np.ndarray) -> jax.Array:
        """The network's input of uint8 images [N, H, W, 3]."""
        return self.preprocess(jnp.asarray(images))


def importance(probe: Probe, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Maps of the evidence for the true class, by occlusion and by every method.

    Args:
      probe: the network.
      images: [N, H, W, 3] uint8.
      labels: [N] int.

    Returns:
      "occlusion" [N, H', W'], the fall of the class's probability when the square is there; each method's name
      [N, H', W'], the mean energy in the square of the projected score, and "{name}_pixels" [N, H, W], that energy;
      "activation" [N, H', W'], the sum of the last convolution's strongest map under occlusion, and "projection"
      [N, H, W, 3] of that map's peak; "centres" of the squares, rows [H'] and columns [W'] in pixels.
    """
    x, truth, rows = probe.input(images), jnp.asarray(labels)[:, None], jnp.arange(len(images))
    of = partial(activations, probe.net, probe.variables)
    back = partial(project, probe.net, probe.variables, x)
    found = of(x, probe.last)
    units = np.stack(np.unravel_index(np.asarray(found).reshape(len(images), -1).argmax(1), found.shape[1:]), -1)

    def watched(x: jax.Array) -> dict[str, jax.Array]:
        probability = jnp.take_along_axis(jax.nn.softmax(of(x, "")), truth, 1)[:, 0]
        strongest = jax.nn.relu(of(x, probe.last))[rows, :, :, units[:, 2]]
        return {"probability": probability, "activation": strongest.sum((1, 2))}

    covered, *centres = deconvnet.occlusion(watched, x, size=probe.square, stride=probe.stride)
    whole = np.asarray(watched(x)["probability"])[:, None, None]
    maps = {
        "occlusion": whole - np.asarray(covered["probability"]),
        "activation": np.asarray(covered["activation"]),
        "projection": np.asarray(back(units, probe.last)),
        "centres": centres,
    }
    for name in METHODS:
        energy = np.asarray(jnp.sum(back(truth, "", name) ** 2, -1))
        squares = np.lib.stride_tricks.sliding_window_view(energy, (probe.square, probe.square), (1, 2))
        maps |= {f"{name}_pixels": energy, name: squares[:, :: probe.stride, :: probe.stride].mean((3, 4))}
    return maps


def eye_boxes(landmarks: np.ndarray) -> np.ndarray:
    """Boxes [N, 2, 2] around both eyes, enlarged by a fifth of their span: first and last (row, column).

    Args:
      landmarks: [N, 68, 2] (x, y).
    """
    eyes = landmarks[:, 36:48, ::-1]
    low, high = eyes.min(1), eyes.max(1)
    margin = 0.2 * np.abs(high - low).max(1, keepdims=True)
    return np.stack([low - margin, high + margin], 1)


def inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether points [..., 2] lie in boxes [..., 2, 2]. [...] bool."""
    return ((points >= boxes[..., 0, :]) & (points <= boxes[..., 1, :])).all(-1)


def hit_rate(maps: np.ndarray, centres: Sequence[np.ndarray], boxes: np.ndarray) -> float:
    """Share of maps [N, H', W'] whose highest square has its centre in the box [N, 2, 2]."""
    row, column = np.unravel_index(maps.reshape(len(maps), -1).argmax(1), maps.shape[1:])
    return float(inside(np.stack([centres[0][row], centres[1][column]], -1), boxes).mean())


def localisation(maps: dict[str, Any], boxes: np.ndarray) -> dict[str, float]:
    """How well maps of `importance` point at a part of each image.

    Args:
      maps: of `importance`.
      boxes: [N, 2, 2] around the part, first and last (row, column).

    Returns:
      "{name}_hits" (`hit_rate`) of occlusion and all methods, and "chance_hits" of a random square;
      "{name}_energy_on_part", the share of a method's energy in the boxes; "area_of_part", the boxes' share of the
      image. All in 0..1.
    """
    hits = {f"{name}_hits": hit_rate(maps[name], maps["centres"], boxes) for name in ("occlusion", *METHODS)}
    centres = np.stack(np.meshgrid(*maps["centres"], indexing="ij"), -1)
    hits["chance_hits"] = float(inside(centres[None], boxes[:, None, None]).mean())
    pixels = np.stack(np.indices(maps["gradient_pixels"].shape[1:]), -1) + 0.5
    within = inside(pixels[None], boxes[:, None, None])
    for name in METHODS:
        energy = maps[f"{name}_pixels"]
        hits[f"{name}_energy_on_part"] = float((energy * within).sum() / energy.sum())
    return {**hits, "area_of_part": float(within.mean())}


def correspondences(
    probe: Probe, images: np.ndarray, places: dict[str, np.ndarray], layers: Sequence[str]
) -> list[dict[str, Any]]:
    """Sec. 4.3: `deconvnet.correspondence` of layers when parts are covered, and when random squares are.

    Args:
      probe: the network.
      images: [N, H, W, 3] uint8.
      places: part -> [N, 2] its centre (row, column) in each image, pixels.
      layers: paths of the layers.

    Returns:
      A table row for each part and for "random".
    """
    x, highest, rng = probe.input(images), images.shape[1] - probe.square, np.random.default_rng(0)
    corners = {name: centre - probe.square / 2 for name, centre in places.items()}
    corners["random"] = rng.uniform(0, highest, (len(images), 2))
    rows: list[dict[str, Any]] = [{"part": name} for name in corners]
    for layer in layers:
        whole = jax.nn.relu(activations(probe.net, probe.variables, x, layer))
        for row in rows:
            covered = deconvnet.cover(x, jnp.round(jnp.asarray(corners[row["part"]])), probe.square)
            covered = jax.nn.relu(activations(probe.net, probe.variables, covered, layer))
            row[layer] = float(deconvnet.correspondence(whole, covered))
    return rows


def strongest_projections(
    probe: Probe, images: np.ndarray, layer: str, maps: int = 8, each: int = 4, tile: int = 48
) -> np.ndarray:
    """An image with a row per feature map: projections of its strongest activations, then their image patches."""
    x = probe.input(images)
    found = np.asarray(activations(probe.net, probe.variables, x, layer))
    rows, units = deconvnet.strongest(found, each)
    order = np.argsort(-found.max(tuple(range(found.ndim - 1))))[:maps]
    rows, units = rows[order].reshape(-1), units[order].reshape(len(order) * rows.shape[1], -1)
    back = np.asarray(project(probe.net, probe.variables, x[rows], units, layer))
    pairs = [patch(images[n], b, tile) for n, b in zip(rows, back, strict=True)]
    shown, seen = (np.stack(part).reshape(len(order), -1, tile, tile, 3) for part in zip(*pairs, strict=True))
    return image_grid(np.concatenate([shown, seen], 1).reshape(-1, tile, tile, 3), 2 * shown.shape[1])


def evolution(snapshots: Sequence[Probe], images: np.ndarray, layers: Sequence[str], maps: int = 3) -> np.ndarray:
    """An image with a row per feature map: the projection of its strongest activation at each snapshot.

    Args:
      snapshots: the network at points of its training, the end last.
      images: [N, H, W, 3] uint8.
      layers: paths of the layers.
      maps: shown of each layer, those that are strongest at the end.
    """
    x, rows = snapshots[-1].input(images), []
    for layer in layers:
        final = np.asarray(activations(snapshots[-1].net, snapshots[-1].variables, x, layer))
        shown, columns = np.argsort(-final.max(tuple(range(final.ndim - 1))))[:maps], []
        for probe in snapshots:
            found = np.asarray(activations(probe.net, probe.variables, x, layer))
            numbers, units = (part[shown, 0] for part in deconvnet.strongest(found, 1))
            back = np.asarray(project(probe.net, probe.variables, x[numbers], units, layer))
            columns.append([patch(images[n], b, 48)[0] for n, b in zip(numbers, back, strict=True)])
        rows += [column[m] for m in range(len(shown)) for column in columns]
    return image_grid(np.stack(rows), len(snapshots))


def patch(image: np.ndarray, back: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """The region that a projection reaches, cut from the projection (zero is grey) and from the image, both uint8."""
    reached = [np.flatnonzero(np.abs(back).max((axis, 2))) for axis in (1, 0)]
    rows, columns = (slice(r[0], r[-1] + 1) if len(r) else slice(None) for r in reached)
    return tuple(transforms.resize(part[rows, columns], tile, tile) for part in (visible(back), image))


def visible(back: np.ndarray) -> np.ndarray:
    """Signed numbers as uint8: zero is grey, the largest magnitude at the end of the scale."""
    return np.clip(128 + 127 * back / max(np.abs(back).max(), 1e-12), 0, 255).astype(np.uint8)


def occlusion_figure(images: np.ndarray, maps: dict[str, Any], shown: int = 8) -> Any:
    """Images above their maps of `importance`: occlusion, activation, projection and gradient."""
    shown = min(shown, len(images))
    figure, axes = new_figure(1.5 * shown, 7.2, 5, shown)
    axes = axes.reshape(5, shown)
    (top, bottom), (left, right) = ((c[0], c[-1]) for c in maps["centres"])
    extent = (left - 0.5, right + 0.5, bottom + 0.5, top - 0.5)
    for i, column in enumerate(axes.T):
        column[0].imshow(images[i])
        column[1].imshow(maps["occlusion"][i], cmap="magma", extent=extent)
        column[2].imshow(maps["activation"][i], cmap="viridis", extent=extent)
        column[3].imshow(visible(maps["projection"][i]))
        column[4].imshow(np.sqrt(maps["gradient_pixels"][i]), cmap="magma")
        for axis in column:
            axis.set(xticks=[], yticks=[], xlim=(0, images.shape[2]), ylim=(images.shape[1], 0))
            axis.grid(False)
    names = ("image", "fall of probability", "sum of strongest map", "its projection", "gradient")
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, fontsize=8)
    return figure
