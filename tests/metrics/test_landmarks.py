import jax.numpy as jnp
import numpy as np
import pytest

from facejax.metrics import landmarks as metric

pytestmark = pytest.mark.smoke


def face(points, **places):
    truth = np.zeros((1, points, 2))
    for place, xy in places.items():
        truth[0, int(place[1:])] = xy
    return truth


def test_sizes_by_hand():
    ocular = face(68, p36=(10, 0), p45=(40, 40))
    assert metric.face_sizes(ocular, "inter_ocular") == 50
    eyes = face(68, **{f"p{i}": (i, 0) for i in range(36, 42)}, **{f"p{i}": (i, 8) for i in range(42, 48)})
    assert metric.face_sizes(eyes, "inter_pupil") == 10  # 38.5 to 44.5 and 0 to 8
    assert metric.face_sizes(face(98, p60=(3, 0), p72=(3, 7)), "inter_ocular") == 7
    assert metric.face_sizes(face(98, p96=(3, 0), p97=(3, 5)), "inter_pupil") == 5
    assert metric.face_sizes(face(29, p8=(3, 0), p9=(0, 4)), "inter_ocular") == 5
    assert metric.face_sizes(face(29, p16=(3, 0), p17=(0, 4)), "inter_pupil") == 5
    box = face(5, p1=(9, 16))
    assert metric.face_sizes(box, "box") == 12
    assert metric.face_sizes(face(5, p1=(3, 4)), "box_diagonal") == 5
    assert metric.face_sizes(box, "box", np.array([[1, 1, 5, 17]])) == 8


def test_errors():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (4, 68, 2))
    sizes = metric.face_sizes(truth, "inter_ocular")
    shifted = metric.normalized_mean_error(truth + np.array([3, 4]), truth, sizes)
    np.testing.assert_allclose(shifted, 5 / sizes)
    angle = 0.3
    turn = 1.7 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    predicted = truth + rng.normal(size=truth.shape)
    for kind in ("inter_ocular", "inter_pupil"):
        plain, turned = (
            metric.normalized_mean_error(p, t, metric.face_sizes(t, kind))
            for p, t in ((predicted, truth), (predicted @ turn.T + 7, truth @ turn.T + 7))
        )
        np.testing.assert_allclose(turned, plain)
    on_device = metric.normalized_mean_error(
        jnp.asarray(predicted), jnp.asarray(truth), metric.face_sizes(jnp.asarray(truth), "box")
    )
    np.testing.assert_allclose(
        on_device, metric.normalized_mean_error(predicted, truth, metric.face_sizes(truth, "box")), rtol=1e-5
    )


def test_failures_and_curves():
    errors = [0.02, 0.1, 0.04, 0.2]
    assert metric.failure_rate(errors, 0.1) == 0.25
    assert metric.failure_rate(errors, 0.1, strict=False) == 0.5
    np.testing.assert_array_equal(metric.cumulative_error(errors, [0, 0.02, 0.05, 0.1, 1]), [0, 0.25, 0.5, 0.75, 1])
    assert metric.area_under_curve(np.zeros(3), 0.1) == pytest.approx(1)
    assert metric.area_under_curve(np.full(7, 0.03), 0.08) == pytest.approx(1 - 0.03 / 0.08, abs=1e-3)
    assert metric.area_under_curve(np.full(7, 0.09), 0.08) == 0
    mixed = metric.area_under_curve(errors, 0.1)
    assert mixed == pytest.approx(np.mean([max(0, 1 - e / 0.1) for e in errors]), abs=1e-3)
    assert 1 - metric.cumulative_error(errors, 0.08) == metric.failure_rate(errors, 0.08)


def test_invalid_input_raises():
    with pytest.raises(ValueError, match="kind 'iod', expected one of inter_ocular, inter_pupil, box, box_diagonal"):
        metric.face_sizes(np.zeros((1, 68, 2)), "iod")
    with pytest.raises(ValueError, match="no inter_ocular distance is known for 5 landmarks, only for 68, 98, 29"):
        metric.face_sizes(np.zeros((1, 5, 2)), "inter_ocular")
    with pytest.raises(ValueError, match=r"predicted \(2, 5, 2\), truth \(1, 5, 2\) and sizes \(1,\)"):
        metric.normalized_mean_error(np.zeros((2, 5, 2)), np.zeros((1, 5, 2)), np.ones(1))
    with pytest.raises(ValueError, match=r"landmarks \(5, 2\), expected \[N, L, 2\]"):
        metric.face_sizes(np.zeros((5, 2)), "box")
    with pytest.raises(ValueError, match=r"threshold 0 and step .*, expected both above 0"):
        metric.area_under_curve([0.1], 0)
    with pytest.raises(ValueError, match=r"errors of shape \(0,\), expected \[N\], at least one"):
        metric.failure_rate([], 0.1)
    with pytest.raises(ValueError, match="the error of face 1 is nan, expected finite numbers only"):
        metric.failure_rate([0.1, np.nan], 0.1)


@pytest.mark.parametrize("kind", metric.NORMALIZERS)
@pytest.mark.parametrize(("place", "size"), [(5.0, "0"), (np.nan, "nan")])
def test_a_face_without_size_is_named(kind, place, size):
    truth = np.random.default_rng(0).uniform(0, 100, (3, 68, 2))
    truth[1] = place
    with pytest.raises(ValueError, match=rf"face 1 has the size {size} \({kind}\), expected above 0"):
        metric.face_sizes(truth, kind)
