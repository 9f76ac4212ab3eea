"""RetinaFace's dense branches: a mesh decoder with a renderer and a pixel loss, and the regression of vertices.

arXiv:1905.00641 predicts a code of shape and texture, a camera and a light for every anchor. A frozen decoder of
Chebyshev graph convolutions turns the code into a coloured mesh, a renderer draws it into the anchor's crop, and the
loss is the difference to the image (`PixelBranch`). The CVPR 2020 version regresses the projected vertices of a mesh
(`VertexBranch`). Neither branch was released.

Graph convolutions as in Defferrard et al., arXiv:1606.09375; decoder as in CoMA (Ranjan et al., ECCV 2018,
arXiv:1807.10267), whose orders and widths stand in for those of the pretrained decoder that the paper reuses (Zhou et
al., CVPR 2019, arXiv:1904.03525) and does not state. Also not stated, and chosen here: the units of camera and light,
the colours' range of 0..255 in the loss, that pixels without a mesh have no error, and the weights of the vertices'
losses. Visibility has no gradient: it flows through the colours and the interpolation inside visible triangles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy.sparse import coo_array
from scipy.sparse.linalg import eigsh

from facejax.detection.base import Term, Truth
from facejax.morphable import decimation
from facejax.morphable.lighting import Incidence, incidence, vertex_normals
from facejax.morphable.model import MorphableModel
from facejax.morphable.rasterizer import interpolate, rasterize
from facejax.ops import boxes as box
from facejax.ops.matching import Matches
from facejax.ops.rotation import from_euler
from facejax.ops.sampling import bilinear_sample

CAMERA, LIGHT = 7, 9
"""Numbers that describe the camera (position, pose, focal length) and the light (position, colour, ambient colour)."""
DISTANCE, FILL = 6.0, 0.6
"""Camera of zeros: the distance from the mesh's origin, model units, and the part of the image that a unit takes."""
FOREHEAD = 0.62
"""Height in the model above which hair begins."""
NEAREST = 0.5
"""Smallest depth in front of the camera that is projected, model units."""


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """A mesh in a hierarchy.

    Attributes:
      neighbours: [V, D] int32 vertices that share an edge with each, padded with V.
      largest: the largest eigenvalue of the graph's Laplacian.
      corners, weights: [V, 3] each, vertices of the next coarser level and their weights, for upsampling; empty at
        the coarsest.
      rows: the vertices that make the next coarser level.
    """

    neighbours: np.ndarray
    largest: float
    corners: np.ndarray
    weights: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, triangles: np.ndarray, num_vertices: int, *down: np.ndarray) -> Level:
        """From triangles, and `corners`, `weights`, `rows` unless it is the coarsest."""
        sides, _ = decimation.edges(triangles)
        source, destination = np.concatenate([sides, sides[:, ::-1]]).T
        order = np.argsort(destination, kind="stable")
        degree = np.bincount(destination, minlength=num_vertices)
        place = np.arange(len(order)) - np.repeat(np.cumsum(degree) - degree, degree)
        neighbours = np.full((num_vertices, degree.max()), num_vertices, np.int32)
        neighbours[destination[order], place] = source[order]
        diagonal = np.arange(num_vertices)
        values = np.concatenate([degree, -np.ones(len(source))])
        index = (np.concatenate([diagonal, source]), np.concatenate([diagonal, destination]))
        laplacian = coo_array((values, index), (num_vertices, num_vertices)).tocsr()
        start = np.random.default_rng(0).normal(size=num_vertices)
        largest = float(eigsh(laplacian, 1, v0=start, return_eigenvectors=False)[0])
        corners, weights, rows = down or (np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32), np.zeros(0, int))
        return cls(neighbours, largest, corners, weights, rows)

    @property
    def vertices(self) -> int:
        """V."""
        return len(self.neighbours)


