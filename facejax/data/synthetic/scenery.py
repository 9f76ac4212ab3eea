"""Paints the surroundings of the faces of a scene: backgrounds, bodies, occluders and light.

Images are [H, W, 3] float32 linear light, changed in place; positions are continuous pixels (x, y).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from facejax.data.synthetic import degrade
from facejax.data.synthetic.factors import HAIR_COLOURS

GAMMA = 2.2
Where = tuple[slice, slice]

STEPS = np.linspace(0, 2 * np.pi, 40, endpoint=False)
CIRCLE = np.stack([np.cos(STEPS), np.sin(STEPS)], -1)

SKIN = np.array([[0.96, 0.80, 0.69], [0.87, 0.68, 0.55], [0.70, 0.50, 0.38], [0.48, 0.32, 0.23], [0.30, 0.20, 0.15]])

# Right half of a torso with arms, and a leg: (x, y down) in half heads from the base of the neck.
TORSO = np.array(
    [[0.0, -0.12], [0.42, -0.16], [0.62, 0.06], [1.22, 0.34], [1.58, 0.66], [1.74, 1.40], [1.86, 2.60], [1.80, 3.70],
     [1.62, 4.60], [1.36, 4.60], [1.30, 4.40], [0.0, 4.40]]
)  # fmt: skip
LEG = np.array([[0.04, 4.2], [1.12, 4.2], [1.02, 7.0], [0.86, 10.8], [0.30, 10.8], [0.22, 7.0]])


def region(shape: tuple[int, ...], points: np.ndarray) -> tuple[Where, np.ndarray] | None:
    """Where a polygon [K, 2] lies in an image, and its coverage [h, w] in 0..1 there; None outside the image."""
    fixed = np.rint(points * 16 - 8).astype(np.int32)  # OpenCV's pixel centres, in sixteenths
    left, top, width, height = cv2.boundingRect(fixed)
    right, bottom = min((left + width) // 16 + 2, shape[1]), min((top + height) // 16 + 2, shape[0])
    left, top = max(left // 16 - 1, 0), max(top // 16 - 1, 0)
    if right <= left or bottom <= top:
        return None
    mask = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(mask, [fixed - np.array([16 * left, 16 * top], np.int32)], 255, cv2.LINE_AA, 4)
    return (slice(top, bottom), slice(left, right)), mask * np.float32(1 / 255)


def blend(image: np.ndarray, where: Where, mask: np.ndarray, colour: np.ndarray) -> None:
    """Mixes a colour [3] or [h, w, 3] into a region by its coverage."""
    part = image[where]
    part += mask[..., None] * (colour.astype(np.float32) - part)


def fill(image: np.ndarray, points: np.ndarray, colour: np.ndarray) -> None:
    """Fills a polygon."""
    found = region(image.shape, points)
    if found:
        blend(image, *found, colour)


def ellipse(centre: np.ndarray, axes: np.ndarray, angle: float = 0.0) -> np.ndarray:
    """Outline [40, 2] of an ellipse with half axes `axes`, turned by `angle` radians."""
    return centre + CIRCLE * axes @ turn(angle).T


def box(centre: np.ndarray, half: np.ndarray, angle: float = 0.0) -> np.ndarray:
    """Corners [4, 2] of a rectangle with half sides `half`, turned by `angle` radians."""
    return centre + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ turn(angle).T


def capsule(start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Outline of a thick line with round ends."""
    way = np.arctan2(*(end - start)[::-1])
    arc = radius * CIRCLE[10:31] @ turn(way).T
    return np.concatenate([start + arc, end - arc])


