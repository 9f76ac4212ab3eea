"""Faces with parameters: crops, vectors of rendered examples, batches, and the published sets."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data import reconstruction
from facejax.data.decoding import BadImage
from facejax.data.readers.aflw2000_crops import Aflw2000Crops, read_detections
from facejax.data.readers.tddfa_crops import TrainingCrops
from facejax.data.reconstruction import Jitter, ReconstructionFaces, crop, whole_pixel_crop
from facejax.data.synthetic.faces import png
from facejax.morphable import crops, parameters
from facejax.morphable.parameters import Whitening

SIZE = 64


@pytest.fixture
def data(face_examples, monkeypatch):
    monkeypatch.setattr(reconstruction.faces, "load", lambda *_: face_examples[0])
    reconstruction._load.cache_clear()
    yield ReconstructionFaces(image_size=48)
    reconstruction._load.cache_clear()


def test_vectors_of_rendered_examples_are_those_they_were_made_of(face_examples):
    examples, vectors = face_examples
    found = reconstruction.rendered_parameters(examples, SIZE)
    np.testing.assert_allclose(found[:, 12:], vectors[:, 12:], atol=2e-2)  # the eleventh component is cut
    assert np.abs(np.asarray(found)[:, :12] - vectors[:, :12]).max() < 0.5


def landmarks_of(vectors, size):
    face = reconstruction.procedural_face()
    placed = crops.to_image(parameters.reconstruct(face, jnp.asarray(vectors)), size)
    return np.asarray(placed)[:, np.asarray(face.landmarks68), :2]


def test_crops_vectors_and_landmarks_agree(data):
    test = data.test()
    assert test.images.shape == (12, 48, 48, 3)
    np.testing.assert_allclose(landmarks_of(test.parameters, 48), test.landmarks68, atol=0.5)
    extent = test.landmarks68.max(1) - test.landmarks68.min(1)
    np.testing.assert_allclose(extent.max(1), 48 / np.sqrt(2), rtol=1e-4)  # the crop is the diagonal of their square
    np.testing.assert_allclose(test.yaw, np.degrees([0.1 * i for i in range(12)]))


def test_batches_move_everything_together(data):
    batches = data.batches(8, seed=3)
    first = next(batches)
    assert {k: (v.shape, v.dtype.name) for k, v in first.items()} == {
        "image": ((8, 48, 48, 3), "uint8"),
        "parameters": ((8, 62), "float32"),
        "landmarks68": ((8, 68, 2), "float32"),
    }
    np.testing.assert_allclose(landmarks_of(first["parameters"], 48), first["landmarks68"], atol=0.7)
    middles = (first["landmarks68"].max(1) + first["landmarks68"].min(1)) / 2
    assert 1 < np.abs(middles - 24).max() < 48 * 0.1 / 0.85 + 0.1
    again = next(data.batches(8, seed=3))
    np.testing.assert_array_equal(first["image"], again["image"])
    whitening = data.whitening()
    white = whitening.whiten(jnp.asarray(first["parameters"]))
    assert 0.2 < float(white.std()) < 3
    np.testing.assert_allclose(white[:, 11], 0, atol=1e-5)


def test_fewer_people(data):
    few = ReconstructionFaces(people=2)
    assert len(few.load("train").images) == 4
    np.testing.assert_array_equal(few.load("train").person, [0, 0, 1, 1])
    assert len(few.load("test").images) == 12


def test_crop_samples_between_pixels():
    image = np.zeros((10, 10, 3), np.uint8)
    image[:, :, 0] = 20 * np.arange(10)
    whole = crop(image, np.array([2.0, 3, 6, 7]), 4)
    np.testing.assert_array_equal(whole, image[3:7, 2:6])
    half = crop(image, np.array([2.5, 3, 6.5, 7]), 4)
    np.testing.assert_allclose(half[..., 0], np.tile(20 * (np.arange(2, 6) + 0.5), (4, 1)), atol=1)
    outside = crop(image, np.array([-4.0, -4, 4, 4]), 8)
    assert (outside[:3] == 0).all() and (outside[5, 5:, 0] > 0).all()
    doubled = crop(image, np.array([2.0, 2, 6, 6]), 8)
    np.testing.assert_allclose(doubled[4, 2:6, 0], [55, 65, 75, 85], atol=1)


def test_the_published_crop_rounds_to_pixels():
    image = np.random.default_rng(0).integers(1, 255, (9, 9, 3)).astype(np.uint8)
    found = whole_pixel_crop(image, np.array([-1.6, 2.4, 4.4, 8.4]), 6)
    np.testing.assert_array_equal(found[:, 2:], image[2:8, 0:4])
    assert (found[:, :2] == 0).all()


@pytest.mark.parametrize("make", [crop, whole_pixel_crop])
@pytest.mark.parametrize("roi", [[3.0, 3, 3, 9], [5, 5, 2, 9]])
def test_degenerate_regions(make, roi):
    with pytest.raises(ValueError, match=r"the region .*, expected x1 < x2 and y1 < y2"):
        make(np.zeros((9, 9, 3), np.uint8), np.array(roi), 4)


def test_jitter_keeps_squares_within_its_range():
    rng = np.random.default_rng(0)
    roi = np.array([10.0, 20, 50, 60])
    moved = np.stack([Jitter(0.1, 0.2)(roi, rng) for _ in range(200)])
    sides = moved[:, 2:] - moved[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    assert 32 <= sides.min() < 34 and 46 < sides.max() <= 48
    assert 3 < np.abs(moved[:, :2] + sides / 2 - [30, 40]).max() <= 4
    np.testing.assert_array_equal(Jitter()(roi, rng), roi)


@pytest.fixture
def published(tmp_path):
    """The layout of 3DDFA's training set, with three crops."""
    rng = np.random.default_rng(0)
    (tmp_path / "train_aug_120x120").mkdir()
    names = ["a.png", "b.png", "c.png"]
    for i, name in enumerate(names):
        image = np.full((120, 120, 3), [10 * i, 20, 200], np.uint8)
        (tmp_path / "train_aug_120x120" / name).write_bytes(png(image))
    (tmp_path / "train_aug_120x120.list.train").write_text("\n".join(names) + "\n")
    vectors = rng.normal(size=(3, 62)).astype(np.float32)
    (tmp_path / "param_all_norm.pkl").write_bytes(pickle.dumps(vectors))
    statistics = {"param_mean": np.arange(62, dtype=np.float32), "param_std": np.full(62, 2, np.float32)}
    (tmp_path / "param_whitening.pkl").write_bytes(pickle.dumps(statistics))
    return tmp_path, vectors


