import cv2
import numpy as np
import pytest

from facejax.data import transforms


def test_golden_similarity():
    points = np.array([(100, 120), (160, 118), (130, 150), (108, 185), (155, 183)])
    expected = [[0.614793, -0.014179, -22.121832], [0.014179, 0.614793, -22.907693]]
    np.testing.assert_allclose(
        transforms.similarity_transform(points, transforms.ARCFACE_TEMPLATE), expected, atol=1e-5
    )
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = 2 * transforms.ARCFACE_TEMPLATE @ turn.T + [30, -12]
    expected = [[0.46984631, 0.17101007, -12.04326845], [-0.17101007, 0.46984631, 10.76845787]]
    np.testing.assert_allclose(transforms.similarity_transform(moved, transforms.ARCFACE_TEMPLATE), expected, atol=1e-6)


def test_similarity_has_no_reflection():
    mirrored = transforms.ARCFACE_TEMPLATE * [-1, 1]
    assert np.linalg.det(transforms.similarity_transform(mirrored, transforms.ARCFACE_TEMPLATE)[:, :2]) > 0
    with pytest.raises(ValueError, match="all source points are the same"):
        transforms.similarity_transform(np.ones((5, 2)), transforms.ARCFACE_TEMPLATE)


def test_templates():
    np.testing.assert_allclose(transforms.template(224), 2 * transforms.ARCFACE_TEMPLATE)
    np.testing.assert_allclose(transforms.template(112, 96), transforms.ARCFACE_TEMPLATE - [8, 0])
    np.testing.assert_allclose(
        transforms.template(128)[:, 0], transforms.ARCFACE_TEMPLATE[:, 0] * 128 / 112 * 112 / 112 * (112 / 128) + 8
    )
    with pytest.raises(ValueError, match="no crop of 100 x 100"):
        transforms.template(100)


def test_align_puts_points_on_the_template():
    points = 1.7 * transforms.ARCFACE_TEMPLATE + [40, 25]
    image = np.zeros((300, 300, 3), np.uint8)
    for x, y in points:
        cv2.circle(image, (round(x), round(y)), 4, (255, 255, 255), -1)
    crop = transforms.align(image, points)
    assert crop.shape == (112, 112, 3)
    for x, y in transforms.ARCFACE_TEMPLATE:
        assert crop[round(y), round(x)].min() > 200


def test_five_points():
    marks = np.random.default_rng(0).normal(size=(2, 68, 2))
    five = transforms.five_points(marks)
    np.testing.assert_allclose(five[:, 0], (marks[:, 36] + marks[:, 39]) / 2)
    np.testing.assert_allclose(five[:, 2:], marks[:, [30, 48, 54]])


def test_decode_is_rgb_and_strict():
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 200
    encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(transforms.decode(encoded), image)
    for bad in (b"", b"not an image", encoded[:20]):
        with pytest.raises(ValueError, match=f"an image of {len(bad)} bytes does not decode"):
            transforms.decode(bad)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_decode_turns_images_unless_they_have_coordinates(turned_jpeg, orientation, turns):
    image = np.zeros((24, 40, 3), np.uint8)
    image[:8, :8] = 250
    encoded = turned_jpeg(image, orientation)
    np.testing.assert_allclose(transforms.decode(encoded, upright=False), image, atol=10)
    np.testing.assert_allclose(transforms.decode(encoded), np.rot90(image, turns), atol=10)


def test_random_flip_and_dali_aug_frequencies():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)
    flips = [transforms.random_flip(image, rng)[0, 0].tolist() == image[0, -1].tolist() for _ in range(400)]
    assert 0.4 < np.mean(flips) < 0.6
    outputs = [transforms.dali_aug(image, rng) for _ in range(400)]
    same = np.mean([np.array_equal(o, image) for o in outputs])
    assert abs(same - 0.9 * 0.8 * 0.8 * 0.9) < 0.08
    assert all(o.shape == image.shape and o.dtype == np.uint8 for o in outputs)


@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.float32, np.uint8])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
def test_warp_is_exact_or_refused(dtype, channels):
    """Half a pixel to the right and down: means of four neighbours."""
    image = np.random.default_rng(0).integers(0, 255, (9, 8, *channels)).astype(dtype)
    matrix = np.float64([[1, 0, -0.5], [0, 1, -0.5]])
    if channels == (2,) or dtype in (np.float64, np.int16):
        with pytest.raises(ValueError, match=r"expected uint8 or float32 with 1, 3 or 4 channels"):
            transforms.warp(image, matrix, (8, 7))
        return
    wide = image.astype(np.float64)
    expected = (wide[:-1, :-1] + wide[1:, :-1] + wide[:-1, 1:] + wide[1:, 1:]) / 4
    found = transforms.warp(image, matrix, (8, 7)).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=0.76 if dtype == np.uint8 else 1e-3)


def test_align_takes_images_that_warp_exactly():
    points = transforms.template(112)
    with pytest.raises(ValueError, match=r"an image \(112, 112, 3\) of float64"):
        transforms.align(np.zeros((112, 112, 3)), points)
