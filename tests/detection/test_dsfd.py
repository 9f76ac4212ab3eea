"""DSFD: sizes of the parts, max-in-out, anchors, losses of all shots, detections, test script; against NumPy loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dsfd as experiment
from facejax.detection import dsfd
from facejax.detection.base import Truth
from facejax.interop import torchvision
from facejax.ops import boxes as box
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run
from tests.selection import full_but

SIZE = (70, 101)
SMALL = {"strides": (8, 16, 32), "sizes": (16, 32, 64)}


def maps(**options):
    """Three levels of strides 4, 8 and 16."""
    return dsfd.VGGMaps(**{"depths": (1, 1, 1, 1, 1), "widths": (2, 2, 4, 4, 6), "fc": 0, "extras": (), **options})


def truth(*images, rows=5):
    """Ground truth with padding; an argument per image, a list of boxes."""
    boxes, mask = np.zeros((len(images), rows, 4), np.float32), np.zeros((len(images), rows), bool)
    for i, image in enumerate(images):
        boxes[i, : len(image)], mask[i, : len(image)] = np.reshape(image, (-1, 4)), True
    points = np.zeros((*mask.shape, 0, 2), np.float32)
    labels = np.zeros(mask.shape, np.int32)
    return Truth(*map(jnp.asarray, (boxes, labels, points, np.zeros((*mask.shape, 0), bool), mask)))


FACES = [[3, 4, 17, 22], [30, 6, 62, 50], [33, 8, 60, 44], [71, 50, 74, 54]]
TRUTH = truth(FACES, [], [[20.3, 5.1, 79.6, 68.8], [1.2, 1, 9.3, 12]])


@pytest.fixture(scope="module")
def detector():
    return dsfd.DSFD(dsfd.Net(maps()), second_weight=0.7, box_weight=0.4, **SMALL)


@pytest.fixture(scope="module")
def raw(detector):
    """Predictions of all four shots for three images."""
    rng, found = np.random.default_rng(0), {}
    for shot in ("first", "face", "head", "body"):
        n = len(detector.anchors(shot, SIZE))
        found[shot] = tuple(jnp.float32(rng.normal(0, s, (3, n, k))) for s, k in ((1, 2), (0.4, 4)))
    return found


def test_parts_have_the_published_sizes():
    net, images = dsfd.dsfd_resnet152(), jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))
    sizes = {name: count(part) for name, part in shapes["params"].items()}
    assert sum(size for name, size in sizes.items() if name.startswith("boxes")) == 14_175_804
    assert sum(size for name, size in sizes.items() if name.startswith("scores")) == 14_171_178
    blocks = [sizes[f"enhance{i}"] for i in range(1, 7)]
    assert blocks == [1_917_824, 3_097_472, 5_456_768, 10_175_360, 3_097_472, 1_917_824]
    assert sum(sizes.values()) == 120_058_406


def test_max_in_out():
    scores = jnp.float32([1, 5, 2, 3])
    assert dsfd.max_in_out(scores, first=True).tolist() == [5, 3]
    assert dsfd.max_in_out(scores, first=False).tolist() == [3, 5]
    equal = jnp.float32([2, 2, 2, -1])
    np.testing.assert_allclose(jax.nn.softmax(dsfd.max_in_out(equal, first=True)), jax.nn.softmax(equal[2:]))


def test_slots_of_the_levels():
    """Level 1 has faces only, level 2 heads too, from level 3 on also bodies; the first shot has one slot."""
    net, images = dsfd.Net(maps(), products=2, first_shot=True, head=4, head_depth=1), jnp.zeros((1, 48, 80, 3))
    raw, variables = jax.eval_shape(lambda key: net.init_with_output(key, images, train=False), jax.random.key(0))
    small = dsfd.DSFD(net, strides=(4, 8, 16), sizes=(16, 32, 64))
    assert {name: logits.shape for name, (logits, _) in raw.items()} == {
        name: (1, len(small.anchors(name, (48, 80))), 2) for name in ("first", "face", "head", "body")
    }
    assert [variables["params"][f"scores{i}"]["out"]["bias"].size for i in (1, 2, 3)] == [4, 6, 8]
    assert [variables["params"][f"boxes{i}"]["out"]["bias"].size for i in (1, 2, 3)] == [4, 8, 12]


def code_anchors(shot, size, strides, sizes):
    """PriorBox with ratio 1.5: relative, clamped to 0..1 in centre form; here in pixels."""
    skip = {"first": 0, "face": 0, "head": 1, "body": 2}[shot]
    found = []
    for stride, side in zip(strides[skip:], sizes, strict=False):
        side = side / 2 if shot == "first" else side
        for i in range(math.ceil(size[0] / stride)):
            for j in range(math.ceil(size[1] / stride)):
                relative = [
                    (j + 0.5) * stride / size[1], (i + 0.5) * stride / size[0],
                    side / size[1] / math.sqrt(1.5), side / size[0] * math.sqrt(1.5),
                ]  # fmt: skip
                found.append(np.clip(relative, 0, 1) * [size[1], size[0], size[1], size[0]])
    return np.array(found)


@pytest.mark.parametrize("size", [(640, 640), (70, 101), (57, 43)])
def test_anchors(size):
    detector = dsfd.DSFD(dsfd.Net(maps()))
    for shot in ("first", "face", "head", "body"):
        found = detector.anchors(shot, size)
        np.testing.assert_allclose(found, code_anchors(shot, size, detector.strides, detector.sizes), rtol=1e-5)
    if size == (640, 640):
        assert len(detector.anchors("face", size)) == 34_125


def overlap(a, b, plus=0):
    width = min(a[2], b[2]) - max(a[0], b[0]) + plus
    height = min(a[3], b[3]) - max(a[1], b[1]) + plus
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0] + plus) * (c[3] - c[1] + plus) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def code_targets(anchors, faces, positive=0.4):
    """Labels [A] and encoded boxes [A, 4] of one image, as in the release's `match`."""
    labels, targets = np.zeros(len(anchors), int), np.zeros((len(anchors), 4))
    if not len(faces):
        return labels, targets
    table = np.asarray(box.iou(np.float32(faces)[:, None], box.from_center(np.float32(anchors))))  # ties as there
    best, owner = table.max(0), table.argmax(0)
    for j, prior in enumerate(table.argmax(1)):
        best[prior], owner[prior] = 2, j
    for i, (x, y, w, h) in enumerate(anchors):
        x1, y1, x2, y2 = faces[owner[i]]
        labels[i] = best[i] >= positive
        targets[i] = [
            ((x1 + x2) / 2 - x) / (0.1 * w), ((y1 + y2) / 2 - y) / (0.1 * h),
            math.log((x2 - x1) / w) / 0.2, math.log((y2 - y1) / h) / 0.2,
        ]  # fmt: skip
    return labels, targets


