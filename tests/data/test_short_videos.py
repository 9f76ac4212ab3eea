"""Short videos of 3DDFA_V2: what moves in the pictures, the landmarks and the parameters is the same."""

from __future__ import annotations

import types
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facejax.data import short_videos
from facejax.data.reconstruction import ReconstructionFaces, procedural_face
from facejax.morphable import crops, parameters


@pytest.fixture(scope="module")
def face() -> parameters.LinearFace:
    import jax

    return jax.tree.map(np.asarray, procedural_face())


@pytest.fixture(scope="module")
def vectors(face: parameters.LinearFace) -> np.ndarray:
    """Three faces of 96 pixels turned by up to 40 degrees."""
    rng = np.random.default_rng(0)
    turns = Rotation.from_euler("yxz", rng.uniform(-40, 40, (3, 3)), degrees=True).as_matrix()
    scale = 60 / np.ptp(face.mean[:, 1])
    pose = np.concatenate([scale * turns, rng.uniform(40, 56, (3, 3, 1))], -1)
    pose[:, :, 3] -= np.einsum("nij,j->ni", pose[:, :, :3], face.mean.mean(0))
    return np.concatenate([pose.reshape(3, 12), rng.normal(size=(3, 50))], 1)


def test_faces_on_the_host_equal_those_on_the_device(face: parameters.LinearFace, vectors: np.ndarray) -> None:
    found = short_videos.reconstruct_on_host(face, vectors)
    expected = parameters.reconstruct(face, vectors.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(short_videos.reconstruct_on_host(face, vectors[1]), found[1])


@pytest.mark.parametrize("convention", [crops.FACEJAX, crops.PUBLISHED, crops.V2])
def test_parameters_follow_the_places(
    face: parameters.LinearFace, vectors: np.ndarray, convention: crops.Convention
) -> None:
    rng, size = np.random.default_rng(1), 96
    turns = rng.uniform(0.8, 1.2, (3, 1, 1)) * Rotation.from_euler("yxz", rng.normal(0, 0.4, (3, 3))).as_matrix()
    moves = np.concatenate([turns, rng.normal(0, 6, (3, 3, 1))], -1)
    before, after = (
        crops.to_image(short_videos.reconstruct_on_host(face, v), size, convention)
        for v in (vectors, short_videos.moved(vectors, moves, size, convention))
    )
    expected = before @ turns.transpose(0, 2, 1) + moves[:, None, :, 3]
    np.testing.assert_allclose(after, expected, atol=1e-3)
    np.testing.assert_allclose(short_videos.moved_points(before, moves), expected[..., :2], atol=1e-3)


def spotted(size: int, places: np.ndarray) -> np.ndarray:
    """A picture with bright spots at places [P, 2]."""
    y, x = np.indices((size, size)) + 0.5
    spots = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * (size / 40) ** 2)) for a, b in places]
    return np.repeat(np.uint8(250 * np.clip(sum(spots), 0, 1))[..., None], 3, -1)


