"""DiscoFaceGAN: faces whose identity, expression, lighting and pose are set apart, by imitating a 3D face model.

Deng, Yang, Chen, Wen, Tong. "Disentangled and controllable face image generation via 3D imitative-contrastive
learning". CVPR 2020. arXiv:2004.11660.
Decoders of four variational autoencoders turn latents into the coefficients of a morphable model. A StyleGAN makes an
image of them that has to look real, to resemble the model's rendering, and to change where one factor changes only.

Follows the authors' code (microsoft/DiscoFaceGAN). Differs: any linear face model takes the place of the Basel face
model. What the sources leave open is marked (choice). Images are in -1..1, the renderer's colours in 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from facejax.backbones.resnet import resnet50
from facejax.generation import stylegan
from facejax.morphable import camera, decimation, lighting, rasterizer
from facejax.morphable.model import MorphableModel
from facejax.morphable.parameters import face_region
from facejax.ops import rotation, scaled_conv
from facejax.ops.sampling import bilinear_sample
from facejax.ops.vectors import unit

POSE, LIGHT, SHIFT = 3, 27, 3
"""Coefficients of the pose (turns about x, y, z in radians) and of the light, and the perception net's translation."""
DISTANCE = 10.0
"""From the camera to the model's origin."""
ZOOM, PERCEPTION_ZOOM = 1015 * 1.22 / 128 / DISTANCE, 1015 / 112 / DISTANCE
"""Half sides of the image per unit of the model at its origin: of generated images, and of R-Net's camera."""
AMBIENT = 0.8
"""Added to the first coefficient of the light in every channel."""
A0, A1, A2 = math.pi, 2 * math.pi / math.sqrt(3), 2 * math.pi / math.sqrt(8)
C0, C1, C2 = 1 / math.sqrt(4 * math.pi), math.sqrt(3 / (4 * math.pi)), 3 * math.sqrt(5 / (12 * math.pi))


class Layout(NamedTuple):
    """Numbers of shape, texture and expression coefficients: [shape, texture, expression, pose 3, light 27] in a row.

    Light has nine numbers of the red, the green and the blue channel.
    """

    shape: int = 80
    texture: int = 80
    expression: int = 64

    @property
    def size(self) -> int:
        """D."""
        return sum(self) + POSE + LIGHT

    def slices(self) -> dict[str, slice]:
        """Factor -> its place in coefficients [..., D]."""
        return _slices({
            "identity": self.shape + self.texture, "expression": self.expression, "pose": POSE, "light": LIGHT,
        })  # fmt: skip


class Latents(NamedTuple):
    """Numbers of latents, in this order; noise goes to the generator as it is."""

    identity: int = 128
    expression: int = 32
    light: int = 16
    pose: int = 3
    noise: int = 32

    @property
    def size(self) -> int:
        """Z."""
        return sum(self)

    def slices(self) -> dict[str, slice]:
        """Factor -> its place in latents [..., Z]."""
        return _slices(self._asdict())


FACTORS = ("identity", "expression", "light", "pose")
WIDTHS = {"identity": 512, "expression": 256, "light": 128, "pose": 32}
"""Of the three hidden layers of each autoencoder's two networks."""


class Decoder(nn.Module):
    """Latents of a factor to its coefficients.

    Attributes:
      outputs: coefficients.
      width: of the three hidden layers.
    """

    outputs: int = 160
    width: int = 512

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """[N, Z] -> [N, outputs]."""
        x = latents
        for _ in range(3):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(x)


class Autoencoder(nn.Module):
    """A variational autoencoder of a factor's coefficients, with one learnt deviation.

    Attributes:
      latents: Z.
      outputs: coefficients.
      width: of the hidden layers.
      gamma: the deviation at the beginning.
    """

    latents: int = 128
    outputs: int = 160
    width: int = 512
    gamma: float = 1.0

    def setup(self) -> None:
        self.encoder = Decoder(2 * self.latents, self.width)
        self.decoder = Decoder(self.outputs, self.width)
        self.log_gamma = self.param("log_gamma", nn.initializers.constant(math.log(self.gamma)), ())

    def __call__(self, coefficients: jax.Array, normal: jax.Array) -> jax.Array:
        """The loss of coefficients [N, outputs], with normal numbers [N, Z]: [N]."""
        mean, log_deviation = jnp.split(self.encoder(coefficients), 2, -1)
        found = self.decoder(mean + jnp.exp(log_deviation) * normal)
        return autoencoder_loss(coefficients, found, self.log_gamma, mean, log_deviation)


