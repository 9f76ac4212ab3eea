"""Augmentation of boxes and landmarks: marked images, closed forms, published rules."""

import dataclasses

import cv2
import numpy as np
import pytest

from facejax.data import augment_boxes as ab

SIZE = (97, 131)
POINTS = np.array([[40.0, 30], [60, 30], [50, 42], [43, 55], [58, 55]])


def marked(size=SIZE, centres=POINTS, radius=4):
    """A picture with one disc of its own colour around every point of one face."""
    image = np.zeros((*size, 3), np.uint8)
    grid = np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1) + 0.5
    for k, centre in enumerate(centres):
        image[((grid - centre) ** 2).sum(-1) <= radius**2] = (60 + 40 * k, 250 - 40 * k, 30)
    low, high = centres.min(0) - radius, centres.max(0) + radius
    boxes = np.concatenate([low, high])[None]
    return ab.Picture(image, boxes, np.zeros(1, int), centres[None].copy(), np.ones((1, 5), bool))


def colour_centre(image, k):
    """Centre of mass of the disc of point k, found by its hue."""
    value = image.astype(float)
    want = np.array([60 + 40 * k, 250 - 40 * k, 30.0])
    norm = np.linalg.norm(value, axis=-1)
    alike = value @ want / np.maximum(norm * np.linalg.norm(want), 1e-9) > 0.996
    weight = norm * alike * (norm > 40)
    grid = np.stack(np.meshgrid(np.arange(image.shape[1]), np.arange(image.shape[0])), -1) + 0.5
    return (weight[..., None] * grid).sum((0, 1)) / weight.sum()


