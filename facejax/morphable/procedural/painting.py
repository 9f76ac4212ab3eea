"""Albedo of procedural heads: the colour of every texel as a function of its label.

Colours are gamma-encoded. Brows, lashes and a beard shadow are painted; hair is not.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from facejax.morphable.procedural.layout import (
    AXIS_Z,
    EYE_HALF,
    EYE_X,
    EYE_Y,
    ISLANDS,
    MOUTH_HALF,
    MOUTH_Y,
    NOSE_Y,
    ball_section,
    brow_middle,
    bump,
    eyelid,
    lip,
    mesh,
    neckness,
    ramp,
)
from facejax.morphable.rasterizer import interpolate
from facejax.morphable.uv import uv_fragments

SKIN_TONES = np.array(  # sRGB, light to dark
    [
        [0.96, 0.80, 0.71],
        [0.90, 0.71, 0.58],
        [0.80, 0.58, 0.44],
        [0.64, 0.43, 0.31],
        [0.46, 0.30, 0.21],
        [0.33, 0.21, 0.15],
    ]
)
IRISES = np.array([[0.14, 0.08, 0.05], [0.30, 0.19, 0.09], [0.34, 0.40, 0.28], [0.38, 0.50, 0.60]])
LIP_REDS = np.array([[0.80, 0.46, 0.44], [0.74, 0.28, 0.31]])
HAIRS = np.array([[0.05, 0.04, 0.035], [0.14, 0.09, 0.06], [0.30, 0.19, 0.11], [0.52, 0.38, 0.22]])


class Paint(NamedTuple):
    """Parameters of a painting; numbers are about 0..1 unless stated otherwise."""

    tone: float = 0.35
    red: float = 0.5
    yellow: float = 0.0
    lips: float = 0.5
    brow_colour: float = 0.3
    brow_thick: float = 0.5
    brow_dense: float = 0.7
    brow_gap: float = 0.5
    iris: float = 0.3
    circles: float = 0.4
    lashes: float = 0.6
    stubble: float = 0.15
    freckles: float = 0.1
    lid_shade: float = 0.4
    mottle: float = 0.4
    patch_seed: int = 0


class Canvas(NamedTuple):
    """Texels: their labels, their parts, and the coordinates within the islands."""

    x: np.ndarray
    y: np.ndarray
    front: np.ndarray
    part: np.ndarray
    u: np.ndarray
    v: np.ndarray


def palette(colours: np.ndarray, value: float) -> np.ndarray:
    """Linear interpolation in a list of colours; 0 is the first and 1 the last."""
    place = float(np.clip(value, 0, 1)) * (len(colours) - 1)
    low = min(int(place), len(colours) - 2)
    return (colours[low] * (1 - place + low) + colours[low + 1] * (place - low)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth random field [size, size] with unit standard deviation and about `cells` bumps per side."""
    coarse = rng.standard_normal((cells + 3, cells + 3), np.float32)
    at = np.linspace(1, cells + 1, size, endpoint=False)
    low = at.astype(int)
    t = (at - low).astype(np.float32)
    t = t * t * (3 - 2 * t)
    rows = coarse[low] * (1 - t)[:, None] + coarse[low + 1] * t[:, None]
    return rows[:, low] * (1 - t) + rows[:, low + 1] * t


@functools.cache
def canvas(size: int) -> Canvas:
    """Labels of the texels, extended slightly beyond the triangles to hide seams."""
    m = mesh()
    x, y, z = m.labels.T
    front = ramp(z, 0.0, 0.3) * (1 - neckness(y, np.arctan2(x, z - AXIS_Z)))
    attributes = np.stack([x, y, front, m.part, *m.uv.T], 1)
    uv, attributes = jnp.asarray(m.uv, jnp.float32), jnp.asarray(attributes, jnp.float32)

    @jax.jit
    def draw(uv: jax.Array, triangles: jax.Array, attributes: jax.Array) -> tuple[jax.Array, jax.Array]:
        fragments = uv_fragments(uv, triangles, size)
        return jnp.moveaxis(interpolate(fragments, triangles, attributes), 0, -1), fragments.triangle >= 0

    flat, hit = map(np.asarray, draw(uv, jnp.asarray(m.triangles), attributes))
    rows, columns = np.nonzero(hit)
    wanted = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    _, nearest = cKDTree(np.stack([rows, columns], -1)).query(wanted)
    filled = flat[rows[nearest], columns[nearest]].reshape(size, size, -1)
    return Canvas(
        filled[..., 0],
        filled[..., 1],
        filled[..., 2],
        np.rint(filled[..., 3]),
        filled[..., 4],
        filled[..., 5],
    )