def code_losses(anchors, faces, logits, offsets, ratio=3):
    """Sums of the two losses, and the numbers of sampled anchors and of positives, of one image."""
    labels, targets = code_targets(anchors, faces)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -log_p[np.arange(len(labels)), labels]
    hard = np.argsort(-np.where(labels == 1, 0, entropy), kind="stable")[: min(ratio * labels.sum(), len(labels) - 1)]
    used = (labels == 1) | np.isin(np.arange(len(labels)), hard)
    d = np.abs(offsets - targets)[labels == 1]
    return entropy[used].sum(), np.where(d < 1, 0.5 * d**2, d - 0.5).sum(), used.sum(), labels.sum()


def faces_of(i):
    return np.asarray(TRUTH.boxes[i], float)[np.asarray(TRUTH.mask[i])]


@pytest.mark.parametrize("by_sampled", [True, False])
def test_losses_of_all_shots(detector, raw, by_sampled):
    model = dsfd.DSFD(detector.net, second_weight=0.7, box_weight=0.4, by_sampled=by_sampled, **SMALL)
    terms = jax.jit(lambda raw, truth: model.losses(raw, truth, SIZE))(raw, TRUTH)
    for shot, maps in raw.items():
        anchors = model.anchors(shot, SIZE)
        wanted = np.array(
            [code_losses(anchors, faces_of(i), *(np.asarray(x[i], float) for x in maps)) for i in range(3)]
        )
        scores, boxes, sampled, positives = wanted.T
        assert positives[1] == 0 and positives[0] >= 3
        np.testing.assert_allclose(terms[f"scores_{shot}"].total, scores, rtol=2e-5)
        np.testing.assert_allclose(terms[f"boxes_{shot}"].total, boxes, rtol=2e-5)
        weight = 1 if shot == "first" else 0.7
        divisor = (sampled if by_sampled else positives).sum()
        np.testing.assert_allclose(terms[f"scores_{shot}"].value(), weight * scores.sum() / divisor, rtol=2e-5)
        box_term = 0.4 * weight * boxes.sum() / positives.sum()
        np.testing.assert_allclose(terms[f"boxes_{shot}"].value(), box_term, rtol=2e-5)