def autoencoder_loss(
    coefficients: jax.Array, found: jax.Array, log_gamma: jax.Array, mean: jax.Array, log_deviation: jax.Array
) -> jax.Array:
    """Negative log-likelihood with the deviation gamma, and the divergence from the prior.

    Args:
      coefficients, found: [N, D], and what was decoded.
      log_gamma: [].
      mean, log_deviation: [N, Z] of the latents.

    Returns:
      [N].
    """
    squares = jnp.square((coefficients - found) * jnp.exp(-log_gamma))
    likelihood = jnp.sum(squares / 2 + log_gamma + math.log(2 * math.pi) / 2, -1)
    return likelihood + jnp.sum(mean**2 + jnp.exp(2 * log_deviation) - 2 * log_deviation - 1, -1) / 2


def decoded(decoders: Any, latents: jax.Array, sizes: Latents, layout: Layout) -> jax.Array:
    """Coefficients of latents, in the order of `Layout`; no gradient passes.

    Args:
      decoders: factor -> parameters of its `Decoder`.
      latents: [N, Z].
      sizes, layout: of latents and coefficients.

    Returns:
      [N, D].
    """
    parts, found = sizes.slices(), {}
    for name, place in layout.slices().items():
        net = Decoder(place.stop - place.start, decoders[name]["Dense_0"]["kernel"].shape[1])
        found[name] = net.apply({"params": decoders[name]}, latents[..., parts[name]])
    return lax.stop_gradient(jnp.concatenate(list(found.values()), -1))


def inputs(decoders: Any, latents: jax.Array, sizes: Latents, layout: Layout) -> jax.Array:
    """The generator's input of latents [N, Z]: coefficients and noise, [N, D + noise]."""
    noise = latents[..., sizes.slices()["noise"]]
    return jnp.concatenate([decoded(decoders, latents, sizes, layout), noise], -1)


Generator = partial(stylegan.Generator, 256, Layout().size + Latents().noise, normalize=False, style_size=512)
"""StyleGAN's, of coefficients and noise, which are not normalised; one w for all layers."""
Discriminator = stylegan.ffhq_256_discriminator


def truncated(styles: jax.Array, of_identity: jax.Array, average: jax.Array, psi: float | jax.Array = 0.7) -> jax.Array:
    """The truncation that keeps expression, light and pose: the first layers move by that of the identity alone.

    Args:
      styles: [N, L, W].
      of_identity: [N, W], w of the same identities, with zeros for all other inputs.
      average: [W], mean over identities of w with random noise and zeros for expression, light and pose; of 50,000 in
        the authors' code.
      psi: 1: unchanged.

    Returns:
      [N, L, W].
    """
    moved = styles + (1 - psi) * (average - of_identity)[:, None]
    return jnp.where(jnp.arange(styles.shape[1])[:, None] < stylegan.TRUNCATED_LAYERS, moved, styles)


@struct.dataclass
class Face:
    """A linear face model with a colour at each vertex; the last 68 vertices are landmarks and belong to no triangle.

    Numbers of vertices are stored as float32, exact up to 2^24: a training state is averaged over devices.

    Attributes:
      mean: [V, 3], centred.
      shape, expression: [V, 3, S] and [V, 3, E], displacements of a coefficient of 1.
      colour: [V, 3] mean colour, 0..255.
      texture: [V, 3, T].
      triangles: [F, 3] counter-clockwise seen from outside.
      front: [V] 1 for vertices of the part that the losses look at, else 0.
    """

    mean: jax.Array
    shape: jax.Array
    expression: jax.Array
    colour: jax.Array
    texture: jax.Array
    triangles: jax.Array
    front: jax.Array