def paint(p: Paint, size: int) -> np.ndarray:
    """Albedo [size, size, 3], gamma-encoded, of a face without hair."""
    k = canvas(size)
    rng = np.random.default_rng(p.patch_seed)
    a, f = np.abs(k.x), k.front
    skin = palette(SKIN_TONES, p.tone) * np.float32([1.0, 1.0 + 0.02 * p.yellow, 1.0 - 0.05 * p.yellow])
    image = np.broadcast_to(skin, (size, size, 3)).copy()

    def tint(mask: np.ndarray, factor: list[float]) -> None:
        nonlocal image
        image = image * (1 + np.clip(mask, 0, 1)[..., None] * (np.float32(factor) - 1))

    def cover(mask: np.ndarray, colour: np.ndarray) -> None:
        nonlocal image
        image = image * (1 - np.clip(mask, 0, 1)[..., None]) + np.clip(mask, 0, 1)[..., None] * np.float32(colour)

    blush = bump(a - 0.37, 0.13) * bump(k.y + 0.16, 0.12) + 0.8 * bump(k.x, 0.08) * bump(k.y - NOSE_Y - 0.02, 0.07)
    tint(f * p.red * 0.6 * blush, [1.06, 0.84, 0.82])
    tint(0.5 * p.mottle * np.clip(smooth_noise(rng, size, 24), 0, 2) * 0.25, [0.93, 0.86, 0.84])
    spots = np.clip(smooth_noise(rng, size, 95) - 1.1, 0, 1) * bump(a, 0.38) * bump(k.y + 0.05, 0.2)
    tint(f * p.freckles * 1.6 * spots, [0.72, 0.58, 0.48])
    tint(f * p.lid_shade * bump(a - EYE_X, 0.13) * bump(k.y - EYE_Y - 0.05, 0.06), [0.78, 0.68, 0.66])
    tint(f * p.circles * 0.7 * bump(a - EYE_X + 0.01, 0.10) * bump(k.y - EYE_Y + 0.085, 0.035), [0.78, 0.70, 0.76])
    beard = ramp(-k.y, 0.22, 0.60) * ramp(a - 0.05, -1, 0.1) * ramp(0.64 - a, 0, 0.2)
    tint(f * p.stubble * beard * (0.75 + 0.25 * rng.random((size, size), np.float32)), [0.55, 0.56, 0.60])
    tint(
        f
        * 0.40
        * bump(a - 0.152 - 0.42 * np.clip(NOSE_Y + 0.02 - k.y, 0, 0.4), 0.020)
        * ramp(NOSE_Y + 0.05 - k.y, 0, 0.05)
        * ramp(k.y - MOUTH_Y + 0.02, 0, 0.08),
        [0.82, 0.74, 0.72],
    )
    tint(f * 0.5 * bump(a - 0.158, 0.012) * bump(k.y - NOSE_Y - 0.01, 0.036), [0.66, 0.55, 0.52])

    # Lips: two lines and the skin between them.
    t = np.clip(k.x / MOUTH_HALF, -1, 1)
    top, bottom = lip(t, "upper_outer")[..., 1], lip(t, "lower_outer")[..., 1]
    soft = 0.010
    inside = (
        ramp(k.y - bottom, -soft, soft)
        * ramp(top - k.y, -soft, soft)
        * ramp(1.02 - np.abs(k.x) / MOUTH_HALF, 0, 0.06)
        * f
    )
    red = palette(LIP_REDS, p.lips)
    red = red * (0.35 + 0.80 * skin.mean())
    cover(0.80 * inside, red)
    tint(inside * ramp(k.y - MOUTH_Y, -0.004, 0.01) * 0.55, [0.80, 0.74, 0.74])
    tint(
        f * bump(k.y - MOUTH_Y - 0.006 * t**2, 0.0065) * ramp(1.06 - np.abs(k.x) / MOUTH_HALF, 0, 0.08),
        [0.38, 0.26, 0.26],
    )
    tint(f * 0.5 * bump(a - MOUTH_HALF, 0.018) * bump(k.y - MOUTH_Y, 0.014), [0.60, 0.48, 0.46])

    # Nostrils, brows, lashes.
    tint(f * 1.2 * bump(a - 0.058, 0.018) * bump(k.y - NOSE_Y + 0.040 - 0.25 * (a - 0.054), 0.0135), [0.16, 0.10, 0.09])
    s = np.clip((a - 0.125) / 0.345, 0, 1)
    middle = brow_middle(s)
    half = (0.020 + 0.022 * p.brow_thick) * (1.05 - 0.70 * s)
    hairs = 0.82 + 0.18 * np.sin(150 * (k.y - middle) + 260 * a + 3 * smooth_noise(rng, size, 30))
    brows = (
        np.exp(-(np.abs((k.y - middle) / half) ** 3.0))
        * ramp(a, 0.095 + 0.045 * p.brow_gap, 0.165 + 0.03 * p.brow_gap)
        * ramp(0.485 - a, 0, 0.07)
    )
    hair = palette(HAIRS, p.brow_colour) * (0.75 + 0.25 * min(1.0, skin.mean() * 1.4))
    cover(f * brows * hairs * (0.35 + 0.6 * p.brow_dense), hair)
    q = np.clip((a - EYE_X) / EYE_HALF, -1.1, 1.1)
    te = np.clip(0.5 * q + 0.5, 0, 1)
    up, down = eyelid(te, True)[..., 1], eyelid(te, False)[..., 1]
    within = ramp(1.06 - np.abs(q), 0, 0.06) * f
    tint(within * 1.25 * bump(k.y - up - 0.002, 0.0095), [0.15, 0.10, 0.09] if p.lashes > 0.3 else [0.45, 0.36, 0.33])
    tint(within * (0.25 + 0.6 * p.lashes) * bump(k.y - up - 0.012 - 0.02 * np.clip(q, 0, 1), 0.009), [0.30, 0.24, 0.22])
    tint(within * 0.75 * bump(k.y - up - 0.050, 0.008) * ramp(1 - np.abs(q), 0, 0.25), [0.62, 0.50, 0.47])
    tint(within * 0.6 * bump(k.y - down + 0.003, 0.006), [0.50, 0.40, 0.38])

    # Eyeballs: sclera with a shadow from the upper lid, iris with a dark ring, pupil.
    ball = k.part == 1
    ex, ey = ball_section(*np.clip(_island(k, "eyeball"), -1, 1))
    r = np.hypot(ex, ey)
    eye = (
        np.broadcast_to(np.float32([0.88, 0.85, 0.82]), image.shape)
        * (1 - 0.28 * ramp(np.abs(ex), 0.42, 0.95))[..., None]
    )
    iris = palette(IRISES, p.iris)
    spokes = 1 + 0.14 * np.cos(14 * np.arctan2(ey, ex)) * ramp(r, 0.1, 0.3)
    eye = _mix(
        eye,
        iris * (0.65 + 1.2 * ramp(r, 0.12, 0.38) - 0.25)[..., None] * spokes[..., None],
        ramp(0.385 - r, -0.015, 0.015),
    )
    eye = _mix(eye, iris * 0.35, bump(r - 0.37, 0.025) * 0.8)
    eye = _mix(eye, [0.015, 0.013, 0.012], ramp(0.155 - r, -0.015, 0.015))
    eye = eye * (1 - 0.45 * ramp(ey, 0.12, 0.36))[..., None]
    image = np.where(ball[..., None], eye, image)
    tooth_u, tooth_v = _island(k, "teeth")
    gaps = 1 - 0.30 * bump(np.mod(tooth_u * 5.0, 1.0) - 0.5, 0.05) * (np.abs(tooth_u) < 0.9)
    teeth = np.float32([0.86, 0.83, 0.76]) * gaps[..., None] * (1 - 0.35 * np.abs(tooth_u)[..., None])
    image = np.where((k.part == 2)[..., None], teeth * (0.85 + 0.15 * tooth_v[..., None]), image)
    image = np.where(
        (k.part == 3)[..., None],
        _mix(np.float32([0.50, 0.22, 0.21]), [0.06, 0.02, 0.02], ramp(-_island(k, "mouth")[1], -0.8, 0.0)),
        image,
    )
    image = np.where((k.part == 4)[..., None], skin * np.float32([0.97, 0.89, 0.88]), image)
    return np.clip(image, 0, 1).astype(np.float32)