def bright_extent(image, threshold=90):
    """x1, y1, x2, y2 of the pixels above a grey level."""
    ys, xs = np.nonzero(image.max(-1) > threshold)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def block(size=SIZE, box=(40, 24, 72, 61)):
    """A white block that fills its box."""
    image = np.zeros((*size, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return ab.Picture(image, np.array([box], float), np.zeros(1, int), np.zeros((1, 0, 2)), np.zeros((1, 0), bool))


def test_mirror_swaps_the_sides_of_a_face():
    picture = marked()
    found = ab.mirrored(picture)
    np.testing.assert_array_equal(found.image, picture.image[:, ::-1])
    np.testing.assert_allclose(found.points[0, 0], [131 - 60, 30])
    np.testing.assert_allclose(found.points[0, 3], [131 - 58, 55])
    np.testing.assert_allclose(found.boxes, [[131 - 64, 26, 131 - 36, 59]])
    twice = ab.mirrored(found)
    for name in ("image", "boxes", "points", "visible"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(picture, name))


@pytest.mark.parametrize("box", [(0, 0, 131, 97), (40, 24, 72, 61), (-20, -30, 160, 140), (100, 50, 190, 60)])
def test_a_window_of_its_own_size_copies_pixels(box):
    """Whole pixels at scale 1: the exact pixels, `value` outside."""
    x1, y1, x2, y2 = box
    rng = np.random.default_rng(0)
    picture = marked()
    picture.image[:] = rng.integers(0, 256, picture.image.shape)
    found = ab.view(picture, box, (y2 - y1, x2 - x1), (1, 2, 3))
    padded = np.full((97 + 200, 131 + 200, 3), (1, 2, 3), np.uint8)
    padded[100:197, 100:231] = picture.image
    np.testing.assert_array_equal(found.image, padded[y1 + 100 : y2 + 100, x1 + 100 : x2 + 100])
    np.testing.assert_allclose(found.boxes, picture.boxes - [x1, y1, x1, y1])


WINDOWS = {
    "enlarged": ((30.25, 20.5, 75, 66), (173, 151)),
    "shrunk": ((-40.5, -20.25, 190, 120.5), (63, 87)),
    "one axis": ((0, 0, 131, 97), (191, 64)),
    "padded": ((-13, -5, 150, 108), (128, 128)),
}


@pytest.mark.parametrize("window,size", WINDOWS.values(), ids=WINDOWS)
def test_points_follow_their_pixels_in_a_window(window, size):
    found = ab.view(marked(), window, size, (0, 0, 0))
    assert found.image.shape == (*size, 3)
    for k in range(5):
        np.testing.assert_allclose(colour_centre(found.image, k), found.points[0, k], atol=0.25)


@pytest.mark.parametrize("interpolation", ab.INTERPOLATIONS)
def test_boxes_follow_their_pixels_in_every_interpolation(interpolation):
    for window, size in WINDOWS.values():
        found = ab.view(block(), window, size, (0, 0, 0), interpolation)
        np.testing.assert_allclose(bright_extent(found.image, 127), found.boxes[0], atol=0.75)


def test_colour_outside_begins_at_the_border():
    """No mixed colours at the border of the image; None repeats the border."""
    white = block(box=(0, 0, 131, 97))
    found = ab.view(white, (-20, -10, 151, 107), (171, 171), (10, 10, 10))
    assert set(np.unique(found.image)) == {10, 255}
    x1, y1, x2, y2 = found.boxes[0]
    inside = found.image[round(y1) : round(y2), round(x1) : round(x2)]
    assert (inside == 255).all()
    assert (found.image == 255).sum() == inside.size
    assert (ab.view(white, (-20, -10, 151, 107), (171, 171), None).image == 255).all()


@pytest.mark.parametrize("window", [(-500, -400, -300, -350), (140, 10, 150, 20), (-50000, -50000, 60000, 60000)])
def test_windows_far_away_take_no_memory(window):
    found = ab.view(block(), window, (40, 60), (9, 9, 9))
    assert (found.image == 9).mean() > 0.99


@pytest.mark.parametrize("size,centred", [(64, False), (65, True), (200, True)])
def test_letterbox_and_its_inverse(size, centred):
    picture = marked()
    found, scale, offset = ab.letterbox(picture, size, (7, 7, 7), centred)
    assert found.image.shape == (size, size, 3)
    assert scale == size / 131
    np.testing.assert_allclose(offset, [0, (131 - 97) / 2 * scale * centred])
    np.testing.assert_allclose(ab.unletterboxed(found.boxes, scale, offset), picture.boxes)
    np.testing.assert_allclose(ab.unletterboxed(found.points, scale, offset), picture.points)
    np.testing.assert_array_equal(found.image[-1], 7)
    for k in range(5):
        np.testing.assert_allclose(colour_centre(found.image, k), found.points[0, k], atol=0.25)


def test_kept_objects():
    """Centres strictly inside; boxes cut; those without area removed; points cut only on request."""
    boxes = np.array(
        [[-10, 10, 10, 30], [-8, 10, 12, 30], [120, 90, 150, 120], [10, 97, 20, 107], [9, 90, 19, 104]], float
    )
    points = np.tile(boxes[:, None, :2], (1, 5, 1))
    picture = ab.Picture(np.zeros((*SIZE, 3), np.uint8), boxes, np.arange(5), points, np.ones((5, 5), bool))
    assert ab.centred_objects(picture).labels.tolist() == [1]
    found = ab.clipped(picture)
    assert found.labels.tolist() == [0, 1, 2, 4]
    np.testing.assert_allclose(found.boxes, [[0, 10, 10, 30], [0, 10, 12, 30], [120, 90, 131, 97], [9, 90, 19, 97]])
    np.testing.assert_allclose(found.points[0, 0], [-10, 10])
    np.testing.assert_allclose(ab.clipped(picture, points=True).points[0, 0], [0, 10])


def test_face_windows_contain_a_face():
    boxes = np.array([[30, 30, 50, 52], [90, 60, 101, 71]], float)
    sides = set()
    for seed in range(200):
        window = ab.face_window(SIZE, boxes, np.random.default_rng(seed))
        assert window[2] - window[0] == window[3] - window[1]
        sides.add(int(window[2] - window[0]))
        assert (window[:2] >= 0).all()
        assert window[2] <= 131
        assert window[3] <= 97
        assert any((box[:2] >= window[:2]).all() and (box[2:] <= window[2:]).all() for box in boxes)
    assert sides == {int(r * 97) for r in (0.3, 0.45, 0.6, 0.8, 1.0)}
    wide = [ab.face_window(SIZE, boxes, np.random.default_rng(s), (2.0,), entire=False) for s in range(20)]
    assert all(w[2] - w[0] == 194 and w[0] <= 0 and w[1] <= 0 and w[2] >= 131 and w[3] >= 97 for w in wide)
    assert ab.face_window(SIZE, np.zeros((0, 4)), np.random.default_rng(0)) is None
    assert ab.face_window(SIZE, np.array([[0, 0, 131, 97.0]]), np.random.default_rng(0)) is None


def test_ssd_windows_obey_a_rule():
    boxes, frame = np.array([[30, 30, 70, 80.0]]), ab.whole(SIZE)
    found = np.array([ab.ssd_window(frame, boxes, np.random.default_rng(s)) for s in range(1400)])
    entire = (found == frame).all(1)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= frame[2:]).all()
    sides = (found[:, 2:] - found[:, :2])[~entire] / frame[2:]
    assert sides.min() > 0.2
    ratio = sides[:, 0] / sides[:, 1]
    assert 0.47 < ratio.min() < 0.6  # rounded to pixels
    assert 1.7 < ratio.max() < 2.15
    two = [ab.ssd_window(frame, boxes, np.random.default_rng(s), least=()) for s in range(500)]
    assert 0.43 < (np.array(two) == frame).all(1).mean() < 0.57  # the whole frame is one of two rules
    large = np.array([[30, 20, 100, 85.0]])
    close = {}
    for least in ((), (0.6,)):
        windows = np.array([ab.ssd_window(frame, large, np.random.default_rng(s), least) for s in range(300)])
        close[least] = (ab.overlaps(windows, large) >= 0.6).mean()
    assert close[0.6,] > close[()] + 0.2


def test_overlap_by_hand():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30.0]])
    np.testing.assert_allclose(ab.overlaps(boxes[:1], boxes), [[1, 25 / 175, 0]])


