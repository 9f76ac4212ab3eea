"""The head before sculpting: a smooth skull with a neck, the facial feature lines, and a mesh that follows them.

The label of a skin point is its position on this smooth head. Eyeballs, teeth, the inside of the mouth and the ears are
attached to a skin label by a rigid offset, so they move with it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.spatial import Delaunay, cKDTree

EYE_X, EYE_Y, EYE_HALF, EYE_UP, EYE_DOWN, BALL = 0.285, 0.13, 0.130, 0.052, 0.036, 0.150
MOUTH_Y, MOUTH_HALF, LIP_UP, LIP_DOWN = -0.52, 0.235, 0.060, 0.078
NOSE_Y = -0.265
CROWN, CHIN, BUST = 1.06, -1.0, -1.6
EAR_Y, EAR_ANGLE = 0.0, np.deg2rad(100)
AXIS_Z = -0.05

PARTS = ("skin", "eyeball", "teeth", "mouth", "ear")

ISLANDS = {  # texture corners outside the unrolled head: (left, top, width, height)
    "eyeball": (0.003, 0.003, 0.140, 0.140),
    "teeth": (0.865, 0.005, 0.130, 0.060),
    "mouth": (0.865, 0.075, 0.130, 0.060),
    "ear": (0.005, 0.865, 0.125, 0.130),
    "back": (0.885, 0.885, 0.110, 0.110),
}


def bump(x: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """A Gaussian with peak value 1."""
    return np.exp(-0.5 * (x / width) ** 2)


def ramp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth step: 0 below `low`, 1 above `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# The skull: horizontal cross-sections as functions of the height y.


def _curve(*knots: tuple[float, float]) -> PchipInterpolator:
    x, value = zip(*sorted(knots), strict=True)
    return PchipInterpolator(x, value)


_WIDTH = _curve(
    (1.1, 0.69), (0.35, 0.69), (0.2, 0.685), (0.0, 0.655), (-0.2, 0.625), (-0.4, 0.590), (-0.55, 0.560), (-0.7, 0.52),
    (-0.85, 0.45), (-1.0, 0.36), (-1.2, 0.22), (-1.8, 0.22),
)  # fmt: skip
_FRONT = _curve(
    (1.1, 0.80), (0.45, 0.80), (0.27, 0.795), (0.1, 0.775), (-0.1, 0.765), (-0.5, 0.77), (-0.8, 0.775), (-0.95, 0.765),
    (-1.05, 0.70), (-1.2, 0.5), (-1.8, 0.5),
)  # fmt: skip
_BACK = _curve((1.1, 0.88), (0.2, 0.88), (0.0, 0.83), (-0.2, 0.71), (-0.4, 0.58), (-0.6, 0.49), (-1.8, 0.45))
_NECK_WIDTH = _curve((1.1, 0.42), (-0.5, 0.42), (-0.9, 0.41), (-1.2, 0.415), (-1.45, 0.45), (-1.8, 0.48))
_NECK_FRONT = _curve((1.1, 0.33), (-0.9, 0.33), (-1.15, 0.28), (-1.4, 0.26), (-1.8, 0.26))
_NECK_BACK = _curve((1.1, 0.46), (-0.5, 0.46), (-0.8, 0.45), (-1.2, 0.47), (-1.8, 0.52))
_JAW = _curve((0, -1.0), (15, -0.985), (30, -0.94), (45, -0.85), (60, -0.70), (75, -0.54), (95, -0.44), (180, -0.42))
_CONTOUR = np.array(
    [(0, -1.0), (15, -0.98), (30, -0.92), (44, -0.81), (55, -0.66), (64, -0.48), (70, -0.28), (77, 0.09)]
)


def _section(y: np.ndarray, angle: np.ndarray, width, front, back) -> tuple[np.ndarray, np.ndarray]:
    s, c = np.sin(angle), np.cos(angle)
    x = width(y) * s * (1 + 0.10 * c * c)
    return x, np.where(c > 0, front(y), back(y)) * c * (1 + 0.06 * s * s)


def neckness(y: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """0 on the head, 1 on the neck, with a smooth transition under the jaw."""
    return ramp(_JAW(np.rad2deg(np.abs(angle))) - y, -0.02, 0.17)


def skull(y: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Point of the smooth head at height BUST..CROWN and angle about the vertical axis, 0 in front: [..., 3]."""
    y, angle = np.broadcast_arrays(np.asarray(y, float), np.asarray(angle, float))
    x, z = _section(y, angle, _WIDTH, _FRONT, _BACK)
    round_off = np.sqrt(1 - np.clip(y / CROWN, 0, 1) ** 2.9)
    neck_x, neck_z = _section(y, angle, _NECK_WIDTH, _NECK_FRONT, _NECK_BACK)
    w = neckness(y, angle)
    x, z = x * round_off * (1 - w) + neck_x * w, z * round_off * (1 - w) + neck_z * w
    return np.stack([x, y, z + AXIS_Z], -1)


