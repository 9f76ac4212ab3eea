"""Faces with parameters and faces with landmarks alone: who is in which, noise, batches of both."""

import dataclasses

import numpy as np
import pytest

from facejax.data import reconstruction
from facejax.data.assisted import AssistedFaces
from facejax.data.readers.landmarks import write_pts
from facejax.data.synthetic.faces import png
from facejax.morphable import crops


@pytest.fixture
def data(face_examples, monkeypatch):
    monkeypatch.setattr(reconstruction.faces, "load", lambda *_: face_examples[0])
    reconstruction._load.cache_clear()
    yield AssistedFaces(image_size=32, people=2, noise=0.01)
    reconstruction._load.cache_clear()


def test_nobody_is_in_both(data):
    known, others = data.load("train"), data.others()
    assert set(known.person) == {0, 1}
    assert set(others.person) == {2, 3, 4, 5}
    assert len(others.images) == len(others.roi) == 8


def test_detected_landmarks_have_the_set_error_and_depend_on_the_seed_alone(data):
    test = data.test()
    found = data.detected(test, 2)
    errors = (found.landmarks68 - test.landmarks68) / 32
    np.testing.assert_allclose(errors.std(), 0.01, rtol=0.05)
    assert abs(errors.mean()) < 1e-3
    np.testing.assert_array_equal(found.landmarks68, data.detected(test, 2).landmarks68)
    assert (data.detected(test, 3).landmarks68 != found.landmarks68).any()
    np.testing.assert_array_equal(found.parameters, test.parameters)


def check(data, batch, size):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in data.shapes(size).items()
    }


def test_batches_of_both(data):
    data = dataclasses.replace(data, noise=0.0)
    batch = next(data.batches(4, seed=0))
    check(data, batch, 4)
    assert batch["wild_visible68"].all()
    with pytest.raises(ValueError, match="expected fewer than all, 1 or more"):
        dataclasses.replace(data, people=0).others()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two published crops with their vectors, and two photographs with 68 landmarks in 300W's layout."""
    import pickle

    root, rng = tmp_path_factory.mktemp("published"), np.random.default_rng(0)
    (root / "train_aug_120x120").mkdir()
    (root / "train_aug_120x120.list.train").write_text("0.png\n1.png\n")
    for name, array in (("param_all_norm", rng.normal(size=(2, 62))), ("param_whitening", None)):
        content = {"param_mean": np.zeros(62), "param_std": np.ones(62)} if array is None else array
        (root / f"{name}.pkl").write_bytes(pickle.dumps(content))
    for i in range(2):
        picture = png(rng.integers(0, 255, (120, 120, 3)).astype(np.uint8))
        (root / "train_aug_120x120" / f"{i}.png").write_bytes(picture)
    points = rng.uniform(20, 60, (2, 68, 2))
    for number, place in enumerate(("afw", "helen/trainset", "lfpw/trainset")):
        (root / "wild" / place).mkdir(parents=True)
        image = np.zeros((80, 80, 3), np.uint8)
        for x, y in np.rint(points[number % 2]).astype(int):
            image[y, x] = 255
        (root / "wild" / place / "face.png").write_bytes(png(image))
        write_pts(root / "wild" / place / "face.pts", np.rint(points[number % 2]))
    return root


def test_published_crops_and_photographs(published):
    data = AssistedFaces("crops", str(published), image_size=120, wild=str(published / "wild"), shift=0.0, scale=0.0)
    batch = next(data.batches(2, seed=0))
    check(data, batch, 2)
    marks = batch["wild_landmarks68"]
    for image, points in zip(batch["wild_image"], marks, strict=True):
        x, y = np.floor(points).astype(int).T  # enlarged pixels, so that the middle of each is bright
        assert (image[y, x].mean(-1) > 100).all()
    with pytest.raises(ValueError, match=r"data.wild is empty"):
        AssistedFaces("crops", str(published))


def test_convention_of_published_vectors():
    vertices = np.array([[3.0, 5.0, 0.0]])
    first = crops.to_image(vertices, 120, crops.V1)
    np.testing.assert_allclose(crops.to_image(vertices, 120, crops.PUBLISHED)[..., :2], first[..., :2] - 0.5)
    second = crops.to_image(vertices, 120, crops.V2)
    np.testing.assert_allclose(crops.to_image(vertices, 120, crops.PUBLISHED)[..., :2], second[..., :2] + 0.5)
    kinds = {kind: reconstruction.ReconstructionFaces(kind).convention for kind in ("face_world", "crops")}
    assert kinds == {"face_world": crops.FACEJAX, "crops": crops.PUBLISHED}
