"""The evaluation of detectors: places in pixels of the stored images, numbers, pictures; the loss over devices."""

import dataclasses
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data.detection import DetectionImages
from facejax.data.synthetic.faces import png
from facejax.detection.base import Detections, Term
from facejax.detection.cornernet import CornerNet
from facejax.detection.retinanet import RetinaNet
from facejax.detection.ssh import SSH
from facejax.evaluate import detection
from facejax.metrics import detection as metrics
from facejax.metrics import wider_face
from facejax.nn.norm import BatchNorm
from facejax.recipes.detector import Evaluation, detector
from facejax.train import AXIS, Options, optim
from facejax.train.parallel import make_executor

OPTIM = {"name": "sgd", "momentum": 0.9, "schedule": {"kind": "constant", "peak": 0.05}}


class Bright(nn.Module):
    """The brightest pixel's place, and its level times a trained factor."""

    @nn.compact
    def __call__(self, images, *, train):
        scale = self.param("scale", nn.initializers.ones, ())
        level = BatchNorm(AXIS, name="bn")(images.mean((1, 2)), train=train).sum(-1)
        flat = images.sum(-1).reshape(len(images), -1)
        return {"place": flat.argmax(1), "score": flat.max(1) * scale / 765, "level": level}


@dataclasses.dataclass(frozen=True)
class Brightest:
    """One detection of 8 x 6 pixels with its top left corner at the brightest pixel."""

    net: nn.Module = Bright()  # noqa: RUF009
    classes: int = 1
    points: int = 5

    def preprocess(self, images):
        return images.astype(jnp.float32)

    def losses(self, raw, truth, size):
        count = truth.mask.sum(1).astype(jnp.float32)
        return {"score": Term(count * (raw["score"] + raw["level"]) ** 2, count, 0.5)}

    def decode(self, raw, size):
        y, x = jnp.divmod(raw["place"], size[1])
        boxes = jnp.stack([x, y, x + 8, y + 6], -1)[:, None].astype(jnp.float32)
        points = jnp.repeat(boxes[..., None, :2], 5, -2) + 1
        one = jnp.ones((len(boxes), 1))
        boxes, points = (jnp.concatenate([v, jnp.zeros_like(v)], 1) for v in (boxes, points))
        scores = jnp.concatenate([raw["score"][:, None], 0 * one], 1)
        return Detections(boxes, scores, jnp.zeros((len(one), 2), int), points, jnp.concatenate([one > 0, one < 0], 1))


