"""Photographs of any size and type through a detector, whole and in tiles."""

import dataclasses
import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import facejax
from facejax.data.synthetic.faces import png
from facejax.data.transforms import decode
from facejax.detection import scrfd
from facejax.detection.base import Detections, suppressed
from facejax.ops.boxes import coverage, iou
from facejax.predictor import Predictor, merged, opened, views

WEIGHTS = "weights/scrfd/scrfd_500m_kps.onnx"


class Bright(nn.Module):
    """Mean brightness 0..1 of every 8 x 8 cell."""

    @nn.compact
    def __call__(self, x, *, train):
        self.param("unused", nn.initializers.zeros, (1,))
        return nn.avg_pool(x, (8, 8), (8, 8), "SAME")[..., 0] / 255


@dataclasses.dataclass(frozen=True)
class Squares:
    """A detector whose faces are the cells brighter than a half; `grow` changes their boxes."""

    net: nn.Module = dataclasses.field(default_factory=Bright)
    count: int = 8
    grow: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    classes = 1
    points = 1

    def preprocess(self, images):
        return images.astype(jnp.float32)

    def decode(self, raw, size):
        rows, columns = jnp.indices(raw.shape[1:]) * 8.0
        boxes = jnp.stack([columns, rows, columns + 8, rows + 8], -1) + jnp.array(self.grow)
        scores = raw.reshape(len(raw), -1)
        boxes = jnp.broadcast_to(boxes.reshape(-1, 4), (*scores.shape, 4))
        return suppressed(boxes, scores, boxes[..., None, :2], lowest=0.5, threshold=0.5, count=self.count)


def squares(size=64, batch_size=1, **options):
    detector = Squares(**options)
    variables = detector.net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    return Predictor(detector, variables, size, batch_size)


def bright(height, width, *cells):
    """A black image with bright cells (x, y) in units of 8 pixels; the first is the brightest."""
    image = np.zeros((height, width, 3), np.uint8)
    for i, (x, y) in enumerate(cells):
        image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 255 - 2 * i
    return image


@pytest.fixture(scope="module")
def predictor():
    return squares()


@pytest.fixture(scope="module")
def published(test_data):
    return facejax.load_pretrained("scrfd_500m_kps", test_data / WEIGHTS)


@pytest.fixture(scope="module")
def photos(test_data):
    return test_data / "faces" / "photos"


def test_boxes_are_in_pixels_of_the_image(predictor):
    cells = bright(64, 48, (4, 6), (2, 1))
    found = predictor(cells.repeat(4, 0).repeat(4, 1))  # seen at a quarter of its scale
    assert isinstance(found, Detections) and all(isinstance(x, np.ndarray) for x in jax.tree.leaves(found))
    assert found.boxes.shape == (8, 4) and found.points.shape == (8, 1, 2)
    assert found.mask.sum() == predictor(cells).mask.sum() == 2
    np.testing.assert_allclose(found.boxes[:2], [[128, 192, 160, 224], [64, 32, 96, 64]])
    np.testing.assert_allclose(found.points[:2, 0], found.boxes[:2, :2])
    assert not found.boxes[2:].any() and not found.scores[2:].any()


@pytest.mark.parametrize("shape", [(75, 101), (33, 64), (50, 31)])
def test_odd_sides_are_scaled_by_what_was_drawn(predictor, shape):
    (view,) = views(np.full((*shape, 3), 255, np.uint8), 64, 64 / max(shape), 0)
    drawn = (view.image > 0).any((1, 2)).sum(), (view.image > 0).any((0, 2)).sum()
    assert tuple(view.extent[::-1]) == drawn
    np.testing.assert_allclose(view.scale * shape[::-1], view.extent)
    assert abs(view.extent / np.array(shape[::-1]) - 64 / max(shape)).max() < 1 / min(shape)