def test_expanded_windows_contain_the_image():
    found = np.array([ab.expanded_window(SIZE, np.random.default_rng(s)) for s in range(300)])
    ratio = (found[:, 2:] - found[:, :2]) / [131, 97]
    assert (found[:, :2] <= 0).all()
    assert (found[:, 2:] >= [131, 97]).all()
    assert 1 <= ratio.min() < 1.1
    assert 3.8 < ratio.max() <= 4
    assert np.ptp(ratio, axis=1).max() < 0.02


def test_anchor_windows_bring_a_face_to_an_anchor():
    """A face of 40 px has the nearest anchor 32: targets are half to twice of 16, 32, 64; the face stays inside."""
    boxes, sizes = np.array([[300, 200, 340, 240.0]]), []
    for seed in range(400):
        window = ab.anchor_window((480, 640), boxes, 640, np.random.default_rng(seed))
        side = window[2] - window[0]
        np.testing.assert_allclose(side, window[3] - window[1])
        sizes.append(40 * 640 / side)
        assert (window[:2] <= boxes[0, :2]).all()
        assert (window[2:] >= boxes[0, 2:]).all()
    assert 8 <= min(sizes) < 12
    assert 110 < max(sizes) <= 128
    huge = ab.anchor_window((480, 640), np.array([[0, 0, 640, 480.0]]), 640, np.random.default_rng(0))
    assert np.isfinite(huge).all()


def test_affine_windows():
    """Border 128 of a side of 300: centres in 128..171; of a side of 200: 64..135."""
    found = np.array([ab.affine_window((200, 300), 300, np.random.default_rng(s)) for s in range(500)])
    centre, side = (found[:, :2] + found[:, 2:]) / 2, found[:, 2] - found[:, 0]
    assert (centre.min(0).tolist(), centre.max(0).tolist()) == ([128, 64], [171, 135])
    np.testing.assert_allclose(np.unique(np.round(side / 300, 6)), np.arange(6, 14) / 10)
    assert np.isfinite(ab.affine_window((1, 1), 1, np.random.default_rng(0))).all()


def test_jittered_windows():
    found = np.array([ab.jittered_window((100, 200), np.random.default_rng(s)) for s in range(500)])
    np.testing.assert_allclose(found.min(0), [-40, -20, 160, 80], atol=2)
    np.testing.assert_allclose(found.max(0), [40, 20, 240, 120], atol=2)


