import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.detection.base import Term, Truth, suppressed
from facejax.train import AXIS


def test_terms_over_devices_equal_one_device():
    rng = np.random.default_rng(0)
    total, count = rng.uniform(1, 5, (8, 3)).astype(np.float32), rng.integers(0, 4, (8, 3)).astype(np.float32)
    parts = jax.vmap(lambda t, c: Term(t, c, 2.0).value(AXIS), axis_name=AXIS)(total, count)
    whole = Term(total.ravel(), count.ravel(), 2.0).value()
    np.testing.assert_allclose(parts.mean(), whole, rtol=1e-6)
    np.testing.assert_allclose(whole, 2 * total.sum() / count.sum(), rtol=1e-6)
    np.testing.assert_allclose(Term(total[0], np.zeros(3, np.float32), 0.5).value(), 0.5 * total[0].sum(), rtol=1e-6)
    np.testing.assert_allclose(Term(total[0], np.full(3, 1e-3), 1.0, 1e-6).value(), total[0].sum() / 3e-3, rtol=1e-5)


def test_suppressed_pads_with_zeros_and_keeps_types():
    boxes = np.float32([[[0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]], [[0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]]])
    scores, points = np.float32([[0.5, 0.9, 0.1], [0.0, 0.0, 0.0]]), np.ones((2, 3, 5, 2), np.float32)
    labels = np.int32([[3, 3, 4]] * 2)
    found = suppressed(boxes, scores, points, labels, lowest=0.05, threshold=0.4, count=4)
    assert found.mask.dtype == bool and found.labels.dtype == jnp.int32
    assert found.mask.tolist() == [[True, True, False, False], [False] * 4]
    np.testing.assert_allclose(found.scores, [[0.9, 0.1, 0, 0], [0] * 4])
    np.testing.assert_allclose(found.boxes[0, :2], boxes[0, [1, 2]])
    assert found.labels.tolist() == [[3, 4, 0, 0], [0] * 4]
    assert found.points.shape == (2, 4, 5, 2) and found.points[0, 2:].sum() == 0 == found.points[1].sum()
    apart = suppressed(boxes, scores, labels=np.int32([[0, 1, 2]] * 2), lowest=0.05, threshold=0.4, count=3)
    assert apart.mask[0].all() and apart.points.shape == (2, 3, 0, 2)
    assert suppressed(boxes, scores, lowest=0.1, threshold=0.4, count=3).mask.sum() == 1  # scores must be above


def test_truth_reads_the_names_of_a_batch():
    names = ("image", "boxes", "labels", "points", "visible", "mask")
    truth = Truth.of({name: i for i, name in enumerate(names)})
    assert (truth.boxes, truth.labels, truth.points, truth.visible, truth.mask) == (1, 2, 3, 4, 5)
    with pytest.raises(KeyError):
        Truth.of({"boxes": 0})