def make_face(model: MorphableModel, layout: Layout, vertices: int = 0) -> Face:
    """The face of a morphable model, without neck, ears, scalp and back of the head.

    Args:
      model: the morphable model.
      layout: numbers of its components.
      vertices: about so many are kept; 0: all.

    Raises:
      ValueError: the model has fewer components.
    """
    stds = model.identity_std, model.albedo_std, model.expression_std
    if any(len(std) < count for std, count in zip(stds, layout, strict=True)):
        raise ValueError(f"make_face: {layout} components, but the model has {[len(std) for std in stds]}")
    region = face_region(model)
    inside = np.zeros(len(model.mean_shape), bool)
    inside[region] = True
    rows, triangles = decimation.part(np.asarray(model.triangles), inside)
    if vertices:
        coarse, triangles = decimation.decimate(np.asarray(model.mean_shape)[rows], triangles, vertices)
        rows = rows[coarse]
    rows = np.concatenate([rows, np.asarray(model.landmarks68)])

    def basis(whole: jax.Array, std: jax.Array, count: int) -> np.ndarray:
        return np.asarray(whole)[rows, :, :count] * np.asarray(std)[:count]

    mean, *bases = (np.asarray(x) for x in (model.albedo_mean, model.albedo_basis[..., : layout.texture]))
    texels = np.concatenate([mean[..., None], *bases], -1)
    points = np.asarray(model.uv)[rows] * np.float32(mean.shape[1::-1])
    sampled = 255 * np.asarray(jax.jit(bilinear_sample)(texels.reshape(*mean.shape[:2], -1), points))
    sampled = sampled.reshape(len(rows), 3, -1)
    made = Face(
        mean=np.asarray(model.mean_shape)[rows] - face_centre(model),
        shape=basis(model.identity_basis, model.identity_std, layout.shape),
        expression=basis(model.expression_basis, model.expression_std, layout.expression),
        colour=sampled[..., 0],
        texture=sampled[..., 1:] * np.asarray(model.albedo_std)[: layout.texture],
        triangles=triangles,
        front=np.ones(len(rows)),
    )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), made)


def face_centre(model: MorphableModel) -> np.ndarray:
    """[3] the point of the model that is the origin of its `Face`: the mean of its region's mean shape."""
    return np.asarray(model.mean_shape)[face_region(model)].mean(0)


class Mesh(NamedTuple):
    """Faces in the camera's axes: vertices [N, V, 3] and their colours [N, V, 3], lit, 0..255 where not too bright."""

    vertices: jax.Array
    colours: jax.Array


class Rendered(NamedTuple):
    """Renderings.

    Attributes:
      images: [N, S, S, 3] in -1..1; what no face covers is black, -1.
      mask: [N, S, S, 1] 1 where the front of a face is seen, else 0.
      points: [N, V, 3] projected vertices, see `projected`.
    """

    images: jax.Array
    mask: jax.Array
    points: jax.Array


def turn(angles: jax.Array) -> jax.Array:
    """R = Rz Ry Rx of angles [..., 3] about x, y and z: [..., 3, 3], for column vectors."""
    return jnp.swapaxes(rotation.from_euler(-angles), -1, -2)


def angles_of(turns: jax.Array) -> jax.Array:
    """Inverse of `turn`."""
    return -rotation.to_euler(jnp.swapaxes(turns, -1, -2))


def mesh(face: Face, coefficients: jax.Array, layout: Layout, shift: jax.Array | None = None) -> Mesh:
    """Faces of coefficients.

    Args:
      face: the model.
      coefficients: [N, D].
      layout: of the coefficients.
      shift: [N, 3] translation; generated faces have none.
    """
    parts = {name: coefficients[:, place] for name, place in layout.slices().items()}
    shape, texture = parts["identity"][:, : layout.shape], parts["identity"][:, layout.shape :]
    vertices = face.mean + _combined(face.shape, shape) + _combined(face.expression, parts["expression"])
    vertices = jnp.einsum("nvj,nij->nvi", vertices, turn(parts["pose"]))
    light = parts["light"].reshape(-1, 3, 9)
    bright = jax.vmap(shading)(_normals(vertices, face.triangles.astype(jnp.int32)), light)
    colours = (face.colour + _combined(face.texture, texture)) * bright
    return Mesh(vertices if shift is None else vertices + shift[:, None], colours)


def harmonics(normals: jax.Array) -> jax.Array:
    """The nine functions of unit normals [..., 3] that light is made of: [..., 9]."""
    x, y, z = (normals[..., i] for i in range(3))
    terms = [
        jnp.full_like(x, A0 * C0), -A1 * C1 * y, A1 * C1 * z, -A1 * C1 * x, A2 * C2 * x * y, -A2 * C2 * y * z,
        A2 * C2 * (3 * z * z - 1) / (2 * math.sqrt(3)), -A2 * C2 * x * z, A2 * C2 * (x * x - y * y) / 2,
    ]  # fmt: skip
    return jnp.stack(terms, -1)