def on_head(x: np.ndarray, y: np.ndarray, behind: bool = False) -> np.ndarray:
    """Point on the front (or back) of the smooth head with coordinates (x, y): [..., 3]."""
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    low, high = np.full(x.shape, np.pi if behind else 0.0), np.full(x.shape, np.pi / 2)
    for _ in range(40):
        middle = (low + high) / 2
        inside = skull(y, middle)[..., 0] < np.abs(x)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return skull(y, np.where(x < 0, -1, 1) * (low + high) / 2)


def unroll(points: np.ndarray) -> np.ndarray:
    """Azimuthal map of the head: the radius is the angle from straight ahead. [..., 3] -> [..., 2]."""
    x, y, z = np.moveaxis(points - [0, 0, -0.1], -1, 0)
    radius = np.hypot(x, y)
    return np.stack([x, y], -1) * (np.arctan2(radius, z) / np.maximum(radius, 1e-9))[..., None]


# Facial feature lines.


def eyelid(t: np.ndarray, upper: bool, ring: float = 1.0) -> np.ndarray:
    """Lid edge of the eye at positive x, t from 0 at the inner to 1 at the outer corner: labels [..., 2].

    A larger `ring` gives lines further from the eye.
    """
    s = 2 * t - 1
    arch = np.clip(1 - s * s, 0, None)
    y = EYE_UP * arch**0.72 * (1 - 0.16 * s) if upper else -EYE_DOWN * arch**0.85 * (1 + 0.15 * s)
    extra = (ring - 1) * (0.06 if upper else -0.05) * arch**0.6
    return np.stack([EYE_X + EYE_HALF * s * (1 + 0.8 * (ring - 1)), EYE_Y + ring * y + 0.012 * s + extra], -1)


LIP_LINES = ("upper_outer", "upper_middle", "upper_inner", "lower_inner", "lower_middle", "lower_outer")


def lip(t: np.ndarray, which: str) -> np.ndarray:
    """One of LIP_LINES, t from -1 at the left to 1 at the right corner: labels [..., 2]."""
    arch = np.clip(1 - t * t, 0, None)
    bow = 0.30 * bump(np.abs(t) - 0.20, 0.13) - 0.22 * bump(t, 0.09)
    height = {
        "upper_outer": LIP_UP * arch**0.75 * (1 + bow),
        "upper_middle": 0.5 * LIP_UP * arch**0.75,
        "upper_inner": 0.0009 * arch,
        "lower_inner": -0.0009 * arch,
        "lower_middle": -0.5 * LIP_DOWN * arch**0.65,
        "lower_outer": -LIP_DOWN * arch**0.6,
    }[which]
    return np.stack([MOUTH_HALF * t, MOUTH_Y + height + 0.006 * t * t], -1)


def brow_middle(t: np.ndarray) -> np.ndarray:
    """Height of the brow's centre line, t from 0 at the inner to 1 at the outer end."""
    return 0.282 + 0.050 * np.sin(np.pi * np.clip(t, 0, 1) ** 0.85) - 0.045 * t**2


def brow(t: np.ndarray, edge: float) -> np.ndarray:
    """The brow at positive x; edge 1 is its top, -1 its bottom, 0 its centre line: labels [..., 2]."""
    return np.stack([0.125 + 0.345 * t, brow_middle(t) + edge * 0.030 * (1.05 - 0.75 * t)], -1)


