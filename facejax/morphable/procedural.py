"""A human head from formulas: a morphable model that needs no data.

A mesh whose lines follow eyelids, lips and brows is laid out once, in "label" coordinates: where a vertex lies on the
mean head, seen from the front. Everything else is a function of the labels: sculpting moves vertices by smooth bumps
with named controls (a wider jaw, a longer nose), expressions likewise, and painting gives every texel its colour. The
same vertex is therefore the same place on every head. Bases are the principal components of heads drawn from the
controls' distribution: exact for the shape, which is linear in the controls, and of sampled paintings for the albedo.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import Delaunay, cKDTree

from facejax.morphable.model import MorphableModel
from facejax.morphable.rasterizer import interpolate
from facejax.morphable.uv import uv_fragments

EYE_X, EYE_Y, EYE_HALF, EYE_UP, EYE_DOWN, BALL = 0.285, 0.13, 0.128, 0.056, 0.034, 0.150
MOUTH_Y, MOUTH_HALF, LIP_UP, LIP_DOWN = -0.52, 0.235, 0.055, 0.075
NOSE_Y = -0.265
CROWN, CHIN = 1.06, 1.03

# Standard deviation of every shape control; its unit is that of the formula that it enters.
SHAPE_CONTROLS = {
    "face_width": 0.035, "face_height": 0.035, "head_depth": 0.045, "cranium_height": 0.035, "cranium_width": 0.035,
    "forehead_slope": 0.035, "forehead_bulge": 0.02, "temple": 0.018, "occiput": 0.04, "jaw_width": 0.045,
    "jaw_corner": 0.04, "chin_width": 0.03, "chin_length": 0.045, "chin_forward": 0.035, "chin_cleft": 0.008,
    "cheekbone": 0.025, "cheekbone_height": 0.02, "cheek_full": 0.035, "cheek_hollow": 0.02, "brow_ridge": 0.02,
    "brow_height": 0.02, "brow_slope": 0.02, "eye_spacing": 0.016, "eye_height": 0.012, "eye_size": 0.012,
    "eye_open": 0.010, "eye_tilt": 0.07, "eye_depth": 0.018, "lid_heavy": 0.010, "eye_bags": 0.008,
    "nose_length": 0.035, "nose_forward": 0.035, "nose_width": 0.016, "nose_bridge": 0.025, "bridge_width": 0.012,
    "nose_hump": 0.014, "tip_up": 0.022, "tip_bulb": 0.014, "nostril_flare": 0.012, "nasion_depth": 0.018,
    "septum": 0.010, "mouth_width": 0.024, "mouth_height": 0.018, "lip_upper": 0.014, "lip_lower": 0.016,
    "lip_forward": 0.016, "cupid_bow": 0.008, "mouth_corner": 0.012, "philtrum": 0.004, "muzzle": 0.02,
    "overbite": 0.014, "fold_nose": 0.010, "fold_chin": 0.010, "neck_width": 0.04, "ear_size": 0.10, "ear_out": 0.12,
    "ear_height": 0.03, "face_long": 0.03, "mid_face": 0.02, "asym_nose": 0.010, "asym_mouth": 0.010,
    "asym_eye": 0.007, "asym_jaw": 0.014, "asym_brow": 0.008,
}  # fmt: skip

EXPRESSIONS = (
    "jaw_open", "smile", "brow_raise", "brow_frown", "eyes_closed", "puff", "pucker", "corners_down", "sneer",
    "wink_left", "wink_right", "lips_press",
)  # fmt: skip


def bump(x: np.ndarray, width: float) -> np.ndarray:
    """A Gaussian of unit height."""
    return np.exp(-0.5 * (x / width) ** 2)


def ramp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# ---------------------------------------------------------------------------------------------------- the mean skull


def skull(y: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """The smooth head before sculpting: height -CHIN..CROWN and angle round the axis (0 front) -> [..., 3]."""
    up = np.clip(y / CROWN, 0, 1)
    down = np.clip(-y / CHIN, 0, 1)
    taper = 1 - 0.40 * ramp(down, 0.05, 1.05) ** 1.15
    width = 0.705 * np.where(y > 0, np.sqrt(1 - up**2.5), taper * np.sqrt(1 - down**5))
    front = 0.80 * np.where(y > 0, np.sqrt(1 - up**2.3), (1 - 0.10 * down**1.5) * np.sqrt(1 - down**9))
    back = 0.98 * np.where(y > 0, np.sqrt(1 - up**2.3), (1 - 0.62 * ramp(down, 0.15, 0.95)) * np.sqrt(1 - down**6))
    s, c = np.sin(angle), np.cos(angle)
    x = width * np.sign(s) * np.abs(s) ** 0.95
    return np.stack([x, y, np.where(c > 0, front, back) * np.sign(c) * np.abs(c) ** 0.95 - 0.03], -1)


def on_face(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The point of the skull's front at label (x, y): [..., 3]."""
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    side = skull(y, np.full_like(y, np.pi / 2))[..., 0]
    s = np.clip(np.abs(x) / np.maximum(side, 1e-6), 0, 1) ** (1 / 0.95)
    return skull(y, np.sign(x) * np.arcsin(s))