def test_images_without_faces_have_finite_losses_and_gradients(detector, raw):
    def loss(raw):
        return sum(term.value() for term in detector.losses(raw, truth([], [], []), SIZE).values())

    value, gradients = jax.value_and_grad(loss)(raw)
    assert value == 0 and all((x == 0).all() for x in jax.tree.leaves(gradients))


def test_decode(raw):
    model = dsfd.DSFD(dsfd.Net(maps()), candidates=50, count=40, lowest=0.3, **SMALL)
    found = jax.jit(lambda raw: model.decode(raw, SIZE))({"face": raw["face"]})
    logits, offsets = (np.asarray(x[1], float) for x in raw["face"])
    rows = []
    for a, t, (background, face) in zip(
        code_anchors("face", SIZE, model.strides, model.sizes), offsets, logits, strict=True
    ):
        centre, side = a[:2] + 0.1 * t[:2] * a[2:], a[2:] * np.exp(0.2 * t[2:])
        rows.append((1 / (1 + math.exp(background - face)), [*(centre - side / 2), *(centre + side / 2)]))
    kept = []
    for score, corners in sorted(rows, key=lambda row: -row[0])[: model.candidates]:
        if score > model.lowest and all(overlap(corners, other) <= model.threshold for _, other in kept):
            kept.append((score, corners))
    n = int(found.mask[1].sum())
    assert n == len(kept[: model.count]) > 10
    np.testing.assert_allclose(found.scores[1, :n], [score for score, _ in kept[: model.count]], rtol=1e-5)
    np.testing.assert_allclose(found.boxes[1, :n], [corners for _, corners in kept[: model.count]], atol=1e-3)


def code_plan(largest):
    """The script's passes, as it computes them: (factor, mirrored, which sizes are kept)."""
    shrink = largest if largest < 1 else 1
    plan = [(shrink, False, "all"), (shrink, True, "all")]
    st = 0.5 if largest >= 0.75 else 0.5 * largest
    plan.append((st, False, "big"))
    if largest > 0.75:
        plan.append((0.75, False, "big"))
    bt = min(2, largest) if largest > 1 else (st + largest) / 2
    enlarged = [bt]
    if largest > 1.5:
        enlarged.append(1.5)
    if largest > 2:
        bt *= 2
        while bt < largest:
            enlarged.append(bt)
            bt *= 2
        enlarged.append(largest)
    plan += [(scale, False, "small" if bt > 1 else "big") for scale in enlarged]
    plan.append((0.25, False, "big"))
    return plan + [(scale, False, "small") for scale in (1.25, 1.75, 2.25) if scale <= largest]


@pytest.mark.parametrize("largest", [0.3, 0.75, 0.9, 1.0, 1.4, 1.9, 2.2, 3.0, 9.0])
def test_passes_of_the_test_script(largest):
    limits = {"all": (0, math.inf), "big": (30, math.inf), "small": (0, 100)}
    wanted = [(scale, mirror, *limits[kept]) for scale, mirror, kept in code_plan(largest)]
    assert dsfd.scale_plan((100, 100), largest) == wanted


def test_largest_factor():
    assert dsfd.scale_plan((100, 100)) == dsfd.scale_plan((100, 100), 3.0)
    assert dsfd.scale_plan((4000, 3000)) == dsfd.scale_plan((9, 9), math.sqrt((2**31 - 1) / 200 / 12e6))