@dataclasses.dataclass(frozen=True, eq=False)
class Hierarchy:
    """A mesh and its coarser versions.

    Attributes:
      triangles: [T, 3] of the finest mesh.
      levels: from the finest to the coarsest.
    """

    triangles: np.ndarray
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, vertices: np.ndarray, triangles: np.ndarray, counts: Sequence[int]) -> Hierarchy:
        """Decimates a mesh [V, 3], [T, 3] to each of `counts` vertices in turn; CoMA has a quarter at each step."""
        first, levels = np.asarray(triangles), []
        for count in counts:
            rows, coarse = decimation.decimate(vertices, triangles, count)
            down = (*decimation.upsampling(vertices, vertices[rows], coarse), rows)
            levels.append(Level.of(triangles, len(vertices), *down))
            vertices, triangles = vertices[rows], coarse
        return cls(first, (*levels, Level.of(triangles, len(vertices))))


def laplacian(x: jax.Array, level: Level) -> jax.Array:
    """2 L x / largest - x with L = D - E, degrees less adjacency: [..., V, C] -> [..., V, C]; eigenvalues in -1..1."""
    padded = jnp.concatenate([x, jnp.zeros_like(x[..., :1, :])], -2)
    degree = (level.neighbours < level.vertices).sum(1).astype(np.float32)
    around = padded[..., level.neighbours, :].sum(-2)
    return (degree[:, None] * x - around) * (2 / level.largest) - x


def chebyshev(x: jax.Array, level: Level, order: int) -> jax.Array:
    """T_0 to T_(order - 1) of the scaled Laplacian, applied to x [..., V, C]: [..., V, order, C]."""
    terms = [x]
    for k in range(1, order):
        terms.append(laplacian(x, level) if k == 1 else 2 * laplacian(terms[-1], level) - terms[-2])
    return jnp.stack(terms, -2)


def upsample(x: jax.Array, level: Level) -> jax.Array:
    """From the next coarser level to `level`: [..., V', C] -> [..., V, C]."""
    return jnp.sum(x[..., level.corners, :] * level.weights[..., None], -2)


class ChebConv(nn.Module):
    """y_v = sum over k < order of T_k(L) x at v, times a matrix, plus a bias. Order 1 is a layer per vertex.

    Attributes:
      features: output channels.
      level: the graph.
      order: K.
    """

    features: int
    level: Level
    order: int = 6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., V, C] -> [..., V, features]."""
        return nn.DenseGeneral(self.features, axis=(-2, -1), name="theta")(chebyshev(x, self.level, self.order))


class MeshEncoder(nn.Module):
    """Vertices with colours to a code: graph convolution, ELU and selection of vertices at every level.

    Attributes: see `MeshDecoder`; the widths are in the decoder's order.
    """

    hierarchy: Hierarchy
    code: int = 128
    features: tuple[int, ...] = (32, 16, 16, 16)
    order: int = 6

    @nn.compact
    def __call__(self, meshes: jax.Array) -> jax.Array:
        """[N, V, 6] -> [N, code]."""
        x = meshes
        for level, width in zip(self.hierarchy.levels, self.features[::-1], strict=False):
            x = nn.elu(ChebConv(width, level, self.order)(x))[..., level.rows, :]
        return nn.Dense(self.code)(x.reshape(*x.shape[:-2], -1))


class MeshDecoder(nn.Module):
    """A code to vertices with colours: a dense layer to the coarsest level, then upsampling, graph convolution and ELU.

    Attributes:
      hierarchy: the meshes.
      features: channels, from the coarsest level on; one for each step between two levels.
      order: K of the graph convolutions.
    """

    hierarchy: Hierarchy
    features: tuple[int, ...] = (32, 16, 16, 16)
    order: int = 6

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        """[..., S] -> [..., V, 6] positions and colours, in the units of training."""
        *finer, coarsest = self.hierarchy.levels
        if len(self.features) != len(finer):
            raise ValueError(f"MeshDecoder.features are {len(self.features)}: expected one per step, {len(finer)}")
        x = nn.Dense(coarsest.vertices * self.features[0])(codes)
        x = x.reshape(*codes.shape[:-1], coarsest.vertices, self.features[0])
        for level, width in zip(finer[::-1], self.features, strict=True):
            x = nn.elu(ChebConv(width, level, self.order)(upsample(x, level)))
        return ChebConv(6, finer[0], self.order, name="outputs")(x)


def face_part(model: MorphableModel, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The front of a head without neck, hair and mouth, decimated.

    Args:
      model: the head.
      count: vertices to keep.

    Returns:
      (rows [V] of the model's vertices, triangles [T, 3] that index the rows).
    """
    shape = np.asarray(model.mean_shape)
    keep = np.asarray(model.regions["skin"] | model.regions["eyes"]) & (shape[:, 2] > 0) & (shape[:, 1] < FOREHEAD)
    rows, triangles = decimation.part(np.asarray(model.triangles), keep)
    kept, triangles = decimation.decimate(shape[rows], triangles, count)
    return rows[kept], triangles


