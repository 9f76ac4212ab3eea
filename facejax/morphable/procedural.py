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
    "brow_height": 0.02, "brow_slope": 0.015, "eye_spacing": 0.013, "eye_height": 0.012, "eye_size": 0.009,
    "eye_open": 0.010, "eye_tilt": 0.05, "eye_depth": 0.012, "lid_heavy": 0.010, "eye_bags": 0.008,
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


def twin(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Two bumps, one on either side, that meet smoothly in the middle."""
    return bump(x - centre, width) + bump(x + centre, width)


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
        ex, ey = 0.90 * u, 0.90 * v
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
    v, u = np.meshgrid(np.linspace(0.08, -0.20, 7), np.linspace(-1, 1, 11), indexing="ij")
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
        out = 0.025 + 0.12 * np.clip(-width / 0.105 * 0.5 + 0.5, 0, 1) * 0.7 + rim * np.where(v > 0.97, 0.2, 1)
        x = side * (0.655 + out)
        z = -0.13 + width * 0.9 - 0.06 * v * 0
        add(np.stack([x, 0.02 + height + lobe * 0 + 0.12 * width, z], -1), 9, 25, "ear", flip=side > 0)

    offsets = np.cumsum([0] + [len(p[0]) for p in pieces])
    points = np.concatenate([p[0] for p in pieces])
    faces = np.concatenate([p[1] + o for p, o in zip(pieces, offsets, strict=False)]).astype(np.int32)
    part = np.concatenate([np.full(len(p[0]), p[3]) for p in pieces])
    return Mesh(points, faces, np.concatenate([p[2] for p in pieces]), part, _partners(points, part))


def _partners(points: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The vertex at the mirrored place, of the same part; vertices that share a place are matched in order."""
    index = np.arange(len(points))
    keys = [np.round(p, 6) + 0.0 for p in (points, mirrored(points))]
    ours, theirs = (np.lexsort((index, key[:, 2], key[:, 1], key[:, 0], part)) for key in keys)
    if not np.allclose(keys[0][ours], keys[1][theirs], atol=2e-6):
        raise AssertionError("the mesh is not symmetric")
    partner = np.empty(len(points), np.int32)
    partner[theirs] = ours
    return partner


# ------------------------------------------------------------------------------------------------------- sculpting


def sculpt(
    points: np.ndarray, part: np.ndarray, control: Callable[[str], float], expression: Callable[[str], float]
) -> np.ndarray:
    """The head with these controls (0 is the mean) and expressions (0 none, 1 full): [V, 3].

    Every vertex moves by functions of its label, so that displacements are smooth and the same vertex stays the same
    place on every head.
    """
    c, e = control, expression
    lx, ly, lz = points.T  # labels
    a, side = np.abs(lx), np.sign(lx)
    skin = part == 0
    f = ramp(lz, 0.0, 0.30) * skin
    x, y, z = points.T.copy()
    wink = np.where(lx > 0, e("wink_right"), e("wink_left"))
    blink = e("eyes_closed") + wink
    jaw = e("jaw_open")

    # The mask's plane: forehead, brow ridge, sockets, cheekbones.
    z = z - f * 0.05 * ramp(ly, 0.25, 0.75) * bump(a, 0.40) + c("forehead_slope") * -2.0 * f * ramp(ly, 0.3, 1.0)
    z = z + c("forehead_bulge") * f * bump(ly - 0.52, 0.17) * bump(a, 0.38)
    z = z + f * (0.055 + c("brow_ridge")) * bump(ly - 0.27 + 0.06 * (a / 0.5) ** 2, 0.062) * twin(lx, 0.24, 0.20)
    x = x - side * f * (0.02 + c("temple")) * bump(ly - 0.30, 0.20) * ramp(a, 0.40, 0.70)
    socket = (0.088 + c("eye_depth")) * twin(lx, EYE_X, 0.135) * bump(ly - EYE_Y - 0.01, 0.085)
    z = z - f * socket - f * 0.030 * twin(lx, 0.115, 0.055) * bump(ly - EYE_Y - 0.02, 0.085)
    cheek_y = -0.12 + c("cheekbone_height")
    z = z + f * (0.055 + c("cheekbone")) * twin(lx, 0.42, 0.12) * bump(ly - cheek_y, 0.11)
    x = x + side * f * (0.03 + c("cheekbone")) * bump(ly - cheek_y, 0.14) * ramp(a, 0.35, 0.62)
    full = c("cheek_full") - c("cheek_hollow")
    z = z + f * (0.02 + full + 0.055 * e("smile")) * twin(lx, 0.38, 0.13) * bump(ly + 0.32, 0.13)
    x = x + side * f * (full * 0.8 + 0.11 * e("puff")) * ramp(a, 0.20, 0.50) * bump(ly + 0.42, 0.17)
    z = z + f * 0.13 * e("puff") * twin(lx, 0.34, 0.13) * bump(ly + 0.44, 0.14)

    # The nose: ridge, tip, wings, what is under it.
    t = np.clip((EYE_Y + 0.06 - ly) / (EYE_Y + 0.06 - NOSE_Y), 0, 1.15)
    start, height = 0.042 + 0.6 * c("nose_bridge"), 0.245 + c("nose_forward")
    ridge = (start + (height - start) * np.clip(t, 0, 1) ** 1.30) * ramp(EYE_Y + 0.13 - ly, 0.0, 0.12)
    ridge = ridge + c("nose_hump") * bump(t - 0.42, 0.20) - c("nasion_depth") * bump(t, 0.16)
    under = 1 - ramp(NOSE_Y + 0.010 - ly, 0.0, 0.075)
    wide = (0.072 + c("bridge_width")) * (0.90 + 0.36 * t**2)
    z = z + f * ridge * np.exp(-0.62 * (a / wide) ** 2.2) * under
    z = z + f * (0.030 + c("tip_bulb")) * bump(a, 0.060) * bump(ly - NOSE_Y - 0.03, 0.045)
    z = z + f * (0.092 + c("nostril_flare")) * twin(lx, 0.100, 0.036) * bump(ly - NOSE_Y - 0.012, 0.044)
    z = z - f * 0.040 * twin(lx, 0.162, 0.022) * bump(ly - NOSE_Y - 0.015, 0.045)
    z = z - f * 0.055 * twin(lx, 0.052, 0.024) * bump(ly - NOSE_Y + 0.042, 0.018)
    nose = bump(a, 0.13) * bump(ly - NOSE_Y, 0.06) * f
    y = y - 0.030 * bump(a, 0.09) * bump(ly - NOSE_Y - 0.005, 0.035) * f * (1 - c("tip_up") * 20)
    y = y - c("septum") * bump(a, 0.03) * bump(ly - NOSE_Y + 0.03, 0.03) * f
    x = x + side * ramp(a, 0.0, 0.05) * f * (c("nose_width") + 0.018 * e("smile")) * twin(lx, 0.11, 0.05) * bump(
        ly - NOSE_Y, 0.07
    )
    y = y + f * 0.035 * e("sneer") * twin(lx, 0.11, 0.06) * bump(ly - NOSE_Y, 0.08)
    x = x + c("asym_nose") * nose

    # Muzzle, lips, folds, chin.
    z = z + f * (0.070 + c("muzzle")) * bump(a, 0.21) * bump(ly - MOUTH_Y, 0.15)
    m = np.clip(a / MOUTH_HALF, 0, 1.3)
    arch = np.clip(1 - m**2, 0, 1)
    plump = 0.050 + c("lip_forward") + 0.055 * e("pucker") - 0.030 * e("lips_press")
    upper = np.exp(-0.5 * ((ly - MOUTH_Y - 0.45 * LIP_UP) / 0.030) ** 2) * (ly > MOUTH_Y)
    lower = np.exp(-0.5 * ((ly - MOUTH_Y + 0.48 * LIP_DOWN) / 0.034) ** 2) * (ly <= MOUTH_Y)
    line = bump(ly - MOUTH_Y, 0.010)
    z = z + f * arch**0.5 * (plump * upper + (plump * 1.12 - c("overbite")) * lower - 0.022 * line)
    z = z - f * 0.028 * twin(lx, MOUTH_HALF * 1.04, 0.028) * bump(ly - MOUTH_Y, 0.035)
    z = z - f * (0.014 + c("philtrum")) * bump(a, 0.022) * ramp(
        ly, MOUTH_Y + LIP_UP, MOUTH_Y + LIP_UP + 0.03
    ) * under_nose(ly)
    z = z - f * (0.042 + c("fold_chin")) * bump(a, 0.16) * bump(ly - MOUTH_Y + LIP_DOWN + 0.085, 0.036)
    z = z + f * (0.105 + c("chin_forward")) * bump(a, 0.15 + c("chin_width")) * bump(ly + 0.87, 0.105)
    z = z - f * c("chin_cleft") * bump(a, 0.02) * bump(ly + 0.86, 0.05)
    fold = a - 0.145 - 0.42 * np.clip(NOSE_Y + 0.02 - ly, 0, 0.4)
    crease = ramp(NOSE_Y + 0.05 - ly, 0, 0.05) * ramp(ly - MOUTH_Y + 0.05, 0, 0.06)
    z = z - f * (0.014 + c("fold_nose") + 0.020 * e("smile")) * bump(fold, 0.022) * crease

    # Where things are: spacing, size and tilt of features move their vertices.
    eye = np.minimum(1.45 * twin(lx, EYE_X, 0.16) * bump(ly - EYE_Y, 0.115), 1) * f
    is_ball = part == 1
    eye = np.where(is_ball, 1.0, eye)
    away = ramp(a, 0.0, 0.10)
    x = x + side * c("eye_spacing") * eye * away
    y = y + (c("eye_height") + side * c("asym_eye")) * eye
    size = c("eye_size") / EYE_HALF * eye * ~is_ball
    tilt = c("eye_tilt") * (a - EYE_X) * eye * ~is_ball
    x = x + side * size * (a - EYE_X)
    y = y + size * (ly - EYE_Y) + tilt
    z = z - is_ball * c("eye_depth") * 0.6
    brow_here = twin(lx, 0.28, 0.20) * bump(ly - 0.30, 0.09) * f
    y = (
        y
        + (c("brow_height") + side * c("asym_brow") + 0.090 * e("brow_raise")) * brow_here
        + c("brow_slope") * (a - 0.28) * brow_here * 3 * away
    )
    y = y + 0.05 * e("brow_raise") * f * ramp(ly, 0.30, 0.45) * bump(ly - 0.45, 0.2) * bump(a, 0.35)
    y = y - 0.050 * e("brow_frown") * twin(lx, 0.15, 0.11) * bump(ly - 0.29, 0.08) * f
    x = x - side * away * 0.028 * e("brow_frown") * twin(lx, 0.15, 0.09) * bump(ly - 0.29, 0.09) * f
    nose_zone = bump(a, 0.14) * ramp(EYE_Y + 0.1 - ly, 0, 0.35) * ramp(ly - MOUTH_Y - 0.05, 0, 0.15) * f
    y = y - (c("nose_length") - c("tip_up") * 0.5) * nose_zone + c("tip_up") * 0.6 * nose
    below = ramp(NOSE_Y - 0.03 - ly, 0, 0.12)
    teeth = part == 2
    inside = teeth | (part == 3)
    below = np.where(inside, 1.0, below * ramp(lz, -0.35, 0.2)) * (skin | inside)
    y = y - (0.6 * c("nose_length") + c("mouth_height") * bump(ly - MOUTH_Y, 0.17)) * below * (f + inside)
    mouth = bump(a, 0.30) * bump(ly - MOUTH_Y, 0.10) * f
    stretch = (
        c("mouth_width") + 0.060 * e("smile") - 0.085 * e("pucker") + 0.012 * e("lips_press") + 0.01 * e("corners_down")
    )
    x = x + side * stretch * np.clip(a / MOUTH_HALF, 0, 1) * mouth + c("asym_mouth") * mouth
    corner = twin(lx, MOUTH_HALF, 0.085) * bump(ly - MOUTH_Y, 0.075) * f
    y = y + (c("mouth_corner") + 0.085 * e("smile") - 0.055 * e("corners_down")) * corner
    z = z - 0.045 * e("smile") * corner
    y = y + 0.030 * e("smile") * f * twin(lx, 0.36, 0.12) * bump(ly + 0.25, 0.14)
    thick_up = (c("lip_upper") - 0.016 * e("lips_press") - 0.012 * e("smile")) * arch**0.75
    thick_down = (c("lip_lower") - 0.022 * e("lips_press")) * arch**0.65
    y = y + f * thick_up * ramp(ly - MOUTH_Y, 0, LIP_UP) * bump(np.clip(ly - MOUTH_Y - LIP_UP, 0, None), 0.04) * (m < 1)
    y = y - f * thick_down * ramp(MOUTH_Y - ly, 0, LIP_DOWN) * bump(np.clip(MOUTH_Y - LIP_DOWN - ly, 0, None), 0.04) * (
        m < 1
    )
    y = y + f * c("cupid_bow") * (twin(lx, 0.05, 0.03) - bump(a, 0.02)) * bump(ly - MOUTH_Y - LIP_UP, 0.03)

    # Opening the mouth turns the jaw about the ears; lips part along the mouth's line.
    lips_apart = np.where(ly < MOUTH_Y, 1.0, 0.0) * ramp(1.25 - m, 0, 0.35) + (ly < MOUTH_Y) * ramp(
        m, 0.9, 1.25
    ) * ramp(MOUTH_Y - ly, 0, 0.12)
    drop = np.where(
        skin,
        ramp(lz, -0.45, 0.35)
        * np.where(ly < MOUTH_Y, np.maximum(lips_apart * arch**0.5, ramp(MOUTH_Y - ly, 0, 0.22)), 0),
        0,
    )
    drop = drop * ramp(NOSE_Y - 0.05 - ly, 0, 0.1)
    y = y - 0.215 * jaw * drop + 0.018 * jaw * f * (ly >= MOUTH_Y) * arch**0.5 * bump(ly - MOUTH_Y, 0.07)
    z = z - 0.060 * jaw * drop
    x = x - side * 0.030 * jaw * corner
    y = y - np.where(part == 3, 0.17 * jaw * ramp(MOUTH_Y - ly, -0.08, 0.20), 0)

    # Jaw, chin, skull: large moves of everything, the neck's top included.
    low = ramp(-ly, 0.25, 0.95) * skin
    x = x + side * low * (
        c("jaw_width") * ramp(a, 0.02, 0.40) + c("chin_width") * 0.6 * bump(ly + 0.92, 0.12) * ramp(a, 0.0, 0.2)
    )
    x = x + side * c("jaw_corner") * bump(ly + 0.55, 0.20) * ramp(a, 0.25, 0.55) * skin
    y = y - c("chin_length") * ramp(-ly, 0.60, 1.0) * skin * ramp(lz, -0.3, 0.3)
    x = x + c("asym_jaw") * ramp(-ly, 0.4, 1.0) * skin
    head = skin | (part == 5)
    x = x + side * head * (
        c("face_width") * ramp(lz, -0.4, 0.3) + c("cranium_width") * ramp(ly, 0.1, 0.6) * (1 - 0.5 * f)
    ) * np.minimum(a / 0.6, 1.2)
    y = (
        y
        + skin * (c("face_height") * ly * 0.8 + c("cranium_height") * ramp(ly, 0.25, 1.0))
        + c("face_long") * skin * np.minimum(ly + 0.3, 0)
    )
    y = y - c("mid_face") * skin * ramp(EYE_Y - ly, 0, 0.3)
    scale_y = c("face_height") * 0.8
    y = y + np.where(skin, 0, scale_y * ly) - np.where(inside, c("mid_face") - 0.3 * c("face_long") * 0, 0)
    z = (
        z
        + c("head_depth") * np.where(head, np.clip(lz, -1, 0.0), 0)
        - c("occiput") * skin * ramp(-lz, 0.2, 0.9) * bump(ly - 0.2, 0.4)
    )
    neck = part == 4
    x = x + neck * lx * c("neck_width")
    z = z + neck * lz * c("neck_width") * 0.7
    ear = part == 5
    middle = np.where(lx > 0, 1, -1)
    x = x + ear * (middle * (c("face_width") + c("ear_out") * np.clip(-lz - 0.05, 0, 0.3)))
    y = y + ear * (c("ear_size") * (ly - 0.02) + c("ear_height"))
    z = z + ear * c("ear_size") * (lz + 0.13)

    out = np.stack([x, y, z], -1)
    return _drape_lids(out, points, part, c, blink)


def under_nose(y: np.ndarray) -> np.ndarray:
    """1 between the nose and the mouth."""
    return ramp(NOSE_Y - 0.03 - y, 0, 0.03)


def _drape_lids(
    out: np.ndarray, labels: np.ndarray, part: np.ndarray, control: Callable[[str], float], blink: np.ndarray
) -> np.ndarray:
    """Lays the lids over the eyeballs, and closes them."""
    lx, ly, _ = labels.T
    a, side = np.abs(lx), np.where(lx < 0, -1.0, 1.0)
    skin = (part == 0) & (labels[:, 2] > 0)
    t = np.clip((a - EYE_X) / EYE_HALF * 0.5 + 0.5, 0, 1)
    upper, lower = eyelid(t, True)[:, 1], eyelid(t, False)[:, 1]
    arch = np.clip(1 - (2 * t - 1) ** 2, 0, 1)
    above, beneath = (
        ramp(0.115 - (ly - upper), 0.0, 0.115) * (ly > EYE_Y),
        ramp(0.06 - (lower - ly), 0, 0.06) * (ly <= EYE_Y),
    )
    near = bump(np.clip(np.abs(a - EYE_X) - EYE_HALF, 0, None), 0.02)
    opening = control("eye_open") - control("lid_heavy")
    down = (opening - blink * 0.92 * (upper - lower)) * above**1.5
    up = -0.4 * control("eye_open") * beneath + 0.08 * blink * (upper - lower) * beneath
    y = out[:, 1] + np.where(skin, (down + up) * np.sqrt(arch) * near, 0)

    centre_x = side * (EYE_X + control("eye_spacing"))
    centre_y = EYE_Y + control("eye_height") + side * control("asym_eye") + 0.8 * control("face_height") * EYE_Y
    rx, ry = out[:, 0] - centre_x, y - centre_y
    reach = BALL + 0.013 + 0.014 * blink * above
    ball = np.sqrt(np.clip(reach**2 - rx**2 - ry**2, 0, None)) + eyeball_z() - 0.6 * control("eye_depth")
    edge = (((a - EYE_X) / 0.156) ** 4 + ((ly - EYE_Y) / 0.122) ** 4) ** 0.25
    weight = ramp(1 - edge, 0.0, 0.17) * skin
    z = out[:, 2] * (1 - weight) + (ball + 0.004) * weight
    crease = bump(ly - upper - 0.050, 0.010) * np.sqrt(arch) * (1 - 0.8 * np.minimum(blink, 1))
    z = (
        z
        - skin * 0.012 * crease
        - skin * (0.006 + control("eye_bags")) * bump(lower - ly - 0.050, 0.014) * np.sqrt(arch)
    )
    return np.stack([out[:, 0], y, z], -1)


# --------------------------------------------------------------------------------------------------------- painting

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
HAIRS = np.array([[0.05, 0.04, 0.035], [0.14, 0.09, 0.06], [0.30, 0.19, 0.11], [0.52, 0.38, 0.22]])


class Paint(NamedTuple):
    """What a face is painted with; every number is about 0..1 unless it says otherwise."""

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
    """Texels: their labels, which part they belong to, and the islands' own coordinates."""

    x: np.ndarray
    y: np.ndarray
    front: np.ndarray
    part: np.ndarray
    u: np.ndarray
    v: np.ndarray


def palette(colours: np.ndarray, value: float) -> np.ndarray:
    """A colour between neighbours of a row of colours, 0 the first and 1 the last."""
    place = float(np.clip(value, 0, 1)) * (len(colours) - 1)
    low = min(int(place), len(colours) - 2)
    return colours[low] * (1 - place + low) + colours[low + 1] * (place - low)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """[size, size] smooth random field of unit spread, about `cells` bumps across."""
    coarse = rng.normal(size=(cells + 3, cells + 3))
    at = np.linspace(1, cells + 1, size, endpoint=False)
    low = at.astype(int)
    t = at - low
    t = t * t * (3 - 2 * t)
    rows = coarse[low] * (1 - t)[:, None] + coarse[low + 1] * t[:, None]
    return rows[:, low] * (1 - t) + rows[:, low + 1] * t


@functools.cache
def canvas(size: int) -> Canvas:
    """The texture's labels, spread a little beyond the triangles so that no seam shows."""
    m = mesh()
    uv, attributes = _array(m.uv), _array(np.concatenate([m.points, m.part[:, None], m.uv], 1))

    @jax.jit
    def draw(uv: jax.Array, triangles: jax.Array, attributes: jax.Array) -> tuple[jax.Array, jax.Array]:
        fragments = uv_fragments(uv, triangles, size)
        return interpolate(fragments, triangles, attributes), fragments.triangle >= 0

    flat, hit = map(np.asarray, draw(uv, jnp.asarray(m.triangles), attributes))
    rows, columns = np.nonzero(hit)
    wanted = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    _, nearest = cKDTree(np.stack([rows, columns], -1)).query(wanted)
    filled = flat[rows[nearest], columns[nearest]].reshape(size, size, -1)
    return Canvas(
        filled[..., 0],
        filled[..., 1],
        ramp(filled[..., 2], 0.0, 0.3),
        np.rint(filled[..., 3]),
        filled[..., 4],
        filled[..., 5],
    )


def paint(p: Paint, size: int) -> np.ndarray:
    """Albedo [size, size, 3], gamma-encoded, of a face without hair."""
    k = canvas(size)
    rng = np.random.default_rng(p.patch_seed)
    a, f = np.abs(k.x), k.front
    skin = palette(SKIN_TONES, p.tone) * [1.0, 1.0 + 0.02 * p.yellow, 1.0 - 0.05 * p.yellow]
    image = np.broadcast_to(skin, (size, size, 3)).copy()

    def tint(mask: np.ndarray, factor: list[float]) -> None:
        nonlocal image
        image = image * (1 + np.clip(mask, 0, 1)[..., None] * (np.array(factor) - 1))

    def cover(mask: np.ndarray, colour: np.ndarray) -> None:
        nonlocal image
        image = image * (1 - np.clip(mask, 0, 1)[..., None]) + np.clip(mask, 0, 1)[..., None] * np.asarray(colour)

    blush = bump(a - 0.37, 0.13) * bump(k.y + 0.16, 0.12) + 0.8 * bump(k.x, 0.08) * bump(k.y - NOSE_Y - 0.02, 0.07)
    tint(f * p.red * 0.6 * blush, [1.06, 0.84, 0.82])
    tint(0.5 * p.mottle * np.clip(smooth_noise(rng, size, 24), 0, 2) * 0.25, [0.93, 0.86, 0.84])
    spots = np.clip(smooth_noise(rng, size, 95) - 1.1, 0, 1) * bump(a, 0.38) * bump(k.y + 0.05, 0.2)
    tint(f * p.freckles * 1.6 * spots, [0.72, 0.58, 0.48])
    tint(f * p.lid_shade * bump(a - EYE_X, 0.13) * bump(k.y - EYE_Y - 0.05, 0.06), [0.78, 0.68, 0.66])
    tint(f * p.circles * 0.7 * bump(a - EYE_X + 0.01, 0.10) * bump(k.y - EYE_Y + 0.085, 0.035), [0.78, 0.70, 0.76])
    beard = ramp(-k.y, 0.22, 0.60) * ramp(a - 0.05, -1, 0.1) * ramp(0.64 - a, 0, 0.2)
    tint(f * p.stubble * beard * (0.75 + 0.25 * rng.random((size, size))), [0.55, 0.56, 0.60])
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
    red = np.array([0.80, 0.46, 0.44]) * (1 - p.lips) + np.array([0.74, 0.28, 0.31]) * p.lips
    red = red * (0.35 + 0.80 * skin.mean())
    cover(0.80 * inside, red)
    tint(inside * ramp(k.y - MOUTH_Y, -0.004, 0.01) * 0.55, [0.80, 0.74, 0.74])
    tint(
        f * bump(k.y - MOUTH_Y - 0.006 * t**2, 0.0065) * ramp(1.06 - np.abs(k.x) / MOUTH_HALF, 0, 0.08),
        [0.38, 0.26, 0.26],
    )
    tint(f * 0.5 * bump(a - MOUTH_HALF, 0.018) * bump(k.y - MOUTH_Y, 0.014), [0.60, 0.48, 0.46])

    # Nostrils, brows, lashes.
    tint(f * 1.6 * bump(a - 0.054, 0.021) * bump(k.y - NOSE_Y + 0.040 - 0.25 * (a - 0.054), 0.0135), [0.16, 0.10, 0.09])
    s = np.clip((a - 0.125) / 0.345, 0, 1)
    middle = 0.292 + 0.055 * np.sin(np.pi * s**0.85) - 0.045 * s**2
    half = (0.016 + 0.020 * p.brow_thick) * (1.05 - 0.70 * s)
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
    ex, ey = _island(k, "eyeball")
    r = np.hypot(ex, ey + 0.01)
    eye = np.broadcast_to([0.88, 0.85, 0.82], image.shape) * (1 - 0.28 * ramp(np.abs(ex), 0.42, 0.95))[..., None]
    iris = palette(IRISES, p.iris)
    spokes = 1 + 0.14 * np.cos(14 * np.arctan2(ey, ex)) * ramp(r, 0.1, 0.3)
    eye = _mix(
        eye,
        iris * (0.65 + 1.2 * ramp(r, 0.12, 0.42) - 0.25)[..., None] * spokes[..., None],
        ramp(0.435 - r, -0.01, 0.02),
    )
    eye = _mix(eye, iris * 0.35, bump(r - 0.42, 0.03) * 0.85)
    eye = _mix(eye, [0.015, 0.013, 0.012], ramp(0.185 - r, -0.02, 0.02))
    eye = eye * (1 - 0.45 * ramp(ey, 0.10, 0.42))[..., None]
    image = np.where(ball[..., None], eye, image)
    tooth_u, tooth_v = _island(k, "teeth")
    gaps = 1 - 0.30 * bump(np.mod(tooth_u * 5.0, 1.0) - 0.5, 0.05) * (np.abs(tooth_u) < 0.9)
    teeth = np.array([0.86, 0.83, 0.76]) * gaps[..., None] * (1 - 0.35 * np.abs(tooth_u)[..., None])
    image = np.where((k.part == 2)[..., None], teeth * (0.85 + 0.15 * tooth_v[..., None]), image)
    image = np.where(
        (k.part == 3)[..., None],
        _mix(np.array([0.20, 0.06, 0.06]), [0.42, 0.17, 0.17], ramp(-_island(k, "mouth")[1], -0.1, 0.7)),
        image,
    )
    image = np.where((k.part == 5)[..., None], skin * [0.97, 0.89, 0.88], image)
    image = np.where((k.part == 4)[..., None], skin * 0.92, image)
    return np.clip(image, 0, 1).astype(np.float32)


def _island(k: Canvas, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates -1..1 within an island of the texture: to the right and up."""
    left, top, width, height = ISLANDS[name]
    return (2 * (k.u - left) / width - 1) / 0.92, -(2 * (k.v - top) / height - 1) / 0.92


def _mix(under: np.ndarray, over: np.ndarray | list[float], mask: np.ndarray) -> np.ndarray:
    return under * (1 - mask[..., None]) + np.asarray(over) * mask[..., None]


def random_paint(rng: np.random.Generator, index: int) -> Paint:
    """A random person's colours; dark skin goes with dark eyes and brows, as it mostly does."""
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


# ------------------------------------------------------------------------------------------------------- the model


@functools.cache
def procedural(
    seed: int = 0, identity: int = 48, expression: int = len(EXPRESSIONS) - 1, albedo: int = 40, texture_size: int = 192
) -> MorphableModel:
    """A morphable head made from nothing; the same arguments give the same arrays.

    Args:
      seed: of the paintings that the albedo's components are taken from.
      identity, expression, albedo: dimensions kept, by falling variance; at most the number of shape controls, of
        expressions, and 200.
      texture_size: of the square albedo texture.
    """
    limits = {
        "identity": len(SHAPE_CONTROLS),
        "expression": len(EXPRESSIONS) - 1,
        "albedo": 200,
    }  # two winks: one blink
    for name, value in {"identity": identity, "expression": expression, "albedo": albedo}.items():
        if not 1 <= value <= limits[name]:
            raise ValueError(f"procedural: {name} is {value}, expected 1 to {limits[name]}")
    m = mesh()

    def shaped(control: dict[str, float], express: dict[str, float]) -> np.ndarray:
        return sculpt(m.points, m.part, lambda n: control.get(n, 0.0), lambda n: express.get(n, 0.0))

    mean = shaped({}, {})
    fields = [(shaped({n: s}, {}) - shaped({n: -s}, {})) / 2 for n, s in SHAPE_CONTROLS.items()]
    identity_basis, identity_std = _principal(np.stack([f.ravel() for f in fields], 1), identity)
    faces = np.stack([(shaped({}, {n: 1.0}) - mean).ravel() for n in EXPRESSIONS], 1)
    expression_basis, expression_std = _principal(0.35 * faces, expression)
    coefficients = np.linalg.lstsq(expression_basis * expression_std, faces, rcond=None)[0]
    rng = np.random.default_rng(seed)
    paintings = np.stack([paint(random_paint(rng, i), texture_size).ravel() for i in range(200)], 1)
    albedo_mean = paintings.mean(1)
    albedo_basis, albedo_std = _principal((paintings - albedo_mean[:, None]) / np.sqrt(199), albedo)

    marks = _landmarks(m)
    shape3 = (len(mean), 3)
    texture = (texture_size, texture_size, 3)
    return MorphableModel(
        mean_shape=_array(mean),
        identity_basis=_array(identity_basis.reshape(*shape3, -1)),
        identity_std=_array(identity_std),
        expression_basis=_array(expression_basis.reshape(*shape3, -1)),
        expression_std=_array(expression_std),
        expressions={n: _array(coefficients[:, i]) for i, n in enumerate(EXPRESSIONS)},
        albedo_mean=_array(albedo_mean.reshape(texture)),
        albedo_basis=_array(albedo_basis.reshape(*texture, -1)),
        albedo_std=_array(albedo_std),
        triangles=jnp.asarray(m.triangles),
        uv=_array(m.uv),
        landmarks68=jnp.asarray(marks[0]),
        landmarks98=jnp.asarray(marks[1]),
        boundaries={n: jnp.asarray(v) for n, v in _boundaries(marks[1]).items()},
        symmetry=jnp.asarray(m.symmetry),
        regions={n: jnp.asarray(v) for n, v in _regions(m).items()},
    )


def _array(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _principal(columns: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal directions [D, count] and falling standard deviations of sum_i columns[:, i] * n_i, n normal."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    order = np.argsort(values)[::-1][:count]
    std = np.sqrt(np.maximum(values[order], 1e-20))
    basis = columns @ vectors[:, order] / std
    return basis * np.where(basis.sum(0) < 0, -1.0, 1.0), std


def _landmarks(m: Mesh) -> tuple[np.ndarray, np.ndarray]:
    tree = cKDTree(m.points)
    marks68 = tree.query(landmark_points(17, False, 4))[1]
    pupils = [tree.query([side * EYE_X, EYE_Y, eyeball_z() + BALL])[1] for side in (-1, 1)]
    marks98 = np.concatenate([tree.query(landmark_points(33, True, 5))[1], pupils])
    return marks68.astype(np.int32), marks98.astype(np.int32)


def _boundaries(marks98: np.ndarray) -> dict[str, np.ndarray]:
    """LAB's thirteen lines over the 98 landmarks (Wu et al., arXiv:1805.10483, Fig. 3)."""
    lines = {
        "face": range(33), "left_brow": range(33, 38), "right_brow": range(42, 47), "nose_bridge": range(51, 55),
        "nose_bottom": range(55, 60), "left_eye_upper": range(60, 65), "left_eye_lower": [60, 67, 66, 65, 64],
        "right_eye_upper": range(68, 73), "right_eye_lower": [68, 75, 74, 73, 72], "upper_lip_upper": range(76, 83),
        "upper_lip_lower": range(88, 93), "lower_lip_upper": [88, 95, 94, 93, 92],
        "lower_lip_lower": [76, 87, 86, 85, 84, 83, 82],
    }  # fmt: skip
    return {name: marks98[list(indices)] for name, indices in lines.items()}


def _regions(m: Mesh) -> dict[str, np.ndarray]:
    x, y, z = m.points.T
    a, skin = np.abs(x), m.part == 0
    face = skin & (z > 0)
    s = np.clip((a - 0.125) / 0.345, 0, 1)
    middle = 0.292 + 0.055 * np.sin(np.pi * s**0.85) - 0.045 * s**2
    top, bottom = (lip(np.clip(x / MOUTH_HALF, -1, 1), w)[:, 1] for w in ("upper_outer", "lower_outer"))
    return {
        "skin": skin,
        "eyes": (m.part == 1) | (face & (np.hypot((a - EYE_X) / 0.16, (y - EYE_Y) / 0.09) < 1)),
        "brows": face & (np.abs(y - middle) < 0.035) & (a > 0.11) & (a < 0.48),
        "nose": face & (a < 0.05 + 0.13 * ramp(EYE_Y - y, 0, 0.35)) & (y < EYE_Y + 0.02) & (y > NOSE_Y - 0.075),
        "lips": face & (a <= MOUTH_HALF + 1e-6) & (y <= top + 1e-6) & (y >= bottom - 1e-6),
        "neck": m.part == 4,
        "ears": m.part == 5,
        "teeth": m.part == 2,
        "mouth": m.part == 3,
        "scalp": skin & ((y > 0.66) | ((z < 0.02) & (y > -0.35)) | ((z < 0.25) & (y > 0.35))),
    }
