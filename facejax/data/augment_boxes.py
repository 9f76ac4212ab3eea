"""Augmentation of images with boxes and landmarks: windows, colour, mosaics.

Coordinates are continuous pixels: pixel i covers i..i + 1, a box (x1, y1, x2, y2) has the width x2 - x1, and a mirrored
x is W - x. The published code of RetinaFace does the same; that of CenterNet mirrors to W - 1 - x.

Most geometric augmentations draw a window (x1, y1, x2, y2) of the image, which may exceed it; `view` then renders the
window at the size of the network's input, so that no enlarged canvas is stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from facejax.data import transforms
from facejax.data.decoding import ImageFile

Rng = np.random.Generator
Colour = tuple[int, int, int]

MEAN: Colour = (123, 117, 104)
"""Mean colour of ImageNet in Caffe's networks, RGB."""
GREY: Colour = (114, 114, 114)
MIRROR = np.array([1, 0, 2, 4, 3])
"""Mirror partners of the five points: eyes, nose tip, mouth corners."""
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LANCZOS4)
EIGENVALUES = np.array([0.2141788, 0.01817699, 0.00341571], np.float32)
EIGENVECTORS = np.array(
    [
        [-0.56089297, 0.71832671, 0.41158938],
        [-0.5832747, 0.00994535, -0.81221408],
        [-0.58752847, -0.69563484, 0.41340352],
    ],
    np.float32,
)
"""Principal components of ImageNet's colours 0..1: EIGENVECTORS[c, k] is channel c (RGB) of component k (CenterNet)."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and its n objects.

    Attributes:
      image: [H, W, 3] uint8 RGB.
      boxes: [n, 4] (x1, y1, x2, y2) in pixels.
      labels: [n] int, classes.
      points: [n, P, 2] (x, y) in pixels; P is 5 (faces) or 0.
      visible: [n, P] bool, annotated points.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    visible: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[:2]

    def keep(self, chosen: np.ndarray) -> Picture:
        """The picture with the objects that `chosen` [n] bool or [m] int selects."""
        fields = {name: getattr(self, name)[chosen] for name in ("boxes", "labels", "points", "visible")}
        return dataclasses.replace(self, **fields)

    def mapped(self, image: np.ndarray, scale: Any, shift: Any) -> Picture:
        """The picture with another image and all coordinates times `scale` [2] plus `shift` [2]."""
        boxes = self.boxes * np.tile(scale, 2) + np.tile(shift, 2)
        return dataclasses.replace(self, image=image, boxes=boxes, points=self.points * scale + shift)


def decoded(example: Mapping[str, Any]) -> np.ndarray:
    """The stored image of an example as uint8 RGB; ValueError with its name if it does not decode."""
    image = example["image"]
    if not isinstance(image, ImageFile):
        image = ImageFile(image, str(example.get("name", "")))
    return transforms.decode(image, upright=False)


def opened(example: Mapping[str, Any]) -> Picture:
    """Decodes an example of a detection source; its ignored objects and boxes without area are left out.

    Args:
      example: {"image": encoded bytes, "boxes": [n, 4], "labels": [n], "points": [n, P, 2], "visible": [n, P],
        "ignored": [n]}.

    Raises:
      ValueError: the image does not decode, or P is neither 0 nor 5.
    """
    points = np.asarray(example["points"], float)
    if points.shape[1] not in (0, len(MIRROR)):
        raise ValueError(f"{example.get('name')}: {points.shape[1]} points per object: expected 0 or {len(MIRROR)}")
    found = Picture(
        decoded(example),
        np.asarray(example["boxes"], float),
        np.asarray(example["labels"], np.int32),
        points,
        np.asarray(example["visible"], bool),
    )
    area = (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)
    return found.keep(area & ~np.asarray(example["ignored"], bool))


def view(
    picture: Picture,
    window: Sequence[float],
    size: tuple[int, int],
    value: Colour | None = MEAN,
    interpolation: int = cv2.INTER_AREA,
) -> Picture:
    """A window of a picture, rendered at another size. Boxes and points move along; none is clipped or removed.

    Args:
      picture: the picture.
      window: (x1, y1, x2, y2) in pixels, x1 < x2 and y1 < y2; may exceed the image.
      size: (height, width) of the result.
      value: colour outside the image; None: the image's border is repeated.
      interpolation: one of `INTERPOLATIONS`; INTER_AREA averages where both sides shrink and is linear elsewhere.
    """
    window = np.asarray(window, float)
    shape, low, high = np.array(picture.size[::-1]), window[:2], window[2:]
    scale = np.array(size[::-1]) / (high - low)
    start = np.clip(np.floor(low).astype(int), 0, shape - 1)
    stop = np.clip(np.ceil(high).astype(int), start + 1, shape)
    part = picture.image[start[1] : stop[1], start[0] : stop[0]]
    image = _rendered(part, scale, (start - low) * scale, size, interpolation)
    if value is not None:
        left, top = np.clip(np.rint(-low * scale).astype(int), 0, size[::-1])
        right, bottom = np.clip(np.rint((shape - low) * scale).astype(int), 0, size[::-1])
        for outside in (np.s_[:top], np.s_[bottom:], np.s_[:, :left], np.s_[:, right:]):
            image[outside] = value
    return picture.mapped(image, scale, -low * scale)


def _rendered(
    part: np.ndarray, scale: np.ndarray, shift: np.ndarray, size: tuple[int, int], interpolation: int
) -> np.ndarray:
    """An image scaled and shifted into a new array of `size`; its border is repeated outside."""
    extent = np.array(part.shape[1::-1]) * scale
    whole_part = np.allclose(shift, 0, atol=1e-9) and np.allclose(extent, size[::-1])
    if whole_part and part.shape[:2] == tuple(size):
        return part.copy()
    if interpolation == cv2.INTER_AREA and not (scale < 1).all():
        interpolation = cv2.INTER_LINEAR  # OpenCV's INTER_AREA shifts enlarged images
    if whole_part and interpolation != cv2.INTER_NEAREST:  # resize takes the nearest pixel's corner, warp its centre
        return cv2.resize(part, size[::-1], interpolation=interpolation)
    if interpolation == cv2.INTER_AREA:
        smaller = np.maximum(np.rint(extent), 1).astype(int)
        part, scale = cv2.resize(part, smaller.tolist(), interpolation=cv2.INTER_AREA), extent / smaller
        interpolation = cv2.INTER_LINEAR
    matrix = np.column_stack([np.diag(scale), shift])
    return _warped(part, matrix, size, cv2.BORDER_REPLICATE, interpolation=interpolation)


def _warped(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    border: int,
    value: Colour = MEAN,
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """Warps by a matrix [2, 3] of continuous coordinates; OpenCV's integers are pixel centres."""
    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(
        np.ascontiguousarray(image), matrix, size[::-1], flags=interpolation, borderMode=border, borderValue=value
    )


