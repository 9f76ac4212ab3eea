import cv2
import numpy as np
import pytest
import scipy.io

from facejax.data import attribute_images as images
from facejax.data.attribute_images import AttributeImages
from facejax.data.synthetic import faces
from facejax.metrics import pose

RNG = np.random.default_rng(0)


def noise(height, width):
    return RNG.integers(0, 255, (height, width, 3), np.uint8)


def code_crop(image, points, margin, size):
    """The crop of the authors' script, whose points [2, L] count from 1."""
    left, right = int(min(points[0])), int(max(points[0]))
    top, bottom = int(min(points[1])), int(max(points[1]))
    height, width = bottom - top, right - left
    left, right = max(int(left - margin * width), 0), min(int(right + margin * width), image.shape[1] - 1)
    top, bottom = max(int(top - margin * height), 0), min(int(bottom + margin * height), image.shape[0] - 1)
    return cv2.resize(image[top:bottom, left:right], (size, size))


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.6])
@pytest.mark.parametrize(("low", "high"), [(60, 90), (3, 140), (40.5, 77.25)])
def test_crops_are_those_of_the_authors(margin, low, high):
    image, points = noise(120, 150), RNG.uniform(low, high, (2, 21))
    box = (np.concatenate([points.min(1), points.max(1)]) - 1).astype(np.float32)
    np.testing.assert_array_equal(images.loose_crop(image, box, margin, 64), code_crop(image, points, margin, 64))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5, 5, 5, 20), "leaves no pixel of an image of 30 x 40"),
        ((-50, 5, -20, 20), "leaves no pixel"),
        ((5, 50, 20, 80), "leaves no pixel"),
        ((20, 5, 5, 20), "leaves no pixel"),
        ((5, np.nan, 20, 80), "expected finite numbers"),
    ],
)
def test_degenerate_crops_raise(box, message):
    with pytest.raises(ValueError, match=f"image7: .*{message}"):
        images.loose_crop(noise(40, 30), box, 0.2, 64, "image7")


def test_labels():
    angles = RNG.uniform(-1, 1, (5, 3))
    np.testing.assert_allclose(images.labels(angles), pose.to_labels(angles))


@pytest.mark.parametrize("attribute", ["age", "pose"])
@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_augmentation(attribute, size):
    change, image = images.CHANGES[attribute], noise(*size)
    seen = [change(image, np.random.default_rng(i)) for i in range(60)]
    assert all(x.shape == image.shape and x.dtype == np.uint8 for x in seen)
    np.testing.assert_array_equal(change(image, np.random.default_rng(3)), seen[3])
    flips = np.mean([(x == image[:, ::-1]).all() for x in seen])
    same = np.mean([(x == image).all() for x in seen])
    if attribute == "age":  # a quarter to a half stays, or is only mirrored
        assert 0.05 < flips < 0.35
        assert 0.05 < same < 0.35
    else:
        assert flips == 0
        borders = [np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]]) for x in seen]
        for value in (0, 255):
            assert any((b == value).all(1).mean() > 0.4 for b in borders)


def test_moving_keeps_the_centre():
    image = np.zeros((65, 65, 3), np.uint8)
    image[32, 32] = 255
    turned = images.moved(image, np.array([[0.0, -1], [1, 0]]), np.zeros(2))
    assert turned[32, 32, 0] == 255
    assert images.moved(image, np.eye(2), np.array([5.0, -2]))[30, 37, 0] == 255


