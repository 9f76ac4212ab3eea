"""Published RetinaFace weights: recorded raw outputs, anchors, and detections on photographs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import facejax
from facejax.data import transforms
from facejax.detection.base import suppressed
from facejax.detection.retinaface import RetinaFace, retinaface_mobilenet025
from facejax.interop import retinaface as interop


@pytest.fixture(scope="module")
def reference(test_data):
    return np.load(test_data / "weights" / "retinaface_mnet025" / "reference.npz")


@pytest.fixture(scope="module")
def detector():
    return RetinaFace(retinaface_mobilenet025(slope=0.0), sides=((10, 20), (32, 64), (128, 256)))


@pytest.fixture(scope="module")
def raw_of(test_data, detector):
    template = jax.eval_shape(lambda k: detector.net.init(k, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0))
    path = test_data / "weights" / "retinaface_mnet025" / "mobilenet0.25_Final.pth"
    variables = interop.load(path, template)
    return jax.jit(lambda images: detector.net.apply(variables, images, train=False))


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


def test_raw_outputs_and_anchors(raw_of, detector, reference):
    raw = raw_of(nhwc(reference["random_input"]))
    np.testing.assert_allclose(raw["boxes"], reference["random_loc"], atol=1e-4)
    np.testing.assert_allclose(raw["logits"], reference["random_logits"], atol=1e-4)
    np.testing.assert_allclose(raw["points"].reshape(2, -1, 10), reference["random_landms"], atol=1e-4)
    scores = detector.predictions(raw, (96, 128))[1]
    np.testing.assert_allclose(scores, reference["random_conf"][..., 1], atol=1e-5)
    pixels = reference["random_priors"] * np.float32([128, 96, 128, 96])
    np.testing.assert_allclose(detector.anchors((96, 128)), pixels, atol=1e-4)


@pytest.mark.parametrize("photo", ["multiface", "trump_hillary", "largest_selfie"])
def test_detections_on_photographs(photo, raw_of, detector, reference):
    images = nhwc(reference[f"{photo}_input"])
    boxes, scores, points = detector.predictions(raw_of(images), images.shape[1:3])
    scale = float(reference[f"{photo}_resize"])
    options = {"lowest": 0.02, "threshold": 0.4, "count": 750, "candidates": 5000, "plus_one": True}
    found = suppressed(boxes / scale, scores, points / scale, **options)  # the recorded run suppresses after resizing
    expected, expected_points = reference[f"{photo}_dets"], reference[f"{photo}_dets_landms"]
    assert found.mask.sum() == len(expected)
    boxes, scores, points = (np.asarray(x[0])[found.mask[0]] for x in (found.boxes, found.scores, found.points))
    np.testing.assert_allclose(scores, expected[:, 4], atol=1e-4)
    distance = np.abs(boxes - expected[:, None, :4]).max(-1) + np.abs(scores - expected[:, None, 4])
    rows = distance.argmin(1)  # scores that differ by rounding may have changed places
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(expected)))
    np.testing.assert_allclose(boxes[rows], expected[:, :4], atol=0.1)
    np.testing.assert_allclose(points[rows].reshape(-1, 10), expected_points, atol=0.1)


def test_preprocess_and_decode_of_a_photograph(test_data, raw_of, detector):
    folder = test_data / "faces" / "photos"
    image = transforms.decode((folder / "JianzhuGuo.jpg").read_bytes())
    truth = json.loads((folder / "retinaface_boxes.json").read_text())["JianzhuGuo.jpg"]
    scale = 640 / max(image.shape[:2])
    size = tuple(round(n * scale) for n in image.shape[:2])
    small = transforms.resize(image, *size)
    found = detector.decode(raw_of(detector.preprocess(jnp.asarray(small)[None])), size)
    assert (found.scores[0] > 0.6).sum() == len(truth)
    np.testing.assert_allclose(found.boxes[0, 0] / scale, truth[0]["box_xyxy"], atol=1)
    np.testing.assert_allclose(found.points[0, 0] / scale, truth[0]["landmarks_xy"], atol=1)


def test_predictor(test_data):
    """The published file as a function of photographs; the longest side of the recorded run was 640."""
    folder, options = test_data / "faces" / "photos", {"slope": 0.0, "sides": ((10, 20), (32, 64), (128, 256))}
    path = test_data / "weights" / "retinaface_mnet025" / "mobilenet0.25_Final.pth"
    found = facejax.load_pretrained("retinaface_mobilenet025", path, **options)(folder / "trump_hillary.jpg")
    truth = json.loads((folder / "retinaface_boxes.json").read_text())["trump_hillary.jpg"]
    assert found.mask.sum() == len(truth)
    np.testing.assert_allclose(found.boxes[:2], [face["box_xyxy"] for face in truth], atol=2)