def resized(picture: Picture, size: tuple[int, int], interpolation: int = cv2.INTER_AREA) -> Picture:
    """The whole picture at (height, width) `size`; the aspect ratio changes."""
    return view(picture, whole(picture.size), size, None, interpolation)


def whole(size: tuple[int, int]) -> np.ndarray:
    """The window of a whole image of (height, width)."""
    return np.array([0, 0, size[1], size[0]], float)


def square(size: tuple[int, int], centred: bool = False) -> np.ndarray:
    """The smallest square window that contains an image of (height, width), at its top left corner or centred."""
    side = max(size)
    left, top = ((side - size[1]) / 2, (side - size[0]) / 2) if centred else (0, 0)
    return np.array([-left, -top, side - left, side - top])


def letterbox(
    picture: Picture, size: int, value: Colour = (0, 0, 0), centred: bool = False, interpolation: int = cv2.INTER_AREA
) -> tuple[Picture, float, np.ndarray]:
    """Keeps the aspect ratio and fills the rest of a square.

    Returns:
      (the picture of `size` x `size` pixels, scale, offset [2]): x of the original lies at scale * x + offset.
    """
    window = square(picture.size, centred)
    scale = size / max(picture.size)
    return view(picture, window, (size, size), value, interpolation), scale, -window[:2] * scale