def test_a_list_equals_its_images(predictor):
    images = [bright(64, 64, (1, 1)), bright(32, 64, (2, 1), (5, 2)), bright(100, 51), bright(64, 64, (7, 7), (0, 0))]
    for batch_size in (1, 3):
        found = squares(batch_size=batch_size)(images)
        assert found.mask.sum(1).tolist() == [1, 2, 0, 2]
        for i, image in enumerate(images):
            single = predictor(image)
            jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-6), found, single)


def test_kinds_of_images(predictor):
    image = bright(64, 64, (1, 1), (5, 3))
    grey = image[..., 0]
    alpha = np.dstack([image, np.zeros_like(grey)])
    deep = grey.astype(np.uint16) * 257
    expected = predictor(image)
    assert expected.mask.sum() == 2
    for same in (grey, grey[..., None], alpha, deep, deep[..., None], jnp.asarray(image), np.asfortranarray(image)):
        jax.tree.map(np.testing.assert_array_equal, predictor(same), expected)
    np.testing.assert_array_equal(opened(np.array([[0, 128, 129, 65535]], np.uint16))[0, :, 0], [0, 0, 1, 255])
    coloured = np.random.default_rng(0).integers(0, 255, (9, 7, 4)).astype(np.uint8)
    np.testing.assert_array_equal(opened(coloured), coloured[..., :3])


def test_files(predictor, tmp_path, turned_jpeg):
    image = bright(64, 32, (1, 1), (2, 5))
    expected = predictor(image)
    (tmp_path / "a.png").write_bytes(png(image))
    for same in (png(image), tmp_path / "a.png", str(tmp_path / "a.png")):
        jax.tree.map(np.testing.assert_array_equal, predictor(same), expected)
    turned = predictor(turned_jpeg(np.rot90(image), 6))  # 6: turn by 90 degrees clockwise to see it upright
    np.testing.assert_allclose(turned.boxes, expected.boxes)
    stored = predictor(np.rot90(image))
    assert stored.mask.sum() == 2 and abs(stored.boxes - expected.boxes).max() > 8


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((4, 4, 3), np.float32), r"an image of float32: expected uint8 \(0 to 255\) or uint16"),
        (np.zeros((4, 4), bool), "an image of bool: expected uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"an image of shape \[2, 4, 4, 3\]: expected \[H, W\], "),
        (np.zeros((4, 4, 2), np.uint8), r"an image of shape \[4, 4, 2\]: expected"),
        (np.zeros((0, 4, 3), np.uint8), r"an image of shape \[0, 4, 3\]: expected"),
        (None, "an image is a NoneType: expected an array, a path or the bytes of a file"),
        (b"", "an image of 0 bytes does not decode"),
        (b"abc", "an image of 3 bytes does not decode: expected a JPEG, PNG, "),
        ([], "an empty list of images"),
    ],
)
def test_wrong_images(predictor, image, sentence):
    with pytest.raises(ValueError, match=sentence):
        predictor(image)


