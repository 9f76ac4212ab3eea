"""Short videos made of stills with known faces, of 3DDFA_V2 (Guo et al., ECCV 2020, arXiv:2009.09960, Sec. 3.3).

Differs: the paper turns heads by rendering the fitted mesh; here the picture is turned as a relief, whose depth is the
mesh's in the face and continues it smoothly beyond. Parts that a turn uncovers are stretched.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import cv2
import jax
import numpy as np
from scipy.spatial.transform import Rotation

from facejax.data.reconstruction import ReconstructionFaces
from facejax.morphable import crops
from facejax.morphable.parameters import LinearFace, reconstruct_on_host


def batch(
    data: ReconstructionFaces, frames: int, examples: Sequence[Any], rngs: Sequence[np.random.Generator]
) -> dict[str, Any]:
    """A batch of short videos of `frames` frames from every `frames`-th example."""
    stills = data.loader()(examples[::frames], rngs[::frames])
    vectors, marks = stills["parameters"].astype(np.float64), stills.get("landmarks68")
    images, moves, marks = videos(data, stills["image"], vectors, marks, frames, rngs[::frames])
    vectors = moved(vectors.repeat(frames, 0), moves, data.image_size, data.convention)
    found = {"image": images, "parameters": vectors.astype(np.float32)}
    return found if marks is None else found | {"landmarks68": marks}


def videos(
    data: ReconstructionFaces,
    images: np.ndarray,
    vectors: np.ndarray,
    marks: np.ndarray | None,
    frames: int,
    rngs: Sequence[np.random.Generator],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Frames of short videos of crops one after the other, their transforms, and the landmarks [N, 68, 2] in them."""
    face = host_face(data)
    vertices = crops.to_image(reconstruct_on_host(face, vectors), data.image_size, data.convention)
    made = [short_video(x, frames, rng, v) for x, rng, v in zip(images, rngs, vertices, strict=True)]
    images, moves = (np.concatenate(part) for part in zip(*made, strict=True))
    if marks is not None:
        places = np.concatenate([marks, vertices[:, face.landmarks68, 2:]], -1)
        marks = moved_points(places.repeat(frames, 0), moves)
    return images, moves, marks


@functools.lru_cache(maxsize=1)
def host_face(data: ReconstructionFaces) -> LinearFace:
    """The face of the vectors as NumPy arrays."""
    return jax.tree.map(np.asarray, data.face())


