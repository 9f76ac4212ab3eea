import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import yolo5face as experiment
from facejax.detection import yolo5face
from facejax.detection.base import Truth
from facejax.ops import boxes as box
from facejax.train import Options, app
from facejax.train.dry_run import dry_run
from tests.selection import full_but

SIZE = (96, 120)
TRUNK = functools.partial(yolo5face.ShuffleTrunk, 8, (8, 16, 16), (1, 2, 1))


def model(**options):
    return yolo5face.YOLO5Face(yolo5face.Net(TRUNK, (8, 8, 8)), **options)


def levels(detector, size=SIZE):
    """(stride, anchors [A, 2], rows, columns) of each level."""
    shapes = [(-(-size[0] // s), -(-size[1] // s)) for s in detector.strides]
    return [(s, np.float32(a), *shape) for s, a, shape in zip(detector.strides, detector.anchors, shapes, strict=True)]


def scene(seed, faces=6, images=3):
    """Ground truth with padding; some faces share cells, one touches the border, and not all points are visible."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (images, faces, 2)) * SIZE[::-1]
    centre[:, 1] = centre[:, 0] + 1
    half = rng.uniform(3, 30, (images, faces, 1)) * [1, 1.2]
    half[:, 1] = half[:, 0] * 1.1
    boxes = np.concatenate([centre - half, centre + half], -1)
    points = centre[..., None, :] + rng.uniform(-1, 1, (images, faces, 5, 2)) * half[..., None, :]
    mask, visible = np.ones((images, faces), bool), rng.uniform(size=(images, faces, 5)) > 0.2
    mask[-1, -1] = False
    boxes[~mask], points[~mask], visible[~mask] = 0, 0, False
    labels = np.zeros((images, faces), np.int32)
    return Truth(boxes.astype(np.float32), labels, points.astype(np.float32), visible, mask)


def random_raw(detector, seed, images=3, size=SIZE):
    rng = np.random.default_rng(seed)
    count = sum(h * w * len(a) for _, a, h, w in levels(detector, size))
    shapes = {"boxes": (count, 4), "scores": (count,), "points": (count, 5, 2), "classes": (count,)}
    return {name: rng.normal(size=(images, *shape)).astype(np.float32) for name, shape in shapes.items()}


def brute_matches(truth, n, stride, anchors, rows, columns):
    """(anchor, row, column, face) of one image and level in the order in which the authors' code writes."""
    found = []
    for step in ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)):
        for a, (aw, ah) in enumerate(anchors):
            for g in np.flatnonzero(truth.mask[n]):
                x1, y1, x2, y2 = truth.boxes[n, g] / np.float32(stride)
                x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * stride, (y2 - y1) * stride
                if max(w / aw, aw / w, h / ah, ah / h) >= 4:
                    continue
                near = {
                    (0, 0): True,
                    (-1, 0): x % 1 < 0.5 and x > 1,
                    (0, -1): y % 1 < 0.5 and y > 1,
                    (1, 0): (columns - x) % 1 < 0.5 and columns - x > 1,
                    (0, 1): (rows - y) % 1 < 0.5 and rows - y > 1,
                }
                if near[step]:
                    column = min(max(math.floor(x + 0.5 * step[0]), 0), columns - 1)
                    found.append((a, min(max(math.floor(y + 0.5 * step[1]), 0), rows - 1), column, g))
    return found


ciou = jax.jit(box.ciou)


def brute_losses(detector, raw, truth, point_loss):
    """Sums and divisors of all terms, match by match."""
    sums, start = {}, 0
    for stride, anchors, rows, columns in levels(detector):
        box_sum, score_sum, point_sum = [0.0, 0], [0.0, 0], [0.0, 0]
        count = rows * columns * len(anchors)
        for n in range(len(truth.boxes)):
            part = {name: np.float64(x[n, start : start + count]) for name, x in raw.items()}
            goal = np.zeros(count)
            for a, i, j, g in brute_matches(truth, n, stride, anchors, rows, columns):
                at = (i * columns + j) * len(anchors) + a
                t = 1 / (1 + np.exp(-part["boxes"][at]))
                centre, side = 2 * t[:2] - 0.5 + [j, i], (2 * t[2:]) ** 2 * anchors[a] / stride
                predicted = np.float32([*(centre - side / 2), *(centre + side / 2)])
                overlap = float(ciou(predicted, truth.boxes[n, g] / stride))
                box_sum[0] += 1 - overlap
                box_sum[1] += 1
                goal[at] = max(overlap, 0)
                for point, offset, seen in zip(
                    truth.points[n, g], part["points"][at], truth.visible[n, g], strict=True
                ):
                    if seen:
                        point_sum[0] += point_loss(offset * anchors[a] / stride - (point / stride - [j, i])).sum()
                        point_sum[1] += 2
            x = part["scores"]
            score_sum[0] += np.sum(np.logaddexp(0, x) - x * goal)
            score_sum[1] += count
        sums |= {f"box{stride}": box_sum, f"score{stride}": score_sum, f"points{stride}": point_sum}
        start += count
    return sums


def numpy_wing(x):
    size = np.abs(x)
    return np.where(size < 10, 10 * np.log(1 + size / 2), size - (10 - 10 * np.log(6)))


def compiled(detector):
    """(raw, truth) -> ((sum of all terms, terms), slopes of the sum)."""

    def loss(raw, truth):
        terms = detector.losses(raw, truth, SIZE)
        return sum(term.value() for term in terms.values()), terms

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def wing_losses():
    return compiled(model())


@pytest.mark.parametrize("name, point_loss", [("wing", numpy_wing), ("l2", np.square)])
def test_losses_equal_brute_force(name, point_loss, wing_losses):
    detector, truth = model(point_loss=name), scene(0)
    raw = random_raw(detector, 1)
    if name == "wing":
        (_, terms), _ = wing_losses(raw, truth)
    else:
        terms = jax.jit(detector.losses, static_argnums=2)(raw, truth, SIZE)
    brute = brute_losses(detector, raw, truth, point_loss)
    for key, (total, count) in brute.items():
        np.testing.assert_allclose(terms[key].total.sum(), total, rtol=2e-5, err_msg=key)
        np.testing.assert_allclose(terms[key].count.sum(), count, err_msg=key)
    weights = {"box8": 3.2, "score8": 256, "score16": 64, "score32": 25.6, "points32": 0.32}
    for key, weight in weights.items():
        np.testing.assert_allclose(terms[key].value(), weight * brute[key][0] / max(brute[key][1], 1), rtol=1e-4)


def test_weights_of_four_levels_equal_those_of_the_authors_code():
    found = yolo5face.yolo5face_p6(None)
    scale = 3 / 4  # of three levels over four
    assert (found.box_weight, found.point_weight) == (0.05 * scale, 0.005 * scale)
    assert found.score_weight == pytest.approx(1.0 * scale * 1.4)


def test_samples_equal_brute_force():
    detector, several = model(), 0
    samples = jax.jit(jax.vmap(yolo5face.samples, (0, 0, None, None, None)))
    for seed in range(3):
        truth = scene(seed, faces=8)
        for stride, anchors, rows, columns in levels(detector):
            found = jax.device_get(samples(truth.boxes, truth.mask, anchors, (rows, columns), stride))
            for n, (cell, valid) in enumerate(zip(found.cell, found.valid, strict=True)):
                taken = [(a, *cell[k, g, ::-1].tolist(), g) for k, a, g in np.argwhere(valid).tolist()]
                assert taken == brute_matches(truth, n, stride, anchors, rows, columns)
                several = max(several, valid.sum((0, 1)).max())
    assert several == 9  # three cells and three anchors


def test_the_last_write_stays():
    values, valid = np.float32([[1, 2, 3], [4, 5, 6]]), np.array([[1, 1, 1], [1, 0, 1]], bool)
    rows, columns = np.array([[0, 1, 1], [0, 1, 0]]), np.array([[0, 2, 1], [0, 2, 1]])
    found = jax.jit(lambda values: yolo5face.last_written(values, (rows, columns), valid, (2, 3)))(values)
    np.testing.assert_array_equal(found, [[4, 6, 0], [0, 3, 2]])


def test_zero_decodes_to_the_anchors():
    detector = model(threshold=1.0, lowest=0.0, count=3000)
    raw = jax.tree.map(np.zeros_like, random_raw(detector, 0, images=1))
    found = jax.device_get(jax.jit(detector.decode, static_argnums=1)(raw, SIZE))
    mask = np.asarray(found.mask[0])
    count = sum(h * w * len(a) for _, a, h, w in levels(detector))
    assert mask.sum() == count
    np.testing.assert_allclose(found.scores[0][mask], 0.25)
    start = 0
    for stride, anchors, rows, columns in levels(detector):  # equal scores keep their order
        for i, j, a in ((0, 0, 0), (rows - 1, columns - 1, 2), (1, 2, 1)):
            at = start + (i * columns + j) * 3 + a
            centre = (np.array([j, i]) + 0.5) * stride
            np.testing.assert_allclose(box.to_center(found.boxes[0, at]), [*centre, *anchors[a]], rtol=1e-5)
            np.testing.assert_allclose(found.points[0, at], np.tile([j * stride, i * stride], (5, 1)))
        start += rows * columns * 3


def test_targets_decode_to_the_truth():
    """Perfect predictions have no loss of boxes and landmarks, and are the detections."""
    detector, truth = model(lowest=0.5), scene(5, faces=3, images=2)
    truth = truth.replace(boxes=truth.boxes.copy(), visible=np.ones_like(truth.visible))
    raw = jax.tree.map(np.zeros_like, random_raw(detector, 0, images=2))
    raw["scores"][:], raw["classes"][:], start, done = -9, 9, 0, set()
    for stride, anchors, rows, columns in levels(detector):
        for n in range(2):
            single = Truth(*(x[n : n + 1] for x in jax.tree.leaves(truth)))
            for a, i, j, g in brute_matches(single, 0, stride, anchors, rows, columns):
                x, y, w, h = np.asarray(box.to_center(truth.boxes[n, g]))
                s = np.array([(x / stride - j + 0.5) / 2, (y / stride - i + 0.5) / 2])
                s = np.clip(np.concatenate([s, np.sqrt([w, h] / anchors[a]) / 2]), 1e-6, 1 - 1e-6)
                at = start + (i * columns + j) * 3 + a
                raw["boxes"][n, at], raw["scores"][n, at] = np.log(s / (1 - s)), 9
                raw["points"][n, at] = (truth.points[n, g] - np.array([j, i]) * stride) / anchors[a]
                done.add((n, g))
        start += rows * columns * 3
    found = jax.device_get(jax.jit(detector.decode, static_argnums=1)(raw, SIZE))
    assert len(done) >= 4
    for n in range(2):
        real = np.asarray(found.mask[n])
        for g in (g for m, g in done if m == n):
            distance = np.abs(np.asarray(found.boxes[n])[real] - truth.boxes[n, g]).max(1)
            if distance.min() > 0.01:  # another face took its cells, or suppressed it
                overlaps = box.iou(truth.boxes[n], truth.boxes[n, g])
                assert np.sort(overlaps)[-2] > 0.3
                continue
            np.testing.assert_allclose(found.points[n][real][distance.argmin()], truth.points[n, g], atol=1e-2)


def test_images_without_faces_train(wing_losses):
    (value, _), slopes = wing_losses(random_raw(model(), 1), jax.tree.map(np.zeros_like, scene(0)))
    chex.assert_tree_all_finite(slopes)
    assert value > 0 and not np.asarray(slopes["boxes"]).any() and not np.asarray(slopes["points"]).any()


@pytest.mark.parametrize("name", ["scores", "points"])
def test_gradients(name, wing_losses):
    """Finite differences of all terms; the overlap is a constant in the objectness' target and in CIoU's weight."""
    truth, raw, step = scene(2), random_raw(model(), 3), 1 / 256
    slopes = np.asarray(wing_losses(raw, truth)[1][name])
    direction = np.where(slopes == 0, np.random.default_rng(4).normal(size=slopes.shape), np.sign(slopes))
    ends = [
        float(wing_losses({**raw, name: np.float32(raw[name] + s * direction)}, truth)[0][0]) for s in (-step, step)
    ]
    assert (ends[1] - ends[0]) / (2 * step) == pytest.approx(np.abs(slopes).sum(), rel=2e-2)


def test_wing():
    x = jnp.linspace(-15, 15, 61)
    np.testing.assert_allclose(yolo5face.wing(x), numpy_wing(np.float64(x)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(yolo5face.wing(jnp.float32(10 - 1e-5)), yolo5face.wing(jnp.float32(10)), rtol=1e-5)
    slope = jax.vmap(jax.grad(yolo5face.wing))(jnp.array([1e-3, 4.0, -4.0, 12.0, -400.0]))
    np.testing.assert_allclose(slope, [10 / 2.001, 10 / 6, -10 / 6, 1, -1], rtol=1e-5)
    assert np.isfinite(np.asarray(jax.grad(lambda x: yolo5face.wing(x).sum())(x.astype(jnp.bfloat16)), float)).all()


@pytest.mark.parametrize("size", [(96, 128), (75, 101), (61, 45)])
def test_network_and_anchors_have_one_layout(size):
    detector, images = model(), jnp.zeros((1, *size, 3))
    made = functools.partial(detector.net.init_with_output, train=False)
    raw, _ = jax.eval_shape(made, jax.random.key(0), images)
    wanted = random_raw(detector, 0, 1, size)
    assert {name: x.shape for name, x in raw.items()} == {name: x.shape for name, x in wanted.items()}
    found = jax.eval_shape(lambda raw: detector.decode(raw, size), raw)
    assert found.points.shape == (1, 750, 5, 2)


def test_first_outputs():
    """Objectness begins at 8 faces an image of 640 pixels, the class at a constant."""
    detector, images = model(), jnp.zeros((1, 64, 64, 3))
    raw = jax.jit(lambda key: detector.net.init_with_output(key, images, train=False)[0])(jax.random.key(0))
    np.testing.assert_allclose(jax.nn.sigmoid(raw["classes"]), 60 / 61, rtol=1e-5)
    start = 0
    for stride, anchors, rows, columns in levels(detector, (64, 64)):
        stop = start + rows * columns * len(anchors)
        middle = jnp.median(raw["scores"][0, start:stop])
        np.testing.assert_allclose(middle, math.log(8 / (640 / stride) ** 2), atol=1)
        start = stop


def smoke(folder, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(folder), "data.image_size": 64, "data.max_boxes": 8,
            "train.steps": 2, "train.batch_size": 4, "train.log_every": 1, "train.devices": 1, "eval.batch_size": 4,
            **changes,
        }
    )  # fmt: skip
    return config


def test_smoke(monkeypatch, faces_folder, tmp_path):
    trunk = functools.partial(yolo5face.ShuffleTrunk, 8, (8, 16, 16), (1, 1, 1))
    monkeypatch.setitem(experiment.NETS, "tiny", functools.partial(yolo5face.Net, trunk, (8, 8, 8)))
    _, report = app.run(smoke(faces_folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "nme", "precision", "recall"} <= set(report.metrics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


PARAMETERS = {
    "wider_n05": 447_456, "wider_n": 1_725_744, "wider_s": 7_074_640, "wider_m": 21_063_024, "wider_l": 46_626_832,
    "wider_s6": 12_386_176, "wider_m6": 35_484_960, "wider_l6": 76_674_112,
}  # fmt: skip


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "synthetic", "wider_s6"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert costs["parameters"] == PARAMETERS[preset]
        assert config.train.steps == 250 * 201


def test_wrong_names():
    config = experiment.get_config()
    config.model.name = "x"
    with pytest.raises(ValueError, match=r"model\.name is 'x': expected one of tiny, tiny_focus, n05"):
        experiment.build(config)
    with pytest.raises(ValueError, match="point_loss is 'l1': expected one of wing, l2"):
        model(point_loss="l1")