def shading(normals: jax.Array, light: jax.Array) -> jax.Array:
    """Factors [V, 3] of the colours at unit normals [V, 3] under light [3, 9], to which `AMBIENT` is added."""
    return jnp.einsum("vk,ck->vc", harmonics(normals), light.at[:, 0].add(AMBIENT))


def light_coefficients(shades: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The light [27] nearest to given shades, on normals that the camera sees.

    Args:
      shades: unit normals [K, 3] -> factors of the colours [K, 3].
    """
    z = np.linspace(0.05, 1, 60)
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(60)  # a spiral covers the half sphere evenly
    r = np.sqrt(1 - z * z)
    normals = jnp.asarray(np.stack([r * np.cos(angle), r * np.sin(angle), z], 1), jnp.float32)
    basis = harmonics(normals)
    goal = basis.T @ (shades(normals) - AMBIENT * basis[:, :1])
    return jnp.linalg.solve(basis.T @ basis + 1e-3 * jnp.eye(9), goal).T.ravel()


def projected(vertices: jax.Array, size: float, zoom: float = ZOOM) -> jax.Array:
    """Image coordinates of vertices [N, V, 3]: x right, y down in pixels of an image of `size`, and depth.

    Args:
      vertices: in the camera's axes; the camera is at z = `DISTANCE` and looks at the origin.
      size: side of the image; 1: coordinates in 0..1.
      zoom: half sides per unit at the origin.
    """
    one = jnp.ones(len(vertices))
    middle = jnp.full((len(vertices), 2), size / 2)
    still = jnp.broadcast_to(jnp.eye(3), (len(vertices), 3, 3))
    return camera.perspective(vertices, still, zoom * size / 2 * one, middle, DISTANCE * one)


def drawn(points: jax.Array, face: Face, values: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Values [N, V, C] of projected vertices [N, V, 3] as images [N, S, S, C], and the mask [N, S, S] of the faces."""
    triangles = face.triangles.astype(jnp.int32)
    fragments = rasterizer.rasterize_batch(points, triangles, size, size)
    planes = jax.vmap(partial(rasterizer.interpolate, triangles=triangles))(fragments, attributes=values)
    return jnp.moveaxis(planes, 1, -1), fragments.triangle >= 0


def render(face: Face, coefficients: jax.Array, layout: Layout, size: int, shift: jax.Array | None = None) -> Rendered:
    """Renders faces of coefficients [N, D] at `size` pixels; see `mesh`."""
    made = mesh(face, coefficients, layout, shift)
    points = projected(made.vertices, size)
    front = jnp.broadcast_to(face.front[None, :, None], (*points.shape[:2], 1))
    planes, seen = drawn(points, face, jnp.concatenate([made.colours, front], -1), size)
    images = jnp.clip(planes[..., :3] / 127.5 - 1, -1, 1)
    mask = (seen[..., None] & (planes[..., 3:] > 0.5)).astype(jnp.float32)
    return Rendered(jnp.where(seen[..., None], images, -1.0), mask, points)


class RNet(nn.Module):
    """R-Net of Deng et al. (CVPRW 2019, arXiv:1903.08527): a ResNet-50 with a linear head for every kind of number.

    Attributes:
      layout: of the coefficients.
      dtype: of the trunk.
    """

    layout: Layout = Layout()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [N, 224, 224, 3] RGB in -1..1 to coefficients and translation, [N, D + 3]. BGR 0..255 go in."""
        x = (images[..., ::-1] + 1) * 127.5
        x = resnet50(dtype=self.dtype, name="trunk")(x, train=False, features=True)["c5"]
        return heads(x.astype(jnp.float32).mean((1, 2)), self.layout)


class SmallNet(nn.Module):
    """A small network in R-Net's place, for images of 32 pixels or so; its outputs are whitened.

    Attributes:
      layout: of the coefficients.
      widths: of its layers of stride two.
      features: of its dense layer.
    """

    layout: Layout = Layout()
    widths: tuple[int, ...] = (16, 32, 64)
    features: int = 128

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [N, S, S, 3] in -1..1 to coefficients and translation, [N, D + 3]."""
        x, size = images, self.layout.size + SHIFT
        for width in self.widths:
            x = nn.leaky_relu(nn.Conv(width, (3, 3))(x), 0.2)
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.leaky_relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)), 0.2)
        mean = self.variable("whitening", "mean", jnp.zeros, (size,)).value
        std = self.variable("whitening", "std", jnp.ones, (size,)).value
        return heads(x, self.layout) * std + mean