def test_wrong_settings(predictor, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: an image of 8 bytes does not decode"):
        predictor(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        predictor(tmp_path / "b.png")
    image = bright(64, 64)
    for size in (16, 64.5, -1):
        with pytest.raises(ValueError, match=f"size is {size}: expected a whole number of pixels, 32 or more"):
            predictor(image, size=size)
    for overlap in (-1, 64):
        with pytest.raises(ValueError, match=f"overlap is {overlap}: expected 0 to 63"):
            predictor.tiled(image, overlap=overlap)


@pytest.mark.parametrize("shape", [(64, 64), (1, 200), (200, 1), (37, 53)])
def test_images_without_faces(predictor, shape):
    found = predictor(np.zeros(shape, np.uint8))
    assert not found.mask.any() and not found.boxes.any() and found.boxes.shape == (8, 4)
    assert predictor.tiled(np.zeros(shape, np.uint8)).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("grow", "kept"),
    [
        ((0, 0, -8, 0), 0),  # no width
        ((0, 9, 0, 0), 0),  # negative height
        ((-32, 0, -32, 0), 1),  # left of the image, but for the cell at x = 32
        ((0, 16, 0, 16), 1),  # in the black part below the image of 32 rows, but for the cell at y = 8
        ((-4, -4, 4, 4), 2),  # beyond the border
    ],
)
def test_boxes_without_area_or_outside_are_dropped(grow, kept):
    found = squares(grow=grow)(bright(32, 64, (3, 2), (4, 1)))
    assert found.mask.sum() == kept and found.mask[:kept].all()
    assert (found.scores[:kept] > 0.5).all() and not found.boxes[kept:].any()
    if kept == 1:
        np.testing.assert_allclose(found.boxes[0], np.array([32, 8, 40, 16]) + grow)


def test_more_faces_than_rows_warn_once():
    predictor = squares(count=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(bright(64, 64, (0, 0), (2, 2)))
    many = bright(64, 64, *((2 * i, 2 * i) for i in range(4)), (6, 0))
    with pytest.warns(UserWarning, match="an image has 3 detections or more: .* only the 3 of the highest scores"):
        found = predictor(many)
    np.testing.assert_allclose(found.boxes[:, 0], [0, 16, 32])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(many)


def test_tiles_cover_an_image_and_overlap():
    image = np.random.default_rng(0).integers(1, 255, (150, 331, 3)).astype(np.uint8)
    seen, places = np.zeros(image.shape[:2], int), []
    for view in views(image, 64, 1.0, 20):
        (left, top), (width, height) = view.offset.astype(int), view.extent.astype(int)
        np.testing.assert_array_equal(view.image[:height, :width], image[top : top + 64, left : left + 64])
        assert (width, height) == (64, 64)
        assert view.inner.tolist() == [left > 0, top > 0, left + 64 < 331, top + 64 < 150]
        seen[top : top + height, left : left + width] += 1
        places.append((left, top))
    assert (seen > 0).all()
    for axis, length in ((0, 331), (1, 150)):
        starts = sorted({int(place[axis]) for place in places})
        assert starts[0] == 0 and starts[-1] == length - 64
        assert (np.diff(starts) <= 44).all() and len(starts) == -(-(length - 20) // 44)


def test_merged():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 4, 4], [0, 0, 5, 5], [20, 0, 30, 10]], np.float32)
    scores, labels, origin = np.array([0.9, 0.8, 0.7, 0.6, 0.95]), np.zeros(5, int), np.array([0, 1, 1, 0, 1])
    assert merged(boxes, scores, labels, origin, 0.5).tolist() == [4, 0, 3]  # 2 is a part of 0, 3 is of the same view
    assert merged(boxes, scores, np.array([0, 1, 0, 0, 0]), origin, 0.5).tolist() == [4, 0, 1, 3]
    assert merged(boxes, scores, labels, origin, 0.9).tolist() == [4, 0, 3]  # 1 is covered by 0
    assert merged(boxes[:0], scores[:0], labels[:0], origin[:0], 0.5).shape == (0,)


def test_tiles_keep_one_box_of_a_face_at_their_borders():
    cells = [(x, y) for x in range(0, 38, 5) for y in range(20)][:24]
    cells += [(x, 7) for x in range(5, 38)]
    found = squares(count=64).tiled(bright(160, 304, *cells), overlap=16)  # tiles begin at multiples of 48
    assert sorted(found.boxes[:, :2].tolist()) == sorted([8 * x, 8 * y] for x, y in set(cells))
    assert len(found.boxes) == len(set(cells)) and found.mask.all()
    assert (np.diff(found.scores) <= 0).all()


