"""Displaces the vertices of the smooth head to form a face; displacements are smooth functions of the label.

Controls determine the identity, expressions the facial expression; 0 is the mean face and the neutral expression.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from facejax.morphable.procedural.layout import (
    BALL,
    EYE_HALF,
    EYE_X,
    EYE_Y,
    LIP_DOWN,
    LIP_UP,
    MOUTH_HALF,
    MOUTH_Y,
    NOSE_Y,
    Mesh,
    ball_depth,
    bump,
    eyelid,
    neckness,
    ramp,
)

# Standard deviation of every shape control, in the unit of the formula that uses it.
SHAPE_CONTROLS = {
    "head_width": 0.030, "head_height": 0.030, "head_depth": 0.045, "cranium_height": 0.030, "cranium_width": 0.025,
    "face_width": 0.025, "face_long": 0.035, "mid_face": 0.020, "lower_face": 0.020, "forehead_slope": 0.045,
    "forehead_bulge": 0.018, "temple": 0.016, "occiput": 0.035, "jaw_width": 0.030, "jaw_corner": 0.030,
    "jaw_drop": 0.030, "chin_width": 0.020, "chin_square": 0.020, "chin_length": 0.030, "chin_forward": 0.030,
    "chin_cleft": 0.008, "double_chin": 0.022, "cheekbone": 0.018, "cheekbone_height": 0.025, "cheek_full": 0.030,
    "cheek_hollow": 0.018, "jowl": 0.016, "brow_ridge": 0.018, "glabella": 0.010, "brow_height": 0.018,
    "brow_slope": 0.06, "eye_spacing": 0.014, "eye_height": 0.010, "eye_size": 0.06, "eye_open": 0.16, "eye_tilt": 0.07,
    "eye_depth": 0.016, "lid_heavy": 0.30, "eye_bags": 0.007, "nose_length": 0.024, "nose_forward": 0.026,
    "nose_width": 0.016, "nose_bridge": 0.020, "bridge_width": 0.16, "nose_hump": 0.014, "tip_up": 0.018,
    "tip_bulb": 0.010, "tip_width": 0.010, "nostril_flare": 0.010, "nasion_depth": 0.014, "septum": 0.008,
    "mouth_width": 0.020, "mouth_height": 0.014, "lip_upper": 0.25, "lip_lower": 0.22, "lip_forward": 0.013,
    "cupid_bow": 0.006, "mouth_corner": 0.008, "philtrum": 0.005, "muzzle": 0.016, "overbite": 0.010,
    "fold_nose": 0.008, "fold_chin": 0.010, "neck_width": 0.07, "neck_forward": 0.03, "ear_size": 0.08, "ear_out": 0.16,
    "ear_height": 0.025, "asym_nose": 0.008, "asym_mouth": 0.008, "asym_eye": 0.005, "asym_jaw": 0.010,
    "asym_brow": 0.007,
}  # fmt: skip

EXPRESSIONS = (
    "jaw_open", "smile", "brow_raise", "brow_frown", "eyes_closed", "puff", "pucker", "corners_down", "sneer",
    "wink_left", "wink_right", "lips_press",
)  # fmt: skip


def sculpt(mesh: Mesh, control: Callable[[str], float], expression: Callable[[str], float]) -> np.ndarray:
    """The head with these controls and expressions (1 is full strength): [V, 3]."""
    c, e = control, expression
    labels, part = mesh.labels, mesh.part
    lx, ly, lz = labels.T
    a, side = np.abs(lx), np.sign(lx)
    neck = neckness(ly, np.arctan2(lx, lz + 0.05))
    f = ramp(lz, 0.0, 0.30) * (1 - neck)
    x, y, z = labels.T.copy()

    def spot(at_x: float, at_y: float, wide: float, high: float) -> np.ndarray:
        """A Gaussian bump on both sides of the face."""
        return f * (bump(lx - at_x, wide) + bump(lx + at_x, wide)) * bump(ly - at_y, high)

    def mid(at_y: float, wide: float, high: float) -> np.ndarray:
        """A Gaussian bump on the midline."""
        return f * bump(lx, wide) * bump(ly - at_y, high)

    # Forehead, brow ridge, sockets, cheekbones, cheeks.
    z += c("forehead_slope") * -f * ramp(ly, 0.30, 1.1) + c("forehead_bulge") * mid(0.55, 0.38, 0.17)
    arched = ly - 0.265 + 0.18 * np.maximum(a - 0.22, 0) ** 2
    z += f * (0.040 + c("brow_ridge")) * bump(arched, 0.060) * (bump(lx - 0.24, 0.19) + bump(lx + 0.24, 0.19))
    z += (c("glabella") - 0.004) * mid(0.25, 0.09, 0.06)
    x -= side * f * (0.020 + c("temple")) * bump(ly - 0.28, 0.18) * ramp(a, 0.42, 0.70)
    z -= (0.085 + c("eye_depth")) * spot(EYE_X, EYE_Y, 0.120, 0.082) + 0.050 * spot(0.150, EYE_Y + 0.02, 0.050, 0.075)
    cheek = -0.10 + 2.0 * c("cheekbone_height") * np.array(0.5)
    z += (0.030 + c("cheekbone")) * spot(0.40, cheek, 0.12, 0.11)
    x += side * f * (0.020 + c("cheekbone")) * bump(ly - cheek, 0.14) * ramp(a, 0.35, 0.62)
    x += side * f * (c("cheek_full") - c("cheek_hollow")) * ramp(a, 0.22, 0.55) * bump(ly + 0.40, 0.17)
    z += (c("cheek_full") - 0.005) * spot(0.36, -0.40, 0.13, 0.14) - c("cheek_hollow") * spot(0.42, -0.33, 0.09, 0.12)
    z += c("jowl") * spot(0.30, -0.72, 0.10, 0.10)
    x += side * f * c("jowl") * spot(0.36, -0.70, 0.12, 0.12)

    # The nose: ridge, tip, wings, nostrils.
    top = EYE_Y + 0.07
    t = np.clip((top - ly) / (top - NOSE_Y), 0, 1.3)
    height = 0.030 + c("nose_bridge") * (1 - t) + (0.170 + c("nose_forward")) * np.minimum(t, 0.93) ** 1.20
    height = height + c("nose_hump") * bump(t - 0.45, 0.18) - (0.020 + c("nasion_depth")) * bump(t - 0.08, 0.14)
    height = height * ramp(top + 0.10 - ly, 0.0, 0.13)
    wide = 0.060 * (1 + c("bridge_width")) * (0.92 + 0.55 * t**2)
    under = 1 - ramp(NOSE_Y + 0.020 - ly, 0.0, 0.105)
    z += f * height * under * (0.68 * bump(a, 0.95 * wide) + 0.32 * bump(a, 1.9 * wide))
    z += (0.026 + c("tip_bulb")) * mid(NOSE_Y + 0.012, 0.055 + c("tip_width"), 0.040)
    z += (0.085 + c("nostril_flare")) * spot(0.100, NOSE_Y - 0.010, 0.034, 0.040)
    z -= 0.022 * spot(0.152, NOSE_Y - 0.010, 0.018, 0.045) + 0.016 * spot(0.095, NOSE_Y + 0.055, 0.020, 0.025)
    z -= 0.045 * spot(0.052, NOSE_Y - 0.046, 0.022, 0.018)
    tip = mid(NOSE_Y, 0.085, 0.045)
    y += (1.3 * c("tip_up") - 0.012) * tip - c("septum") * mid(NOSE_Y - 0.03, 0.03, 0.03)
    wings = spot(0.105, NOSE_Y - 0.01, 0.045, 0.055)
    x += side * ramp(a, 0.0, 0.05) * (c("nose_width") + 0.022 * e("smile") + 0.012 * e("sneer")) * wings
    y += 0.038 * e("sneer") * spot(0.105, NOSE_Y, 0.07, 0.08) + 0.026 * e("sneer") * spot(
        0.12, MOUTH_Y + 0.06, 0.09, 0.06
    )
    z += 0.016 * e("sneer") * spot(0.10, -0.08, 0.04, 0.06)
    x += c("asym_nose") * mid(NOSE_Y, 0.12, 0.11)

    # Muzzle, lips, folds, chin.
    z += (0.050 + c("muzzle")) * mid(MOUTH_Y + 0.03, 0.20, 0.15)
    m = np.clip(a / MOUTH_HALF, 0, 1.3)
    arch = np.clip(1 - m**2, 0, 1)
    plump = 0.034 + c("lip_forward") + 0.050 * e("pucker") - 0.030 * e("lips_press")
    upper = bump(ly - MOUTH_Y - 0.50 * LIP_UP, 0.028) * (ly > MOUTH_Y)
    lower = bump(ly - MOUTH_Y + 0.45 * LIP_DOWN, 0.032) * (ly <= MOUTH_Y)
    z += f * arch**0.5 * (plump * 1.15 * upper + (plump - c("overbite")) * lower)
    z -= f * arch**0.5 * 0.016 * bump(ly - MOUTH_Y, 0.011)
    z -= 0.020 * spot(MOUTH_HALF * 1.05, MOUTH_Y, 0.030, 0.035)
    z -= (0.007 + c("philtrum")) * mid(MOUTH_Y + LIP_UP + 0.055, 0.020, 0.030)
    z += 0.005 * spot(0.040, MOUTH_Y + LIP_UP + 0.045, 0.014, 0.035)
    z -= (0.036 + c("fold_chin")) * mid(MOUTH_Y - LIP_DOWN - 0.075, 0.15, 0.040)
    z += (0.075 + c("chin_forward")) * f * bump(a, 0.15) * bump(ly + 0.86, 0.10)
    z += f * c("chin_square") * (bump(lx - 0.14, 0.06) + bump(lx + 0.14, 0.06)) * bump(ly + 0.9, 0.08)
    z -= c("chin_cleft") * mid(-0.86, 0.02, 0.05)
    fold = a - 0.165 - 0.40 * np.clip(NOSE_Y + 0.02 - ly, 0, 0.4)
    crease = f * bump(fold, 0.024) * ramp(NOSE_Y + 0.05 - ly, 0, 0.06) * ramp(ly - MOUTH_Y + 0.05, 0, 0.08)
    z -= (0.010 + c("fold_nose") + 0.016 * e("smile")) * crease
    z += (
        0.014
        * e("smile")
        * f
        * bump(fold - 0.055, 0.035)
        * ramp(NOSE_Y + 0.08 - ly, 0, 0.1)
        * ramp(ly - MOUTH_Y, 0, 0.1)
    )

    # Cheeks in expressions.
    z += 0.035 * e("smile") * spot(0.34, -0.24, 0.11, 0.11)
    y += 0.030 * e("smile") * spot(0.34, -0.24, 0.12, 0.13)
    puffed = f * bump(ly + 0.43, 0.19)
    x += side * 0.075 * e("puff") * puffed * ramp(a, 0.12, 0.50)
    z += e("puff") * (0.10 * spot(0.32, -0.46, 0.12, 0.13) + 0.015 * mid(MOUTH_Y + 0.09, 0.20, 0.05))

    # Spacing, size and tilt of the eyes; brows.
    eye = np.minimum(1.5 * f * bump(np.maximum(np.abs(a - EYE_X) - 0.10, 0), 0.07) * bump(ly - EYE_Y, 0.11), 1)
    away = ramp(a, 0.0, 0.12)
    x += side * away * eye * (c("eye_spacing") + c("eye_size") * (a - EYE_X))
    y += eye * (c("eye_height") + side * c("asym_eye") + c("eye_size") * (ly - EYE_Y) + c("eye_tilt") * (a - EYE_X))
    brows = f * bump(ly - 0.295, 0.085) * (bump(lx - 0.28, 0.19) + bump(lx + 0.28, 0.19))
    y += brows * (c("brow_height") + side * c("asym_brow") + c("brow_slope") * (a - 0.28) + 0.075 * e("brow_raise"))
    y += 0.045 * e("brow_raise") * mid(0.46, 0.35, 0.12)
    y -= 0.050 * e("brow_frown") * spot(0.15, 0.28, 0.09, 0.075)
    x -= side * away * 0.030 * e("brow_frown") * spot(0.15, 0.28, 0.08, 0.09)
    z += 0.014 * e("brow_frown") * (spot(0.10, 0.26, 0.04, 0.05) - 1.2 * mid(0.27, 0.035, 0.06))

    # Position and size of nose and mouth.
    y -= (
        (c("nose_length") - 0.6 * c("tip_up"))
        * f
        * bump(a, 0.15)
        * ramp(EYE_Y + 0.05 - ly, 0, 0.35)
        * ramp(ly - MOUTH_Y - 0.04, 0, 0.18)
    )
    y += c("mouth_height") * f * bump(a, 0.33) * bump(ly - MOUTH_Y, 0.13)
    mouth = f * bump(np.maximum(a - 0.15, 0), 0.14) * bump(ly - MOUTH_Y, 0.11)
    stretch = c("mouth_width") + 0.055 * e("smile") - 0.085 * e("pucker") + 0.012 * e("lips_press")
    stretch = stretch + 0.010 * e("corners_down") - 0.022 * e("jaw_open")
    x += mouth * (side * stretch * np.clip(a / MOUTH_HALF, 0, 1.1) + c("asym_mouth"))
    corner = spot(MOUTH_HALF, MOUTH_Y, 0.085, 0.075)
    y += (c("mouth_corner") + 0.075 * e("smile") - 0.055 * e("corners_down")) * corner
    z -= (0.040 * e("smile") + 0.010 * e("corners_down")) * corner
    above, below = np.maximum(ly - MOUTH_Y, 0), np.maximum(MOUTH_Y - ly, 0)
    thick_up = c("lip_upper") - 0.45 * e("lips_press") - 0.20 * e("smile") + 0.15 * e("pucker")
    thick_down = c("lip_lower") - 0.45 * e("lips_press") - 0.12 * e("smile") + 0.15 * e("pucker")
    fade = f * bump(np.maximum(m - 1, 0), 0.10)
    y += fade * thick_up * np.minimum(above, LIP_UP) * bump(np.maximum(above - LIP_UP, 0), 0.045)
    y -= fade * thick_down * np.minimum(below, LIP_DOWN) * bump(np.maximum(below - LIP_DOWN, 0), 0.045)
    y += c("cupid_bow") * (spot(0.05, MOUTH_Y + LIP_UP, 0.028, 0.03) - mid(MOUTH_Y + LIP_UP, 0.022, 0.03))

    # The jaw rotates about the ears: the lips part along their line, the chin moves down and back.
    parted = (ly < MOUTH_Y) * np.maximum(arch**0.6 * ramp(1.02 - m, 0.0, 0.1), ramp(below, 0.0, 0.24))
    parted = parted * ramp(lz, -0.30, 0.30) * (1 - neck) + neck * (ly < MOUTH_Y) * ramp(lz, -0.2, 0.4) * 0.55
    y -= 0.200 * e("jaw_open") * parted
    z -= 0.055 * e("jaw_open") * parted * (1 - neck)
    y += 0.016 * e("jaw_open") * f * arch**0.5 * (ly >= MOUTH_Y) * bump(above, 0.07)
    z += 0.012 * e("jaw_open") * f * arch**0.5 * (ly < MOUTH_Y) * bump(below, 0.06)

    # Jaw, chin and skull displace all vertices.
    head = 1 - neck
    low = ramp(-ly, 0.20, 0.75) * head
    x += side * low * c("jaw_width") * ramp(a, 0.02, 0.35) + c("asym_jaw") * ramp(-ly, 0.4, 1.0) * head
    x += side * c("chin_width") * ramp(a, 0.0, 0.15) * bump(ly + 0.90, 0.13) * ramp(lz, 0.1, 0.5) * head
    x += side * c("jaw_corner") * bump(ly + 0.55, 0.16) * ramp(a, 0.30, 0.52)
    y -= c("jaw_drop") * bump(ly + 0.62, 0.16) * ramp(a, 0.20, 0.45) * ramp(lz, -0.35, 0.0)
    y -= (c("chin_length") - 0.045) * ramp(-ly, 0.62, 1.0) * ramp(lz, 0.0, 0.5)
    throat = bump(ly + 1.06, 0.10) * bump(a, 0.25) * bump(lz - 0.45, 0.20)
    y -= c("double_chin") * throat
    z += 0.5 * c("double_chin") * throat
    x *= 1 + head * (
        c("head_width") + c("cranium_width") * ramp(ly, 0.15, 0.6) + c("face_width") * (1 - ramp(ly, 0.1, 0.5))
    )
    y += head * (c("head_height") * ly + c("cranium_height") * ramp(ly, 0.25, 1.0)) - neck * c("head_height")
    y -= c("face_long") * ramp(0.35 - ly, 0.0, 1.35) + c("mid_face") * ramp(EYE_Y - 0.05 - ly, 0, 0.3)
    y -= c("lower_face") * ramp(NOSE_Y - ly, 0, 0.6)
    z += head * c("head_depth") * np.minimum(lz, 0) - c("occiput") * ramp(-lz, 0.2, 0.9) * bump(ly - 0.2, 0.4)
    x *= 1 + neck * c("neck_width")
    z += neck * (c("neck_width") * 0.7 * (lz + 0.1) + c("neck_forward") * ramp(-ly, 0.5, 1.3))

    ear = part == 4
    offset = mesh.offset * (1 + ear * c("ear_size"))[:, None]
    offset[:, 0] *= 1 + ear * c("ear_out")
    y += ear * c("ear_height")
    out = np.stack([x, y, z], -1) + offset
    return _drape_lids(mesh, out, c, e)


def _drape_lids(mesh: Mesh, out: np.ndarray, c: Callable[[str], float], e: Callable[[str], float]) -> np.ndarray:
    """Opens or closes the lids and places them on the eyeballs."""
    lx, ly, lz = mesh.labels.T
    a, right = np.abs(lx), lx > 0
    skin = (mesh.part == 0) & (lz > 0)
    t = np.clip((a - EYE_X) / EYE_HALF * 0.5 + 0.5, 0, 1)
    upper, lower = eyelid(t, True)[:, 1], eyelid(t, False)[:, 1]
    gap = upper - lower
    blink = (
        e("eyes_closed") + np.where(right, e("wink_right"), e("wink_left")) - 0.18 * e("brow_raise") + 0.16 * e("smile")
    )
    above = ramp(0.115 - (ly - upper), 0.0, 0.115) * (ly > EYE_Y + 0.012 * (2 * t - 1))
    beneath = ramp(0.06 - (lower - ly), 0.0, 0.06) * (ly <= EYE_Y + 0.012 * (2 * t - 1))
    near = bump(np.maximum(np.abs(a - EYE_X) - EYE_HALF, 0), 0.02) * skin
    lowered = np.clip(blink, -1, 1) * 0.93 - 0.5 * c("eye_open") + 0.35 * c("lid_heavy") * (2 * t - 0.6)
    raised = 0.10 * blink - 0.3 * c("eye_open") + 0.07 * e("smile")
    y = out[:, 1] + near * gap * (-lowered * above**1.5 + raised * beneath)

    centre = np.zeros((len(out), 2))
    depth = np.zeros(len(out))
    for here in (right, ~right):
        ball = np.flatnonzero((mesh.part == 1) & here)[0]
        centre_of = out[ball] - mesh.offset[ball] + [0, 0, ball_depth()]
        centre[here], depth[here] = centre_of[:2], centre_of[2]
    rx, ry = out[:, 0] - centre[:, 0], y - centre[:, 1]
    reach = BALL + 0.012 + 0.012 * np.clip(blink, 0, 1) * above
    square = reach**2 - rx**2 - ry**2
    ball = (
        np.sqrt((square + np.sqrt(square**2 + 0.008**2)) / 2) + depth
    )  # the sphere, with a smooth transition to a plane
    edge = ((rx / 0.190) ** 4 + (ry / 0.125) ** 4) ** 0.25
    weight = ramp(1 - edge, 0.0, 0.32) * skin
    z = out[:, 2] * (1 - weight) + ball * weight
    fold = bump(ly - upper - 0.045, 0.010) * ramp(1 - np.abs(2 * t - 1), 0, 0.3) * near
    bag = bump(lower - ly - 0.055, 0.018) * ramp(1 - np.abs(2 * t - 1), 0, 0.4) * near
    z -= fold * 0.010 * (1 - 0.9 * np.clip(blink, 0, 1)) + bag * (0.003 + c("eye_bags"))
    return np.stack([out[:, 0], y, z], -1)