def contour(u: np.ndarray) -> np.ndarray:
    """The face contour by arc length, u from -1 (viewer's left ear) over 0 (chin) to 1: points [..., 3]."""
    steps = np.linspace(0, 1, 200)
    knots = np.linspace(0, 1, len(_CONTOUR))
    line = skull(
        PchipInterpolator(knots, _CONTOUR[:, 1])(steps), np.deg2rad(PchipInterpolator(knots, _CONTOUR[:, 0])(steps))
    )
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    found = np.stack([np.interp(np.abs(u) * length[-1], length, line[:, i]) for i in range(3)], -1)
    return found * np.stack([np.where(u < 0, -1.0, 1.0), np.ones_like(u), np.ones_like(u)], -1)


def mirrored(points: np.ndarray) -> np.ndarray:
    """Maps x to -x in points [..., 2] or [..., 3]."""
    return points * np.array([-1.0] + [1.0] * (points.shape[-1] - 1))


def landmark_points(outline: int, brow_edges: bool, per_lid: int) -> np.ndarray:
    """Landmarks without pupils as labels [L, 3]: (17, False, 4) the 68 of 300-W, (33, True, 5) WFLW's first 96."""
    steps = np.linspace(0, 1, 5)
    if brow_edges:
        under = brow(np.array([0.94, 0.66, 0.36, 0.04]), -1.0)
        right_brow = np.concatenate([brow(steps, 1.0), under])
        left_brow = mirrored(np.concatenate([right_brow[4::-1], right_brow[:4:-1]]))
    else:
        right_brow = brow(np.linspace(0.02, 0.98, 5), 0.2)
        left_brow = mirrored(right_brow[::-1])
    bridge = np.stack([np.zeros(4), np.linspace(0.125, NOSE_Y + 0.02, 4)], -1)
    base = np.array([[-0.105, -0.045], [-0.055, -0.058], [0, -0.066], [0.055, -0.058], [0.105, -0.045]])
    t = np.linspace(0, 1, per_lid)
    right_eye = np.concatenate([eyelid(t, True), eyelid(t[-2:0:-1], False)])
    left_eye = mirrored(np.concatenate([right_eye[per_lid - 1 :: -1], right_eye[: per_lid - 1 : -1]]))
    outer, inner = np.array([-1, -0.62, -0.22, 0, 0.22, 0.62, 1]), np.array([-0.9, -0.4, 0, 0.4, 0.9])
    mouth = [lip(outer, "upper_outer"), lip(outer[-2:0:-1], "lower_outer")]
    mouth += [lip(inner, "upper_inner"), lip(inner[-2:0:-1], "lower_inner")]
    flat = np.concatenate([left_brow, right_brow, bridge, base + np.array([0, NOSE_Y]), left_eye, right_eye, *mouth])
    return np.concatenate([contour(np.linspace(-1, 1, outline)), on_head(flat[:, 0], flat[:, 1])])


# The mesh.


class Mesh(NamedTuple):
    """The mean head before sculpting."""

    labels: np.ndarray  # [V, 3] on the smooth head
    offset: np.ndarray  # [V, 3] from the label to the vertex
    triangles: np.ndarray  # [T, 3]
    uv: np.ndarray  # [V, 2]
    part: np.ndarray  # [V] index into PARTS
    symmetry: np.ndarray  # [V]


