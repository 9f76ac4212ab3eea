"""Renders factors to images and ground truth: hair, glasses, pose, rasterization and shading of the morphable model.

Hair is the surface of the scalp, displaced along its normals and coloured in strands. Glasses consist of two rims, a
bridge and temples at the person's eyes, with lenses blended over the background.
"""

from __future__ import annotations

import functools
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.data.synthetic import degrade
from facejax.data.synthetic.factors import Factors
from facejax.morphable import camera, lighting, model, rasterizer, uv
from facejax.morphable.model import MorphableModel
from facejax.ops import rotation, sampling

RIM_STEPS, RIM_SIDES = 24, 5
ROOM = (2.75, 6.0)  # work-list entries per pixel of the rasterizer; the second value if the first overflows
GAMMA = 2.2
TOGETHER = 2  # faces shaded together on a CPU, where geometry is computed face by face

# Five template points in the unit square: InsightFace's template of 112 pixels.
TEMPLATE = (
    np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
    )
    / 112
)


class Renderer:
    """Renders batches of faces.

    Args:
      face: the morphable model.
      size: side of the images, pixels.
      aligned: true: aligns five points to the recognition template; false: shows the whole head.
      supersample: samples per pixel and axis.
      dense: whether to return the UV position map and the depth map.
    """

    def __init__(self, face: MorphableModel, size: int, *, aligned: bool, supersample: int = 2, dense: bool = False):
        self.face, self.size = face, size
        tables = _Tables(face)

        def batch(factors: dict[str, jax.Array], room: float) -> dict[str, jax.Array]:
            place = functools.partial(_place, face, tables, size, supersample, aligned, dense, room)
            paint = functools.partial(_paint, size, supersample)
            expression = factors["expression_strength"] @ tables.expressions
            shapes = model.shape(face, factors["identity"], expression)  # one matrix product per batch
            factors = {**factors, "shape": shapes, "texture": model.albedo(face, factors["albedo"])}
            factors["hair_colour"] = jnp.clip(factors["hair_colour"], 0.01, 1) ** GAMMA

            def few(f: dict[str, jax.Array]) -> dict[str, jax.Array]:  # XLA vectorizes colours but not their gathers
                return paint(jax.custom_batching.sequential_vmap(place)(f))

            return lax.platform_dependent(
                factors,
                cpu=lambda f: lax.map(few, f, batch_size=TOGETHER),
                default=jax.vmap(lambda f: paint(place(f))),
            )

        self._draw = jax.jit(batch, static_argnums=1)

    def __call__(self, factors: Factors) -> dict[str, np.ndarray]:
        """Images and ground truth.

        Args:
          factors: stacked factors of persons and images, [N, ...].

        Returns:
          "face": [N, S, S, 3] linear light without background, premultiplied by alpha; "alpha": [N, S, S];
          "landmarks68" and "landmarks98": [N, L, 2] pixels (x, y); "visible68", "visible98": [N, L] bool; "box": [N, 4]
          left, top, right, bottom of the face; "camera": [N, 4] scale, roll and shift of the framing; with dense also
          "position_map" [N, 64, 64, 3] and "depth" [N, S, S].

        Raises:
          ValueError: a face is too large for the rasterizer's work list.
        """
        arrays = {k: np.asarray(v, np.float32) for k, v in factors.items() if k in RENDERED}
        for room in ROOM:
            found = jax.tree.map(np.asarray, self._draw(arrays, room))
            if not found.pop("overflow").any():
                return found
        raise ValueError(f"face world: a face covers more than {ROOM[-1]} times the image, expected a smaller one")

    def compose(self, found: dict[str, np.ndarray], factors: Factors, index: int) -> np.ndarray:
        """Image `index` of a batch, composed with its background, gamma-encoded and degraded: [S, S, 3] uint8."""
        one = {k: v[index] for k, v in factors.items()}
        behind = degrade.background(one, self.size)
        linear = found["face"][index] + (1 - found["alpha"][index][..., None]) * behind
        return degrade.degrade(cv2.pow(np.clip(linear, 0, 1), 1 / GAMMA), one)