def heads(features: jax.Array, layout: Layout) -> jax.Array:
    """Linear heads, zero at the beginning: features [N, F] to coefficients and translation [N, D + 3]."""
    sizes = {**layout._asdict(), "pose": POSE, "light": LIGHT, "shift": 2, "depth": 1}
    made = [
        nn.Dense(size, kernel_init=nn.initializers.zeros, name=name)(features) for name, size in sizes.items() if size
    ]
    return jnp.concatenate(made, -1)


class Seen(NamedTuple):
    """What a perception net found in images.

    Attributes:
      identity: [N, F] features of the identity.
      light: [N, 27].
      landmarks: [N, 68, 2] x, y in units of the image's side.
    """

    identity: jax.Array
    light: jax.Array
    landmarks: jax.Array


def seen(face: Face, found: jax.Array, layout: Layout, zoom: float = ZOOM) -> Seen:
    """Reads a perception net's outputs [N, D + 3]. `zoom` is that of the camera it was trained for."""
    places = layout.slices()
    return Seen(found[:, places["identity"]], found[:, places["light"]], landmarks(face, found, layout, zoom))


def landmarks(face: Face, coefficients: jax.Array, layout: Layout, zoom: float = ZOOM) -> jax.Array:
    """The 68 landmarks [N, 68, 2] in units of the side, of coefficients [N, D] or, with translation, [N, D + 3]."""
    few = jax.tree.map(lambda x: x[-68:], face.replace(triangles=None))
    few = few.replace(triangles=jnp.zeros((0, 3)))
    shift = coefficients[:, layout.size :] if coefficients.shape[1] > layout.size else None
    vertices = mesh(few, coefficients[:, : layout.size], layout, shift).vertices
    return projected(vertices, 1.0, zoom)[..., :2]