def source(sizes):
    """Images of (height, width) `sizes`, black with one bright pixel block, whose face covers 8 x 6 input pixels."""
    examples = []
    for i, (height, width) in enumerate(sizes):
        image = np.zeros((height, width, 3), np.uint8)
        image[height // 2 : height // 2 + 8, width // 4 : width // 4 + 8] = 250 - i
        box = np.float32([[width // 4, height // 2, width // 4 + 16, height // 2 + 12]])
        points = np.repeat(box[:, None, :2] + 2, 5, 1)
        examples.append({
            "image": png(image), "name": str(i), "boxes": box, "labels": np.zeros(1, int), "points": points,
            "visible": np.ones((1, 5), bool), "ignored": np.zeros(1, bool),
        })  # fmt: skip
    return examples


@pytest.fixture(scope="module")
def variables():
    net = Bright()
    return jax.jit(lambda: net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))()


def test_detections_lie_in_pixels_of_the_stored_images(variables):
    model, images = Brightest(), source([(128, 128), (96, 128), (128, 64), (64, 32)])
    found = detection.detect(model, variables, images, 64, batch_size=3)
    for i, factor in enumerate((2, 2, 2, 1)):  # the longer side becomes 64 pixels
        box = images[i]["boxes"][0]
        np.testing.assert_allclose(found[i].boxes, [[*box[:2], *(box[:2] + np.array([8, 6]) * factor)]], atol=1e-4)
        np.testing.assert_allclose(found[i].points[0], np.repeat(box[None, :2] + factor, 5, 0), atol=1e-4)
        assert found[i].scores.shape == (1,)  # the masked row is gone
    stretched = detection.detect(model, variables, images, 64, batch_size=4, stretch=True)
    x, y = images[2]["boxes"][0, :2]
    np.testing.assert_allclose(stretched[2].boxes, [[x, y, x + 8, y + 12]], atol=1e-4)  # 64 wide, 128 high


def test_boxes_of_a_detector_that_clips_end_at_the_border_of_the_image(variables):
    class Cut(Brightest):
        clips = True

    images = source([(64, 32), (32, 64)])
    for example, (row, column) in zip(images, ((60, 30), (29, 60)), strict=True):
        image = np.zeros((*((64, 32), (32, 64))[example["name"] == "1"], 3), np.uint8)
        image[row:, column:] = 250
        example["image"] = png(image)
    wide, tall = (found.boxes for found in detection.detect(Cut(), variables, images[::-1], 64, batch_size=2))
    np.testing.assert_allclose(wide, [[60, 29, 64, 32]])  # 32 pixels high in a square of 64
    np.testing.assert_allclose(tall, [[30, 60, 32, 64]])
    wide, _ = (found.boxes for found in detection.detect(Brightest(), variables, images[::-1], 64, batch_size=2))
    np.testing.assert_allclose(wide, [[60, 29, 68, 35]])
    assert RetinaNet.clips and SSH.clips and CornerNet.clips


def test_report(variables):
    images = source([(128, 128), (96, 128), (128, 64)])
    report = detection.report(Brightest(), variables, images, 64, protocol="faces", batch_size=3, timed=True)
    numbers = report.metrics
    assert next(iter(numbers)) == "ap" and numbers["precision"] == numbers["recall"] == 100
    assert numbers["ap_tiny"] > 0 and np.isnan(numbers["ap_large"]) and numbers["milliseconds"] > 0
    np.testing.assert_allclose(numbers["nme"], 0, atol=1e-4)
    (picture,) = report.images.values()
    assert (picture == (255, 40, 40)).all(-1).any() and not (picture == (0, 220, 0)).all(-1).any()  # equal boxes
    (curves,) = report.figures.values()
    assert "all faces: AP" in curves.axes[0].get_legend().get_texts()[0].get_text()
    images[0]["visible"] = np.zeros((1, 5), bool)
    images[0]["points"] = images[0]["points"] + 30
    again = detection.report(Brightest(), variables, images, 64, protocol="voc2007", batch_size=3)
    np.testing.assert_allclose(again.metrics["nme"], 0, atol=1e-4)  # a face without all points has no error
    assert again.metrics["map"] > 99
    with pytest.raises(ValueError, match="protocol is 'fddb': expected faces, wider, coco, voc2007 or voc2012"):
        detection.scores([], [], "fddb")


@pytest.mark.parametrize("protocol", ["voc2007", "voc2012"])
def test_voc_counts_continuous_pixels(protocol):
    """The readers' x2 is one beyond VOC's last pixel: half of a box is an IoU of 0.5, which is not above it."""
    true = [metrics.Objects(np.float32([[4, 4, 14, 14]]))]
    for width, found in ((5.0, 0.0), (5.5, 100.0)):
        halves = [metrics.Detections(np.float32([[4, 4, 4 + width, 14]]), np.array([0.5]))]
        assert detection.scores(halves, true, protocol)[0] == {"map": pytest.approx(found)}


def test_sizes_of_coco_are_those_of_segments():
    example = {"boxes": np.float32([[0, 0, 40, 40]]), "labels": [0], "ignored": [False], "points": np.zeros((1, 0, 2))}
    found = [metrics.Detections(example["boxes"], np.array([0.5]))]
    numbers = detection.scores(found, detection.objects([{**example, "areas": [900.0]}]), "coco")[0]
    assert numbers["ap_small"] == pytest.approx(100) and np.isnan(numbers["ap_medium"])  # 32 x 32 pixels are medium
    numbers = detection.scores(found, detection.objects([example]), "coco")[0]
    assert np.isnan(numbers["ap_small"]) and numbers["ap_medium"] == pytest.approx(100)


def test_boxes_of_negative_size_are_ignored(variables):
    images = source([(128, 128), (96, 128)])
    images[0]["boxes"] = np.concatenate([images[0]["boxes"], np.float32([[50, 50, 47, 60]])])
    for name, value in (("labels", 0), ("ignored", True)):
        images[0][name] = np.append(images[0][name], value)
    for name in ("points", "visible"):
        images[0][name] = np.concatenate([images[0][name]] * 2)
    report = detection.report(Brightest(), variables, images, 64, protocol="faces", batch_size=2)
    assert report.metrics["recall"] == 100


def test_drawing():
    image, box = np.zeros((20, 20, 3), np.uint8), np.float32([[2, 3, 8, 9]])
    found = metrics.Detections(box + 8, np.array([0.5]), points=box[:, None, :2] + 10)
    shown = detection.draw(image, found, metrics.Objects(box), 0.5)
    assert shown.shape == (40, 40, 3)
    assert shown[6, 10].tolist() == [0, 220, 0] and shown[22, 26].tolist() == [255, 40, 40]
    assert shown[26, 24].tolist() == [80, 160, 255]
    assert (detection.draw(image, found, None, 0.6) == 0).all()


def test_official_evaluation_of_wider_face(variables, monkeypatch):
    """Images are found by name, whatever their order; one that is not there has no detections."""
    images = source([(128, 128), (96, 128), (128, 64)])
    for example, name in zip(images, ("a/1", "a/2", "b/3"), strict=True):
        example["name"] = f"{name}.jpg"
    boxes = [np.float64([[*i["boxes"][0, :2], *(i["boxes"][0, 2:] - i["boxes"][0, :2])]]) for i in images]
    all_of_them = [np.array([True])] * 4
    truth = wider_face.Truth(["b/3", "a/1", "c/4", "a/2"], [boxes[2], boxes[0], boxes[0], boxes[1]],
                             dict.fromkeys(wider_face.SUBSETS, all_of_them))  # fmt: skip
    monkeypatch.setattr(wider_face, "read_truth", lambda folder: truth)
    options = {"protocol": "wider", "batch_size": 3, "truth": "folder"}
    numbers = detection.report(Brightest(), variables, images, 64, **options).metrics
    assert list(numbers)[:3] == ["easy", "medium", "hard"]
    np.testing.assert_allclose(numbers["hard"], 75, atol=0.1)  # three of four faces
    images[0]["name"] = "a/5.jpg"
    with pytest.raises(ValueError, match=r"a/5\.jpg: expected an image of folder"):
        detection.report(Brightest(), variables, images, 64, **options)


def test_working_point():
    true = [metrics.Objects(np.float32([[0, 0, 10, 10], [20, 20, 30, 30]]))]
    boxes = np.float32([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30], [70, 70, 80, 80]])
    found = [metrics.Detections(boxes, np.array([0.9, 0.2, 0.6, 0.1]))]
    assert detection.working_point(found, true) == pytest.approx((0.6, 1.0, 1.0), abs=0.02)
    nothing = [metrics.Detections(np.zeros((0, 4)), np.zeros(0))]
    assert detection.working_point(nothing, true) == (1.0, 0.0, 0.0)


def batch_of(rng):
    mask = rng.uniform(size=(16, 4)) < np.linspace(0, 1, 16)[:, None]  # devices have unequal numbers of faces
    return {
        "image": rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8),
        "boxes": np.float32(rng.uniform(0, 32, (16, 4, 4))),
        "labels": np.zeros((16, 4), np.int32),
        "points": np.zeros((16, 4, 5, 2), np.float32),
        "visible": np.zeros((16, 4, 5), bool),
        "mask": mask,
    }


def test_eight_devices_equal_one():
    """The loss divides by the faces of all devices, in shard_map and pmap."""
    data = DetectionImages("retinaface", "nowhere", image_size=32, max_boxes=4)
    states = []
    for kind, devices in (("shard_map", 1), ("shard_map", 8), ("pmap", 8)):
        options = Options(batch_size=16, steps=3, parallel=kind, devices=devices)
        run = detector(Brightest(), data, optim.from_config(OPTIM, 3), options, Evaluation(), seed=0)
        executor, rng = make_executor(run, kind, devices), np.random.default_rng(0)
        state = executor.init(0)
        for _ in range(3):
            state, numbers = executor.step(state, executor.put(batch_of(rng)))
        states.append((executor.local(executor.canonical(state)), jax.tree.map(np.asarray, numbers)))
    (one, measured), *others = states
    assert abs(float(one.params["scale"]) - 1) > 1e-3
    for other, numbers in others:
        chex.assert_trees_all_close(other.params, one.params, rtol=1e-5)
        np.testing.assert_allclose(numbers["score"].total / numbers["score"].count,
                                   measured["score"].total / measured["score"].count, rtol=1e-5)  # fmt: skip


def test_the_protocol_is_checked_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"eval.protocol is 'fddb': expected one of faces, wider, coco"):
        Evaluation(protocol="fddb")
    with pytest.raises(ValueError, match=r"eval.truth is empty: protocol wider needs the folder"):
        Evaluation(protocol="wider")
    data, chosen = DetectionImages("retinaface", "nowhere"), Evaluation(protocol="wider", truth=str(tmp_path))
    run = detector(Brightest(), data, None, Options(batch_size=1, steps=1), chosen, seed=0)
    with pytest.raises(ValueError, match=r"wider_face_val.mat"):
        run.train_data()