def unletterboxed(coordinates: np.ndarray, scale: float, offset: np.ndarray) -> np.ndarray:
    """Boxes [..., 4] or points [..., 2] of a letterboxed image in pixels of the original."""
    return (coordinates - np.tile(offset, coordinates.shape[-1] // 2)) / scale


def mirrored(picture: Picture) -> Picture:
    """Horizontal flip; the points of a face change sides."""
    width, partners = picture.size[1], MIRROR[: picture.points.shape[1]]
    boxes, points = picture.boxes.copy(), picture.points[:, partners]
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    points[..., 0] = width - points[..., 0]
    image = np.ascontiguousarray(transforms.flip(picture.image))
    return Picture(image, boxes, picture.labels, points, picture.visible[:, partners])


def random_mirror(picture: Picture, rng: Rng) -> Picture:
    """Horizontal flip with probability 0.5."""
    return mirrored(picture) if rng.random() < 0.5 else picture


def centred_objects(picture: Picture) -> Picture:
    """Objects whose box has its centre in the image, without its border."""
    centre = (picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2
    return picture.keep(((centre > 0) & (centre < picture.size[::-1])).all(1))


def clipped(picture: Picture, points: bool = False) -> Picture:
    """Boxes clipped to the image, those without area removed; with `points`, points are clipped too (RetinaFace)."""
    limit = np.array(picture.size[::-1], float)
    boxes = np.clip(picture.boxes, 0, np.tile(limit, 2))
    moved = np.clip(picture.points, 0, limit) if points else picture.points
    found = dataclasses.replace(picture, boxes=boxes, points=moved)
    return found.keep((boxes[:, 2:] > boxes[:, :2]).all(1))


# Windows


def face_window(
    size: tuple[int, int],
    boxes: np.ndarray,
    rng: Rng,
    ratios: Sequence[float] = (0.3, 0.45, 0.6, 0.8, 1.0),
    entire: bool = True,
    tries: int = 250,
) -> np.ndarray | None:
    """A random square window that contains a face (RetinaFace, SCRFD); None if no try succeeds.

    Args:
      size: (height, width) of the image.
      boxes: [n, 4].
      rng: generator of all draws.
      ratios: sides of the window relative to the image's shorter side; windows above 1 exceed the image.
      entire: true: a whole box lies in the window and a centre inside it; false: the centre of a box suffices.
      tries: largest number of windows that are drawn.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for _ in range(tries if len(boxes) else 0):
        side = max(1, int(rng.choice(ratios) * min(size)))
        spare = np.array(size[::-1]) - side
        low = rng.integers(np.minimum(spare, 0), np.maximum(spare, 0), endpoint=True)
        inside = ((centres > low) & (centres < low + side)).all(1).any()
        if inside and (not entire or ((boxes[:, :2] >= low) & (boxes[:, 2:] <= low + side)).all(1).any()):
            return np.array([*low, *(low + side)], float)
    return None


def expanded_window(size: tuple[int, int], rng: Rng, most: float = 4.0) -> np.ndarray:
    """A window of the image's aspect ratio, up to `most` times as wide, that contains it at a random place (SSD)."""
    sides = np.array(size[::-1])
    extent = (rng.uniform(1, most) * sides).astype(int)
    low = -rng.integers(extent - sides, endpoint=True)
    return np.concatenate([low, low + extent]).astype(float)


def overlaps(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union [m, n] of windows [m, 4] and boxes [n, 4]."""
    low = np.maximum(windows[:, None, :2], boxes[:, :2])
    high = np.minimum(windows[:, None, 2:], boxes[:, 2:])
    sides = np.maximum(high - low, 0)
    common = sides[..., 0] * sides[..., 1]
    return common / (_areas(windows)[:, None] + _areas(boxes) - common)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def ssd_window(
    frame: np.ndarray,
    boxes: np.ndarray,
    rng: Rng,
    least: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    scale: tuple[float, float] = (0.3, 1.0),
    aspect: tuple[float, float] = (0.5, 2.0),
    tries: int = 50,
) -> np.ndarray:
    """A window of SSD's batch sampler.

    The rules are: the whole frame; an overlap (IoU) with some box of at least a value of `least`; any window. Every
    rule gets `tries` windows, and one of the rules that succeed is chosen with equal probability.

    Args:
      frame: [4] window in which to crop, such as `whole` or `expanded_window`.
      boxes: [n, 4].
      rng: generator of all draws.
      least: see above.
      scale: smallest and largest square root of the window's area, relative to the frame's.
      aspect: smallest and largest width / height, relative to the frame's.
      tries: see above.
    """
    extent = frame[2:] - frame[:2]
    for rule in rng.permutation([*least, 0.0, -1.0]):  # the first success of a random order has equal probabilities
        if rule < 0:
            break
        side = rng.uniform(*scale, tries)
        ratio = rng.uniform(np.maximum(aspect[0], side**2), np.minimum(aspect[1], side**-2))
        shape = np.stack([side * ratio**0.5, side * ratio**-0.5], 1)
        sides = np.maximum(np.rint(extent * shape), 1)
        low = frame[:2] + np.floor(rng.random((tries, 2)) * (extent - sides + 1))
        windows = np.concatenate([low, low + sides], 1)
        if not rule:
            return windows[0]
        found = np.flatnonzero((overlaps(windows, boxes) >= rule).any(1))
        if len(found):
            return windows[found[0]]
    return frame


def anchor_window(
    size: tuple[int, int],
    boxes: np.ndarray,
    output: int,
    rng: Rng,
    anchors: Sequence[float] = (16, 32, 64, 128, 256, 512),
) -> np.ndarray:
    """Data-anchor sampling (PyramidBox, DSFD): a square window that gives a random face the size of a random anchor.

    The face of size s = sqrt(w h) has the nearest anchor i; its new size is uniform in half to twice an anchor drawn
    from 0 to i + 1. The window contains the face or, where the face is larger, lies within it. It lies in the image, or
    contains the image along an axis where the image is smaller.

    Args:
      size: (height, width) of the image.
      boxes: [n, 4], n > 0.
      output: side of the network's input, pixels.
      rng: generator of all draws.
      anchors: sizes of the anchors in pixels of the input, ascending.
    """
    box = boxes[rng.integers(len(boxes))]
    face = np.sqrt(np.prod(box[2:] - box[:2]))
    nearest = np.argmin(np.abs(np.array(anchors) - face))
    anchor = anchors[rng.integers(min(nearest + 1, len(anchors) - 1), endpoint=True)]
    side = output * face / rng.uniform(anchor / 2, anchor * 2)
    spare = np.array(size[::-1]) - side
    ends = np.sort([box[:2], box[2:] - side], 0)
    first = np.where(spare < 0, spare, np.maximum(ends[0], 0))
    last = np.where(spare < 0, 0, np.minimum(ends[1], spare))
    low = rng.uniform(first, np.maximum(first, last))
    return np.concatenate([low, low + side])


def affine_window(
    size: tuple[int, int],
    side: float,
    rng: Rng,
    scales: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),
    border: int = 128,
) -> np.ndarray:
    """A square window with a random side and centre (CornerNet, CenterNet).

    Args:
      size: (height, width) of the image.
      side: side of the window at scale 1, pixels.
      rng: generator of all draws.
      scales: the side is `side` times one of them.
      border: smallest distance of the centre from the image's border; halved until it is below half the image's side.
    """
    half = side * rng.choice(scales) / 2
    margin = np.array([_border(n, border) for n in size[::-1]])
    centre = rng.integers(margin, size[::-1] - margin)
    return np.concatenate([centre - half, centre + half])


def _border(side: int, border: int) -> int:
    while side - border <= border:
        border //= 2
    return border


def jittered_window(size: tuple[int, int], rng: Rng, most: float = 0.2) -> np.ndarray:
    """The whole image with each edge moved by up to `most` of its side, inwards or outwards (YOLO v1)."""
    return whole(size) + rng.uniform(-most, most, 4) * np.tile(size[::-1], 2)


# Colour


def photometric(
    image: np.ndarray,
    rng: Rng,
    brightness: float = 32.0,
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: int = 18,
    probability: float = 0.5,
) -> np.ndarray:
    """Distortion of SSD and RetinaFace: brightness, contrast, saturation and hue, each with `probability`.

    Contrast changes before or after saturation and hue, with probability 0.5 each. Every result is cut to 0..255.

    Args:
      image: [H, W, 3] uint8.
      rng: generator of all draws.
      brightness: largest added grey level.
      contrast, saturation: smallest and largest factor.
      hue: largest shift in units of 2 degrees (OpenCV's hue, 0..179).
      probability: of each change.
    """

    def maybe(drawn: float, neutral: float) -> float:
        return drawn if rng.random() < probability else neutral

    shift = maybe(rng.uniform(-brightness, brightness), 0)
    gain = maybe(rng.uniform(*contrast), 1)
    factor = maybe(rng.uniform(*saturation), 1)
    turn = maybe(rng.integers(-hue, hue, endpoint=True), 0)
    early = rng.random() < 0.5
    levels = _levels(LEVELS + shift)
    image = cv2.LUT(image, _levels(levels * gain) if early else levels)
    image = _recoloured(image, (LEVELS + turn) % 180, factor, 1.0)
    return image if early else cv2.LUT(image, _levels(LEVELS * gain))


LEVELS = np.arange(256.0)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _recoloured(image: np.ndarray, hue: np.ndarray, saturation: float, value: float) -> np.ndarray:
    """Maps OpenCV's hue through a table [256], and multiplies saturation and value."""
    table = np.stack([hue.astype(np.uint8), _levels(LEVELS * saturation), _levels(LEVELS * value)], -1)[None]
    return cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table), cv2.COLOR_HSV2RGB)


def hsv_jitter(
    image: np.ndarray, rng: Rng, hue: float = 0.015, saturation: float = 0.7, value: float = 0.4
) -> np.ndarray:
    """YOLOv5's colour change: factors in 1 - j..1 + j of hue (0..360 degrees), saturation and value."""
    factors = 1 + rng.uniform(-1, 1, 3) * [hue, saturation, value]
    return _recoloured(image, LEVELS * factors[0] % 180, *factors[1:])


def exposed(image: np.ndarray, rng: Rng, most: float = 1.5) -> np.ndarray:
    """YOLO v1's colour change: saturation and exposure (HSV value) times or divided by 1..`most`."""
    factors = rng.uniform(1, most, 2) ** rng.choice([-1, 1], 2)
    return _recoloured(image, LEVELS, *factors)


def colour_jitter(image: np.ndarray, rng: Rng, strength: float = 0.4, lighting: float = 0.1) -> np.ndarray:
    """Brightness, contrast and saturation in random order, then PCA lighting (CornerNet, CenterNet).

    Contrast and saturation blend with the original image's greyscale. The published code keeps values outside 0..1;
    here they are cut.

    Args:
      image: [H, W, 3] uint8.
      rng: generator of all draws.
      strength: factors lie in 1 - strength..1 + strength.
      lighting: standard deviation of the components' weights.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    targets, changed = (0.0, grey.mean(), grey), image.astype(np.float32)
    for kind in rng.permutation(3):
        factor = np.float32(rng.uniform(1 - strength, 1 + strength))
        changed = factor * changed + (1 - factor) * targets[kind]
    changed += 255 * (EIGENVECTORS @ (EIGENVALUES * rng.normal(0, lighting, 3).astype(np.float32)))
    return np.clip(changed, 0, 255).astype(np.uint8)


# Mosaic


def mosaic(pictures: Sequence[Picture], size: int, rng: Rng, value: Colour = GREY) -> Picture:
    """Four pictures around a random centre of a square of 2 `size` pixels (YOLOv5).

    Each picture's longer side becomes `size` pixels; its corner touches the centre, which lies `size` / 2 pixels or
    more from the border. What exceeds the square is cut off.
    """
    centre = rng.integers(size // 2, size + size // 2, 2, endpoint=True)
    canvas, parts = np.empty((2 * size, 2 * size, 3), np.uint8), []
    for picture, (right, lower) in zip(pictures, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        corner = np.array([right, lower])
        low, high = np.where(corner, centre, 0), np.where(corner, 2 * size, centre)
        scale = size / max(picture.size)
        near = np.where(corner, 0, np.array(picture.size[::-1]))  # the picture's corner at the centre
        window = np.concatenate([(low - centre) / scale + near, (high - centre) / scale + near])
        part = clipped(view(picture, window, tuple((high - low)[::-1].tolist()), value))
        canvas[low[1] : high[1], low[0] : high[0]] = part.image
        parts.append(part.mapped(canvas, np.ones(2), low))
    names = ("boxes", "labels", "points", "visible")
    return Picture(canvas, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def random_affine(
    picture: Picture,
    size: int,
    rng: Rng,
    translate: float = 0.1,
    scale: float = 0.5,
    shear: float = 0.5,
    value: Colour = GREY,
    least: tuple[float, float, float] = (2.0, 0.1, 0.05),
) -> Picture:
    """YOLOv5's random translation, scale and shear about the centre, without rotation and perspective.

    Args:
      picture: the picture.
      size: side of the result, pixels; its centre is the picture's, moved.
      rng: generator of all draws.
      translate: largest shift along each axis, relative to `size`.
      scale: factors lie in 1 - scale..1 + scale.
      shear: largest shear along each axis, degrees.
      value: colour outside the picture.
      least: a box stays if, once clipped, its sides exceed least[0] pixels, its area exceeds least[1] of the area
        before clipping, and its shorter side exceeds least[2] of its longer side.
    """
    factor = rng.uniform(1 - scale, 1 + scale)
    slopes = np.tan(np.radians(rng.uniform(-shear, shear, 2)))
    shift = size * rng.uniform(0.5 - translate, 0.5 + translate, 2)
    turn = factor * np.array([[1, slopes[0]], [slopes[1], 1]])
    matrix = np.column_stack([turn, shift - turn @ (np.array(picture.size[::-1]) / 2)])
    corners = picture.boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ turn.T + matrix[:, 2]
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    image = _warped(picture.image, matrix, (size, size), cv2.BORDER_CONSTANT, value)
    cut = np.clip(boxes, 0, size)
    sides, before = cut[:, 2:] - cut[:, :2], factor**2 * np.prod(picture.boxes[:, 2:] - picture.boxes[:, :2], 1)
    stays = (sides > least[0]).all(1) & (sides.prod(1) > least[1] * before)
    stays &= sides.min(1) > least[2] * sides.max(1)
    points = picture.points @ turn.T + matrix[:, 2]
    return dataclasses.replace(picture, image=image, boxes=cut, points=points).keep(stays)


# Recipes: (draw, size, rng) -> a picture of size x size pixels; `draw` opens the next picture.

Draw = Callable[[], Picture]


def plain(draw: Draw, size: int, rng: Rng) -> Picture:
    """The letterboxed picture."""
    del rng
    return letterbox(draw(), size)[0]


def flip(draw: Draw, size: int, rng: Rng) -> Picture:
    """The letterboxed picture, flipped with probability 0.5 (RetinaNet, SSH)."""
    return random_mirror(plain(draw, size, rng), rng)


def ssd(draw: Draw, size: int, rng: Rng) -> Picture:
    """SSD: `photometric`, `expanded_window` with probability 0.5, `ssd_window`, flip; the aspect ratio changes."""
    picture = draw()
    picture = dataclasses.replace(picture, image=photometric(picture.image, rng))
    frame = expanded_window(picture.size, rng) if rng.random() < 0.5 else whole(picture.size)
    return _seen(picture, ssd_window(frame, picture.boxes, rng), size, rng)


def _seen(picture: Picture, window: np.ndarray, size: int, rng: Rng) -> Picture:
    """The window with random interpolation and flip, and the objects with their centre in it."""
    found = view(picture, window, (size, size), MEAN, INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))])
    return random_mirror(clipped(centred_objects(found)), rng)


def face(draw: Draw, size: int, rng: Rng) -> Picture:
    """RetinaFace: `face_window` or else the whole picture in a square, `photometric`, flip."""
    picture = draw()
    window = face_window(picture.size, picture.boxes, rng)
    if window is not None:
        side = int(window[2] - window[0])
        picture = clipped(centred_objects(view(picture, window, (side, side))), points=True)
    picture = dataclasses.replace(picture, image=photometric(picture.image, rng))
    interpolation = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
    return random_mirror(letterbox(picture, size, MEAN, interpolation=interpolation)[0], rng)


def scrfd(draw: Draw, size: int, rng: Rng) -> Picture:
    """SCRFD: square windows of 0.3 to 2 times the shorter side, grey outside the image, flip, `photometric`.

    Boxes are not clipped (the authors' settings of the 2.5GF and 10GF networks).
    """
    picture = draw()
    ratios = (0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
    window = face_window(picture.size, picture.boxes, rng, ratios, entire=False)
    window = square(picture.size) if window is None else window
    found = random_mirror(centred_objects(view(picture, window, (size, size), (128, 128, 128))), rng)
    return dataclasses.replace(found, image=photometric(found.image, rng))


def anchor(draw: Draw, size: int, rng: Rng) -> Picture:
    """DSFD: `anchor_window` with probability 2/5, else `ssd_window`; `photometric`, flip.

    Anchors above 0.8 `size` are left out: at 640 pixels, none.
    """
    picture = draw()
    picture = dataclasses.replace(picture, image=photometric(picture.image, rng))
    anchors = [a for a in (16, 32, 64, 128, 256, 512) if a <= 0.8 * size] or [16]
    if len(picture.boxes) and rng.random() < 0.4:
        window = anchor_window(picture.size, picture.boxes, size, rng, anchors)
    else:
        window = ssd_window(whole(picture.size), picture.boxes, rng)
    return _seen(picture, window, size, rng)


def affine(draw: Draw, size: int, rng: Rng) -> Picture:
    """CenterNet: `affine_window` relative to the picture's longer side, black outside, flip, `colour_jitter`."""
    picture = draw()
    return _affine(picture, max(picture.size), size, rng)


def corner(draw: Draw, size: int, rng: Rng) -> Picture:
    """CornerNet: `affine_window` relative to `size`, black outside, flip, `colour_jitter`."""
    return _affine(draw(), size, size, rng)


def _affine(picture: Picture, side: float, size: int, rng: Rng) -> Picture:
    window = affine_window(picture.size, side, rng)
    found = random_mirror(clipped(view(picture, window, (size, size), (0, 0, 0), cv2.INTER_LINEAR)), rng)
    return dataclasses.replace(found, image=colour_jitter(found.image, rng))


def yolo(draw: Draw, size: int, rng: Rng) -> Picture:
    """YOLO v1: `jittered_window` with the border repeated, flip, `exposed`; the aspect ratio changes."""
    picture = draw()
    found = view(picture, jittered_window(picture.size, rng), (size, size), None)
    found = random_mirror(clipped(found), rng)
    return dataclasses.replace(found, image=exposed(found.image, rng))


def mosaics(draw: Draw, size: int, rng: Rng) -> Picture:
    """YOLO5Face: with probability 0.5 a `mosaic`, else a letterboxed picture; `random_affine`, `hsv_jitter`, flip."""
    if rng.random() < 0.5:
        picture = mosaic([draw() for _ in range(4)], size, rng)
    else:
        picture = letterbox(draw(), size, GREY, centred=True)[0]
    found = random_affine(picture, size, rng)
    return random_mirror(dataclasses.replace(found, image=hsv_jitter(found.image, rng)), rng)


RECIPES: dict[str, Callable[[Draw, int, Rng], Picture]] = {
    "none": plain,
    "flip": flip,
    "ssd": ssd,
    "face": face,
    "scrfd": scrfd,
    "anchor": anchor,
    "affine": affine,
    "corner": corner,
    "yolo": yolo,
    "mosaic": mosaics,
}
