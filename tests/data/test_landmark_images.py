import cv2
import numpy as np
import pytest

from facejax.data import landmark_images as li
from facejax.data.landmarks import MIRRORS
from facejax.data.readers import landmarks as readers
from facejax.data.synthetic import faces

STILL = li.Augmentation(rotation=0, scale=0, shift=0, flip=0, colour=0)


def marked(points, side=160):
    """A black image with a Gaussian spot at each point, which may lie between pixels."""
    y, x = np.indices((side, side))
    spots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.5**2)) for px, py in points]
    return np.repeat((255 * np.max(spots, 0)).round().astype(np.uint8)[..., None], 3, -1)


def centroid(image, near, reach=8):
    y, x = np.indices(image.shape[:2])
    weight = image[..., 0].astype(float) * (np.hypot(x - near[0], y - near[1]) < reach)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def example(points, side=160, region=(80.0, 78.0, 120.0)):
    encoded = cv2.imencode(".png", marked(points, side))[1].tobytes()
    return {"image": encoded, "points": points, "visible": np.ones(len(points), bool), "region": region,
            "attributes": np.zeros(4, bool)}  # fmt: skip


@pytest.mark.parametrize("size", [96, 61, 200])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_points_follow_the_image(size, flip):
    points = np.array([[60.3, 70.0], [101.5, 66.2], [80.0, 104.7]])
    augmentation = li.Augmentation(rotation=40, scale=0.15, shift=0.05, flip=flip, colour=0)
    load = li.loader(size, np.array([1, 0, 2]), augmentation)
    batch = load([example(points)] * 4, [np.random.default_rng(i) for i in range(4)])
    for image, found in zip(batch["image"], batch["points"], strict=True):
        for point in found:
            np.testing.assert_allclose(centroid(image, point, 0.07 * size), point, atol=0.05)
    angles = batch["points"][:, 1] - batch["points"][:, 0]
    assert np.ptp(angles[:, 1]) > 0.05 * size  # the rotations differ
    assert (angles[:, 0] > 0).all()  # after a flip, the left point is still the left one


def test_flip_exchanges_visibility():
    points = np.array([[60.0, 70.0], [100.0, 70.0], [80.0, 100.0]])
    given = {**example(points), "visible": np.array([True, False, True])}
    load = li.loader(64, np.array([1, 0, 2]), li.Augmentation(flip=1.0))
    np.testing.assert_array_equal(load([given], [np.random.default_rng(0)])["visible"], [[False, True, True]])


def test_region_edges_become_crop_edges():
    matrix = li.region_matrix((50.0, 40.0, 20.0), 0.0, 64)
    for image_x, crop_x in ((40.0, -0.5), (60.0, 63.5)):  # centre + side / 2 lies on the edge of the last pixel
        np.testing.assert_allclose(li.moved(np.array([image_x, 40.0]), matrix), [crop_x, 31.5])
    turned = li.region_matrix((50.0, 40.0, 20.0), 90.0, 64)
    np.testing.assert_allclose(li.moved(np.array([60.0, 40.0]), turned), [31.5, 63.5], atol=1e-9)  # right -> down


def test_nothing_changes_without_augmentation():
    points = np.array([[60.0, 70.0], [100.0, 70.0], [80.0, 100.0]])
    load = li.loader(64, np.array([1, 0, 2]), STILL)
    first, second = (load([example(points)], [np.random.default_rng(seed)]) for seed in (0, 1))
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["points"], second["points"])


@pytest.mark.parametrize("name", ["blur", "noise", "occlusion"])
def test_photometric_changes_keep_the_points(name):
    points = np.array([[60.0, 70.0], [100.0, 70.0], [80.0, 100.0]])
    plain = li.loader(64, np.arange(3), STILL)([example(points)], [np.random.default_rng(0)])
    augmentation = li.dataclasses.replace(STILL, **{name: 1.0})
    found = li.loader(64, np.arange(3), augmentation)([example(points)], [np.random.default_rng(0)])
    np.testing.assert_array_equal(found["points"], plain["points"])
    assert (found["image"] != plain["image"]).any()


def test_shrinking_smooths_first():
    checks = np.repeat((255 * (np.indices((256, 256)).sum(0) % 2)).astype(np.uint8)[..., None], 3, -1)
    small = li.crop(checks, li.region_matrix((127.5, 127.5, 256), 0.0, 32), 32)
    assert small[4:-4, 4:-4].std() < 3  # unsmoothed, every pixel is black or white


def test_bad_values():
    with pytest.raises(ValueError, match=r"side 0.0 at"):
        li.region_matrix((1.0, 1.0, 0.0), 0.0, 64)
    with pytest.raises(ValueError, match=r"data.augment.flip is 2: expected a probability"):
        li.Augmentation(flip=2)
    with pytest.raises(ValueError, match=r"data.landmarks is 5: face_world has 68 or 98"):
        li.LandmarkImages(landmarks=5)
    with pytest.raises(ValueError, match=r"data.kind is 'lfw': expected one of"):
        li.LandmarkImages(kind="lfw")


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    task = faces.dataclasses.replace(faces.TASKS["landmarks"], train=4, test=2, per_person=2, image_size=48)
    original, faces.TASKS["landmarks"] = faces.TASKS["landmarks"], task
    yield str(tmp_path_factory.mktemp("faces"))
    faces.TASKS["landmarks"] = original