def test_other_images_than_the_official_ones_are_refused_before_training(faces_folder, monkeypatch):
    truth = wider_face.Truth(["1--Other/0"], [np.zeros((0, 4))], {})
    monkeypatch.setattr(wider_face, "read_truth", lambda folder: truth)
    data, chosen = DetectionImages("retinaface", str(faces_folder)), Evaluation(protocol="wider", truth="folder")
    run = detector(Brightest(), data, None, Options(batch_size=1, steps=1), chosen, seed=0)
    with pytest.raises(ValueError, match=r"0--Event/0\.jpg: expected an image of folder"):
        run.train_data()
    truth.names.append("0--Event/0")
    assert next(run.train_data())["image"].shape == (1, 128, 128, 3)


def test_the_package_of_the_protocol_is_checked_before_training(monkeypatch):
    data = DetectionImages("retinaface", "nowhere")
    run = detector(Brightest(), data, None, Options(batch_size=1, steps=1), Evaluation(protocol="coco"), seed=0)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    for start in (run.train_data, lambda: run.evaluate(None)):
        with pytest.raises(ValueError, match=r"eval.protocol is 'coco': .* pip install pycocotools"):
            start()


class OneSize(nn.Module):
    """A dense layer on all pixels."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(1)(images.reshape(len(images), -1))


def test_the_size_of_evaluation_is_checked_before_training():
    data = DetectionImages("retinaface", "nowhere", image_size=32)
    run = detector(Brightest(OneSize()), data, None, Options(batch_size=1, steps=1), Evaluation(image_size=64), seed=0)
    with pytest.raises(ValueError, match=r"eval.image_size is 64: a network for 32 does not take it: .*Dense"):
        run.train_data()
    run = detector(Brightest(), data, None, Options(batch_size=1, steps=1), Evaluation(image_size=64), seed=0)
    with pytest.raises(ValueError, match=r"label.txt: not a readable text file"):
        run.train_data()


def test_classes_must_agree():
    data = DetectionImages("retinaface", "nowhere", classes=3)
    with pytest.raises(ValueError, match="the detector has 1 classes and the data 3: expected as many"):
        detector(Brightest(), data, None, Options(batch_size=1, steps=1), Evaluation(), seed=0)
    with pytest.raises(ValueError, match="the detector has 5 points and the data 0: expected none or as many"):
        detector(Brightest(), DetectionImages("voc"), None, Options(batch_size=1, steps=1), Evaluation(), seed=0)


def test_a_run_begins_with_given_branches():
    data = DetectionImages("retinaface", "nowhere", image_size=32, max_boxes=4)

    def made(given):
        options = Options(batch_size=8, steps=1)
        return detector(Brightest(), data, optim.from_config(OPTIM, 1), options, Evaluation(), seed=0, start=given)

    given = {"batch_stats": {"bn": {"norm": {"mean": np.full(3, 7.0)}}}, "params": {"scale": np.float32(2)}}
    run = made(lambda shapes: given)
    state = run.init(jax.random.key(0), run.prepare())
    assert state.params["scale"] == 2 and state.params["bn"]["norm"]["scale"].tolist() == [1, 1, 1]
    norm = state.model_state["batch_stats"]["bn"]["norm"]
    assert norm["mean"].tolist() == [7, 7, 7] and norm["var"].tolist() == [1, 1, 1]
    assert run.init(jax.random.key(0), None).params["scale"] == 1  # a dry run
    run = made(lambda shapes: {"params": {"trunk": np.float32(1)}})
    with pytest.raises(ValueError, match="the variables to begin with have 'trunk': expected some of scale, bn"):
        run.init(jax.random.key(0), run.prepare())


def test_biases_outside_norms_learn_at_their_own_rate():
    params = {"conv": {"kernel": 1.0, "bias": 1.0}, "bn": {"norm": {"scale": 1.0, "bias": 1.0}}}
    params = jax.tree.map(jnp.float32, params)
    tx = optim.from_config({**OPTIM, "bias_rate": 2.0}, 1)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.05)
    np.testing.assert_allclose(updates["conv"]["bias"], -0.1)
    np.testing.assert_allclose(updates["bn"]["norm"]["bias"], -0.05)