def turn(angle: float) -> np.ndarray:
    """Rotation [2, 2] by `angle` radians, clockwise in the image."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def rounded(points: np.ndarray) -> np.ndarray:
    """A closed polygon with its corners cut (Chaikin), three times."""
    for _ in range(3):
        after = np.roll(points, -1, 0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1).reshape(-1, 2)
    return points


OUTLINE = rounded(np.concatenate([TORSO, TORSO[-2:0:-1] * [-1, 1]]))
"""Outline [K, 2] of a torso with arms."""


def colour(rng: np.random.Generator) -> np.ndarray:
    """A colour of things, mostly of low saturation: [3] linear light."""
    hue, saturation, value = rng.uniform(0, 6), rng.beta(1.2, 3.2), rng.uniform(0.08, 0.95)
    wheel = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation + saturation * wheel)) ** GAMMA


def skin(rng: np.random.Generator) -> np.ndarray:
    """A colour of skin: [3] linear light."""
    place = rng.uniform(0, len(SKIN) - 1)
    low = int(place)
    return ((SKIN[low] + (place - low) * (SKIN[low + 1] - SKIN[low])) * rng.uniform(0.85, 1.05)) ** GAMMA


def hair(rng: np.random.Generator) -> np.ndarray:
    """A colour of hair: [3] linear light."""
    return (HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))] * rng.uniform(0.7, 1.3)) ** GAMMA


def cloud(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise in 0..1: [size, size]."""
    small = rng.random((cells, cells)).astype(np.float32)
    return np.clip(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random background [size, size, 3], often out of focus, with clutter."""
    image = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](rng, size)
    if rng.random() < 0.5:
        clutter(rng, image)
    if rng.random() < 0.25:
        text(rng, image)
    if rng.random() < 0.45:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.003, 0.03)) * size)
    return image


def _smooth(rng: np.random.Generator, size: int) -> np.ndarray:
    drawn = {"background_seed": rng.integers(2**31), "background": rng.uniform(0.05, 0.75, (2, 3))}
    return degrade.background(drawn, size).astype(np.float32)


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    way = turn(rng.uniform(0, 2 * np.pi))[0]
    steps = (np.arange(size) + 0.5) / size - 0.5
    mix = np.clip(0.5 + (steps * way[0] + steps[:, None] * way[1]) * rng.uniform(0.6, 2.5), 0, 1)[..., None]
    return (colour(rng) * mix + colour(rng) * (1 - mix)).astype(np.float32)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Clouds of all scales, such as plaster, grass or water."""
    fall = rng.uniform(0.4, 0.8)
    mix = sum(fall**i * (cloud(rng, size, 3 * 2**i) - 0.5) for i in range(6))[..., None] + 0.5
    return np.clip(colour(rng) * mix + colour(rng) * (1 - mix), 0, 1).astype(np.float32)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes of random widths, such as planks, curtains and blinds."""
    image, base, other = np.zeros((size, size, 3), np.float32), colour(rng), colour(rng)
    spread, at = rng.uniform(0.01, 0.12), 0.0
    while at < size:
        width = size * spread * rng.uniform(0.5, 1.5) + 1
        mix = rng.random() if rng.random() < 0.6 else rng.integers(2)
        image[:, int(at) : int(at + width)] = (base * mix + other * (1 - mix)) * rng.uniform(0.8, 1.1)
        at += width
    return image.transpose(1, 0, 2).copy() if rng.random() < 0.5 else image


def _room(rng: np.random.Generator, size: int) -> np.ndarray:
    """A wall and a floor with pictures, windows, doors and furniture."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = colour(rng) ** 0.6
    horizon = rng.uniform(0.45, 0.95) * size
    fill(image, box(np.array([size / 2, (size + horizon) / 2]), np.array([size, (size - horizon) / 2])), colour(rng))
    for _ in range(rng.integers(1, 7)):
        half = size * rng.uniform([0.04, 0.05], [0.18, 0.25])
        centre = np.array([rng.uniform(0, size), horizon - half[1] * rng.uniform(0.8, 2.5)])
        frame, inner = colour(rng), colour(rng) ** rng.uniform(0.4, 1.2)
        fill(image, box(centre, half), frame)
        fill(image, box(centre, half * 0.88), inner)
        if rng.random() < 0.5:  # a window
            for side in ([half[0], half[1] * 0.04], [half[0] * 0.05, half[1]]):
                fill(image, box(centre, np.array(side)), frame)
    return image


def _street(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sky, houses with windows, and a road."""
    image, horizon, left = _gradient(rng, size), rng.uniform(0.5, 0.8) * size, -0.1 * size
    image **= 0.5
    while left < size:
        width, top = size * rng.uniform(0.1, 0.4), size * rng.uniform(-0.1, 0.4)
        wall, pane = colour(rng), colour(rng)
        house = box(np.array([left + width / 2, (top + horizon) / 2]), np.array([width / 2, (horizon - top) / 2]))
        fill(image, house, wall)
        columns = int(rng.integers(2, 7))
        step = width / columns
        for y in np.arange(top + step, horizon - step / 2, step * rng.uniform(1.0, 1.6)):
            for column in range(columns):
                at = np.array([left + (column + 0.5) * step, y])
                fill(image, box(at, np.array([0.25, 0.32]) * step), pane * rng.uniform(0.5, 1.2))
        left += width * rng.uniform(1.0, 1.3)
    fill(image, box(np.array([size / 2, (size + horizon) / 2]), np.array([size, (size - horizon) / 2])), colour(rng))
    return image


def _foliage(rng: np.random.Generator, size: int) -> np.ndarray:
    """Leaves: many ellipses around one colour."""
    image = _noise(rng, size)
    base, grain = colour(rng), size * rng.uniform(0.01, 0.05)
    base = base * np.array([0.7, 1.1, 0.5]) if rng.random() < 0.7 else base
    for _ in range(120):
        axes = grain * rng.uniform(0.4, 2.0, 2)
        leaf = ellipse(rng.uniform(0, size, 2), axes, rng.uniform(0, 3.14))
        fill(image, leaf, np.clip(base * rng.uniform(0.3, 1.8, 3) + 0.02, 0, 1))
    return image


def _people(rng: np.random.Generator, size: int) -> np.ndarray:
    """A blurred crowd without faces: shoulders and hair."""
    image = _smooth(rng, size)
    unit = size * rng.uniform(0.02, 0.07)
    for y in np.arange(0.1 * size, 1.3 * size, 3.0 * unit):
        for x in np.arange(rng.uniform(0, 3 * unit), size, 3.6 * unit):
            base = np.array([x, y]) + unit * rng.normal(size=2) * 0.4
            fill(image, base + OUTLINE * unit, colour(rng))
            fill(image, ellipse(base - np.array([0, unit]), unit * np.array([0.72, 1.0])), hair(rng))
    return cv2.GaussianBlur(image, (0, 0), float(unit) * 0.5)


BACKGROUNDS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _smooth, _gradient, _noise, _stripes, _room, _room, _street, _foliage, _people,
)  # fmt: skip


def clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    """Adds rectangles, ellipses and bars, some in colours of skin and hair: things that are not faces."""
    size = len(image)
    for _ in range(rng.integers(2, 14)):
        paint = (colour, colour, skin, hair)[rng.integers(4)](rng)
        centre, angle = rng.uniform(0, size, 2), rng.normal() * 0.4
        axes = size * np.exp(rng.uniform(np.log(0.01), np.log(0.14))) * rng.uniform(0.5, 1.5, 2)
        kind = rng.integers(3)
        if kind == 0:
            fill(image, box(centre, axes, angle), paint)
        elif kind == 1:
            ball(image, centre, axes, angle, paint)
        else:
            fill(image, capsule(centre, centre + size * rng.normal(size=2) * 0.4, 0.4 * axes.min()), paint)


def ball(image: np.ndarray, centre: np.ndarray, axes: np.ndarray, angle: float, paint: np.ndarray) -> None:
    """An ellipse, lit from above left."""
    for step, bright in ((0.0, 0.7), (0.12, 0.9), (0.28, 1.05)):
        fill(image, ellipse(centre - step * axes * 0.5, (1 - step) * axes, angle), np.clip(paint * bright, 0, 1))


def text(rng: np.random.Generator, image: np.ndarray) -> None:
    """Adds a board with lines of strokes that resemble letters."""
    size = len(image)
    letter = size * rng.uniform(0.012, 0.05)
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(4, 16))
    half = letter * np.array([columns * 0.5 + 1, rows * 0.9 + 0.6])
    centre = rng.uniform(0, size, 2)
    ink, paper = sorted((colour(rng), colour(rng)), key=lambda c: c.sum(), reverse=bool(rng.integers(2)))
    fill(image, box(centre, half), paper)
    for row in range(rows):
        for column in range(columns):
            corner = centre - half + letter * np.array([column + 1.0, 1.8 * row + 1.2])
            for _ in range(rng.integers(0, 4)):
                start, end = corner + letter * rng.choice([-0.35, 0.0, 0.35], (2, 2)) * [1, 1.6]
                fill(image, capsule(start, end + 0.01, letter * 0.1), ink)


def shade(image: np.ndarray, within: np.ndarray, centre: np.ndarray, axes: np.ndarray, soft: float) -> None:
    """Darkens an ellipse with a soft edge of `soft` pixels, where `within` [H, W] is true."""
    found = region(image.shape, box(centre, axes + 3 * soft))
    if found:
        where = found[0]
        y, x = (np.arange(s.start, s.stop) + 0.5 - c for s, c in zip(where, centre[::-1], strict=True))
        far = (np.hypot(x / axes[0], y[:, None] / axes[1]) - 1) * axes.min() / max(soft, 0.3)
        image[where] *= 1 - (0.45 * within[where] / (1 + np.exp(1.5 * far)))[..., None].astype(np.float32)


def long_hair(
    rng: np.random.Generator, image: np.ndarray, middle: np.ndarray, unit: float, angle: float, paint: np.ndarray
) -> None:
    """Hair that falls behind the neck of a head with centre `middle` and `unit` pixels per half head."""
    wide, long = rng.uniform(0.78, 0.95), rng.uniform(0.9, 1.9)
    outline = np.array([[0, -1.05], [0.62, -0.85], [wide, -0.2], [wide + 0.05, long], [0.3, long + 0.1]])
    outline = rounded(np.concatenate([outline, outline[:0:-1] * [-1, 1]]))
    at = turn(angle).T * unit
    fill(image, middle + outline @ at, paint * 0.5)
    for x in rng.uniform(-wide, wide, min(14, int(unit))):
        strand = capsule(np.array([0.9 * x, -0.3]), np.array([x, long - 0.05]), 0.03)
        fill(image, middle + strand @ at, paint * rng.uniform(0.4, 0.9))


def body(
    rng: np.random.Generator, image: np.ndarray, base: np.ndarray, unit: float, hands: np.ndarray | None = None
) -> np.ndarray | None:
    """A clothed body below the base of a neck.

    Args:
      rng: of clothes and proportions.
      image: [H, W, 3], painted in place.
      base: (x, y) of the neck's base.
      unit: pixels per half head.
      hands: [3] colour of the hands; None: random.

    Returns:
      [H, W] bool, the pixels that the body covers; None outside the image.
    """
    wide = np.array([rng.uniform(0.82, 1.12), 1.0]) * unit
    flip = np.array([-1, 1])
    cloth, trousers = colour(rng), colour(rng) * 0.6
    hands = skin(rng) if hands is None else hands
    covered = np.zeros(image.shape[:2], bool)
    for side in (1, flip):
        leg = region(image.shape, base + LEG * side * wide)
        if leg:
            blend(image, *leg, trousers)
            covered[leg[0]] |= leg[1] > 0.5
        fill(image, ellipse(base + np.array([1.60, 4.75]) * side * wide, np.array([0.24, 0.36]) * unit), hands)
    torso = region(image.shape, base + OUTLINE * wide)
    if torso is None:
        return covered if covered.any() else None
    where, mask = torso
    blend(image, where, mask, _cloth(rng, where, base, unit, cloth))
    covered[where] |= mask > 0.5
    if rng.random() < 0.35:  # an open collar, at times with a tie
        depth, inner = rng.uniform(0.6, 2.0), colour(rng) ** 0.5 if rng.random() < 0.7 else hands
        fill(image, base + np.array([[-0.42, -0.2], [0.42, -0.2], [0.0, depth]]) * unit, inner)
        if rng.random() < 0.3:
            tie = np.array([[-0.10, 0.1], [0.10, 0.1], [0.16, depth], [0.0, depth + 0.2], [-0.16, depth]])
            fill(image, base + tie * unit, colour(rng))
    return covered


def _cloth(rng: np.random.Generator, where: Where, base: np.ndarray, unit: float, paint: np.ndarray) -> np.ndarray:
    """Colours [h, w, 3] of a torso: round, with folds and, at times, stripes or checks."""
    y = (np.arange(where[0].start, where[0].stop) + 0.5 - base[1])[:, None] / unit
    x = (np.arange(where[1].start, where[1].stop) + 0.5 - base[0])[None] / unit
    shade = 1.05 - 0.16 * x * x + rng.normal() * 0.12 * x - 0.04 * np.clip(y, 0, 6)
    shade = shade - 0.22 * np.exp(-(((np.abs(x) - 1.18) / 0.07) ** 2)) * (y > 1.2)  # the gap between arm and torso
    folds = cv2.resize(rng.random((9, 6)).astype(np.float32), (x.shape[1], y.shape[0]), interpolation=cv2.INTER_CUBIC)
    shade = np.clip(shade * (0.82 + 0.3 * folds), 0.15, 1.4)[..., None]
    pattern = rng.integers(6)
    second, fine = colour(rng), rng.uniform(4, 18)
    if pattern == 0:
        paint = np.where(np.sin(fine * y + 0 * x)[..., None] > rng.uniform(-0.5, 0.8), second, paint)
    elif pattern == 1:
        paint = np.where(np.sin(fine * x + 0 * y)[..., None] > rng.uniform(-0.5, 0.8), second, paint)
    elif pattern == 2:
        paint = paint + (second - paint) * 0.25 * ((np.sin(fine * x) > 0) + 1.0 * (np.sin(fine * y) > 0))[..., None]
    return np.clip(paint * shade, 0, 1)


def occluder(rng: np.random.Generator, image: np.ndarray, face: np.ndarray) -> tuple[Where, np.ndarray] | None:
    """Paints a hand, a card, a ball, a bar, a microphone or a medical mask over a face.

    Args:
      rng: of kind, place and colour.
      image: [H, W, 3], painted in place.
      face: left, top, right, bottom of the face.

    Returns:
      where the occluder lies and its coverage [h, w]; None outside the image.
    """
    middle, half = (face[:2] + face[2:]) / 2, (face[2:] - face[:2]) / 2
    centre = middle + rng.uniform(-0.8, 0.8, 2) * half
    kind = rng.choice(["hand", "card", "ball", "bar", "microphone"], p=[0.4, 0.25, 0.15, 0.1, 0.1])
    radius = half.mean()
    if kind == "hand":
        return _hand(rng, image, centre, radius, middle)
    if kind == "card":
        shape = box(centre, radius * rng.uniform(0.35, 0.85, 2), rng.normal() * 0.4)
        inner = centre + (shape - centre) * 0.86
        paints = [(shape, colour(rng)), (inner, colour(rng))]
    elif kind == "ball":
        shape, paint = ellipse(centre, radius * rng.uniform(0.3, 0.7, 2), rng.uniform(0, 3.14)), colour(rng)
        paints = [(shape, paint * 0.8), (centre + (shape - centre) * 0.75 - 0.06 * radius, paint)]
    elif kind == "bar":
        way = turn(rng.normal() * 0.1 + rng.choice([0.0, np.pi / 2]))[0] * len(image)
        paints = [(capsule(centre - way, centre + way, radius * rng.uniform(0.06, 0.18)), colour(rng))]
    else:
        head = middle + half * np.array([rng.normal() * 0.25, rng.uniform(0.65, 0.95)])
        grip = head + radius * np.array([rng.normal() * 0.8, 2.2])
        top = ellipse(head, radius * np.array([0.28, 0.3]))
        paints = [(capsule(head, grip, radius * 0.14), colour(rng) * 0.3), (top, colour(rng) * 0.2)]
    return _painted(image, paints)


def _hand(
    rng: np.random.Generator, image: np.ndarray, centre: np.ndarray, radius: float, middle: np.ndarray
) -> tuple[Where, np.ndarray] | None:
    """A hand with four fingers and a forearm, which comes from below."""
    paint, sleeve = skin(rng), colour(rng)
    side = np.sign(centre[0] - middle[0]) or 1.0
    up = turn(rng.uniform(-0.9, 0.2) * side)
    size = radius * rng.uniform(0.75, 1.0)

    def at(x: float, y: float) -> np.ndarray:
        return centre + size * np.array([x * side, y]) @ up.T

    tips = [(-0.30, -0.92), (-0.11, -1.04), (0.09, -1.0), (0.28, -0.86)]
    paints = [
        (capsule(at(0, 0.5), at(0.25, 2.4), size * 0.24), paint * 0.9),
        (capsule(at(0.12, 1.5), at(0.4, 5.0), size * 0.36), sleeve),
        (rounded(np.stack([at(x, y) for x, y in ((-0.4, -0.3), (0.4, -0.3), (0.34, 0.6), (-0.3, 0.6))])), paint),
        (capsule(at(-0.30, 0.3), at(-0.62, -0.25), size * 0.11), paint),
    ]
    for x, y in tips:
        paints.append((capsule(at(x, -0.2), at(x * 1.1, y), size * 0.118), paint * 0.6))
        paints.append((capsule(at(x, -0.2), at(x * 1.1, y), size * 0.098), paint))
    return _painted(image, paints)


def medical_mask(
    rng: np.random.Generator, image: np.ndarray, outline: np.ndarray, points: np.ndarray
) -> tuple[Where, np.ndarray] | None:
    """Paints a mask over nose and mouth.

    Args:
      rng: of the colour.
      image: [H, W, 3], painted in place.
      outline: [K, 2] convex outline of the face.
      points: [5, 2] eyes, nose and corners of the mouth.

    Returns:
      where the mask lies and its coverage [h, w]; None outside the image.
    """
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    down = (mouth - eyes) / max(np.linalg.norm(mouth - eyes), 1e-6)
    top = eyes + 0.28 * (mouth - eyes)
    along = (outline - top) @ down
    kept = _cut(outline, along)
    if len(kept) < 3:
        return None
    paint = np.array([[0.75, 0.85, 0.9], [0.9, 0.9, 0.9], [0.05, 0.05, 0.06], [0.35, 0.6, 0.75]])[rng.integers(4)]
    length = along.max()
    folds = []
    for share in (0.35, 0.55, 0.75):
        edge = _cut(outline, along - share * length)
        folds.append((edge, paint * (1.0 if share == 0.55 else 0.86)))
    return _painted(image, [(kept, paint), *((f, c) for f, c in folds if len(f) > 2)])


def _cut(outline: np.ndarray, along: np.ndarray) -> np.ndarray:
    """The part of a convex polygon where `along`, linear in position and given at its corners, is positive."""
    kept = []
    for i in range(len(outline)):
        j = (i + 1) % len(outline)
        if along[i] > 0:
            kept.append(outline[i])
        if (along[i] > 0) != (along[j] > 0):
            kept.append(outline[i] + (outline[j] - outline[i]) * along[i] / (along[i] - along[j]))
    return np.array(kept)


def _painted(image: np.ndarray, paints: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Where, np.ndarray] | None:
    """Fills polygons in order; where they lie together, and their coverage."""
    every = np.concatenate([points for points, _ in paints])
    whole = region(image.shape, box((every.min(0) + every.max(0)) / 2, (every.max(0) - every.min(0)) / 2))
    if whole is None:
        return None
    where, mask = whole
    mask[:] = 0
    for points, paint in paints:
        found = region(image.shape, points)
        if found:
            blend(image, *found, np.clip(paint, 0, 1))
            rows, columns = (slice(f.start - w.start, f.stop - w.start) for f, w in zip(found[0], where, strict=True))
            mask[rows, columns] = np.maximum(mask[rows, columns], found[1])
    return where, mask


def light(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Global light: exposure, tint, a gradient and, at times, a shadow. `strength` is 0..1."""
    size = len(image)
    way = turn(rng.uniform(0, 2 * np.pi))[0] * strength * rng.uniform(0, 0.8)
    steps = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    field = np.clip(1 + steps * way[0] + steps[:, None] * way[1], 0.2, 2).astype(np.float32)
    if rng.random() < 0.3 * strength:
        shadow = np.zeros((size, size, 3), np.float32)
        fill(shadow, box(rng.uniform(0, size, 2), size * rng.uniform(0.15, 0.8, 2), rng.uniform(0, 3.14)), np.ones(3))
        soft = cv2.GaussianBlur(shadow[..., 0], (0, 0), float(rng.uniform(0.005, 0.05)) * size)
        field *= 1 - soft * rng.uniform(0.2, 0.65)
    tint = np.exp(strength * (rng.normal() * 0.12 * np.array([1.0, 0.0, -1.0]) + rng.normal() * 0.25))
    return image * field[..., None] * tint.astype(np.float32)
