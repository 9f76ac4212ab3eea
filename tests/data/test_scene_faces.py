import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data import attribute_images, scene_faces
from facejax.data.landmark_images import Augmentation
from facejax.data.landmarks import MIRROR_68
from facejax.data.synthetic import factors, scenes
from facejax.data.synthetic.faces import png
from facejax.data.synthetic.scenes import Scenes
from facejax.morphable import camera, model
from facejax.morphable.procedural import procedural
from facejax.ops import rotation

SETTINGS = Scenes("scene_faces_test", 128, 1, 1)
ANGLES = np.array([[0.2, -0.5, 0.1], [-0.1, 0.3, -0.2], [0.0, 0.0, 0.0]])
PLACE = np.array([[30.0, 60.0, 64.0, 8.0], [12.0, 40.0, 80.0, 6.0], [30.0, 110.0, 60.0, 9.0]])


@pytest.fixture
def source(monkeypatch):
    """A scene with three faces, of which the last lies partly outside; landmarks are white on black."""
    rng = np.random.default_rng(0)
    face = procedural()
    identity = rng.normal(size=(3, len(face.identity_std))).astype(np.float32)
    expression = 0.3 * rng.normal(size=(3, len(face.expression_std))).astype(np.float32)
    points = scene_faces.mesh_landmarks(identity, expression, ANGLES, PLACE)
    image = np.zeros((128, 128, 3), np.uint8)
    for x, y in np.rint(points[0] - 0.5).astype(int):
        cv2.circle(image, (int(x), int(y)), 1, (255, 255, 255), -1)
    example = {
        "image": png(image), "boxes": np.concatenate([points.min(1), points.max(1)], 1),
        "occlusion": np.zeros(3), "person": np.array([4, 2, 4]), "identity": identity, "expression": expression,
        "pose": ANGLES, "camera": PLACE,
    }  # fmt: skip
    monkeypatch.setattr(scenes, "load", lambda *_: [example])
    return example


def test_landmarks_are_those_of_the_whole_mesh(source):
    face = procedural()
    vertices = model.shape(face, source["identity"], source["expression"])
    whole = camera.perspective(vertices, rotation.from_euler(ANGLES), PLACE[:, 0], PLACE[:, 1:3], PLACE[:, 3])
    found = scene_faces.mesh_landmarks(source["identity"], source["expression"], ANGLES, PLACE)
    np.testing.assert_allclose(found, whole[:, face.landmarks68, :2], atol=1e-3)


def test_faces_inside_of_some_height(source):
    faces = scene_faces.SceneFaces(SETTINGS, "test", lowest=10.0)
    assert len(faces) == 2  # the third lies partly outside
    heights = np.diff(source["boxes"][:, [1, 3]])[:, 0]
    assert len(scene_faces.SceneFaces(SETTINGS, "test", lowest=heights[1] + 1)) == 1
    np.testing.assert_array_equal(faces[1]["pose"], ANGLES[1])
    source["occlusion"][0] = 0.5
    assert len(scene_faces.SceneFaces(SETTINGS, "test", lowest=10.0)) == 1


def test_ages_are_those_of_the_people():
    face = procedural()
    dimensions = (len(face.identity_std), len(face.albedo_std))
    known = [factors.person(SETTINGS.seed, n, dimensions, factors.Ranges())["age"] for n in (4, 2)]
    np.testing.assert_allclose(scene_faces.ages(SETTINGS, np.array([4, 2, 4])), [*known, known[0]], rtol=1e-6)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_landmarks_lie_where_the_crop_shows_them(source, flip):
    change = Augmentation(rotation=30.0, scale=0.1, shift=0.05, flip=flip, colour=0.0)
    load = scene_faces.loader(96, 1.3, change)
    example = scene_faces.SceneFaces(SETTINGS, "test", lowest=10.0)[0]
    batch = load([example], [np.random.default_rng(3)])
    at = np.rint(batch["points"][0]).astype(int)
    assert ((at >= 0) & (at < 96)).all()
    assert batch["image"][0, at[:, 1], at[:, 0], 0].min() > 150 > 100 > batch["image"].mean()
    still = scene_faces.loader(96, 1.3, scene_faces.STILL)([example], [np.random.default_rng(3)])
    assert (batch["points"][0, 0, 0] > batch["points"][0, 16, 0]) == (
        still["points"][0, 0, 0] > still["points"][0, 16, 0]
    )
    np.testing.assert_allclose(still["pose"][0], attribute_images.labels(ANGLES[0]), atol=1e-4)
    x, y, side = scene_faces.square(example["box"], 1.3)
    middle = (still["points"][0] - 47.5) * side / 96 + [x, y]
    np.testing.assert_allclose(middle, example["points"], atol=1e-3)


@pytest.mark.parametrize("mirror", [False, True])
def test_pose_follows_turns_and_flips(mirror):
    face, angles, degrees = procedural(), np.array([0.2, -0.4, 0.15]), 25.0
    marks = np.asarray(face.mean_shape)[np.asarray(face.landmarks68)]
    half = (marks + marks[MIRROR_68] * [-1, 1, 1]) / 2  # exactly symmetric

    def seen(pose):
        return np.asarray(half @ np.asarray(rotation.from_euler(jnp.array(pose))).T)[:, :2] * [1, -1]

    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    moved = seen(angles) @ np.array([[c, -s], [s, c]]).T
    if mirror:
        moved = (moved * [-1, 1])[MIRROR_68]
    np.testing.assert_allclose(seen(scene_faces.turned(angles, degrees, mirror)), moved, atol=1e-5)


def test_grey_crops(source):
    example = scene_faces.SceneFaces(SETTINGS, "test", lowest=10.0)[0]
    colours = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    batches = [
        scene_faces.loader(32, 1.3, scene_faces.STILL, grey)(
            [{**example, "image": png(colours)}], [np.random.default_rng(0)]
        )
        for grey in (0.0, 1.0)
    ]
    spread = [np.ptp(batch["image"].astype(int), axis=-1).max() for batch in batches]
    assert spread[0] > 50 and spread[1] == 0