RENDERED = {
    "identity", "albedo", "age", "hair", "hair_colour", "hair_line", "hair_side", "hair_length", "hair_volume",
    "hair_part", "hair_phase", "pose", "expression_strength", "light_direction", "light_colour", "ambient", "jitter",
    "distance", "glasses", "frame_size", "frame_shape", "frame_colour", "tint",
}  # fmt: skip
PAINTED = (
    "age", "hair", "hair_colour", "hair_line", "hair_side", "hair_length", "hair_part", "hair_phase", "pose",
    "light_direction", "light_colour", "ambient", "frame_colour", "tint",
)  # fmt: skip


class _Tables:
    """Constants shared by all faces of a model."""

    def __init__(self, face: MorphableModel):
        vertices = face.mean_shape.shape[0]
        rim_triangles, lens_triangles = _glasses_layout()
        self.triangles = jnp.concatenate([face.triangles, jnp.asarray(rim_triangles + vertices, jnp.int32)])
        self.lens_triangles = jnp.asarray(lens_triangles, jnp.int32)
        self.incident = lighting.incidence(np.asarray(face.triangles), vertices)
        self.skin = (face.regions["skin"] & ~face.regions["ears"]).astype(jnp.float32)
        self.strands = jnp.asarray(_strands(np.random.default_rng(7), face.albedo_mean.shape[0]))[..., None]
        self.expressions = jnp.stack(list(face.expressions.values()))
        self.position_fragments = jax.jit(lambda: uv.uv_fragments(face.uv, face.triangles, 64))()


def _smooth(x: jax.Array, low: Any, high: Any) -> jax.Array:
    t = jnp.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _bump(x: jax.Array, width: float) -> jax.Array:
    return jnp.exp(-0.5 * (x / width) ** 2)


def _strands(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, size] texture of fine strands that run outward from the centre."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    angle = np.arctan2(y, x)
    waves = sum(
        rng.uniform(0.4, 1) * np.sin(k * angle + rng.uniform(0, 6.28) + 9 * np.hypot(x, y)) for k in (23, 41, 67, 97)
    )
    return (waves / 3).astype(np.float32)


def _hair(p: dict[str, jax.Array], places: jax.Array) -> jax.Array:
    """Hair density in 0..1, [...], at positions [3, ...] of the mean head."""
    x, y, z = places
    a = jnp.abs(x)
    wave = 0.018 * jnp.sin(13 * x + p["hair_phase"]) + 0.010 * jnp.sin(31 * x + 2 * p["hair_phase"])
    side = jnp.clip((a - 0.36) / 0.34, 0, 1)
    front = p["hair_line"] - 0.05 * _bump(x - p["hair_part"], 0.16) - p["hair_side"] * side * jnp.sqrt(side) + wave
    behind = p["hair_length"]
    back = _smooth(-z, -0.12, 0.10)
    line = front * (1 - back) + behind * back
    return p["hair"] * _smooth(y, line - 0.02, line + 0.035)


def _dress(
    p: dict[str, jax.Array], face: MorphableModel, tables: _Tables, vertices: jax.Array, normals: jax.Array
) -> jax.Array:
    """Vertices displaced by the thickness of the hair."""
    grown = _hair(p, face.mean_shape.T) * tables.skin
    lift = p["hair_volume"] * (0.35 + 0.65 * _smooth(face.mean_shape[:, 1], 0.2, 0.9)) + 0.012
    return vertices + (grown * lift)[:, None] * normals