@functools.cache
def mesh() -> Mesh:
    """Assembles all parts of the head."""
    skin, triangles, back = _skin()
    flat = unroll(skin)
    radius = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat / np.maximum(radius, 1e-9) * 0.498 * np.sin(0.5 * np.minimum(radius, np.pi)) ** 0.78
    pieces = [(skin, np.zeros_like(skin), triangles, 0.5 + flat * [1, -1], 0)]
    left, top, width, height = ISLANDS["back"]
    place = np.array([left, top]) + np.array([width, height]) * (0.5 + back[0][:, :2] * [1.2, -1.2])
    pieces.append((back[0], np.zeros_like(back[0]), back[1], place, 0))

    def add(labels: np.ndarray, offset: np.ndarray, part: str, flip: bool = False) -> None:
        left, top, width, height = ISLANDS[part]
        rows, columns = offset.shape[:2]
        v, u = np.meshgrid(np.linspace(0.04, 0.96, rows), np.linspace(0.04, 0.96, columns), indexing="ij")
        faces = _grid(rows, columns)
        uv = np.stack([left + width * u, top + height * v], -1).reshape(-1, 2)
        labels = np.broadcast_to(labels, offset.shape).reshape(-1, 3)
        pieces.append((labels, offset.reshape(-1, 3), faces[:, ::-1] if flip else faces, uv, PARTS.index(part)))

    for side in (1, -1):
        add(on_head(side * EYE_X, EYE_Y), _eyeball(), "eyeball")
    for upper in (True, False):
        add(*_teeth(upper), "teeth")
    add(*_mouth(), "mouth")
    ear = _ear()
    for side in (1, -1):
        add(skull(EAR_Y, side * EAR_ANGLE), ear * [side, 1, 1], "ear", flip=side < 0)

    starts = np.cumsum([0] + [len(p[0]) for p in pieces])
    labels, offset, faces, uv = (np.concatenate([p[i] for p in pieces]) for i in range(4))
    faces = faces + np.concatenate([np.full((len(p[2]), 1), s) for p, s in zip(pieces, starts, strict=False)])
    part = np.concatenate([np.full(len(p[0]), p[4]) for p in pieces])
    kind = part + len(PARTS) * ((np.arange(len(part)) >= starts[1]) & (part == 0))
    return Mesh(labels, offset, faces.astype(np.int32), uv, part, _partners(labels, offset, kind))


