import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from facejax.ops import boxes


def random_boxes(rng, count, scale=50.0):
    low = rng.uniform(0, scale, (count, 2))
    return np.concatenate([low, low + rng.uniform(1, scale, (count, 2))], -1).astype(np.float32)


def brute_iou(a, b, extra=0.0):
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    shared = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0] + extra) * (x[3] - x[1] + extra) for x in (a, b)]
    return shared, shared / (sum(areas) - shared)


@pytest.mark.parametrize("plus_one", [False, True])
def test_overlaps_equal_brute_force(plus_one):
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 7), random_boxes(rng, 5)
    found = [f(a[:, None], b, plus_one=plus_one) for f in (boxes.intersection, boxes.iou)]
    brute = np.array([[brute_iou(x, y, float(plus_one)) for y in b] for x in a])
    np.testing.assert_allclose(np.stack(found, -1), brute, rtol=1e-5)
    area = (a[:, 2] - a[:, 0] + plus_one) * (a[:, 3] - a[:, 1] + plus_one)
    covered = boxes.coverage(a[:, None], b, plus_one=plus_one)
    np.testing.assert_allclose(covered, brute[..., 0] / area[:, None], rtol=1e-5)


def test_empty_boxes_have_no_overlap_and_finite_gradients():
    empty = jnp.array([3.0, 4.0, 3.0, 4.0])
    for measure in (boxes.iou, boxes.giou, boxes.diou, boxes.ciou, boxes.coverage):
        value, slope = jax.value_and_grad(measure)(empty, empty)
        assert np.isfinite(value) and np.isfinite(slope).all(), measure
        assert value == 0, measure
    assert boxes.area(jnp.array([5.0, 5.0, 1.0, 1.0])) == 0


def test_generalised_overlaps_by_hand():
    a, b = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, 1.0, 3.0, 5.0])
    shared, union, hull = 1.0, 4 + 8 - 1.0, 15.0
    np.testing.assert_allclose(boxes.giou(a, b), shared / union - (hull - union) / hull, rtol=1e-6)
    distance = (2.0 - 1) ** 2 + (3.0 - 1) ** 2
    diou = shared / union - distance / (3**2 + 5**2)
    np.testing.assert_allclose(boxes.diou(a, b), diou, rtol=1e-6)
    aspect = 4 / np.pi**2 * (np.arctan(2 / 2) - np.arctan(2 / 4)) ** 2
    weight = aspect / (1 - shared / union + aspect)
    np.testing.assert_allclose(boxes.ciou(a, b), diou - weight * aspect, rtol=1e-6)
    far = jnp.array([10.0, 0.0, 12.0, 2.0])
    np.testing.assert_allclose(boxes.giou(a, far), 0 - (24 - 8) / 24, rtol=1e-6)
    for measure in (boxes.giou, boxes.diou, boxes.ciou):
        np.testing.assert_allclose(measure(a, a), 1, rtol=1e-6)


def test_gradients():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 4), random_boxes(rng, 4)
    b = a + 0.3 * (b - a)
    for measure in (boxes.iou, boxes.giou, boxes.diou):
        check_grads(lambda x, f=measure: f(x, b), (jnp.asarray(a),), 1, modes=["rev"], rtol=2e-2, atol=1e-3)


def test_the_weight_of_the_aspect_is_a_constant():
    a, b = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, 1.0, 3.0, 5.0])
    aspect = 4 / np.pi**2 * (np.arctan(1.0) - np.arctan(0.5)) ** 2
    weight = aspect / (1 - 1 / 11 + aspect)

    def fixed(a):
        angle = jnp.arctan((a[2] - a[0]) / (a[3] - a[1])) - jnp.arctan(0.5)
        return boxes.diou(a, b) - weight * 4 / np.pi**2 * angle**2

    np.testing.assert_allclose(jax.grad(boxes.ciou)(a, b), jax.grad(fixed)(a), rtol=1e-4)


@pytest.mark.parametrize("variances", [(0.1, 0.2), (1.0, 1.0)])
def test_encodings_invert(variances):
    rng = np.random.default_rng(2)
    targets, anchors = random_boxes(rng, 9), np.asarray(boxes.to_center(random_boxes(rng, 9)))
    offsets = boxes.encode(targets, anchors, variances)
    np.testing.assert_allclose(boxes.decode(offsets, anchors, variances), targets, rtol=1e-4, atol=1e-4)
    points = rng.uniform(0, 50, (9, 5, 2)).astype(np.float32)
    offsets = boxes.encode_points(points, anchors, variances[0])
    np.testing.assert_allclose(boxes.decode_points(offsets, anchors, variances[0]), points, rtol=1e-4)
    distances = boxes.encode_distances(targets, anchors[:, :2], 8.0)
    np.testing.assert_allclose(boxes.decode_distances(distances, anchors[:, :2], 8.0), targets, rtol=1e-4, atol=1e-4)


def test_encoding_by_hand():
    offsets = boxes.encode(jnp.array([0.0, 0, 20, 40]), jnp.array([20.0, 10, 40, 10]))
    np.testing.assert_allclose(offsets, [-10 / 4, 10 / 1, np.log(0.5) / 0.2, np.log(4.0) / 0.2], rtol=1e-5)
    assert np.isfinite(boxes.encode(jnp.array([3.0, 3, 3, 3]), jnp.array([20.0, 10, 40, 10]))).all()
    huge = boxes.decode(jnp.array([0.0, 0, 0, 100]), jnp.array([0.0, 0, 1, 1]), (1.0, 1.0), largest_log=np.log(62.5))
    np.testing.assert_allclose(huge[3] - huge[1], 62.5, rtol=1e-5)


def test_anchor_order_and_places():
    found = boxes.anchors((9, 17), (8, 16), (boxes.shapes((16, 32)), boxes.shapes((64,), (0.5, 1, 2))))
    assert found.shape == (2 * 3 * 2 + 1 * 2 * 3, 4)
    np.testing.assert_allclose(found[:3], [[4, 4, 16, 16], [4, 4, 32, 32], [12, 4, 16, 16]])
    np.testing.assert_allclose(found[12], [8, 8, 64 * 2**0.5, 64 / 2**0.5], rtol=1e-6)
    np.testing.assert_allclose(found[12:, 2] * found[12:, 3], 64**2, rtol=1e-6)
    np.testing.assert_allclose(found[14, 3] / found[14, 2], 2, rtol=1e-6)
    assert len(boxes.anchors((640, 640), (8, 16, 32), (np.ones((2, 2)),) * 3)) == 16_800


def test_clip():
    np.testing.assert_allclose(boxes.clip(jnp.array([-3.0, -2, 90, 70]), (50, 80)), [0, 0, 80, 50])