def found_places(frame: np.ndarray, near: np.ndarray, radius: float) -> np.ndarray:
    """Centres of the light within a radius of places [P, 2]."""
    y, x = np.indices(frame.shape[:2]) + 0.5
    centres = []
    for a, b in near:
        weight = frame[..., 0] * (np.hypot(x - a, y - b) < radius) * (frame[..., 0] > 40.0)
        centres.append([(x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()])
    return np.array(centres)


def dome(size: int) -> np.ndarray:
    """Vertices [V, 3] of a bulge in the middle of a picture, one and more in every pixel of it."""
    x, y = np.meshgrid(*[np.linspace(0.2, 0.8, 2 * size) * size] * 2)
    z = 0.2 * size * np.cos(np.pi * (x / size - 0.5)) * np.cos(np.pi * (y / size - 0.5))
    return np.stack([x, y, z], -1).reshape(-1, 3)


@pytest.mark.parametrize("size", [128, 97])
@pytest.mark.parametrize("deep", [False, True], ids=["flat", "turned"])
def test_landmarks_follow_the_frames(size: int, deep: bool) -> None:
    places = np.array([[0.5, 0.45], [0.35, 0.55], [0.62, 0.6]]) * size
    mesh = dome(size)
    heights = np.array([mesh[((mesh[:, :2] - p) ** 2).sum(1).argmin(), 2] for p in places])
    image = spotted(size, places)
    frames, moves = short_videos.short_video(image, 4, np.random.default_rng(5), mesh if deep else None)
    np.testing.assert_array_equal(moves[0], np.eye(4)[:3])
    marks = np.concatenate([places, heights[:, None]], -1)
    expected = short_videos.moved_points(np.tile(marks, (4, 1, 1)), moves)
    for frame, wanted in zip(frames, expected, strict=True):
        np.testing.assert_allclose(found_places(frame, wanted, 0.09 * size), wanted, atol=0.005 * size)
    assert (np.abs(moves[1:, :2, 2]).max() > 0.02) == deep  # how far depth shifts a place
    middle, scale = np.append(mesh.mean(0), 1), np.cbrt(np.linalg.det(moves[:, :, :3]))
    np.testing.assert_allclose(moves[:, 2] @ middle, scale * middle[2], rtol=1e-9)  # turns leave it in place
    steps = np.linalg.norm(np.diff(expected, axis=0), axis=-1)
    assert steps.max() > 0.01 * size and steps.max() < 0.15 * size
    again, _ = short_videos.short_video(np.zeros((size, size, 3), np.uint8), 2, np.random.default_rng(5))
    assert again.std() > 0  # noise


def test_a_relief_has_the_nearest_depth_and_fills_holes() -> None:
    mesh = dome(64)
    behind = mesh - [0, 0, 30]
    kept = np.concatenate([behind, mesh[::3]])
    depth = short_videos.relief(kept, 64)
    y, x = np.indices((64, 64)) + 0.5
    expected = 12.8 * np.cos(np.pi * (x / 64 - 0.5)) * np.cos(np.pi * (y / 64 - 0.5))
    np.testing.assert_allclose(depth[16:48, 16:48], expected[16:48, 16:48], atol=0.6)
    holes = short_videos.relief(mesh[np.random.default_rng(0).random(len(mesh)) < 0.1], 64)
    np.testing.assert_allclose(holes[16:48, 16:48], expected[16:48, 16:48], atol=0.9)
    assert expected[14, 14] - 8 < depth[0, 0] < expected[32, 32]  # no cliff at the border
    outside = short_videos.relief(mesh + np.array([100, 0, 0]), 64)
    np.testing.assert_allclose(outside, mesh[:, 2].mean(), rtol=1e-5)


def test_a_batch_of_videos(face: parameters.LinearFace, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    places = crops.to_image(short_videos.reconstruct_on_host(face, vectors), 96)
    stills = {
        "image": np.stack([cv2.GaussianBlur(x, (0, 0), 3) for x in rng.integers(0, 255, (3, 96, 96, 3), np.uint8)]),
        "parameters": vectors.astype(np.float32),
        "landmarks68": places[:, face.landmarks68, :2].astype(np.float32),
    }

    def load(examples: list[int], rngs: list[Any]) -> dict[str, np.ndarray]:
        assert examples == [0, 2] and len(rngs) == 2
        return {name: value[examples] for name, value in stills.items()}

    data = types.SimpleNamespace(loader=lambda: load, image_size=96, convention=crops.FACEJAX)
    monkeypatch.setattr(short_videos, "host_face", lambda data: face)
    batch = short_videos.batch(data, 3, [0, 1, 1, 2, 1, 1], [np.random.default_rng(i) for i in range(6)])
    assert batch["image"].shape == (6, 96, 96, 3) and batch["image"].dtype == np.uint8
    np.testing.assert_allclose(batch["landmarks68"][::3], stills["landmarks68"][[0, 2]], atol=1e-3)
    assert np.abs(batch["landmarks68"][1] - batch["landmarks68"][0]).max() > 0.5
    moved = crops.to_image(short_videos.reconstruct_on_host(face, batch["parameters"]), 96)[:, face.landmarks68, :2]
    np.testing.assert_allclose(batch["landmarks68"], moved, atol=0.01)


def test_the_face_of_the_face_world_is_in_numpy() -> None:
    found = short_videos.host_face(ReconstructionFaces())
    assert isinstance(found.bases, np.ndarray) and found.bases.shape[1:] == (3, 50)