def short_video(
    image: np.ndarray, frames: int, rng: np.random.Generator, vertices: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A still as a video: each frame moves the last one, and is degraded on its own.

    A movement turns the head by up to 5 degrees of yaw and of pitch about the middle of its vertices, then scales the
    picture by 0.95 to 1.05, turns it by up to 3 degrees and shifts it by up to 5 of 120 pixels; a frame has Gaussian
    noise of deviation up to 3, and with probability 0.5 a motion blur of 5 pixels in a random direction.

    Args:
      image: [S, S, 3] uint8.
      frames: n.
      rng: of all draws.
      vertices: [V, 3] of the face, pixels with y down and z towards the viewer; None: no turns in depth.

    Returns:
      frames [n, S, S, 3], the first without movement; and transforms [n, 3, 4] from places (x, y, z) in the still to
      those in each frame, in pixels with the first one's centre at 0.5.
    """
    size = image.shape[0]
    depth = np.zeros((size, size), np.float32) if vertices is None else relief(vertices, size)
    middle = np.zeros(3) if vertices is None else vertices.mean(0)
    matrix, images, moves = np.eye(4), [], []
    for number in range(frames):
        if number:
            if vertices is not None:
                yaw, pitch = np.radians(rng.uniform(-5, 5, 2))
                turn = Rotation.from_euler("yx", [yaw, pitch]).as_matrix()
                matrix = _about((matrix @ [*middle, 1])[:3], turn) @ matrix
            angle, scale = rng.uniform(-3, 3), rng.uniform(0.95, 1.05)
            turn = scale * Rotation.from_euler("z", angle, degrees=True).as_matrix()
            similarity = _about(np.array([size / 2, size / 2, 0]), turn)
            similarity[:2, 3] += rng.uniform(-5, 5, 2) * size / 120
            matrix = similarity @ matrix
        frame = _warped(image, depth, matrix) + rng.uniform(0, 3) * rng.normal(size=image.shape)
        kernel = _line(5, rng.uniform(0, np.pi)) if rng.random() < 0.5 else np.ones((1, 1))
        frame = cv2.filter2D(frame, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        images.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
        moves.append(matrix[:3])
    return np.stack(images), np.stack(moves)


def relief(vertices: np.ndarray, size: int) -> np.ndarray:
    """Depth [S, S] of a picture: z of the nearest vertex in a pixel, continued smoothly between and beyond them.

    Args:
      vertices: [V, 3] pixels, z towards the viewer.
      size: S.
    """
    column, row = np.floor(vertices[:, :2]).astype(int).T
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    nearest = np.full(size * size, -np.inf)
    np.maximum.at(nearest, (row * size + column)[inside], vertices[inside, 2])
    known = np.isfinite(nearest)
    if not known.any():
        return np.full((size, size), vertices[:, 2].mean(), np.float32)
    value, weight = (np.float32(x).reshape(size, size) for x in (np.where(known, nearest, 0), known))
    levels = [(value, weight)]
    while len(value) > 1:
        value, weight = (cv2.resize(x, (-(-len(x) // 2),) * 2, interpolation=cv2.INTER_AREA) for x in (value, weight))
        levels.append((value, weight))
    depth = value / weight
    for value, weight in levels[-2::-1]:
        coarse = cv2.resize(depth, weight.shape, interpolation=cv2.INTER_LINEAR)
        share = np.minimum(2 * weight, 1)
        depth = coarse + share * (value / np.maximum(weight, 1e-6) - coarse)
    return cv2.GaussianBlur(depth, (0, 0), size / 60)


def _about(centre: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """[4, 4] of places: `turn` [3, 3] about `centre` [3]."""
    return np.block([[turn, (centre - turn @ centre)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])


def _warped(image: np.ndarray, depth: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The picture after the transform [4, 4] of its places, black beyond its borders."""
    size = image.shape[0]
    flat = np.linalg.inv(matrix[:2, :2])
    y, x = np.indices((size, size), np.float32) + np.float32(0.5)
    wanted = np.stack([x, y], -1) - matrix[:2, 3].astype(np.float32)
    source = wanted @ flat.T.astype(np.float32)
    slope = (flat @ matrix[:2, 2]).astype(np.float32)
    for _ in range(6 if depth.any() else 0):  # a fixed point, since a place's depth decides where it comes from
        at = cv2.remap(depth, source - 0.5, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        source = wanted @ flat.T.astype(np.float32) - at[..., None] * slope
    return cv2.remap(image, source - 0.5, None, cv2.INTER_LINEAR)


def moved(
    vector: np.ndarray, matrix: np.ndarray, size: int, convention: crops.Convention = crops.FACEJAX
) -> np.ndarray:
    """Vectors [..., D] of a face after transforms [..., 3, 4] of the places in its crop of `size` pixels.

    Args:
      vector: whitening undone, of vertices with y up.
      matrix: of places with y down.
      size: of the crop.
      convention: from vertices to places.
    """
    flip = np.array([1.0, -1.0, 1.0])
    origin = np.array([convention.right, size + convention.down, convention.near])
    turn = matrix[..., :3] * flip * flip[:, None]
    shift = (matrix[..., :3] @ origin + matrix[..., 3] - origin) * flip
    pose = turn @ vector[..., :12].reshape(*vector.shape[:-1], 3, 4)
    pose[..., 3] += shift
    return np.concatenate([pose.reshape(*vector.shape[:-1], 12), vector[..., 12:]], -1)


def moved_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Places [N, L, 3] after transforms [N, 3, 4], without their depth: [N, L, 2] float32."""
    return (np.einsum("nij,nlj->nli", matrix[:, :2, :3], points) + matrix[:, None, :2, 3]).astype(np.float32)


def _line(length: int, angle: float) -> np.ndarray:
    """[length, length] a line through the middle, with sum 1."""
    kernel = np.zeros((length, length))
    steps = np.linspace(-0.5, 0.5, 8 * length) * (length - 1)
    x, y = (np.rint(length // 2 + steps * f).astype(int) for f in (np.cos(angle), np.sin(angle)))
    np.add.at(kernel, (y, x), 1)
    return kernel / kernel.sum()