def test_recorded_detections(published, photos, test_data):
    """InsightFace's script on photographs, compared in pixels of the network's input."""
    recorded = np.load(test_data / "weights" / "scrfd" / "reference.npz")
    names = [f"{name}.jpg" for name in ("multiface", "trump_hillary", "largest_selfie")]
    found = published([photos / name for name in names])
    for i, name in enumerate(names):
        stem, (height, width) = name.removesuffix(".jpg"), decode((photos / name).read_bytes()).shape[:2]
        expected, scale = recorded[f"{stem}_dets"], recorded[f"{stem}_scale"]
        ours = np.array([640 / width, int(640 * height / width) / height])  # the script divides both sides by `scale`
        rows = found.mask[i]
        assert rows.sum() == len(expected)
        np.testing.assert_allclose(found.boxes[i][rows] * np.tile(ours, 2), expected[:, :4] * scale, atol=0.1)
        np.testing.assert_allclose(found.points[i][rows] * ours, recorded[f"{stem}_dets_kps"] * scale, atol=0.1)
        np.testing.assert_allclose(found.scores[i][rows], expected[:, 4], atol=1e-4)
    assert published.variables["params"]["outputs0"]["cls"]["kernel"].shape == (3, 3, 64, 2)


def test_options_of_the_detector(test_data):
    strict = facejax.load_pretrained("scrfd_500m_kps", test_data / WEIGHTS, lowest=0.87)
    assert (strict.detector.lowest, strict.detector.threshold) == (0.87, 0.4)
    with pytest.raises(ValueError, match="scrfd_500m_kps has no option 'highest'"):
        facejax.load_pretrained("scrfd_500m_kps", test_data / WEIGHTS, highest=1)


def test_a_mosaic_is_found_in_tiles(published, photos):
    """Copies of a photograph at several places: every face once, wherever the tiles cut it."""
    image = decode((photos / "multiface.jpg").read_bytes())
    faces = published(image)
    faces = faces.boxes[faces.mask]
    shifts = [(0, 0), (1290, 37), (171, 777)]
    mosaic = np.zeros((1500, 2600, 3), np.uint8)
    for x, y in shifts:
        mosaic[y : y + image.shape[0], x : x + image.shape[1]] = image
    expected = np.concatenate([faces + np.array([x, y, x, y]) for x, y in shifts])
    found = published.tiled(mosaic)
    assert len(found.boxes) == len(expected) == 18
    overlaps = np.asarray(iou(expected[:, None], found.boxes))
    assert (overlaps.max(0) > 0.7).all() and (overlaps.max(1) > 0.7).all()


def test_small_faces_of_a_large_photograph(published, photos):
    """At its own scale a crowd shows four times as many faces as within 640 pixels, none of them twice."""
    whole, found = published(photos / "largest_selfie.jpg"), published.tiled(photos / "largest_selfie.jpg")
    assert len(found.boxes) > 3 * whole.mask.sum()
    inside = np.array(coverage(found.boxes[:, None], found.boxes))
    np.fill_diagonal(inside, 0)
    assert inside.max() < 0.6


def test_any_size_of_input(photos, published):
    """A side that no stride divides: the same faces."""
    faces, odd = (published(photos / "multiface.jpg", size=size) for size in (640, 501))
    assert odd.mask.sum() == faces.mask.sum() == 6
    np.testing.assert_allclose(np.sort(odd.boxes[:6, 0]), np.sort(faces.boxes[:6, 0]), atol=12)


def test_random_network():
    """A detector of the library without published weights."""
    trunk = functools.partial(scrfd.ResidualTrunk, 4, (4, 4, 8, 8), (1, 1, 1, 1))
    net = scrfd.Net(trunk, 8, 8, 1, **scrfd.KEYPOINTS)
    variables = jax.jit(lambda key: net.init(key, jnp.zeros((1, 64, 64, 3)), train=False))(jax.random.key(0))
    predictor = Predictor(scrfd.SCRFD(net, lowest=0.0, count=10), variables, 75)
    with pytest.warns(UserWarning, match="10 detections or more"):
        found = predictor([np.full((40, 90), 77, np.uint8), np.zeros((5, 5, 3), np.uint8)])
    assert found.points.shape == (2, 10, 5, 2) and found.mask[0].any()


def test_what_is_compiled_in_cannot_be_replaced():
    predict = squares()
    for name in ("detector", "variables"):
        with pytest.raises(AttributeError, match=name):
            setattr(predict, name, None)