def photometric_loop(image, shift, gain, factor, turn, early):
    """The published order in floating point, step by step."""

    def cut(x):
        return np.clip(x, 0, 255).astype(np.uint8)

    image = cut(image.astype(float) + shift)
    if early:
        image = cut(image.astype(float) * gain)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = cut(hsv[..., 1].astype(float) * factor)
    hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 180
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if early else cut(image.astype(float) * gain)


class Script:
    """A generator that returns given numbers."""

    def __init__(self, *numbers):
        self._numbers = iter(numbers)

    def _next(self, *args, **kwargs):
        return next(self._numbers)

    random = uniform = integers = _next


@pytest.mark.parametrize("early", [True, False])
def test_photometric_distortion(early):
    image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    script = Script(-21.5, 0.1, 1.3, 0.2, 0.6, 0.3, -15, 0.4, 0.2 if early else 0.8)
    expected = photometric_loop(image, -21.5, 1.3, 0.6, -15, early)
    np.testing.assert_array_equal(ab.photometric(image, script), expected)


def test_each_photometric_change_has_half_a_chance():
    grey = np.full((1, 1, 3), 100, np.uint8)
    found = np.array([ab.photometric(grey, np.random.default_rng(s))[0, 0, 0] for s in range(800)])
    assert 0.2 < (found == 100).mean() < 0.32  # neither brightness nor contrast
    assert found.min() < 45
    assert found.max() > 180


def test_hsv_jitter_and_exposure_stay_in_range():
    colour = np.array([[[200, 100, 50]]], np.uint8)  # hue 10, saturation 191, value 200 of OpenCV
    hsv = [cv2.cvtColor(ab.hsv_jitter(colour, np.random.default_rng(s)), cv2.COLOR_RGB2HSV)[0, 0] for s in range(300)]
    low, high = np.min(hsv, 0), np.max(hsv, 0)
    assert 9 <= low[0] <= high[0] <= 11
    assert 55 <= low[1] < 70
    assert high[1] == 255
    assert 118 <= low[2] < 125
    assert high[2] == 255
    hsv = [cv2.cvtColor(ab.exposed(colour, np.random.default_rng(s)), cv2.COLOR_RGB2HSV)[0, 0] for s in range(300)]
    assert 131 <= np.min(hsv, 0)[2] < 140
    assert 125 <= np.min(hsv, 0)[1] < 135


def test_colour_jitter_by_hand():
    """Factors 1.2, 0.9, 1.4 of brightness, contrast and saturation in that order, no lighting."""
    image = np.random.default_rng(0).integers(60, 150, (9, 7, 3), np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(float)
    expected = image * 1.2
    expected = expected * 0.9 + 0.1 * grey.mean()
    expected = expected * 1.4 - 0.4 * grey

    class Ordered(Script):
        def permutation(self, count):
            return range(count)

        def normal(self, mean, deviation, count):
            return np.full(count, self._next())

    found = ab.colour_jitter(image, Ordered(1.2, 0.9, 1.4, 0.0))
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=1)
    lit = ab.colour_jitter(image, Ordered(1.0, 1.0, 1.0, 0.2)).astype(float) - image
    np.testing.assert_allclose(lit.mean((0, 1)), 255 * 0.2 * ab.EIGENVECTORS @ ab.EIGENVALUES, atol=1)
    np.testing.assert_allclose(ab.EIGENVECTORS.T @ ab.EIGENVECTORS, np.eye(3), atol=1e-3)


COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.uint8)