def code_voting(boxes, scores, count):
    order = np.argsort(-scores, kind="stable")
    boxes, scores, found = boxes[order], scores[order], []
    while len(boxes):
        group = np.array([overlap(boxes[0], other, 1) >= 0.3 for other in boxes])
        if group.sum() > 1:
            found.append((*np.average(boxes[group], axis=0, weights=scores[group]), scores[0]))
        boxes, scores = boxes[~group], scores[~group]
    return np.array(found[:count])


@pytest.mark.parametrize("count", [3, 750])
def test_voting_drops_single_boxes(count):
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 90, (37, 2))
    boxes = np.float32(np.concatenate([low, low + rng.uniform(8, 40, (37, 2))], -1))
    scores = np.float32(rng.uniform(0.01, 1, 37))
    found, best = dsfd.merged(boxes, scores, count)
    wanted = code_voting(boxes, scores, count)
    assert 3 <= len(wanted) < 30
    np.testing.assert_allclose(found, wanted[:, :4], rtol=1e-5)
    np.testing.assert_allclose(best, wanted[:, 4])
    assert dsfd.merged(boxes[:1], scores[:1])[0].shape == (0, 4)
    assert dsfd.merged(boxes[:0], scores[:0])[0].shape == (0, 4)


@pytest.fixture
def finder():
    """A detector, an image with a white rectangle 25 pixels wide and 50 high, and a stub that finds it anywhere."""
    model = dsfd.DSFD(dsfd.Net(maps()), strides=(8,), sizes=(16,), count=5)
    image = np.zeros((96, 128, 3), np.uint8)
    image[30:80, 16:41] = 255

    def apply(inputs):
        assert all(side % 16 == 0 for side in inputs.shape[1:3])
        anchors = model.anchors("face", inputs.shape[1:3])
        rows, columns = np.nonzero(np.asarray(inputs[0, ..., 0]) > 0)
        low, high = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], float)
        shift = ((low + high) / 2 - anchors[:, :2]) / (0.1 * anchors[:, 2:])
        targets = np.concatenate([shift, np.log((high - low) / anchors[:, 2:]) / 0.2], -1)
        logits = np.stack([np.zeros(len(anchors)), np.where(np.arange(len(anchors)) == 3, 5, -9)], -1)
        return {"face": (jnp.float32(logits[None]), jnp.float32(targets[None]))}

    return model, apply, image


def test_multi_scale_joins_all_passes(finder, monkeypatch):
    model, apply, image = finder
    plan = dsfd.scale_plan(image.shape[:2])
    monkeypatch.setattr(dsfd, "scale_plan", lambda size: [plan[2], plan[-2]])
    assert [scale for scale, *_ in (plan[2], plan[-2])] == [0.5, 1.75]
    boxes, scores = model.multi_scale(apply, image, multiple=16)
    assert len(boxes) == 1 and scores[0] == pytest.approx(1 / (1 + math.exp(-5)))
    np.testing.assert_allclose(boxes[0], [16, 30, 41, 80], atol=1)


@pytest.mark.parametrize(
    ("low", "high", "kept"), [(0, math.inf, True), (50.5, 26.5, True), (51.5, math.inf, False), (0, 25.5, False)]
)
def test_multi_scale_keeps_boxes_by_longer_and_shorter_side(finder, monkeypatch, low, high, kept):
    """The image and its mirror image vote for one box."""
    model, apply, image = finder
    monkeypatch.setattr(dsfd, "scale_plan", lambda size: [(1.0, False, low, high), (1.0, True, low, high)])
    boxes, _ = model.multi_scale(apply, image, multiple=16)
    np.testing.assert_allclose(boxes, [[16, 30, 41, 80]] if kept else np.zeros((0, 4)), atol=1e-3)