def unroll(points: np.ndarray) -> np.ndarray:
    """The head laid flat: angle from straight ahead as the radius, direction kept. [..., 3] -> [..., 2]."""
    x, y, z = np.moveaxis(points - [0, 0, -0.1], -1, 0)
    radius = np.hypot(x, y)
    return np.stack([x, y], -1) * (np.arctan2(radius, z) / np.maximum(radius, 1e-9))[..., None]


# --------------------------------------------------------------------------------------------- curves and landmarks


def eyelid(t: np.ndarray, upper: bool, scale: float = 1.0) -> np.ndarray:
    """The lid's edge of the right-hand eye, t from 0 at the inner to 1 at the outer corner: labels [..., 2]."""
    s = 2 * t - 1
    arch = np.clip(1 - s * s, 0, None)
    y = EYE_UP * arch**0.72 * (1 - 0.18 * s) if upper else -EYE_DOWN * arch**0.85 * (1 + 0.15 * s)
    tilt = 0.012 * s
    extra = (scale - 1) * (0.06 if upper else -0.05) * arch**0.6
    return np.stack([EYE_X + EYE_HALF * s * (1 + 0.8 * (scale - 1)), EYE_Y + scale * y + tilt + extra], -1)


def lip(t: np.ndarray, which: str) -> np.ndarray:
    """A lip line, t from -1 at the left to 1 at the right corner: labels [..., 2]."""
    arch = np.clip(1 - t * t, 0, None)
    bow = 0.30 * bump(np.abs(t) - 0.20, 0.13) - 0.22 * bump(t, 0.09)
    height = {
        "upper_outer": LIP_UP * arch**0.75 * (1 + bow),
        "upper_middle": 0.5 * LIP_UP * arch**0.75,
        "upper_inner": 0.0025 * arch,
        "lower_inner": -0.0025 * arch,
        "lower_middle": -0.5 * LIP_DOWN * arch**0.65,
        "lower_outer": -LIP_DOWN * arch**0.6,
    }[which]
    return np.stack([MOUTH_HALF * t, MOUTH_Y + height + 0.006 * t * t], -1)


def brow(t: np.ndarray, edge: float) -> np.ndarray:
    """The right-hand brow, t from 0 inside to 1 outside; edge 1 its top, -1 its bottom, 0 the middle."""
    half = 0.030 * (1.05 - 0.75 * t)
    return np.stack([0.125 + 0.345 * t, 0.292 + 0.055 * np.sin(np.pi * t**0.85) - 0.045 * t**2 + edge * half], -1)


def jaw_line(u: np.ndarray) -> np.ndarray:
    """The face's outline, u from -1 (viewer's left, at the ear) over 0 (chin) to 1: points [..., 3]."""
    far = np.abs(u)
    y = -0.985 + 1.06 * far**1.75
    angle = np.deg2rad(84) * np.clip(1.28 * far**0.80, 0, 1) ** 0.9
    return skull(y, np.sign(u) * angle)


def mirrored(points: np.ndarray) -> np.ndarray:
    return points * np.array([-1.0] + [1.0] * (points.shape[-1] - 1))