def test_face_world(monkeypatch):
    examples = [
        {
            "image": faces.png(noise(64, 64)),
            "landmarks68": np.float32(RNG.uniform(10, 50, (68, 2))),
            "pose": np.float32(RNG.normal(size=3)),
            "age": np.float32(20 + i),
        }
        for i in range(6)
    ]
    monkeypatch.setattr(faces, "load", lambda *given: {("attributes", "train", None): examples}[given])
    for attribute, shape in (("age", ()), ("pose", (3,))):
        data = AttributeImages(attribute, image_size=48)
        source = data.source("train")
        expected = [e["age"] if attribute == "age" else pose.to_labels(e["pose"]) for e in examples]
        np.testing.assert_allclose([source[i]["target"] for i in range(6)], expected, rtol=1e-5)
        batch, wanted = next(data.batches(4, seed=0)), data.shapes(4)
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
        assert batch["target"].shape == (4, *shape)
    np.testing.assert_allclose(source[0]["box"][:2], examples[0]["landmarks68"].min(0) - 0.5, rtol=1e-5)
    plain = AttributeImages("pose", augment=False)
    np.testing.assert_array_equal(plain.load([source[0]], [RNG])["image"][0], plain.crop(source[0]))


def lp_face(folder, name, yaw):
    folder.mkdir(parents=True, exist_ok=True)
    points = RNG.uniform(20, 70, (2, 68))
    scipy.io.savemat(folder / f"{name}.mat", {"pt2d": points, "Pose_Para": np.radians([[3, yaw, -5, 0, 0, 0, 0]])})
    cv2.imwrite(str(folder / f"{name}.jpg"), noise(90, 100))


def test_300w_lp(tmp_path):
    for part in images.PARTS:
        for suffix in ("", "_Flip"):
            lp_face(tmp_path / f"{part}{suffix}", "a", 10)
            lp_face(tmp_path / f"{part}{suffix}", "b", 120)
    lp_face(tmp_path / "AFLW2000", "image00002", -30)
    data = AttributeImages("pose", "300w_lp", str(tmp_path), str(tmp_path / "AFLW2000"), margin=0.6)
    assert len(data.source("train")) == 8  # the others look back
    test = data.source("test")
    np.testing.assert_allclose(test[0]["target"], [-30, 3, -5], rtol=1e-5)
    assert data.load_test([test[0]])["image"].shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="none of 1 faces has all angles within 20 degrees"):
        AttributeImages("pose", "300w_lp", test_path=str(tmp_path / "AFLW2000"), limit=20.0).source("test")


def test_ages(tmp_path):
    (tmp_path / "morph").mkdir()
    for i in range(10):
        cv2.imwrite(str(tmp_path / "morph" / f"{i:06}_1M{20 + i}.JPG"), noise(50, 40))
    data = AttributeImages("age", "morph2", str(tmp_path / "morph"))
    train, test = data.source("train"), data.source("test")
    assert (len(train), len(test)) == (8, 2)
    targets = [s[i]["target"] for s in (train, test) for i in range(len(s))]
    assert sorted(targets) == list(range(20, 30))
    assert targets != sorted(targets)
    np.testing.assert_array_equal([train[i]["target"] for i in range(8)], targets[:8])
    assert data.load_test([train[0]])["image"].shape == (1, 64, 64, 3)


def test_wrong_settings_raise():
    for given, message in (
        ({"kind": "lfw"}, "data.kind is 'lfw': expected one of face_world, imdb_wiki"),
        ({"kind": "300w_lp"}, "data.attribute is 'age': 300w_lp has pose"),
        ({"margin": -0.1}, "data.margin is -0.1: expected 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            AttributeImages(**given)


def test_photographs(test_data):
    source = images.Photographs(str(test_data / "aflw2000"))
    found = [source[i] for i in range(0, 2000, 20)]
    sides = np.array([e["box"][2:] - e["box"][:2] for e in found]).max(1)
    np.testing.assert_allclose(np.median(sides), 120 / np.sqrt(2), atol=1)  # the rule of the crops
    recorded = np.load(test_data / "weights" / "fsanet" / "300W_LP_reference.npz")
    names = [source[i]["name"] for i in range(60)]
    for name, label in zip(*(recorded[f"aflw2000_first50_{k}"] for k in ("files", "pose_yaw_pitch_roll")), strict=True):
        assert source[names.index(name)]["target"] == pytest.approx(label[0], abs=1e-3)
    data = AttributeImages("pose")
    batch = data.load_test(found[:3])
    assert batch["image"].shape == (3, 64, 64, 3)
    assert batch["target"].shape == (3,)