def test_multi_scale_limits_the_result_and_no_pass(monkeypatch):
    """Two faces are the second and the third of their passes: both passes must give both for them to be confirmed."""
    model = dsfd.DSFD(dsfd.Net(maps()), strides=(16,), sizes=(16,), count=2)
    passes = iter(([0.9, 0.8, 0.7], [0.3, 0.8, 0.9]))

    def apply(inputs):
        scores = np.full(model.anchors("face", inputs.shape[1:3]).shape[0], 1e-4)
        scores[[0, 3, 6]] = next(passes)
        logits = np.stack([np.zeros(len(scores)), np.log(scores / (1 - scores))], -1)
        return {"face": (jnp.float32(logits[None]), jnp.zeros((1, len(scores), 4)))}

    monkeypatch.setattr(dsfd, "scale_plan", lambda size: [(1.0, False, 0, math.inf)] * 2)
    boxes, scores = model.multi_scale(apply, np.zeros((16, 112, 3), np.uint8))
    np.testing.assert_allclose(scores, [0.9, 0.9], rtol=1e-5)
    np.testing.assert_allclose((boxes[:, 0] + boxes[:, 2]) / 2, [8, 104], atol=1e-3)


def test_rows_of_a_result_file():
    found = dsfd.wider_rows(np.array([[1.5, 2.0, 4.2, 6.0], [-0.5, 0, 3, 3]]))
    assert found.tolist() == [[1, 2, 4, 5], [-1, 0, 5, 4]]


def test_preprocess():
    found = dsfd.DSFD(dsfd.Net(maps())).preprocess(np.array([[[[10, 20, 30]]]], np.uint8))
    assert found[0, 0, 0].tolist() == [30 - 104, 20 - 117, 10 - 123]


def test_sizes_that_vgg_does_not_divide_are_refused():
    net = dsfd.Net(maps(fc=4))
    with pytest.raises(ValueError, match="VGGMaps: images of 64 x 48 pixels: expected sides that 32 divides"):
        jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 64, 48, 3)), train=False))


def smoke(folder, **changes):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(folder), "data.image_size": 64, "data.max_boxes": 4,
            "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8, **changes,
        }
    )  # fmt: skip
    return config


@pytest.fixture
def small(monkeypatch):
    def tiny(fem, first_shot, dtype):
        return dsfd.dual(maps(dtype=dtype), products=2 * fem, first_shot=first_shot, dtype=dtype)

    monkeypatch.setattr(experiment, "tiny", tiny)


def test_smoke(small, faces_folder, tmp_path):
    _, report = app.run(smoke(faces_folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "ap_small", "precision", "recall"} <= set(report.metrics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


PARAMETERS = {"wider_resnet152": 120_058_406, "wider_dual_vgg16": 37_931_250, "wider_dual_resnet152": 107_632_626}


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "synthetic", "single_shot", "wider_dual_vgg16"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert config.data.augment == "anchor"
        assert costs["parameters"] == PARAMETERS[preset]
        assert [round(b * config.train.steps) for b in config.optim.schedule.boundaries] == [40_000, 50_000]


def test_a_run_begins_from_a_published_trunk(small, faces_folder, monkeypatch):
    rng, tensors, inputs = np.random.default_rng(0), {}, 3
    for place, width in ((0, 2), (3, 2), (6, 4), (9, 4), (12, 6)):
        tensors[f"features.{place}.weight"] = rng.normal(size=(width, inputs, 3, 3)).astype(np.float32)
        tensors[f"features.{place}.bias"] = rng.normal(size=width).astype(np.float32)
        inputs = width
    monkeypatch.setattr(torchvision, "read_weights", lambda path, key: tensors)
    run = experiment.build(smoke(faces_folder, **{"model.trunk": "vgg.pth"}))
    params = run.init(jax.random.key(0), run.prepare()).params
    kernel = np.asarray(params["maps"]["vgg"]["conv4_1"]["kernel"])
    np.testing.assert_array_equal(kernel, tensors["features.9.weight"].transpose(2, 3, 1, 0))


def test_a_published_resnet_brings_its_statistics(monkeypatch):
    shapes = {kind: {"maps": {"resnet": {"a": 1}, "extra1_1": {}}} for kind in ("params", "batch_stats")}
    monkeypatch.setattr(torchvision, "load", lambda path, template: template)
    found = experiment.read_trunk("resnet.pth", shapes)
    assert found == {kind: {"maps": {"resnet": {"a": 1}}} for kind in ("params", "batch_stats")}


def test_wrong_names():
    config = experiment.get_config()
    config.model.name = "vgg"
    with pytest.raises(ValueError, match=r"model\.name is 'vgg': expected one of tiny, resnet152, vgg16, dual_vgg16"):
        experiment.build(config)
