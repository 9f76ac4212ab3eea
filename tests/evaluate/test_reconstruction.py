"""Reports of reconstructed faces: perfect and shifted results by hand, pictures, bad crops."""

import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data.readers.aflw2000_crops import Aflw2000Crops
from facejax.data.reconstruction import Faces
from facejax.evaluate import reconstruction as evaluation
from facejax.evaluate.reconstruction import Surfaces
from facejax.morphable import crops, parameters
from facejax.morphable.parameters import Layout, LinearFace, Parameters
from facejax.ops import rotation

N, SIZE = 5, 32
LAYOUT = Layout(2, 1)


@pytest.fixture(scope="module")
def face():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:9j, -1:1:9j].reshape(2, -1)
    mean = np.stack([x, y, 0.5 - 0.4 * (x**2 + y**2)], -1)
    index = np.arange(81).reshape(9, 9)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])
    bases = rng.normal(size=(81, 3, 3)) * 0.05
    arrays = (jnp.asarray(v, jnp.float32) for v in (mean, bases))
    return LinearFace(*arrays, jnp.asarray(triangles), jnp.arange(68), LAYOUT)


@pytest.fixture(scope="module")
def test(face):
    rng = np.random.default_rng(1)
    yaw = np.array([0.0, 10, 40, -50, 65])
    turn = rotation.from_euler(jnp.asarray(np.radians(np.stack([0 * yaw, yaw, 0 * yaw], 1))))
    pose = parameters.compose(jnp.full(N, 10.0), turn, jnp.tile(jnp.array([16.0, 16, 0]), (N, 1)))
    form = jnp.asarray(rng.normal(size=(N, 3)))
    vectors = np.asarray(parameters.join(Parameters(pose, form[:, :2], form[:, 2:])), np.float32)
    true = evaluation.surfaces(face, vectors, SIZE)
    images = rng.integers(0, 255, (N, SIZE, SIZE, 3)).astype(np.uint8)
    whole = np.tile(np.float32([0, 0, SIZE, SIZE]), (N, 1))
    return Faces(images, vectors, true.landmarks68, np.ones((N, 68), bool), yaw, whole, np.arange(N))


def test_surfaces_follow_the_convention(face, test):
    usual, other = (
        evaluation.surfaces(face, test.parameters, SIZE, convention=c) for c in (crops.FACEJAX, crops.PUBLISHED)
    )
    np.testing.assert_allclose(other.landmarks68 - usual.landmarks68, np.full((N, 68, 2), [-0.5, 0.5]), atol=1e-4)


def test_the_truth_has_no_error(face, test):
    found = evaluation.surfaces(face, test.parameters, SIZE)
    report = evaluation.faces_report(test, found, face, {"the same": found})
    assert next(iter(report.metrics)) == "nme"
    for name in ("nme", "dense", "shape", "nme_60_90", "dense_30_60", "nme_images"):
        assert report.metrics[name] == pytest.approx(0, abs=1e-3)
    (rows,) = report.tables.values()
    assert [row["result"] for row in rows] == ["this system"] * 3 + ["the same"] * 3
    (picture,) = report.images.values()
    assert picture.shape == (3 * 3 * SIZE, 5 * 3 * SIZE, 3)
    assert picture[3 * SIZE : 6 * SIZE].std() > 5
    depth = picture[6 * SIZE :]
    assert (depth[..., 0] == depth[..., 2]).all() and depth.max() == 255 and depth.min() == 0


def test_a_shift_by_hand(face, test):
    found = evaluation.surfaces(face, test.parameters, SIZE)
    moved = Surfaces(found.landmarks68 + np.array([3, 4]), found.vertices + np.float32([3, 4, 0]))
    errors = evaluation.errors(moved, found)
    for points, name in ((test.landmarks68, "nme"), (found.vertices[..., :2], "dense")):
        boxes = np.sqrt(np.prod(points.max(1) - points.min(1), -1))
        np.testing.assert_allclose(errors[name], 500 / boxes, rtol=1e-4)
    np.testing.assert_allclose(errors["shape"], 0, atol=1e-3)  # a translation
    assert set(evaluation.errors(Surfaces(found.landmarks68), found)) == {"nme"}
    with pytest.raises(ValueError, match=r"vertices \(5, 80, 3\), expected \(5, 81, 3\) as the true ones"):
        evaluation.errors(Surfaces(found.landmarks68, found.vertices[:, 1:]), found)


def test_the_fit_to_true_landmarks_is_close(face, test):
    found = evaluation.fitted(face, test.landmarks68, SIZE, noise=0.01)
    assert evaluation.errors(found, evaluation.surfaces(face, test.parameters, SIZE))["nme"].max() < 0.5
    broken = test.landmarks68.copy()
    broken[3, 5, 1] = np.nan
    with pytest.raises(ValueError, match="the landmarks of face 3 are not finite"):
        evaluation.fitted(face, broken, SIZE)


def test_bad_crops():
    images = np.random.default_rng(0).random((3, 8, 8, 3))
    evaluation.check_crops(images)
    broken = images.copy()
    broken[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="crop 1 has values that are not finite"):
        evaluation.check_crops(broken)
    broken[1] = 0
    with pytest.raises(ValueError, match="crop 1 has one colour throughout, expected a face"):
        evaluation.regress(lambda v, x: x, None, broken, 2)
    with pytest.raises(ValueError, match=r"crops \(3, 8, 8\), expected \[N, S, S, 3\]"):
        evaluation.check_crops(images[..., 0])


def test_benchmark_on_its_own_labels(test_data):
    benchmark = Aflw2000Crops(test_data / "aflw2000")
    report = evaluation.aflw2000_report(benchmark, benchmark.landmarks68)
    assert report.metrics["nme"] == 0
    assert 0.5 < report.metrics["renewed_nme"] < 5  # the labels differ
    (rows,) = report.tables.values()
    assert len(rows) == 4
    (picture,) = report.images.values()
    places = 2 * benchmark.to_crops(benchmark.landmarks68)[evaluation.spread(np.zeros(len(benchmark)))]
    assert picture.shape == (240, 8 * 240, 3)
    for number, points in enumerate(places):
        columns, lines = (points - 0.5).round().astype(int).clip(0, 239).T
        assert (picture[lines, 240 * number + columns] == (255, 40, 40)).all(1).mean() > 0.9  # inside of the crop
    there_and_back = benchmark.to_originals(benchmark.to_crops(benchmark.reannotated))
    np.testing.assert_allclose(there_and_back, benchmark.reannotated, atol=1e-3)
    shifted = evaluation.aflw2000_report(benchmark, benchmark.landmarks68 + np.array([3, 4]))
    boxes = np.sqrt(np.prod(np.ptp(benchmark.landmarks68, axis=1), -1))
    assert shifted.metrics["nme_images"] == pytest.approx(500 * (1 / boxes).mean(), rel=1e-4)