def landmark_points(contour: int, per_brow: bool, per_eye: int) -> np.ndarray:
    """Landmarks without pupils, [L, 3] on the skull: 68 of 300-W, or the first 96 of WFLW."""
    jaw = jaw_line(np.linspace(-1, 1, contour))
    if per_brow:
        steps = np.linspace(0, 1, 5)
        right_brow = np.concatenate([brow(steps, 1.0), brow(steps[::-1][1:] + np.array([0.07, 0.03, 0, 0]), -1.0)])
        right_brow = np.concatenate([brow(steps, 1.0), brow(np.array([0.94, 0.66, 0.36, 0.04]), -1.0)])
        left_brow = mirrored(np.concatenate([right_brow[4::-1], right_brow[:4:-1]]))
    else:
        right_brow = brow(np.linspace(0.02, 0.98, 5), 0.2)
        left_brow = mirrored(right_brow[::-1])
    bridge = np.stack([np.zeros(4), np.linspace(0.125, NOSE_Y + 0.035, 4)], -1)
    under = np.stack(
        [np.array([-0.105, -0.055, 0, 0.055, 0.105]), NOSE_Y + np.array([-0.045, -0.058, -0.066, -0.058, -0.045])], -1
    )
    inner = np.linspace(0, 1, per_eye)
    right_eye = np.concatenate([eyelid(inner, True), eyelid(inner[-2:0:-1], False)])
    left_eye = mirrored(np.concatenate([right_eye[per_eye - 1 :: -1], right_eye[: per_eye - 1 : -1]]))
    outer = np.array([-1, -0.62, -0.22, 0, 0.22, 0.62, 1])
    mouth = np.concatenate([lip(outer, "upper_outer"), lip(outer[-2:0:-1], "lower_outer")])
    inside = np.array([-0.9, -0.4, 0, 0.4, 0.9])
    mouth_inside = np.concatenate([lip(inside, "upper_inner"), lip(inside[-2:0:-1], "lower_inner")])
    flat = np.concatenate([left_brow, right_brow, bridge, under, left_eye, right_eye, mouth, mouth_inside])
    return np.concatenate([jaw, on_face(flat[:, 0], flat[:, 1])])


# -------------------------------------------------------------------------------------------------------- the mesh


class Mesh(NamedTuple):
    """The mean head before sculpting: the parts are the skin, two eyeballs, the mouth's inside, neck and ears."""

    points: np.ndarray  # [V, 3]
    triangles: np.ndarray  # [T, 3]
    uv: np.ndarray  # [V, 2]
    part: np.ndarray  # [V] index into PARTS
    symmetry: np.ndarray  # [V]


PARTS = ("skin", "eyeball", "teeth", "mouth", "neck", "ear")

ISLANDS = {  # texture corners that the unrolled head leaves free: (left, top, width, height)
    "eyeball": (0.005, 0.005, 0.135, 0.135),
    "teeth": (0.865, 0.005, 0.13, 0.06),
    "mouth": (0.865, 0.075, 0.06, 0.06),
    "ear": (0.005, 0.865, 0.11, 0.13),
    "neck": (0.885, 0.885, 0.11, 0.11),
}


