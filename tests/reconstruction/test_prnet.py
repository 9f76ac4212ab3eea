"""PRNet: network, loss, crops of position maps, landmarks, and the run."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import prnet as experiment
from facejax.data import positions
from facejax.data.synthetic import faces
from facejax.morphable.uv import UVLayout
from facejax.reconstruction import prnet
from facejax.train import app


def test_loss_by_hand():
    rng = np.random.default_rng(0)
    found, truth, weights = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 4, 4, 3)), rng.uniform(size=(4, 4))
    expected = [
        np.mean([[weights[i, j] * ((found[n, i, j] - truth[n, i, j]) ** 2).sum() for j in range(4)] for i in range(4)])
        for n in range(2)
    ]
    np.testing.assert_allclose(prnet.position_loss(found, truth, weights), expected, rtol=1e-5)
    plain = prnet.position_loss(found, truth, np.ones((4, 4)))
    np.testing.assert_allclose(plain, 3 * ((found - truth) ** 2).mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 48, 48, 3), (1, 64, 32, 3), (1, 33, 33, 3)])
def test_bad_sizes(shape):
    with pytest.raises(ValueError, match="S a multiple of 32"):
        prnet.Net(2).init(jax.random.key(0), jnp.zeros(shape), train=False)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    task = dataclasses.replace(faces.TASKS["reconstruction"], train=4, test=3, per_person=2)
    original, faces.TASKS["reconstruction"] = faces.TASKS["reconstruction"], task
    positions._load.cache_clear()
    yield str(tmp_path_factory.mktemp("positions"))
    faces.TASKS["reconstruction"] = original
    positions._load.cache_clear()


def test_maps_agree_with_landmarks_and_follow_the_crop(small_world):
    data = positions.PositionFaces(data_dir=small_world)
    test, layout = data.test(), data.layout
    marks = np.asarray(prnet.landmarks(test.positions, layout))[..., :2]
    errors = np.linalg.norm(marks - test.landmarks68, axis=-1)
    assert errors.mean() < 1.0 and errors.mean(0).max() < 2.5  # a texel of 64 is about a pixel of the face
    assert test.positions[:, layout.mask][..., 2].min(1) == pytest.approx(0, abs=1e-4)
    known = positions._load("train", small_world)
    row = {name: values[0] for name, values in known.items()}
    turned = dataclasses.replace(data, colour=0.0)
    batch = turned._load([row] * 4, [np.random.default_rng(i) for i in range(4)])
    for i in range(4):
        matrix = turned._matrix(row, np.random.default_rng(i))
        expected = row["positions"][..., :2] @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_allclose(batch["positions"][i][..., :2], expected, atol=1e-3)
        factor = np.sqrt(np.linalg.det(matrix[:, :2]))
        near = np.ptp(batch["positions"][i][layout.mask][:, 2]) / np.ptp(row["positions"][layout.mask][:, 2])
        np.testing.assert_allclose(near, factor, rtol=1e-4)
    assert np.ptp([turned._matrix(row, np.random.default_rng(i))[1, 0] for i in range(4)]) > 0.1


@pytest.mark.parametrize("size", [32, 128])
def test_resized_maps_leave_empty_texels_out(size, monkeypatch):
    """At a hole of the mesh, as between eyelids, positions are those of texels beside it."""
    mesh = np.zeros((64, 64), bool)
    mesh[8:40, 10:50] = True
    mesh[21:24, 21:30] = False
    places = (np.arange(size) + 0.5) * 64 / size - 0.5
    inside = cv2.resize(np.uint8(mesh), (size, size), interpolation=cv2.INTER_NEAREST) > 0
    monkeypatch.setattr(positions, "_layout", lambda size: UVLayout(inside, None, None))
    ramp = [np.stack([*np.meshgrid(x, x), np.full((len(x),) * 2, 7.0)], -1) / 2 + 20 for x in (np.arange(64), places)]
    corners = np.float32([[20, 25], [40, 45]])
    row = {"images": np.zeros((64, 64, 3), np.uint8), "positions": ramp[0] * mesh[..., None], "landmarks68": corners}
    data = positions.PositionFaces(image_size=size, rotation=0, shift=0, scale=0, colour=0)
    found = data._load([row], [np.random.default_rng(0)])["positions"][0]
    matrix = data._matrix(row, np.random.default_rng(0))
    expected = ramp[1][..., :2] @ matrix[:, :2].T + matrix[:, 2]
    errors = np.linalg.norm(found[..., :2] - expected, axis=-1)[inside]
    assert errors.max() < 0.25 * np.sqrt(2) * matrix[0, 0]  # half a texel along both axes; a texel is half a pixel
    np.testing.assert_allclose(found[inside][:, 2], 0, atol=1e-3)


def test_a_crop_shows_what_its_map_says(small_world):
    """Colours at the places of the map do not depend on the crop."""
    data = positions.PositionFaces(data_dir=small_world, colour=0.0, rotation=20.0)
    known = positions._load("train", small_world)
    row = {name: values[1] for name, values in known.items()}
    batch = data._load([row] * 2, [np.random.default_rng(i) for i in (1, 2)])

    def colours(image, places):
        x, y = np.clip(np.rint(places - 0.5).astype(int), 0, image.shape[0] - 1).T
        return image[y, x].astype(float)

    picked = data.layout.landmarks68[17:]
    first, second = (
        colours(batch["image"][i], batch["positions"][i][picked[:, 0], picked[:, 1], :2]) for i in range(2)
    )
    original = colours(row["images"], row["positions"][picked[:, 0], picked[:, 1], :2])
    assert np.corrcoef(first.ravel(), original.ravel())[0, 1] > 0.8
    assert np.corrcoef(second.ravel(), original.ravel())[0, 1] > 0.8


@pytest.mark.smoke
def test_run(small_world):
    config = experiment.get_config()
    config.data.data_dir, config.data.image_size, config.model.width = small_world, 32, 2
    config.train.batch_size, config.train.steps, config.train.devices = 4, 2, 1
    report = app.run(config, experiment.build, quiet=True)[1]
    assert np.isfinite(report.metrics["nme"]) and report.arrays["landmarks"].shape == (6, 68, 2)
    (rows,) = report.tables.values()
    assert {row["result"] for row in rows} == {"this system", "mean of the test faces"}


def test_equal_weights_have_the_same_sum():
    layout = positions.PositionFaces(image_size=32).layout
    uniform = layout.mask * (layout.weights.sum() / layout.mask.sum())
    np.testing.assert_allclose(uniform.sum(), layout.weights.sum(), rtol=1e-6)
    assert set(np.unique(layout.weights)) == {0, 3, 4, 16} and (layout.weights == 16).sum() <= 68