def pixel_loss(fake: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean distance of colours within a mask, [N]: images [N, S, S, 3], mask [N, S, S, 1]."""
    distance = jnp.sqrt(jnp.sum((fake - image) ** 2, -1) + 1e-8)
    return _masked_mean(distance[..., None], mask)[:, 0]


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosines [N] of features [N, F]."""
    return jnp.sum(unit(a) * unit(b), -1)


def identity_loss(fake: jax.Array, rendered: jax.Array, floor: float = 0.3) -> jax.Array:
    """max(floor, 1 - cos), [N], of features [N, F]: without gradient where the identities are alike enough."""
    return jnp.maximum(floor, 1 - cosine(fake, rendered))


def landmark_loss(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean squared distance along an axis, [N], of landmarks [N, 68, 2] in units of the side."""
    return jnp.mean((found - wanted) ** 2, (1, 2))


def light_loss(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean absolute error of coefficients of the light [N, 27]: [N]."""
    return jnp.mean(jnp.abs(found - wanted), -1)


def colour_loss(fake: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
    """Distance of the mean colours within a mask, [N]."""
    gap = _masked_mean(fake, mask) - _masked_mean(image, mask)
    return jnp.sqrt(jnp.sum(gap**2, -1) + 1e-8)


def flow(first: jax.Array, second: jax.Array, face: Face, size: int) -> jax.Array:
    """Where what is seen at a pixel of a second face lies in the image of a first one.

    Args:
      first, second: [N, V, 3] projected vertices.
      face: the model.
      size: S.

    Returns:
      [N, S, S, 2] displacement (rows, columns) from the second image to the first; 0 beside the face.
    """
    moved = (first - second)[..., 1::-1]
    return drawn(second, face, moved, size)[0]


def warped(images: jax.Array, displacement: jax.Array) -> jax.Array:
    """Images [N, S, S, C] sampled at p + displacement [N, S, S, 2] (rows, columns)."""
    rows, columns = jnp.mgrid[: images.shape[1], : images.shape[2]]
    at = jnp.stack([columns, rows], -1) + 0.5 + displacement[..., ::-1]
    return jax.vmap(bilinear_sample)(images, at)


def expression_pair_loss(first: jax.Array, second: jax.Array, one: Rendered, two: Rendered, face: Face) -> jax.Array:
    """Images that differ in the expression only have to be equal after the warp that the face model tells.

    Mean distance of the colours of smoothed images, beside what only the first mesh covers; see `pixel_loss`.

    Args:
      first, second: [N, S, S, 3] generated images.
      one, two: the renderings.
      face: the model.

    Returns:
      [N].
    """
    moved = warped(first, flow(one.points, two.points, face, first.shape[1]))
    kept = 1 - one.mask * (1 - two.mask)
    return pixel_loss(smoothed(moved), smoothed(second), kept)


def smoothed(images: jax.Array) -> jax.Array:
    """Images [N, S, S, C] under a Gaussian of 5 x 5 pixels and deviation 2, zeros beyond the border."""
    line = np.exp(-np.square(np.arange(-2, 3)) / 8)
    kernel = np.outer(line, line) / line.sum() ** 2
    channels = images.shape[-1]
    each = jnp.asarray(kernel[:, :, None, None] * np.eye(channels), images.dtype)
    return scaled_conv.conv(images, each)


def light_pair_loss(first: Seen, second: Seen, hair: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
    """Images that differ in the light only have to keep identity, landmarks and hair.

    Args:
      first, second: what a perception net sees in the two.
      hair: [N, S, S, 1] probabilities of hair in both; None: without that term.

    Returns:
      [N].
    """
    loss = 2 * (1 - cosine(first.identity, second.identity))
    loss += 1000 * (256 / 224) ** 2 * landmark_loss(first.landmarks, second.landmarks)
    return loss if hair is None else loss + jnp.mean((hair[0] - hair[1]) ** 2, (1, 2, 3))


def pairs(rng: jax.Array, latents: jax.Array, factor: str, sizes: Latents) -> jax.Array:
    """Other latents [N, Z] that differ in one factor from those given."""
    place = sizes.slices()[factor]
    return latents.at[:, place].set(jax.random.normal(rng, latents[:, place].shape))


def disentanglement(spreads: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The disentanglement score of every factor, prod_{j != i} s_i / s_j.

    The paper's text leaves the form of the spreads open: here s_ik is the root of the variance of factor k's
    coefficients, in all, while only factor i varies, the variance averaged over the other factors' values.

    Args:
      spreads: [K, K] s_ik of estimated coefficients of generated images.
      own: [K] spreads of the factors in real images.

    Returns:
      [K].
    """
    relative = np.asarray(spreads, np.float64) / np.asarray(own, np.float64)
    varied = np.diag(relative)
    return varied ** len(relative) / relative.prod(1)


def spread(coefficients: np.ndarray) -> float:
    """The spread of coefficients [M, K, d] of M settings with K values of a factor; see `disentanglement`."""
    return float(np.sqrt(np.var(np.asarray(coefficients, np.float64), axis=1).sum(-1).mean()))


def _slices(sizes: dict[str, int]) -> dict[str, slice]:
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def _combined(basis: jax.Array, coefficients: jax.Array) -> jax.Array:
    return jnp.tensordot(coefficients, basis, ((-1,), (-1,)))


def _normals(vertices: jax.Array, triangles: jax.Array) -> jax.Array:
    """Normalised means of the unit normals of the triangles around a vertex, [N, V, 3]."""
    a, b, c = (vertices[:, triangles[:, i]] for i in range(3))
    faces = jnp.moveaxis(lighting.unit(jnp.moveaxis(jnp.cross(b - a, c - a), -1, 0)), 0, -1)
    total = jnp.zeros_like(vertices)
    for i in range(3):
        total = total.at[:, triangles[:, i]].add(faces)
    return jnp.moveaxis(lighting.unit(jnp.moveaxis(total, -1, 0)), 0, -1)


def _masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Means [N, C] of values [N, S, S, C] within masks [N, S, S, 1]; 0 for an empty mask."""
    return jnp.sum(values * mask, (1, 2)) / jnp.maximum(jnp.sum(mask, (1, 2)), 1)