def skin_layout() -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] of the skin, mirror-symmetric, and triangles over them with holes for eyes and mouth."""
    half = np.linspace(0, 1, 15)
    rings = [eyelid(half, up, s) for s in (1.0, 1.15, 1.38, 1.7, 2.1) for up in (True, False)]
    t = np.linspace(0, 1, 13)
    lips = [
        lip(t, w) for w in ("upper_outer", "upper_middle", "upper_inner", "lower_inner", "lower_middle", "lower_outer")
    ]
    around_mouth = []
    for k in (1.18, 1.42):
        for w, sign in (("upper_outer", 1), ("lower_outer", -1)):
            ring = lip(t, w)
            ring[:, 0] *= 1 + 0.5 * (k - 1)
            ring[:, 1] += sign * (k - 1) * 0.11
            around_mouth.append(ring)
    brows = [brow(np.linspace(0, 1, 12), e) for e in (-1.0, -0.35, 0.35, 1.0)]
    nose = np.stack(np.meshgrid(np.arange(0, 0.22, 0.0215), np.arange(NOSE_Y - 0.12, 0.16, 0.0225)), -1).reshape(-1, 2)
    face = np.stack(np.meshgrid(np.arange(0, 0.68, 0.042), np.arange(-0.98, 0.75, 0.042)), -1).reshape(-1, 2)
    face = face[np.abs(face[:, 0]) < 0.93 * skull(face[:, 1], np.full(len(face), np.pi / 2))[:, 0]]
    rows = np.concatenate([np.linspace(-0.97, 0.7, 20), np.array([0.79, 0.87, 0.94, 0.99, 1.03, CROWN])])
    grid = np.stack(np.meshgrid(np.linspace(0, np.pi, 27), rows), -1).reshape(-1, 2)
    named = np.concatenate([landmark_points(17, False, 4), landmark_points(33, True, 5)])
    sets = [named] + [on_face(p[:, 0], p[:, 1]) for p in (*rings, *lips, *around_mouth, *brows, nose, face)]
    sets.append(skull(grid[:, 1], grid[:, 0]))
    spacing = [0.0] * 1 + [0.002] * len(rings) + [0.002] * len(lips) + [0.012] * 4 + [0.012] * 4 + [0.017, 0.03, 0.045]
    kept = np.zeros((0, 3))
    for points, gap in zip(sets, spacing, strict=True):
        points = points.copy()
        points[np.abs(points[:, 0]) < 0.35 * max(gap, 0.004), 0] = 0
        points = points[points[:, 0] >= 0]
        for p in points:
            if gap == 0 or len(kept) == 0 or np.min(np.sum((kept - p) ** 2, 1)) > max(gap, 1e-5) ** 2:
                if gap == 0 and len(kept) and np.min(np.sum((kept - p) ** 2, 1)) < 1e-12:
                    continue
                kept = np.concatenate([kept, p[None]])
    off_axis = kept[kept[:, 0] > 0]
    points = np.concatenate([kept, mirrored(off_axis)])
    flat = unroll(points)
    triangles = Delaunay(flat).simplices
    centre = points[triangles].mean(1)
    keep = ~_in_hole(centre)
    corners = flat[triangles]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    triangles = np.where((area > 0)[:, None], triangles, triangles[:, ::-1])
    return points, triangles[keep & (np.abs(area) > 1e-9)]


def _in_hole(points: np.ndarray) -> np.ndarray:
    """Whether points of the skull lie in an eye's opening or between the lips."""
    x, y, front = np.abs(points[:, 0]), points[:, 1], points[:, 2] > 0
    t = np.clip((x - EYE_X) / EYE_HALF * 0.5 + 0.5, 0, 1)
    eye = (np.abs(x - EYE_X) < EYE_HALF) & (y < eyelid(t, True)[:, 1]) & (y > eyelid(t, False)[:, 1])
    m = np.clip(x / MOUTH_HALF, 0, 1)
    mouth = (x < MOUTH_HALF) & (y < lip(m, "upper_inner")[:, 1]) & (y > lip(m, "lower_inner")[:, 1])
    return front & (eye | mouth)


def patch(rows: int, columns: int, offset: int = 0) -> np.ndarray:
    """Triangles of a grid of vertices, rows downward and columns to the right, front towards the viewer."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (r * columns + c).ravel() + offset
    b, d, e = a + 1, a + columns, a + columns + 1
    return np.concatenate([np.stack([a, d, b], -1), np.stack([b, d, e], -1)])


def eyeball_z() -> float:
    """Depth of the eyeballs' centres."""
    return float(on_face(EYE_X, EYE_Y)[2]) - 0.075 - BALL * 0.93