def _skin() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Mirror-symmetric points [N, 3], triangles with holes for eyes and mouth, and the patch that closes the back."""
    t, half = np.linspace(0, 1, 13), np.linspace(0, 1, 15)
    rings = [eyelid(half, up, r) for r in (1.0, 1.15, 1.38, 1.7, 2.1) for up in (True, False)]
    lips = [lip(t, which) for which in LIP_LINES]
    around = []
    for k in (0.18, 0.42):
        for which, sign in (("upper_outer", 1), ("lower_outer", -1)):
            around.append(lip(t, which) * [1 + 0.5 * k, 1] + [0, sign * k * 0.11])
    brows = [brow(np.linspace(0, 1, 12), e) for e in (-1.0, -0.35, 0.35, 1.0)]
    nose = np.stack(np.meshgrid(np.arange(0, 0.22, 0.0195), np.arange(NOSE_Y - 0.12, 0.16, 0.0205)), -1).reshape(-1, 2)
    face = np.stack(np.meshgrid(np.arange(0, 0.68, 0.042), np.arange(-0.96, 0.75, 0.042)), -1).reshape(-1, 2)
    limit = contour(np.linspace(0, 1, 80))
    face = face[face[:, 0] < 0.95 * np.interp(face[:, 1], limit[:, 1], limit[:, 0], right=0.62)]
    rows = np.concatenate([[BUST, -1.47, -1.34], np.linspace(-1.23, -0.87, 10), np.linspace(-0.82, 0.7, 23)])
    rows = np.concatenate([rows, [0.79, 0.87, 0.94, 0.99, 1.03, CROWN]])
    grid = np.stack(np.meshgrid(np.linspace(0, np.pi, 29), rows), -1).reshape(-1, 2)
    named = np.concatenate([landmark_points(17, False, 4), landmark_points(33, True, 5)])
    turn = np.linspace(0, 2 * np.pi, 29)[:-1] + np.pi / 2
    rim = on_head(0.30 * np.cos(turn), 0.1 + 0.30 * np.sin(turn), behind=True)
    sets = [(named, 0.0), (rim, 0.0)]
    sets += [(on_head(p[:, 0], p[:, 1]), 0.002) for p in rings]
    sets += [(on_head(p[:, 0], p[:, 1]), 1e-4) for p in lips]
    sets += [(on_head(p[:, 0], p[:, 1]), 0.012) for p in around + brows]
    sets += [(on_head(nose[:, 0], nose[:, 1]), 0.016), (on_head(face[:, 0], face[:, 1]), 0.03)]
    sets.append((skull(grid[:, 1], grid[:, 0]), 0.043))

    kept = np.zeros((0, 3))
    for points, gap in sets:
        points = points.copy()
        points[np.abs(points[:, 0]) < 0.35 * max(gap, 0.004), 0] = 0
        if gap > 0.015:
            points = points[~_in_hole(points)]
        if gap > 0.04:
            points = points[~((points[:, 2] < 0) & (np.hypot(points[:, 0], points[:, 1] - 0.1) < 0.34))]
        for p in points[points[:, 0] >= 0]:
            if np.min(np.sum((kept - p) ** 2, 1), initial=1.0) > max(gap, 1e-6) ** 2:
                kept = np.concatenate([kept, p[None]])
    points = np.concatenate([kept, mirrored(kept[kept[:, 0] > 0])])
    flat = unroll(points)
    triangles = Delaunay(flat).simplices
    first, second = (flat[triangles[:, i]] - flat[triangles[:, 0]] for i in (1, 2))
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    triangles = np.where((area > 0)[:, None], triangles, triangles[:, ::-1])
    triangles = triangles[~_in_hole(points[triangles].mean(1)) & (np.abs(area) > 1e-9)]

    n = len(turn)
    patch = np.concatenate([on_head(r * np.cos(turn), 0.1 + r * np.sin(turn), behind=True) for r in (0.3, 0.2, 0.1)])
    patch = np.concatenate([patch, on_head(0.0, 0.1, behind=True)[None]])
    here, after = np.arange(n), (np.arange(n) + 1) % n
    bands = [np.stack([here + 2 * n, np.full(n, 3 * n), after + 2 * n], -1)]
    for k in (0, n):
        bands.append(np.stack([here + k, here + k + n, after + k], -1))
        bands.append(np.stack([after + k, here + k + n, after + k + n], -1))
    return points, triangles, (patch, np.concatenate(bands))


def _in_hole(points: np.ndarray) -> np.ndarray:
    """Whether points of the smooth head lie in an eye opening or between the lips."""
    x, y, front = np.abs(points[:, 0]), points[:, 1], points[:, 2] > 0
    t = np.clip((x - EYE_X) / EYE_HALF * 0.5 + 0.5, 0, 1)
    eye = (np.abs(x - EYE_X) < EYE_HALF) & (y < eyelid(t, True)[:, 1]) & (y > eyelid(t, False)[:, 1])
    m = np.clip(x / MOUTH_HALF, 0, 1)
    mouth = (x < MOUTH_HALF) & (y < lip(m, "upper_inner")[:, 1]) & (y > lip(m, "lower_inner")[:, 1])
    return front & (eye | mouth)


def _grid(rows: int, columns: int) -> np.ndarray:
    """Triangles of a vertex grid, rows downward and columns to the right, that face the viewer."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (r * columns + c).ravel()
    b, d, e = a + 1, a + columns, a + columns + 1
    return np.concatenate([np.stack([a, d, b], -1), np.stack([b, d, e], -1)])


def _eyeball() -> np.ndarray:
    """A cap of the eyeball about its centre, which lies behind the label: offsets [15, 15, 3]."""
    v, u = np.meshgrid(np.linspace(1, -1, 15), np.linspace(-1, 1, 15), indexing="ij")
    x, y = ball_section(u, v)
    return BALL * np.stack([x, y, np.sqrt(np.clip(1 - x**2 - y**2, 0, None))], -1) + [0, 0, ball_depth()]