def sampled_meshes(model: MorphableModel, rows: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Random faces for `pretrained`: [count, V, 6] positions around their middle, and gamma-encoded albedo in 0..1.

    Args:
      model: the morphable model, whose coefficients are drawn from the standard normal distribution within -2..2.
      rows: [V] of its vertices.
      count: number of meshes.
      seed: of the coefficients.
    """
    rng = np.random.default_rng(seed)

    def drawn(std: jax.Array) -> np.ndarray:
        return np.clip(rng.normal(size=(count, len(std))), -2, 2) * np.asarray(std)

    shape = np.asarray(model.mean_shape)[rows]
    shape = shape - (shape.min(0) + shape.max(0)) / 2
    bases = ((model.identity_basis, model.identity_std), (model.expression_basis, model.expression_std))
    positions = shape + sum(np.einsum("mk,vck->mvc", drawn(std), np.asarray(basis)[rows]) for basis, std in bases)
    height, width, channels, kinds = model.albedo_basis.shape
    places = model.uv[rows] * jnp.array([width, height])
    texels = jnp.concatenate([model.albedo_mean, model.albedo_basis.reshape(height, width, -1)], -1)
    read = np.asarray(bilinear_sample(texels, places))
    basis = read[:, channels:].reshape(-1, channels, kinds)
    colours = read[:, :channels] + np.einsum("mk,vck->mvc", drawn(model.albedo_std), basis)
    return np.concatenate([positions, np.clip(colours, 0, 1)], -1).astype(np.float32)


class WithDecoder(nn.Module):
    """A detector's network that carries a frozen decoder along, for the pixel loss.

    Its variables are the network's, and "decoder": {"frozen": what `pretrained` returns}, zeros at first. The raw
    predictions also have "decoder", the value of "frozen".

    Attributes:
      net: the detector's network.
      decoder: the decoder.
      code: size of its codes.
    """

    net: nn.Module
    decoder: MeshDecoder
    code: int = 128

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, Any]:
        """The network's predictions and the decoder."""

        def empty() -> dict[str, Any]:
            free = self.decoder.clone(parent=None)
            params = jax.eval_shape(free.init, jax.random.key(0), jnp.zeros((1, self.code)))["params"]
            params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
            vertices = self.decoder.hierarchy.levels[0].vertices
            return {"params": params, "mean": jnp.zeros((vertices, 6)), "scale": jnp.zeros(6)}

        raw = self.net(images, train=train)
        return raw | {"decoder": self.variable("decoder", "frozen", empty).value}


def decode(net: MeshDecoder, frozen: Any, codes: jax.Array) -> jax.Array:
    """Meshes [..., V, 6] of codes [..., S]: positions in model units, gamma-encoded colours in 0..1.

    Args:
      net: the decoder.
      frozen: from `pretrained`.
      codes: the codes.
    """
    return frozen["mean"] + frozen["scale"] * net.apply({"params": frozen["params"]}, codes)


def pretrained(
    meshes: np.ndarray,
    net: MeshDecoder,
    code: int,
    *,
    steps: int = 2000,
    batch_size: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains a decoder with an encoder of the same widths to reproduce meshes, by the L1 error (CoMA), with Adam.

    Args:
      meshes: [M, V, 6] training meshes: positions and colours in 0..1.
      net: the decoder.
      code: S, size of the code.
      steps, batch_size, rate, seed: of the training; the rate falls to 0 along a cosine.

    Returns:
      {"params": of the decoder, "mean": [V, 6] mean mesh, "scale": [6] deviation of positions and of colours}; the
      decoder's output is in these deviations around the mean.
    """
    mean, spread = meshes.mean(0), meshes - meshes.mean(0)
    scale = np.repeat([spread[..., :3].std(), spread[..., 3:].std()], 3).astype(np.float32)
    data = jnp.asarray(spread / scale, jnp.float32)
    encoder = MeshEncoder(net.hierarchy, code, net.features, net.order)
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def reconstruct(params: Any, x: jax.Array) -> jax.Array:
        return net.apply({"params": params["decoder"]}, encoder.apply({"params": params["encoder"]}, x))

    @jax.jit
    def train(key: jax.Array, data: jax.Array) -> Any:
        first, second, key = jax.random.split(key, 3)
        params = {
            "encoder": encoder.init(first, data[:1])["params"],
            "decoder": net.init(second, jnp.zeros((1, code)))["params"],
        }

        def step(state: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, moments = state
            x = data[jax.random.randint(key, (batch_size,), 0, len(data))]
            gradient = jax.grad(lambda p: jnp.abs(reconstruct(p, x) - x).mean())(params)
            updates, moments = tx.update(gradient, moments)
            return (optax.apply_updates(params, updates), moments), None

        return lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))[0][0]

    params = train(jax.random.key(seed), data)
    return {"params": params["decoder"], "mean": jnp.asarray(mean, jnp.float32), "scale": jnp.asarray(scale)}


def project(vertices: jax.Array, camera: jax.Array, size: int) -> jax.Array:
    """Perspective projection into a square image.

    Args:
      vertices: [V, 3] in model units, z towards the viewer.
      camera: [7] position (x, y) in model units and the logarithm of its distance over `DISTANCE`; pitch, yaw, roll of
        the mesh in radians (`rotation.from_euler`); logarithm of the focal length. Zeros look at the mesh's origin.
      size: side of the image, pixels.

    Returns:
      [V, 3] x right, y down, in pixels; the third is larger for nearer vertices. Vertices nearer than `NEAREST` are
      projected as if at this depth.
    """
    distance, focal = DISTANCE * jnp.exp(camera[2]), FILL * DISTANCE * jnp.exp(camera[6])
    seen = vertices @ from_euler(camera[3:6]).T - jnp.append(camera[:2], distance)
    planar = focal * seen[:, :2] / jnp.maximum(-seen[:, 2:], NEAREST)
    return jnp.concatenate([(0.5 + planar * jnp.array([1.0, -1.0])) * size, seen[:, 2:]], -1)


def render(
    mesh: jax.Array, triangles: np.ndarray, incident: Incidence, camera: jax.Array, light: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """A mesh with colours under a point light and an ambient light (Lambert), shaded at the vertices.

    Args:
      mesh: [V, 6] positions and colours.
      triangles: [T, 3].
      incident: `lighting.incidence` of the triangles.
      camera: [7], see `project`.
      light: [9] position less (0, 0, `DISTANCE`), model units; logarithms of twice the light's colour; the same of
        the ambient light.
      size: side of the image, pixels.

    Returns:
      (image [size, size, 3], covered pixels [size, size] bool).
    """
    position, colour, ambient = light[:3] + jnp.array([0, 0, DISTANCE]), jnp.exp(light[3:6]) / 2, jnp.exp(light[6:]) / 2
    normals, towards = vertex_normals(mesh[:, :3], triangles, incident), position - mesh[:, :3]
    towards = towards * lax.rsqrt(jnp.maximum(jnp.sum(towards**2, -1, keepdims=True), 1e-6))
    cosine = jnp.maximum(jnp.sum(normals * towards, -1, keepdims=True), 0)
    shaded = mesh[:, 3:] * (ambient + colour * cosine)
    fragments = rasterize(project(mesh[:, :3], camera, size), triangles, size, size, capacity=8 * size * size)
    image = jnp.moveaxis(interpolate(fragments, triangles, shaded), 0, -1)
    return image, fragments.triangle >= 0


def pixel_loss(drawn: jax.Array, covered: jax.Array, crop: jax.Array) -> jax.Array:
    """Sum over colours and covered pixels of |drawn - crop|, per pixel of the crop: [..., H, W, 3] -> [...]."""
    errors = jnp.abs(drawn - crop).sum(-1)
    return jnp.sum(errors, (-2, -1), where=covered) / (covered.shape[-2] * covered.shape[-1])


def vertex_losses(
    predicted: jax.Array, target: jax.Array, edges: np.ndarray, visible: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """L1 errors of vertices and of the lengths of edges.

    Args:
      predicted, target: [..., V, D] positions.
      edges: [E, 2] vertices.
      visible: [..., V] bool, annotated vertices; an edge counts with both of its ends.

    Returns:
      ([...] mean over vertices of the L1 distance, [...] mean over edges of the error of the length).
    """

    def lengths(x: jax.Array) -> jax.Array:
        along = x[..., edges[:, 0], :] - x[..., edges[:, 1], :]
        return jnp.sqrt(jnp.maximum(jnp.sum(along**2, -1), 1e-12))

    def mean(errors: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(errors, -1, where=where) / jnp.maximum(where.sum(-1), 1)

    both = visible[..., edges[:, 0]] & visible[..., edges[:, 1]]
    distance = jnp.abs(predicted - target).sum(-1)
    return mean(distance, visible), mean(jnp.abs(lengths(predicted) - lengths(target)), both)


class Chosen(NamedTuple):
    """Positive anchors for a dense loss, [N, M] each: their rows, those of their faces, and the real ones."""

    anchors: jax.Array
    faces: jax.Array
    mask: jax.Array


def chosen(matches: Matches, truth: Truth, anchors: np.ndarray, count: int) -> Chosen:
    """The positive anchors that overlap their faces most, at most `count` an image."""
    rows = jnp.arange(len(matches.box))[:, None]
    overlap = box.iou(truth.boxes[rows, matches.box], box.from_center(jnp.asarray(anchors)))
    best, found = lax.top_k(jnp.where(matches.positive, overlap, -1.0), min(count, len(anchors)))
    return Chosen(found, matches.box[rows, found], best >= 0)


@dataclasses.dataclass(frozen=True, eq=False)
class PixelBranch:
    """The arXiv version: code, camera and light of each anchor; the rendered mesh is compared with the image.

    The network must be `WithDecoder`.

    Attributes:
      net: the decoder.
      code: size of its codes.
      crop: side of the rendered crops, pixels.
      count: positive anchors an image that are rendered, those that overlap their faces most.
    """

    net: MeshDecoder
    code: int = 128
    crop: int = 32
    count: int = 4

    @property
    def outputs(self) -> int:
        """Predictions per anchor."""
        return self.code + CAMERA + LIGHT

    def terms(
        self, raw: dict[str, Any], images: jax.Array, truth: Truth, anchors: np.ndarray, matches: Matches, weight: float
    ) -> dict[str, Term]:
        """The term "pixels".

        Args:
          raw: "dense" [N, A, outputs] and "decoder" of the raw predictions.
          images: [N, H, W, 3] RGB in 0..1.
          truth: annotations.
          anchors: [A, 4] in centre form.
          matches: [N, A] each.
          weight: of the term.
        """
        picked = chosen(matches, truth, anchors, self.count)
        n, m = picked.mask.shape
        vectors = jnp.take_along_axis(raw["dense"], picked.anchors[..., None], 1).reshape(n * m, -1)
        crops = jax.vmap(crop_image, (0, 0, None))(images, jnp.asarray(anchors)[picked.anchors], self.crop)
        drawn, covered = self.draw(raw["decoder"], vectors)
        losses = pixel_loss(255 * drawn, covered, 255 * crops.reshape(drawn.shape)).reshape(n, m)
        return {"pixels": Term(jnp.sum(losses, 1, where=picked.mask), picked.mask.sum(1), weight)}

    def draw(self, frozen: Any, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images and covered pixels of predictions [B, outputs] with a decoder `frozen`; one by one on a CPU."""
        codes, cameras, lights = jnp.split(vectors, [self.code, self.code + CAMERA], -1)
        triangles = self.net.hierarchy.triangles
        incident = incidence(triangles, self.net.hierarchy.levels[0].vertices)

        def one(inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            return render(inputs[0], triangles, incident, *inputs[1:], self.crop)

        inputs = decode(self.net, frozen, codes), cameras, lights
        return lax.platform_dependent(inputs, cpu=lambda x: lax.map(one, x), default=jax.vmap(one))


def crop_image(image: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
    """[H, W, C] at anchors [M, 4] in centre form, bilinear, the border's pixels beyond: [M, size, size, C]."""
    steps = (jnp.arange(size) + 0.5) / size - 0.5
    x = boxes[:, None, None, 0] + steps[None, None, :] * boxes[:, None, None, 2]
    y = boxes[:, None, None, 1] + steps[None, :, None] * boxes[:, None, None, 3]
    return bilinear_sample(image, jnp.stack(jnp.broadcast_arrays(x, y), -1))


@dataclasses.dataclass(frozen=True, eq=False)
class VertexBranch:
    """The CVPR version: projected vertices, encoded relative to the anchors as points are.

    The annotated vertices are the points of `Truth` after the first five.

    Attributes:
      vertices: V.
      edges: [E, 2].
      edge_weight: of the edges' lengths relative to the vertices.
      variance: of the encoding.
      count: positive anchors an image that are trained, those that overlap their faces most.
    """

    vertices: int
    edges: np.ndarray
    edge_weight: float = 1.0
    variance: float = 0.1
    count: int = 16

    @property
    def outputs(self) -> int:
        """Predictions per anchor."""
        return 2 * self.vertices

    def terms(
        self, raw: dict[str, Any], images: jax.Array, truth: Truth, anchors: np.ndarray, matches: Matches, weight: float
    ) -> dict[str, Term]:
        """The terms "vertices" and "edges"; arguments as in `PixelBranch.terms`."""
        if truth.points.shape[2] != 5 + self.vertices:
            raise ValueError(f"truth has {truth.points.shape[2]} points: expected 5 and {self.vertices} vertices")
        picked = chosen(matches, truth, anchors, self.count)
        rows = jnp.arange(len(images))[:, None]
        found = raw["dense"][rows, picked.anchors].reshape(*picked.mask.shape, self.vertices, 2)
        boxes = jnp.asarray(anchors)[picked.anchors]
        target = box.encode_points(truth.points[rows, picked.faces, 5:], boxes, self.variance)
        visible = truth.visible[rows, picked.faces, 5:] & picked.mask[..., None]
        losses = vertex_losses(found, target, self.edges, visible)
        names, weights = ("vertices", "edges"), (weight, weight * self.edge_weight)
        count = visible.any(-1).sum(1)
        return {k: Term(x.sum(1), count, w) for k, x, w in zip(names, losses, weights, strict=True)}