def _dye(p: dict[str, jax.Array], places: jax.Array, strands: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights [H, W] of the skin's colour, reduced by wrinkles and hair, and of the hair's colour.

    Args:
      p: factors of the face.
      places: [3, H, W] positions on the mean head.
      strands: [H, W] texture of the hair.
    """
    x, y, z = places
    a = jnp.abs(x)
    old = jnp.clip((p["age"] - 28) / 45, 0, 1)
    front = _smooth(z, 0.1, 0.4)
    lines = sum(_bump(y - h - 0.02 * jnp.cos(7 * x), 0.009) for h in (0.42, 0.49, 0.56)) * _bump(a, 0.28)
    feet = sum(_bump(y - 0.13 - s * (a - 0.40), 0.007) for s in (-0.45, 0.0, 0.45))
    feet = feet * _smooth(a, 0.42, 0.45) * _smooth(-a, -0.56, -0.50)
    folds = (
        _bump(a - 0.16 - 0.42 * jnp.clip(-0.245 - y, 0, 0.4), 0.012)
        * _smooth(-y, 0.26, 0.32)
        * _smooth(y, -0.60, -0.52)
    )
    bags = _bump(y - 0.055 + 1.4 * (a - 0.285) ** 2, 0.010) * _bump(a - 0.285, 0.09)
    wrinkles = jnp.clip(front * (0.75 * lines + feet + folds + 0.8 * bags), 0, 1)
    grown = _hair(p, places)
    return (1 - old * 0.55 * wrinkles) * (1 - grown), jnp.clip(1 + 0.45 * strands, 0.3, 1.9) * grown


def _glasses_layout() -> tuple[np.ndarray, np.ndarray]:
    """Triangles of the frame (rims, bridge and temples; both orientations), and of the lenses."""
    ring = np.arange(RIM_STEPS)[:, None] * RIM_SIDES + np.arange(RIM_SIDES)
    ahead, beside = np.roll(ring, -1, 0), np.roll(ring, -1, 1)
    corner = np.roll(ahead, -1, 1)
    one = np.concatenate([np.stack([ring, beside, ahead], -1), np.stack([beside, corner, ahead], -1)]).reshape(-1, 3)
    per_rim = RIM_STEPS * RIM_SIDES
    box = np.array(
        [
            [0, 1, 3],
            [0, 3, 2],
            [4, 7, 5],
            [4, 6, 7],
            [0, 5, 1],
            [0, 4, 5],
            [2, 3, 7],
            [2, 7, 6],
            [1, 5, 7],
            [1, 7, 3],
            [0, 2, 6],
            [0, 6, 4],
        ]
    )
    triangles = [one, one + per_rim] + [box + 2 * per_rim + 8 * i for i in range(3)]
    both = np.concatenate(triangles)
    both = np.concatenate([both, both[:, ::-1]])  # visible from both sides
    steps = np.arange(RIM_STEPS)
    lens = np.stack([np.full(RIM_STEPS, RIM_STEPS), steps, np.roll(steps, -1)], -1)
    lenses = np.concatenate([lens, lens + RIM_STEPS + 1])
    return both.astype(np.int32), lenses.astype(np.int32)


def _glasses(p: dict[str, jax.Array], face: MorphableModel, vertices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vertices of frame and lenses on this head; without glasses, all coincide."""
    marks = vertices[face.landmarks68]
    eyes = jnp.stack([marks[36:42].mean(0), marks[42:48].mean(0)])
    nasion = marks[27]
    plane = jnp.maximum(nasion[2] + 0.035, eyes[:, 2].max() + 0.045)
    outward = jnp.array([-1.0, 1.0])
    centre = jnp.stack([eyes[:, 0] + 0.012 * outward, eyes[:, 1] - 0.012, jnp.full(2, plane)], -1)
    angle = jnp.linspace(0, 2 * jnp.pi, RIM_STEPS, endpoint=False)
    power = 2 / p["frame_shape"]
    circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    outline = jnp.sign(circle) * jnp.abs(circle) ** power * p["frame_size"]
    bend = -0.12 * (outline[:, 0] * outward[:, None] + 0.05).clip(0) ** 1.0
    outline3 = jnp.concatenate([jnp.broadcast_to(outline, (2, RIM_STEPS, 2)), bend[..., None]], -1) + centre[:, None]
    around = jnp.linspace(0, 2 * jnp.pi, RIM_SIDES, endpoint=False)
    thick = 0.011
    section = jnp.stack([thick * jnp.cos(around), thick * jnp.sin(around)], -1)
    radial = jnp.concatenate([circle, jnp.zeros((RIM_STEPS, 1))], -1)
    tube = outline3[:, :, None] + section[:, :1] * radial[:, None] + section[:, 1:] * jnp.array([0.0, 0.0, 1.0])
    width = p["frame_size"][0]
    inner = centre - outward[:, None] * jnp.array([width, 0, 0]) + jnp.array([0, 0.03, 0.0])
    outer = centre + outward[:, None] * jnp.array([width, 0, 0]) + jnp.array([0, 0.03, -0.02])
    ears = jnp.stack([jnp.array([-0.70, 0.12, -0.15]), jnp.array([0.70, 0.12, -0.15])])
    ears = ears.at[:, 0].set(outward * jnp.maximum(jnp.abs(marks[jnp.array([0, 16]), 0]) + 0.01, jnp.abs(outer[:, 0])))

    def bar(start: jax.Array, end: jax.Array) -> jax.Array:
        low = jnp.stack([start, end])
        return (
            low[:, None, None]
            + jnp.array([[[-1, -1], [-1, 1]], [[1, -1], [1, 1]]])[None]
            @ jnp.array([[0.0, 0.010, 0.0], [0.006, 0.0, 0.010]])
        ).reshape(8, 3)

    frame = jnp.concatenate(
        [tube.reshape(-1, 3), bar(inner[0], inner[1]), bar(outer[0], ears[0]), bar(outer[1], ears[1])]
    )
    lenses = jnp.concatenate([outline3, centre[:, None]], 1).reshape(-1, 3)
    worn = p["glasses"] > 0.5
    return jnp.where(worn, frame, 0.0), jnp.where(worn, lenses, 0.0)


def _frame(
    p: dict[str, jax.Array], points: jax.Array, size: int, aligned: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Similarity transform to the image: scaled rotation [2, 2], shift [2], and (scale, roll, shift) [4]."""
    five = jnp.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])[:, :2]
    if aligned:
        target = (TEMPLATE - 0.5) * size
        a, b = five - five.mean(0), target - target.mean(0)
        spread = jnp.sum(a * a)
        cos, sin = jnp.sum(a * b) / spread, jnp.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / spread
        turn = jnp.array([[1.0, 0.0], [0.0, 1.0]]) * cos + jnp.array([[0.0, -1.0], [1.0, 0.0]]) * sin
        shift = target.mean(0) - turn @ five.mean(0)
    else:
        turn, shift = jnp.eye(2) * (0.40 * size), jnp.array([0.0, -0.02 * size])
    grow = 1 + p["jitter"][2]
    turn, shift = turn * grow, shift * grow + p["jitter"][:2] * size + size / 2
    scale = jnp.sqrt(jnp.abs(jnp.linalg.det(turn)))
    return turn, shift, jnp.stack([scale, jnp.arctan2(turn[1, 0], turn[0, 0]), *shift])


def _place(
    face: MorphableModel,
    tables: _Tables,
    size: int,
    supersample: int,
    aligned: bool,
    dense: bool,
    room: float,
    p: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
    """Geometry of one face: factors for `_paint`, values per sample, and the ground truth of `Renderer`."""
    full = size * supersample
    bare = p["shape"]
    normals = lighting.vertex_normals(bare, face.triangles, tables.incident)
    vertices = _dress(p, face, tables, bare, normals)
    frame, lenses = _glasses(p, face, bare)
    turn = rotation.from_euler(p["pose"])
    everything = jnp.concatenate([vertices, frame, bare[face.landmarks68], bare[face.landmarks98], lenses])
    unit, zero = jnp.float32(1.0), jnp.zeros(2)
    projected = camera.perspective(everything, turn, unit, zero, p["distance"])
    counts = np.cumsum([vertices.shape[0], frame.shape[0], 68, 98])
    matrix, shift, framing = _frame(p, projected[counts[1] : counts[2]], size, aligned)
    placed = jnp.concatenate([projected[:, :2] @ matrix.T + shift, projected[:, 2:] * framing[0]], 1)
    drawn, marks68, marks98 = placed[: counts[1]], placed[counts[1] : counts[2]], placed[counts[2] : counts[3]]

    capacity = int(room * full * full)
    fragments = rasterizer.rasterize(drawn * supersample, tables.triangles, full, full, capacity=capacity)
    dressed = lighting.vertex_normals(vertices, face.triangles, tables.incident)
    rim_normals = lighting.unit((frame - frame.mean(0)).T).T
    surface = jnp.concatenate([face.uv, face.mean_shape, tables.skin[:, None]], 1)
    attributes = jnp.concatenate(
        [jnp.concatenate([dressed, rim_normals]), jnp.pad(surface, ((0, frame.shape[0]), (0, 0)))], 1
    )
    pixel = rasterizer.interpolate(fragments, tables.triangles, attributes)
    at = jnp.stack([pixel[3], pixel[4]], -1) * p["texture"].shape[0]

    def lenses_in_front() -> tuple[jax.Array, jax.Array]:
        glass = rasterizer.rasterize(
            placed[counts[3] :] * supersample, tables.lens_triangles, full, full, capacity=full * full // 2, cull=False
        )
        return (glass.triangle >= 0) & (glass.depth > fragments.depth), glass.overflow

    def no_lenses() -> tuple[jax.Array, jax.Array]:
        return jnp.zeros((full, full), bool), jnp.zeros((), bool)

    lens, too_near = lax.cond(p["glasses"] > 0.5, lenses_in_front, no_lenses)
    pixels = {
        "surface": pixel,
        "skin": sampling.bilinear_sample(p["texture"], at),
        "strands": sampling.bilinear_sample(tables.strands, at)[..., 0],
        "covered": fragments.triangle >= 0,
        "rim": fragments.triangle >= len(face.triangles),
        "lens": lens,
    }
    found = {
        "landmarks68": marks68[:, :2],
        "landmarks98": marks98[:, :2],
        "visible68": _visible(marks68, fragments, supersample, framing[0]),
        "visible98": _visible(marks98, fragments, supersample, framing[0]),
        "box": _box(placed[: vertices.shape[0]], face),
        "camera": framing,
        "overflow": fragments.overflow | too_near,
    }
    if dense:
        depth = jnp.where(fragments.triangle >= 0, fragments.depth / supersample, 0.0)[::supersample, ::supersample]
        head = jnp.concatenate(
            [projected[: vertices.shape[0], :2] @ matrix.T + shift, projected[: vertices.shape[0], 2:] * framing[0]], 1
        )
        found["depth"] = depth
        found["position_map"] = uv.uv_position_map(tables.position_fragments, face.triangles, head)[0]
    return {k: p[k] for k in PAINTED}, pixels, found


def _paint(
    size: int, supersample: int, drawn: tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]
) -> dict[str, jax.Array]:
    """Shades the result of `_place`: adds "face" and "alpha" to the ground truth."""
    p, pixels, found = drawn
    surface, rim, lens = pixels["surface"], pixels["rim"], pixels["lens"]
    kept, hair = _dye(p, surface[5:8], pixels["strands"])
    bare = (surface[8] < 0.5) | rim
    kept, hair = jnp.where(bare, 1.0, kept), jnp.where(bare, 0.0, hair)
    turn = rotation.from_euler(p["pose"])  # rotates the light back instead of every normal
    towards = lighting.unit(p["light_direction"])
    half = lighting.unit(towards + jnp.array([0.0, 0.0, 1.0])) @ turn
    light = lighting.directional_light(towards @ turn, p["light_colour"], p["ambient"])
    normal = lighting.unit(surface[:3])
    shine = jnp.clip(sum(n * h for n, h in zip(normal, half, strict=True)), 0, 1) ** 20
    shine, bright = jnp.where(rim, 0.25, 0.06) * shine, lighting.shade(normal, light)
    covered = pixels["covered"] | lens

    hair_colour, frame_colour, glow = (p[k][:, None, None] for k in ("hair_colour", "frame_colour", "light_colour"))
    skin = jnp.moveaxis(pixels["skin"], -1, 0)
    colour = jnp.where(rim, frame_colour, skin * kept + hair_colour * hair)
    shaded = colour * bright + shine * glow
    shaded = jnp.where(lens, shaded * (1 - p["tint"]) + 0.025 * glow, shaded)

    def shrink(x: jax.Array) -> jax.Array:
        return x.reshape(-1, size, supersample, size, supersample).mean((2, 4))

    face = jnp.moveaxis(shrink(jnp.where(covered, shaded, 0.0)), 0, -1)
    return {**found, "face": face, "alpha": shrink(covered.astype(jnp.float32))[0]}


def _visible(marks: jax.Array, fragments: rasterizer.Fragments, supersample: int, scale: jax.Array) -> jax.Array:
    """Whether points are inside the image and not occluded, with a tolerance of the skin's thickness."""
    height, width = fragments.depth.shape
    at = jnp.floor(marks[:, :2] * supersample).astype(jnp.int32)
    inside = jnp.all((at >= 0) & (at < jnp.array([width, height])), -1)
    at = jnp.clip(at, 0, jnp.array([width, height]) - 1)
    nearest = fragments.depth[at[:, 1], at[:, 0]] / supersample
    return inside & (marks[:, 2] > nearest - 0.09 * scale)


def _box(drawn: jax.Array, face: MorphableModel) -> jax.Array:
    """Left, top, right, bottom of the face from forehead to chin, without ears and hair."""
    y = face.mean_shape[:, 1]
    member = face.regions["skin"] & (face.mean_shape[:, 2] > 0.0) & (y < 0.62)
    low = jnp.where(member[:, None], drawn[:, :2], jnp.inf).min(0)
    high = jnp.where(member[:, None], drawn[:, :2], -jnp.inf).max(0)
    return jnp.concatenate([low, high])
