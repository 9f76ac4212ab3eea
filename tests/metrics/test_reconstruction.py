"""Errors of reconstruction by hand: bins of yaw, AFLW's 21 points, surfaces after alignment."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facejax.metrics import reconstruction

RNG = np.random.default_rng(0)


def test_the_mean_is_that_of_the_bins():
    errors = np.array([1.0, 2.0, 3.0, 7.0, 11.0, 13.0])
    yaw = np.array([0.0, -30.0, 12.0, 45.0, -60.5, 200.0])
    found = reconstruction.by_yaw(errors, yaw)
    assert found == pytest.approx(
        {
            "0_30": 2.0,
            "30_60": 7.0,
            "60_90": 12.0,
            "mean": 7.0,
            "std": np.std([2.0, 7.0, 12.0]),
            "images": 37 / 6,
        }
    )
    assert reconstruction.by_yaw(errors[:1], yaw[:1])["0_30"] == 1
    assert np.isnan(reconstruction.by_yaw(errors[:1], yaw[:1])["mean"])
    assert reconstruction.by_yaw([1.0, 3.0], [60.0, 60.001])["30_60"] == 1


@pytest.mark.parametrize(
    ("errors", "yaw", "sentence"),
    [
        ([1.0], [1.0, 2.0], r"errors \(1,\) and yaw \(2,\)"),
        ([], [], "expected"),
        ([np.nan], [0.0], "not finite"),
        ([1.0], [np.inf], "not finite"),
    ],
)
def test_bad_bins(errors, yaw, sentence):
    with pytest.raises(ValueError, match=sentence):
        reconstruction.by_yaw(errors, yaw)


def test_21_points_and_their_visible_errors():
    points = RNG.uniform(0, 100, (3, 68, 2))
    truth = reconstruction.to_21_points(points)
    np.testing.assert_allclose(truth[:, 7], points[:, 36:42].mean(1))
    np.testing.assert_allclose(truth[:, [0, 18]], np.stack([points[:, 17], points[:, 60:68].mean(1)], 1))
    truth = truth + np.array([3.0, 4.0])
    truth[0, :20] = -1
    truth[1, 5, 0] = -1  # one coordinate is enough
    truth[1, 5, 1] = 1e6
    sizes = np.array([10.0, 20.0, 50.0])
    np.testing.assert_allclose(reconstruction.aflw_errors(points, truth, sizes), [0.5, 0.25, 0.1])
    truth[2] = -1
    with pytest.raises(ValueError, match="face 2 has no visible point"):
        reconstruction.aflw_errors(points, truth, sizes)
    with pytest.raises(ValueError, match=r"predicted \(3, 21, 2\)"):
        reconstruction.aflw_errors(truth, truth, sizes)


@pytest.fixture
def surface():
    return RNG.normal(size=(200, 3)) * [3, 4, 1]


def test_procrustes_ignores_a_similarity_and_sees_the_rest(surface):
    turn = Rotation.from_euler("xyz", [0.4, 1.0, -0.3]).as_matrix()
    moved = 2.5 * surface @ turn.T + [5, 6, 7]
    assert reconstruction.procrustes_error(surface, moved, 2.0) == pytest.approx(0, abs=1e-9)
    assert reconstruction.procrustes_error(surface, moved, 2.0, scale=False) > 0.5
    mirrored = surface * [-1, 1, 1]
    assert reconstruction.procrustes_error(surface, mirrored, 1.0) > 0.3  # a reflection is no rotation
    noise = RNG.normal(size=surface.shape) * 0.01
    expected = np.linalg.norm(noise, axis=1).mean() / 4
    assert reconstruction.procrustes_error(surface, surface + noise, 4.0) == pytest.approx(expected, rel=0.05)


def test_closest_points_find_a_small_motion_of_another_mesh(surface):
    turn = Rotation.from_euler("xyz", [0.03, 0.05, -0.04]).as_matrix()
    moved = (1.02 * surface @ turn.T + [0.05, 0.03, 0.02])[::-1]
    assert reconstruction.icp_error(moved, surface, 1.0, change=1e-9) == pytest.approx(0, abs=1e-6)
    assert reconstruction.icp_error(moved[::2], surface, 1.0, change=1e-9) < 1e-3
    with pytest.raises(ValueError, match=r"200 predicted and 100 true"):
        reconstruction.procrustes_error(surface, surface[::2], 1.0)
    with pytest.raises(ValueError, match="finite"):
        reconstruction.icp_error(np.full((4, 3), np.nan), surface, 1.0)


def test_interocular_distance():
    marks = np.zeros((2, 68, 3))
    marks[:, 45] = [3, 4, 12]
    np.testing.assert_allclose(reconstruction.interocular_distance(marks), 13)
