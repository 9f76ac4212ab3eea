import numpy as np
import pytest

from facejax.evaluate import attributes

RNG = np.random.default_rng(0)


def crops(rows):
    return np.zeros((len(rows), 16, 16, 3), np.uint8)


def test_pose_report():
    truth = RNG.uniform(-60, 60, (20, 3))
    truth[0, 1] = 150  # does not count
    predicted = truth + np.array([1.0, -2, 6])
    predicted[0] = 0
    report = attributes.pose_report({"number": predicted, "conv": predicted + np.array([0, 0, 3])}, truth, crops)
    assert report.metrics["mae"] == pytest.approx(3)
    assert [report.metrics[k] for k in ("yaw", "pitch", "roll", "mae_conv")] == pytest.approx([1, 2, 6, 4])
    assert report.metrics["mae_of_the_mean_pose"] > 20
    (table,) = report.tables.values()
    assert sum(row["faces"] for row in table) == 19
    assert len(report.figures) == 2


def test_age_report():
    truth = np.float32([20, 30, 40, 50])
    report = attributes.age_report({"number": truth + np.float32([1, -4, 6, 0])}, truth, crops)
    assert report.metrics == pytest.approx({"mae": 11 / 4, "ca_3": 50, "ca_5": 75, "mae_of_the_median_age": 10})


def test_yaw_report():
    yaw = np.array([0.0, 10, -150, 30])
    predicted = np.stack([yaw + np.array([2, -2, 7, 5]), 0 * yaw, 0 * yaw], 1)
    report = attributes.yaw_report({"number": predicted}, yaw, crops)
    assert report.metrics == pytest.approx({"photographs_yaw": 3, "photographs_yaw_of_zero": 40 / 3})
    (table,) = report.tables.values()
    assert table == [{"|yaw|": "0 to 30", "yaw": 2, "faces": 2}, {"|yaw|": "30 to 60", "yaw": 5, "faces": 1}]
    assert report.arrays["photographs_yaw"].tolist() == [0, 10, 30]


def front(label):
    """Centre of the cube's front [x, y], relative to that of the image."""
    lines = [line for line, is_front in attributes.cube_lines(np.array(label, float), 65) if is_front]
    assert len(lines) == 4
    return np.mean(lines, (0, 1)) - 32


def test_cubes_look_where_the_face_looks():
    assert len(attributes.cube_lines(np.zeros(3), 65)) == 12
    np.testing.assert_allclose(front([0, 0, 0]), [0, 0], atol=1e-9)
    np.testing.assert_allclose(front([90, 0, 0]), [-65 / 4, 0], atol=1e-9)  # labels: a positive yaw is to the left
    np.testing.assert_allclose(front([0, 30, 0]), [0, -65 / 8], atol=1e-9)  # and a positive pitch up
    corners = np.array([line for line, _ in attributes.cube_lines(np.array([0, 0, 45.0]), 65)]).reshape(-1, 2) - 32
    assert corners[:, 0].max() == pytest.approx(np.sqrt(2) * 65 / 4)
    figure = attributes.cubes(crops(range(3)), np.zeros((3, 3)), np.zeros((3, 3)))
    assert [len(axis.lines) for axis in figure.axes] == [24, 24, 24, 0, 0, 0]
    assert {line.get_color() for line in attributes.cubes(crops([0]), np.zeros((1, 3))).axes[0].lines} == {"red"}