@pytest.mark.parametrize("size", [64, 63])
def test_mosaic_has_a_picture_in_every_quarter(size):
    """Blocks of four colours are where their boxes say; the first lies left above the last."""
    seen = set()
    for seed in range(20):
        blocks = [block((50, 80), (10 + k, 5, 30 + 3 * k, 40)) for k in range(4)]
        tinted = [
            dataclasses.replace(b, image=b.image * c, labels=b.labels + k)
            for k, (b, c) in enumerate(zip(blocks, COLOURS, strict=True))
        ]
        found = ab.mosaic(tinted, size, np.random.default_rng(seed), (0, 0, 0))
        assert found.image.shape == (2 * size, 2 * size, 3)
        seen |= set(found.labels.tolist())
        for box, label in zip(found.boxes, found.labels, strict=True):
            ys, xs = np.nonzero(((found.image > 127) == COLOURS[label]).all(-1))
            np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], box, atol=0.75)
        corner = dict(zip(found.labels.tolist(), found.boxes[:, :2], strict=True))
        if {0, 3} <= set(corner):
            assert (corner[0] < corner[3]).all()
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(4))
def test_random_affine_moves_points_with_their_pixels(seed):
    picture = marked((151, 151), POINTS + 20)
    found = ab.random_affine(picture, 133, np.random.default_rng(seed), shear=8, value=(0, 0, 0))
    assert found.image.shape == (133, 133, 3)
    for k, point in enumerate(found.points[0]):
        if (point > 8).all() and (point < 125).all():
            np.testing.assert_allclose(colour_centre(found.image, k), point, atol=0.4)
    assert (found.boxes[0, :2] <= found.points[0].min(0)).all()


def test_boxes_contain_what_is_sheared():
    for seed in range(5):
        found = ab.random_affine(block(), 140, np.random.default_rng(seed), scale=0.2, shear=12, value=(0, 0, 0))
        np.testing.assert_allclose(bright_extent(found.image, 40), found.boxes[0], atol=1.5)


def test_random_affine_drops_what_is_hardly_left():
    """Shift by 0: boxes of 1 px, thin ones and those almost outside go, others stay."""
    boxes = np.array(
        [[10, 10, 11.5, 30], [10, 10, 60, 12.4], [-95, 10, 5, 30], [10, 10, 30, 30], [10, 10, 70, 14]], float
    )
    picture = ab.Picture(
        np.zeros((100, 100, 3), np.uint8), boxes, np.arange(5), np.zeros((5, 0, 2)), np.zeros((5, 0), bool)
    )
    found = ab.random_affine(picture, 100, np.random.default_rng(0), 0, 0, 0)
    assert found.labels.tolist() == [3, 4]
    np.testing.assert_allclose(found.boxes, boxes[3:])


@pytest.mark.parametrize("name", ab.RECIPES)
@pytest.mark.parametrize("size", [64, 97])
def test_recipes_give_sound_pictures(name, size):
    """Every recipe at an odd and an even size, with and without objects."""
    recipe, rng, seen = ab.RECIPES[name], np.random.default_rng(7), 0
    for picture in (marked(), marked((64, 64), POINTS - 10), block((31, 300), (3, 4, 20, 25)), block((1, 1)).keep([])):
        for _ in range(6):
            found = recipe(lambda picture=picture: picture, size, rng)
            assert found.image.shape == (size, size, 3)
            assert found.image.dtype == np.uint8
            assert len(found.boxes) == len(found.labels) == len(found.points) == len(found.visible)
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            if name != "scrfd":
                assert (found.boxes >= 0).all()
                assert (found.boxes <= size).all()
            seen += len(found.boxes)
    assert seen


@pytest.mark.parametrize(
    "name", ["none", "flip", "ssd", "face", "scrfd", "anchor", "affine", "corner", "yolo", "mosaic"]
)
def test_recipes_move_points_with_their_pixels(name):
    """The five points of a grey-free picture are found again by brightness: all discs are white, the rest is black."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        picture = marked(radius=5)
        picture.image[picture.image.any(-1)] = 255
        found = ab.RECIPES[name](lambda picture=picture: picture, 160, rng)
        if len(found.boxes) != 1:
            continue
        scale = np.sqrt(np.prod(found.boxes[0, 2:] - found.boxes[0, :2]) / np.prod([30, 35]))
        for x, y in found.points[0]:
            if 3 <= x < 157 and 3 <= y < 157 and scale > 0.5:
                patch = found.image[int(y - 1) : int(y + 2), int(x - 1) : int(x + 2)]
                assert patch.mean() > np.median(found.image) + 40
        points = found.points[0]
        assert points[0, 0] < points[1, 0]  # the left eye stays left
        assert points[3, 0] < points[4, 0]