@functools.cache
def mesh() -> Mesh:
    """All parts of the head, put together."""
    skin, triangles = skin_layout()
    flat = unroll(skin)
    radius = np.linalg.norm(flat, axis=1, keepdims=True)
    stretched = flat / np.maximum(radius, 1e-9) * 0.498 * np.sin(0.5 * np.minimum(radius, np.pi)) ** 0.90
    pieces = [(skin, triangles, 0.5 + stretched * [1, -1], 0)]

    def add(points: np.ndarray, rows: int, columns: int, part: str, flip: bool = False) -> None:
        left, top, width, height = ISLANDS[part]
        v, u = np.meshgrid(np.linspace(0.04, 0.96, rows), np.linspace(0.04, 0.96, columns), indexing="ij")
        faces = patch(rows, columns)
        uv = np.stack([left + width * u, top + height * v], -1).reshape(-1, 2)
        pieces.append((points.reshape(-1, 3), faces[:, ::-1] if flip else faces, uv, PARTS.index(part)))

    v, u = np.meshgrid(np.linspace(1, -1, 15), np.linspace(-1, 1, 15), indexing="ij")
    for side in (1, -1):
        ex, ey = 0.95 * u, 0.95 * v
        disc = np.stack([ex * np.sqrt(1 - ey**2 / 2), ey * np.sqrt(1 - ex**2 / 2)], -1)
        z = np.sqrt(np.clip(1 - np.sum(disc**2, -1), 0, 1))
        add(
            np.stack([side * EYE_X + BALL * disc[..., 0], EYE_Y + BALL * disc[..., 1], eyeball_z() + BALL * z], -1),
            15,
            15,
            "eyeball",
        )
    lips_z = float(on_face(0, MOUTH_Y)[2])
    v, u = np.meshgrid(np.linspace(0, 1, 4), np.linspace(-1, 1, 17), indexing="ij")
    arc = lips_z + 0.045 - 0.20 * u**2
    add(np.stack([0.175 * u, MOUTH_Y + 0.03 - 0.075 * v, arc], -1), 4, 17, "teeth")
    v, u = np.meshgrid(np.linspace(0.10, -0.36, 7), np.linspace(-1, 1, 11), indexing="ij")
    add(np.stack([0.26 * u, MOUTH_Y + v, lips_z - 0.16 - 0.12 * u**2], -1), 7, 11, "mouth")
    v, u = np.meshgrid(np.linspace(0, 1, 14), np.linspace(-1, 1, 29), indexing="ij")
    a = u * np.deg2rad(175)
    y = -0.60 - 1.5 * v
    wide = 0.40 + 0.03 * v + 0.85 * ramp(v, 0.42, 1.15) ** 1.5
    deep = 0.40 + 0.10 * ramp(v, 0.45, 1.0)
    add(
        np.stack([wide * np.sin(a), y - 0.10 * np.cos(a) * (1 - v), deep * np.cos(a) - 0.22 - 0.04 * v], -1),
        14,
        29,
        "neck",
    )
    v, u = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 2 * np.pi, 25), indexing="ij")
    outline = 1 + 0.10 * np.cos(u - 0.9) - 0.10 * ramp(-np.sin(u), 0.3, 1.0)
    rim = 0.055 * bump(v - 0.86, 0.10) - 0.05 * bump(v - 0.45, 0.22) * ramp(np.cos(u + 0.2), -1, 0.9)
    width, height = 0.105 * v * outline * np.cos(u), 0.185 * v * outline * np.sin(u)
    lobe = 0.03 * ramp(-np.sin(u), 0.5, 1.0) * v
    for side in (1, -1):
        out = 0.045 + 0.16 * np.clip(-width / 0.105 * 0.5 + 0.5, 0, 1) * 0.7 + rim * np.where(v > 0.97, 0.2, 1)
        x = side * (0.655 + out)
        z = -0.13 + width * 0.9 - 0.06 * v * 0
        add(np.stack([x, 0.02 + height + lobe * 0 + 0.12 * width, z], -1), 9, 25, "ear", flip=side > 0)

    offsets = np.cumsum([0] + [len(p[0]) for p in pieces])
    points = np.concatenate([p[0] for p in pieces])
    faces = np.concatenate([p[1] + o for p, o in zip(pieces, offsets, strict=False)]).astype(np.int32)
    part = np.concatenate([np.full(len(p[0]), p[3]) for p in pieces])
    return Mesh(points, faces, np.concatenate([p[2] for p in pieces]), part, _partners(points, part))


def _partners(points: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The vertex at the mirrored place, of the same part."""
    partner = np.arange(len(points))
    for kind in np.unique(part):
        mine = np.flatnonzero(part == kind)
        distance, found = cKDTree(points[mine]).query(mirrored(points[mine]))
        if distance.max() > 1e-6:
            raise AssertionError(f"the mesh's {PARTS[kind]} is not symmetric: {distance.max()}")
        partner[mine] = mine[found]
    return partner.astype(np.int32)
