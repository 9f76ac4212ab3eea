import numpy as np
import pytest

from facejax.metrics import pose
from facejax.ops import rotation

pytestmark = pytest.mark.smoke

LABELS = np.random.default_rng(0).uniform(-80, 80, (50, 3))


def biwi_formula(matrix):
    """The labels of BIWI by the formula of the sheet: angles of the transposed matrix."""
    t = matrix.T
    yaw = -np.arctan2(-t[2, 0], np.hypot(t[2, 1], t[2, 2]))
    return np.degrees([yaw, np.arctan2(t[2, 1], t[2, 2]), -np.arctan2(t[1, 0], t[0, 0])])


def test_conventions_agree_with_ops():
    angles = np.array(rotation.from_euler(pose.from_labels(LABELS)))
    np.testing.assert_allclose(pose.rotation(LABELS), angles, atol=1e-6)
    pitch_yaw_roll = np.radians(LABELS[:, [1, 0, 2]])
    np.testing.assert_allclose(pose.rotation(LABELS), rotation.from_euler_3ddfa(pitch_yaw_roll), atol=1e-6)
    zyx = np.degrees(rotation.to_euler_zyx(pose.rotation(LABELS)))[:, [1, 0, 2]]
    np.testing.assert_allclose(pose.to_zyx(LABELS), zyx, atol=1e-3)


def test_conversions_are_inverses():
    np.testing.assert_allclose(pose.to_labels(pose.from_labels(LABELS)), LABELS)
    np.testing.assert_allclose(pose.labels(pose.rotation(LABELS)), LABELS, atol=1e-9)
    np.testing.assert_allclose(pose.from_biwi(pose.to_biwi(LABELS)), LABELS, atol=1e-9)
    np.testing.assert_allclose(pose.from_zyx(pose.to_zyx(LABELS)), LABELS, atol=1e-9)


def test_known_angles():
    matrices = pose.to_biwi(LABELS)
    np.testing.assert_allclose([biwi_formula(m) for m in matrices], LABELS, atol=1e-9)
    np.testing.assert_allclose(pose.to_zyx([40.0, 20.0, 25.0]), [43.79, -4.35, -15.91], atol=0.01)
    np.testing.assert_allclose(
        pose.to_zyx([[30.0, 0, 0], [0, 30, 0], [0, 0, 30]]), np.diag([30.0, -30, -30]), atol=1e-9
    )
    turned = pose.rotation([30.0, 0, 0]) @ [0, 0, 1]
    assert turned[0] == pytest.approx(-0.5)  # positive yaw of the labels turns the nose to the viewer's left
    assert (pose.rotation([0.0, 20, 0]) @ [0, 0, 1])[1] > 0.3  # and positive pitch lifts it


def test_errors_by_hand():
    truth = np.array([[10.0, 0, 0], [0, 20, 0], [0, 0, 100], [-99, 0, 0]])
    predicted = truth + np.array([[3, 0, 0], [0, -6, 0], [50, 50, 50], [0, 0, 9]])
    found = pose.pose_errors(predicted, truth)
    np.testing.assert_allclose(found, [1, 2, 3, 2, 6, 3], atol=1e-9)  # the geodesic errors are 3, 6 and 9
    assert pose.pose_errors(predicted, truth, None).faces == 4
    np.testing.assert_allclose(pose.within(truth), [True, True, False, True])
    small = pose.geodesic(LABELS, LABELS + 1e-7)
    assert (small > 0).all() and (small < 1e-6).all()
    np.testing.assert_allclose(pose.geodesic([[0.0, 0, 0]], [[0, 180, 0]]), [180])


def test_wrong_input_raises():
    with pytest.raises(ValueError, match=r"shape \(4, 2\): expected three angles"):
        pose.to_labels(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"predicted \(1, 3\) and truth \(2, 3\), expected \[N, 3\] twice"):
        pose.pose_errors(np.zeros((1, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="none of 2 faces has all angles within 99"):
        pose.pose_errors(np.zeros((2, 3)), np.full((2, 3), 120.0))
    with pytest.raises(ValueError, match="expected finite angles only"):
        pose.pose_errors(np.full((1, 3), np.nan), np.zeros((1, 3)))
