"""Labelled images: splits of folders and of the face world, crops of training and of evaluation."""

import importlib

import jax
import numpy as np
import pytest

from facejax.data import classification, readers
from facejax.data.builders import images as builders
from facejax.data.classification import LabelledImages
from facejax.data.synthetic import faces


@pytest.fixture
def world(monkeypatch):
    """48 examples of two people in place of the face world."""
    examples = [
        {"image": faces.png(np.full((4, 4, 3), i, np.uint8)), "person": i // 24, "glasses": i % 3} for i in range(48)
    ]
    monkeypatch.setattr(faces, "load", lambda task, split, folder: examples)


def test_every_fourth_image_of_the_same_people_is_for_testing(world):
    train, test = LabelledImages(classes=2).split()
    assert (len(train), len(test)) == (36, 12)
    assert [test[i]["label"] for i in (0, 5, 6, 11)] == [0, 0, 1, 1]
    pixels = classification.centre_batch([test[0], test[1]], 4)["image"][:, 0, 0, 0]
    assert pixels.tolist() == [3, 7]
    with pytest.raises(ValueError, match=r"data\.classes is 81: expected at most 80"):
        LabelledImages(classes=81).split()


def test_first_people_hold_18_and_6_images(world):
    train, test = classification.first_people(1, 18)
    assert (len(train), len(test)) == (18, 6)
    assert {example["label"] for example in train + test} == {0}


def test_attribute_is_the_label(world):
    labelled = classification.Attribute(faces.load("attributes", "train", None), "glasses")
    assert [labelled[i]["label"] for i in range(4)] == [0, 1, 1, 0]


def test_folders_and_batches(coloured):
    data = LabelledImages(path=str(coloured("train", "val")), image_size=8, classes=4, crops=True)
    train, test = data.split()
    assert (len(train), len(test)) == (24, 8)
    batch = next(data.batches(train, 6, seed=0))
    assert batch["image"].shape == (6, 8, 8, 3)
    assert data.test_batch([test[0], test[7]])["label"].tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"labels range from 0 to 3: expected 0 to 2"):
        classification.loader(8, 3, False)([test[0], test[7]], [np.random.default_rng(0)] * 2)


@pytest.mark.parametrize("prepared", [False, True])
def test_the_training_folder_numbers_the_classes(tmp_path, picture_folder, prepared):
    """The pictures of class i have the value i; the test folder lacks the class 2 and has a hidden folder."""
    train = {"a1": [0] * 3, "a07": [1] * 3, "a7": [2] * 3, "b": [3] * 3}
    test = {".ipynb_checkpoints": [9], "a07": [1] * 2, "a1": [0], "b": [3] * 2}
    for part, classes in (("train", train), ("val", test)):
        pictures = {name: np.ones((len(c), 4, 4, 3)) * np.reshape(c, (-1, 1, 1, 1)) for name, c in classes.items()}
        picture_folder(tmp_path / "raw" / part, pictures)
    parts = tmp_path / "raw"
    if prepared:
        parts = tmp_path / "ready"
        parts.mkdir()
        for part in ("train", "val"):
            source = builders.prepare(readers.read(tmp_path / "raw" / part), part, tmp_path / "data")
            (parts / part).symlink_to(source.folder)
    with pytest.warns(UserWarning, match=r"val: no image of 1 of 4 classes, such as 'a7'"):
        sources = LabelledImages(path=str(parts), image_size=4, classes=4).split()
    for source, count in zip(sources, (12, 5), strict=True):
        batch = classification.centre_batch([source[i] for i in range(len(source))], 4)
        assert len(source) == count
        assert batch["label"].tolist() == batch["image"][:, 0, 0, 0].tolist()


def test_classes_that_training_lacks_raise(tmp_path, picture_folder):
    for part, names in (("train", "ab"), ("val", "bc")):
        picture_folder(tmp_path / part, {name: np.zeros((1, 4, 4, 3)) for name in names})
    with pytest.raises(ValueError, match=r"val: classes that training lacks \(1, such as 'c'\): expected none"):
        classification.folders(str(tmp_path))


def test_classes_are_counted_and_checked(coloured):
    data = LabelledImages(path=str(coloured("train", "val")), image_size=8, classes=3)
    assert (data.count(), LabelledImages().count()) == (4, 80)
    with pytest.raises(ValueError, match=r"found label 3 with data\.classes 3: expected 0 to 2"):
        data.split()


@pytest.mark.parametrize(
    ("name", "preset", "changes"),
    [
        ("inception", "synthetic", {"data.path": "PATH"}),
        ("mobilenet", "synthetic", {"data.path": "PATH"}),
        ("deconvnet", "synthetic", {"data.path": "PATH"}),
        ("bilinear_cnn", "synthetic", {"data.path": "PATH", "data.source": "path"}),
    ],
)
def test_classes_0_counts_the_training_folder(coloured, name, preset, changes):
    module = importlib.import_module(f"experiments.{name}")
    path = coloured("train", "test" if name == "bilinear_cnn" else "val")
    config = module.get_config(preset)
    config.update_from_flattened_dict({k: v.replace("PATH", str(path)) for k, v in changes.items()})
    config.data.classes = 0
    params = module.build(config).abstract_state(0).params
    assert {x.shape[-1] for x in jax.tree.leaves(params)} & {4}


def test_short_side_crops():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 200
    example = {"image": faces.png(image), "label": 1}
    load = classification.short_side_loader(8, 2)
    assert (load([example], None)["image"] == 200).all()
    crops = load([example] * 50, [np.random.default_rng(i) for i in range(50)])["image"]
    assert crops.shape == (50, 8, 8, 3)
    assert len({crop[0, :, 0].tobytes() for crop in crops}) > 5