def test_published_training_crops(published):
    folder, vectors = published
    data = ReconstructionFaces("crops", str(folder), image_size=120)
    np.testing.assert_array_equal(data.whitening().std, 2)
    batch = next(data.batches(3, 0))
    order = batch["image"][:, 0, 0, 0] // 10
    np.testing.assert_array_equal(batch["image"][:, 5, 5, 2], 200)  # RGB
    np.testing.assert_allclose(batch["parameters"], 2 * vectors[order] + np.arange(62), rtol=1e-5)


def test_damaged_training_crops(published):
    folder, vectors = published
    whitening = Whitening(jnp.zeros(62), jnp.ones(62))
    (folder / "train_aug_120x120" / "b.png").write_bytes(png(np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"b.png: 64 x 64 pixels, expected 120 x 120"):
        TrainingCrops(folder, whitening)[1]
    (folder / "train_aug_120x120" / "b.png").write_bytes(b"none")
    with pytest.raises(BadImage, match=r"b.png: an image of 4 bytes does not decode"):
        TrainingCrops(folder, whitening)[1]
    (folder / "param_all_norm.pkl").write_bytes(pickle.dumps(vectors[:2]))
    with pytest.raises(ValueError, match=r"param_all_norm.pkl: \(2, 62\), expected \(3, 62\)"):
        TrainingCrops(folder, whitening)
    (folder / "param_all_norm.pkl").write_bytes(pickle.dumps(vectors[:, :61]))
    with pytest.raises(ValueError, match=r"\(3, 61\), expected \(3, 62\)"):
        TrainingCrops(folder, whitening)
    with pytest.raises(ValueError, match=r"list.val: not a readable text file: No such file"):
        TrainingCrops(folder, whitening, "val")
    with pytest.raises(ValueError, match=r"w_shp_sim|u_shp.npy: not a readable array"):
        ReconstructionFaces("crops", str(folder)).face()


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"data.kind is 'lp': expected face_world or crops"):
        ReconstructionFaces("lp")


