"""Batches of detectors, test images, and the data section of an experiment."""

import dataclasses
import sys
import types
import warnings

import cv2
import numpy as np
import pytest

from facejax.data import augment_boxes, detection
from facejax.data.detection import DetectionImages


def example(pixels, boxes, name="a.png", points=5, **changed):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    centres = np.repeat((boxes[:, None, :2] + boxes[:, None, 2:]) / 2, points, 1)
    return {
        "image": cv2.imencode(".png", pixels)[1].tobytes(),
        "boxes": boxes,
        "labels": np.zeros(n, np.int32),
        "points": centres,
        "visible": np.ones((n, points), bool),
        "ignored": np.zeros(n, bool),
        "name": name,
    } | changed


def blank(height=60, width=90):
    return np.full((height, width, 3), 50, np.uint8)


def rngs(count):
    return [np.random.default_rng(i) for i in range(count)]


def test_a_batch_by_hand():
    """Three objects of which the two largest stay, an ignored one, and an image without objects."""
    boxes = [[0, 0, 10, 10], [10, 10, 40, 40], [50, 0, 80, 50], [20, 20, 25, 25]]
    ignored = np.array([False, False, True, False])
    first = example(blank(), boxes, labels=np.array([3, 1, 0, 2]), ignored=ignored)
    load = detection.loader([first], 90, 2, "none", 4)
    with pytest.warns(UserWarning, match=r"a.png: 3 objects in a training image: the 2 largest are kept"):
        batch = load([first, example(blank(), [])], rngs(2))
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "image": ((2, 90, 90, 3), "uint8"),
        "boxes": ((2, 2, 4), "float32"),
        "labels": ((2, 2), "int32"),
        "points": ((2, 2, 5, 2), "float32"),
        "visible": ((2, 2, 5), "bool"),
        "mask": ((2, 2), "bool"),
    }
    assert batch["mask"].tolist() == [[True, True], [False, False]]
    np.testing.assert_array_equal(batch["boxes"][0], boxes[:2])
    assert batch["labels"][0].tolist() == [3, 1]
    assert not batch["boxes"][1].any()
    assert not batch["visible"][1].any()
    np.testing.assert_array_equal(batch["image"][0, :60], 50)
    np.testing.assert_array_equal(batch["image"][0, 60:], 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load([first], rngs(1))  # said once


def test_small_objects_and_outer_points_are_left_out():
    """At half the size, a side of 1.9 pixels falls below 1; points outside the image are not visible."""
    boxes = [[10, 10, 11.9, 40], [10, 10, 12.1, 40], [-20, 10, 12, 40]]
    batch = detection.loader([], 45, 4, "none", 1)([example(blank(), boxes)], rngs(1))
    np.testing.assert_allclose(batch["boxes"][0, :2], [[5, 5, 6.05, 20], [-10, 5, 6, 20]], atol=1e-6)
    assert batch["mask"][0].tolist() == [True, True, False, False]
    assert batch["visible"][0].any(-1).tolist() == [True, False, False, False]


def test_wrong_examples_are_refused():
    load = detection.loader([], 32, 4, "none", 2)
    with pytest.raises(ValueError, match=r"a.png: label 2: expected 0 to 1 \(data.classes\)"):
        load([example(blank(), [[0, 0, 9, 9]], labels=np.array([2]))], rngs(1))
    with pytest.raises(ValueError, match=r"a.png: 3 points per object: expected 0 or 5"):
        load([example(blank(), [[0, 0, 9, 9]], points=3)], rngs(1))
    with pytest.raises(ValueError, match=r"a.png: an image of 8 bytes does not decode"):
        load([example(blank(), [[0, 0, 9, 9]], image=b"no image")], rngs(1))


def test_boxes_without_area_never_reach_a_batch():
    boxes = [[5, 5, 5, 20], [30, 30, 20, 40], [10, 10, 30, 30]]
    for name in augment_boxes.RECIPES:
        given = example(blank(), boxes)
        batch = detection.loader([given], 48, 8, name, 1)([given] * 4, rngs(4))
        assert batch["mask"].sum() <= 4 * (4 if name == "mosaic" else 1)
        sides = (batch["boxes"][..., 2:] - batch["boxes"][..., :2])[batch["mask"]]
        assert (sides >= 1).all()


@pytest.mark.parametrize("kind", ["grey", "transparent", "16 bit", "jpeg"])
def test_every_kind_of_image_becomes_rgb(kind):
    image = np.full((33, 47), 200, np.uint8)
    encoded = {
        "grey": lambda: cv2.imencode(".png", image),
        "transparent": lambda: cv2.imencode(".png", np.stack([image, image, image, image // 3], -1)),
        "16 bit": lambda: cv2.imencode(".png", image.astype(np.uint16) * 257),
        "jpeg": lambda: cv2.imencode(".jpg", image),
    }[kind]()[1].tobytes()
    found, scale, offset = detection.letterboxed(example(blank(), [], image=encoded), 47)
    assert found.dtype == np.uint8
    assert (scale, offset.tolist()) == (1.0, [0, 0])
    np.testing.assert_array_equal(found[:33], 200)
    np.testing.assert_array_equal(found[33:], 0)


@pytest.mark.parametrize("orientation", [3, 6])
def test_boxes_are_of_the_stored_pixels(turned_jpeg, orientation):
    stored = blank()
    stored[10:30, 20:60] = 255
    given = example(stored, [[20, 10, 60, 30]], image=turned_jpeg(stored, orientation))
    batch = detection.loader([], 90, 2, "none", 1)([given], rngs(1))
    x1, y1, x2, y2 = batch["boxes"][0, 0].astype(int)
    assert batch["image"][0, y1:y2, x1:x2].mean() > 235
    assert batch["image"][0, :60].mean() < 90


@pytest.mark.parametrize("centred", [True, False])
def test_detections_go_back_to_the_original(centred):
    boxes = np.array([[12, 3, 70, 48.0]])
    image, scale, offset = detection.letterboxed(example(blank(), boxes), 67, centred, (9, 9, 9))
    assert image.shape == (67, 67, 3)
    np.testing.assert_allclose(augment_boxes.unletterboxed(boxes * scale + np.tile(offset, 2), scale, offset), boxes)


def wider(root, images=6):
    """A tiny WIDER FACE: one face and one invalid face an image."""
    for part in ("train", "val"):
        folder = root / f"WIDER_{part}/images/0--Parade"
        folder.mkdir(parents=True)
        (root / "wider_face_split").mkdir(exist_ok=True)
        text = ""
        for i in range(images):
            (folder / f"{i}.jpg").write_bytes(cv2.imencode(".jpg", blank(70 + i, 90))[1].tobytes())
            text += f"0--Parade/{i}.jpg\n2\n{10 + i} 12 30 36 0 0 0 0 0 0 \n1 1 5 5 0 0 0 1 0 0 \n"
        (root / f"wider_face_split/wider_face_{part}_bbx_gt.txt").write_text(text)


def test_the_batches_of_an_experiment(tmp_path):
    """The same seed gives the same batches; a saved position continues them."""
    wider(tmp_path)
    data = DetectionImages("wider", str(tmp_path), image_size=64, max_boxes=3, augment="face", threads=1)
    assert (len(data.train()), len(data.test())) == (6, 6)
    assert data.test()[2]["ignored"].tolist() == [False, True]
    batches = data.batches(4, seed=0)
    first, second = next(batches), next(batches)
    assert first["image"].shape == (4, 64, 64, 3)
    assert first["points"].shape == (4, 3, 5, 2)
    assert first["mask"].sum(1).tolist() == [1] * 4
    assert not first["visible"].any()
    again = data.batches(4, seed=0)
    again.set_state({"examples": 4, "batch_size": 4, "length": 6})
    for name, array in next(again).items():
        np.testing.assert_array_equal(array, second[name])
    batches.close()
    again.close()
    file = next((tmp_path / "WIDER_val").rglob("*.[jp][pn]g"))
    file.write_bytes(b"none")
    count, flaws = data.batches(4, seed=0).check_images()
    assert count == 12
    assert [flaw.partition(": ")[0] for flaw in flaws] == [str(file)]


def test_images_with_many_objects_are_counted(tmp_path):
    wider(tmp_path)
    file = tmp_path / "wider_face_split/wider_face_train_bbx_gt.txt"
    rows = "".join(f"{x} 2 8 8 0 0 0 0 0 0\n" for x in range(0, 50, 10))
    file.write_text(file.read_text() + "0--Parade/0.jpg\n5\n" + rows)
    data = DetectionImages("wider", str(tmp_path), max_boxes=4)
    with pytest.warns(UserWarning, match="1 of 7 images have more than 4 objects, up to 5"):
        data.batches(4, 0).close()


def test_scenes_come_from_the_face_world(monkeypatch):
    """The task's name, the split and the folder reach `scenes.load`."""
    module = types.ModuleType("facejax.data.synthetic.scenes")
    module.load = lambda *given: given
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("facejax.data.synthetic.scenes", module, raising=False)
    assert DetectionImages().train() == ("scenes_128", "train", None)
    assert DetectionImages(path="scenes_64", data_dir="d").test() == ("scenes_64", "test", "d")


@pytest.mark.parametrize(
    "field,value,message",
    [("kind", "widr", "data.kind is 'widr': expected one of scenes"), ("augment", "ssdd", "data.augment is 'ssdd'")],
)
def test_wrong_names_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DetectionImages(), **{field: value})