@pytest.mark.parametrize("landmarks", [68, 98])
def test_face_world(small_world, landmarks):
    data = li.LandmarkImages(data_dir=small_world, landmarks=landmarks, image_size=40)
    batch = next(data.batches(4, 0))
    for name, shape in data.shapes(4).items():
        assert batch[name].shape == shape.shape and batch[name].dtype == shape.dtype
    test = data.test()
    assert test.points.shape == (4, landmarks, 2) and set(test.subsets) == set(data.attributes)
    inside = li.moved(test.points[0], test.matrices[0])
    assert inside.min() > 0 and inside.max() < 39  # the crop holds the whole face, with a margin
    assert abs(np.ptp(inside, 0).max() - 40 / 1.25) < 1e-4
    np.testing.assert_allclose(
        test.original(np.stack([li.moved(p, m) for p, m in zip(test.points, test.matrices)])), test.points
    )


def test_hard_test_is_fixed(small_world):
    data = li.LandmarkImages(data_dir=small_world, image_size=40, hard_test=True)
    first, second = data.test(), data.test()
    np.testing.assert_array_equal(first.matrices, second.matrices)
    assert np.ptp(np.arctan2(first.matrices[:, 1, 0], first.matrices[:, 0, 0])) > 0.1


def test_partners_are_permutations():
    for count, partners in MIRRORS.items():
        assert sorted(partners) == list(range(count))
        np.testing.assert_array_equal(partners[partners], np.arange(count))


@pytest.mark.parametrize(("crop", "side"), [("points", 60.0), ("box", 80.0)])
def test_wflw_in_its_layout(tmp_path, crop, side):
    lists = tmp_path / "WFLW_annotations/list_98pt_rect_attr_train_test"
    lists.mkdir(parents=True)
    (tmp_path / "WFLW_images").mkdir()
    cv2.imwrite(str(tmp_path / "WFLW_images/a.png"), np.zeros((120, 120, 3), np.uint8))
    points = np.random.default_rng(0).uniform(20, 80, (98, 2))
    points[0], points[1] = 20, 80
    line = f"{' '.join(f'{v:.6f}' for v in points.ravel())} 10 20 90 80 1 0 0 0 1 0 a.png"
    for split, rows in (("train", 4), ("test", 2)):
        (lists / f"list_98pt_rect_attr_{split}.txt").write_text("\n".join([line] * rows))
    data = li.LandmarkImages("wflw", str(tmp_path), landmarks=98, crop=crop, image_size=32)
    batch = next(data.batches(4, 0))
    assert batch["attributes"].tolist() == [[True, False, False, False, True, False]] * 4
    test = data.test()
    assert test.subsets["occlusion"].all() and not test.subsets["blur"].any()
    np.testing.assert_allclose(test.matrices[0, 0, 0], 32 / (1.25 * side))
    np.testing.assert_allclose(test.points[0], points, atol=1e-4)
    np.testing.assert_array_equal(test.boxes, [[10, 20, 90, 80]] * 2)


def test_300w_has_its_challenging_subset_and_no_boxes(tmp_path):
    for folder in ("afw", "helen/trainset", "lfpw/trainset", "helen/testset", "lfpw/testset", "ibug"):
        (tmp_path / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.zeros((90, 90, 3), np.uint8))
        readers.write_pts(tmp_path / folder / "a.pts", np.random.default_rng(0).uniform(20, 80, (68, 2)))
    data = li.LandmarkImages("300w", str(tmp_path))
    assert len(data.source("train")) == 3
    test = data.test()
    assert test.subsets["challenging"].tolist() == [False, False, True]
    assert test.boxes is None and test.visible.all()
    with pytest.raises(ValueError, match=r"data.crop is 'box': 300w has no boxes, expected 'points'"):
        li.LandmarkImages("300w", str(tmp_path), crop="box").source("train")


@pytest.mark.parametrize(("landmarks", "eyes", "chin"), [(68, (36, 45), 8), (98, (60, 72), 16)])
def test_the_mean_shape_fills_its_crop(landmarks, eyes, chin):
    found = li.LandmarkImages(landmarks=landmarks, enlarge=1.25).mean_shape()
    low, high = found.min(0), found.max(0)
    np.testing.assert_allclose([(high - low).max(), *(high + low)], [1 / 1.25, 1.0, 1.0], atol=1e-5)
    assert found[eyes[0], 0] < 0.5 < found[eyes[1], 0] and found[chin, 1] == high[1]  # the chin is the lowest
    with pytest.raises(ValueError, match="the mean face has 68 or 98 landmarks: expected one of them, not 29"):
        li.mean_face(29)


def test_weights_go_with_their_examples():
    source = li.Weighed([example(np.full((3, 2), float(i))) for i in (50, 60, 70)], np.array([1.0, 2.0, 3.0]))
    assert len(source) == 3 and source[1]["weight"] == 2
    load = li.loader(32, np.array([1, 0, 2]), STILL)
    batch = load(source.__getitems__([2, 0]), [np.random.default_rng(i) for i in range(2)])
    assert batch["weight"].dtype == np.float32
    np.testing.assert_array_equal(batch["weight"], [3.0, 1.0])
    assert "weight" not in load([source.source[0]], [np.random.default_rng(0)])


def test_photographs(test_data):
    faces = li.photographs(str(test_data / "aflw2000"), 64, 1.25)
    assert faces.points.shape == (2000, 68, 2) and sum(mask.sum() for mask in faces.subsets.values()) == 2000
    inside = np.stack([li.moved(p, m) for p, m in zip(faces.points, faces.matrices, strict=True)])
    assert inside.min() > 0 and inside.max() < 63  # 64 / 1.25 pixels around the middle
    image = faces.crops([0])[0]
    assert image.shape == (64, 64, 3) and image.std() > 20