def ball_section(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps the square -1..1 to the visible part of the eyeball, in units of its radius: x to the right, y up."""
    u, v = 0.93 * u, 0.66 * v
    return u * np.sqrt(1 - v * v / 2), v * np.sqrt(1 - u * u / 2)


def ball_depth() -> float:
    """Distance along z from the sculpted skin at the eye's label to the centre of the eyeball."""
    return -0.100


def _teeth(upper: bool) -> tuple[np.ndarray, np.ndarray]:
    """One row of teeth: labels on the lip line and offsets, [4, 17, 3]."""
    v, u = np.meshgrid(np.linspace(0, 1, 4), np.linspace(-1, 1, 17), indexing="ij")
    x = (0.185 if upper else 0.165) * u
    y = 0.045 - 0.085 * v if upper else 0.020 - 0.080 * v
    labels = on_head(0.5 * x, MOUTH_Y + (0.003 if upper else -0.003))
    return labels, np.stack([0.5 * x, y, (-0.080 if upper else -0.095) - 2.5 * x**2], -1)


def _mouth() -> tuple[np.ndarray, np.ndarray]:
    """The oral cavity, from the inner lip edges to a point: labels and offsets, [7, 49, 3]."""
    t = np.linspace(-1, 1, 25)
    upper = lip(t, "upper_inner")
    ring = np.concatenate([upper[12:], lip(t[-2::-1], "lower_inner"), upper[1:13]])
    up = np.concatenate([np.ones(13), -np.ones(24), np.ones(12)]) * np.sqrt(
        np.clip(1 - (ring[:, 0] / MOUTH_HALF) ** 2, 0, 1)
    )
    depth = np.array([0, 0.02, 0.05, 0.12, 0.22, 0.32])
    spread = np.array([0, 0.008, 0.035, 0.06, 0.05, 0.03])
    offset = np.stack(np.broadcast_arrays(0.0, spread[:, None] * up, -depth[:, None]), -1)
    labels = np.broadcast_to(on_head(ring[:, 0], ring[:, 1]), offset.shape)
    end = np.stack([0.1 * ring[:, 0], 0.02 * up - 0.08, np.full(len(up), -0.36)], -1)[None]
    labels = np.concatenate([labels, np.broadcast_to(on_head(0.0, MOUTH_Y + 0.003), end.shape)])
    return labels, np.concatenate([offset, end])


def _ear() -> np.ndarray:
    """The ear at positive x relative to its attachment point: offsets [13, 29, 3], first its front, then its back."""
    front = np.array([0.04, 0.2, 0.36, 0.5, 0.62, 0.73, 0.82, 0.89, 0.95, 1.0])
    radius = np.concatenate([front, [0.97, 0.86, 0.60]])[:, None]
    behind = np.concatenate([np.zeros(10), [0.03, 0.05, 0.11]])[:, None]
    u = np.linspace(0, 2 * np.pi, 29)
    c, s = np.cos(u), np.sin(u)  # c: 1 at the ear's back, s: 1 at its top
    across, along = 0.128 * radius * c * (1 + 0.20 * s), 0.240 * radius * s * (1 - 0.06 * c)
    rise = -0.005 + 0.48 * (across + 0.12)
    outer = ramp(c + 0.9 * s, -1.2, 0.3)  # the helix runs over the top and the back
    relief = 0.045 * bump(radius - 0.93, 0.07) * outer - 0.010 * bump(radius - 0.80, 0.05) * outer
    relief = relief + 0.030 * bump(radius - 0.60, 0.09) * ramp(c, -0.5, 0.4) - 0.050 * bump(radius, 0.34)
    relief = relief + 0.030 * bump(np.hypot(across + 0.105, along + 0.03), 0.035)
    out = rise + np.where(behind > 0, 0.0, relief) - behind
    lean = across + 0.18 * along
    return np.stack(np.broadcast_arrays(out, along - 0.10 * across, -lean - 0.03), -1)


def _partners(labels: np.ndarray, offset: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Index of the mirrored vertex of the same part; vertices at the same position are matched in order."""
    points = np.concatenate([labels, offset, kind[:, None]], 1)
    rank = np.zeros((len(points), 1))
    for first, second in sorted(cKDTree(points).query_pairs(1e-7)):
        rank[second] = rank[first] + 1
    distance, partner = cKDTree(np.hstack([points, rank])).query(np.hstack([points * [-1, 1, 1, -1, 1, 1, 1], rank]))
    if distance.max() > 1e-6:
        raise AssertionError(f"the head mesh is not symmetric: distance {distance.max()}")
    return partner.astype(np.int32)