def test_aflw2000(test_data, tmp_path):
    folder = test_data / "aflw2000"
    known = Aflw2000Crops(folder)
    assert len(known) == 2000
    bins = [int(((known.yaw > a) & (known.yaw <= b)).sum()) for a, b in ((-1, 30), (30, 60), (60, 999))]
    assert bins == [1312, 383, 305]  # the README's numbers
    images = known.images(np.arange(2))
    assert images.shape == (2, 120, 120, 3)
    assert known.images(np.arange(2), 48).shape == (2, 48, 48, 3)
    sides = known.roi[:, 2:] - known.roi[:, :2]
    inside = np.flatnonzero((known.roi[:, :2] > 1).all(1) & (known.roi[:, 2:] < 450).all(1))
    marks = known.landmarks68[inside]
    low, high = marks.min(1), marks.max(1)
    np.testing.assert_allclose(known.roi[inside, :2] + sides[inside] / 2, (low + high) / 2, atol=1.6)
    np.testing.assert_allclose(sides[inside], np.sqrt(2) * (high - low).max(1)[:, None] * [1, 1], atol=1.6)
    corners = known.to_originals(np.tile(np.array([[0.0, 0.0], [120.0, 120.0]]), (2000, 1, 1)))
    np.testing.assert_allclose(corners[:, 0], known.roi[:, :2] - 0.5)
    np.testing.assert_allclose(corners[:, 1], known.roi[:, 2:] + 0.5)
    for file in folder.iterdir():
        if file.suffix == ".npy":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "crops.list").write_text("image00002.jpg\n")
    with pytest.raises(ValueError, match=r"roi_box.npy: \(2000, 4\), expected \(1, 4\)"):
        Aflw2000Crops(tmp_path)
    with pytest.raises(ValueError, match=r"crops.list: not a readable text file: No such file"):
        Aflw2000Crops(tmp_path / "nothing")


def test_some_of_aflw2000(test_data):
    known = Aflw2000Crops(test_data / "aflw2000")
    rows = np.array([1999, 3])
    part = known.subset(rows)
    assert (len(part), len(known)) == (2, 2000)
    np.testing.assert_array_equal(part.images(np.arange(2)), known.images(rows))
    for name in ("roi", "landmarks68", "depths", "reannotated", "signed_yaw", "yaw", "yaw_aflw"):
        np.testing.assert_array_equal(getattr(part, name), getattr(known, name)[rows])


def test_detections(tmp_path):
    points = np.arange(2 * 136, dtype=np.float32).reshape(2, 68, 2)
    lines = [",".join([name, *map(str, row.ravel())]) for name, row in zip("cb", points, strict=True)]
    path = tmp_path / "detected.txt"
    path.write_text("\n".join(lines) + "\n")
    rows, found = read_detections(path, ["a", "b", "c"])
    np.testing.assert_array_equal(rows, [1, 2])
    np.testing.assert_array_equal(found, points[::-1])
    with pytest.raises(ValueError, match="no line for any of the 1 pictures"):
        read_detections(path, ["a"])
    for damaged, sentence in (
        (lines[0] + ",1", "line 1: expected a name and 136 numbers"),
        (lines[0].replace(",7.0,", ",nan,"), "line 1: expected finite numbers"),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=sentence):
            read_detections(path, ["c"])
    with pytest.raises(ValueError, match="nothing: not a readable text file: No such file"):
        read_detections(tmp_path / "nothing", ["c"])