def _island(k: Canvas, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates -1..1 within an island of the texture: x to the right, y up."""
    left, top, width, height = ISLANDS[name]
    return (2 * (k.u - left) / width - 1) / 0.92, -(2 * (k.v - top) / height - 1) / 0.92


def _mix(under: np.ndarray, over: np.ndarray | list[float], mask: np.ndarray) -> np.ndarray:
    return under * (1 - mask[..., None]) + np.float32(over) * mask[..., None]


def random_paint(rng: np.random.Generator, index: int) -> Paint:
    """Random colours of a person; eye and brow colour are correlated with skin tone."""
    tone = float(np.clip(rng.normal(0.40, 0.24), 0, 1))
    fair = 1 - tone
    return Paint(
        tone=tone,
        red=rng.beta(2, 2),
        yellow=0.6 * rng.normal(),
        lips=rng.beta(2, 2),
        brow_colour=rng.beta(1.2, 1.8) * fair**0.7,
        brow_thick=rng.normal(0.5, 0.25),
        brow_dense=rng.beta(3, 1.6),
        brow_gap=rng.normal(0.5, 0.3),
        iris=rng.random() * fair**0.8,
        circles=rng.random(),
        lashes=rng.random(),
        stubble=rng.beta(1, 2) * 0.7,
        freckles=rng.beta(1, 3) * fair,
        lid_shade=rng.random(),
        mottle=rng.random(),
        patch_seed=index,
    )
