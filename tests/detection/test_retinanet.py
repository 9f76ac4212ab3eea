from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from experiments import retinanet as experiment
from facejax.backbones.resnet import ResNet
from facejax.detection import retinanet
from facejax.detection.base import Truth
from facejax.detection.retinanet import sigmoid_focal_loss
from facejax.ops import boxes as box
from facejax.train import Options, app
from facejax.train.dry_run import dry_run
from tests.selection import full_but

SIZE = (96, 75)


def model(classes=2, **options):
    net = retinanet.Net(ResNet((1, 1, 1, 1), False, widths=(4, 4, 6, 8)), classes, features=6, depth=1)
    return retinanet.RetinaNet(net, **options)


def overlaps(a, b):
    """IoU [n, m] of boxes [n, 4] and [m, 4]."""
    a, b = np.asarray(a)[:, None], np.asarray(b)
    shared = np.prod(np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None), -1)
    areas = (np.prod(x[..., 2:] - x[..., :2], -1) for x in (a, b))
    return shared / np.maximum(sum(areas) - shared, 1e-7)


def detectron_match(corners, boxes, labels, positive=0.5, negative=0.4):
    """The authors' steps: label of each anchor (-1 ignored, 0 background), its box, positives before the last step."""
    label = np.full(len(corners), -1)
    if not len(boxes):
        return np.zeros(len(corners), int), label, 0
    overlap = overlaps(corners, boxes)
    owner, most = overlap.argmax(1), overlap.max(1)
    first = np.where(overlap == overlap.max(0))[0]
    label[first] = labels[owner[first]] + 1
    enough = most >= positive
    label[enough] = labels[owner[enough]] + 1
    count = (label >= 1).sum()
    label[most < negative] = 0
    return label, owner, count


def scene(seed, images=2, boxes=4, classes=2):
    """Random boxes; the last image has one less."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 40, (images, boxes, 2))
    corners = np.concatenate([low, low + rng.uniform(8, 50, (images, boxes, 2))], -1)
    mask = np.ones((images, boxes), bool)
    mask[-1, -1] = False
    labels = rng.integers(0, classes, (images, boxes))
    return truth_of(np.where(mask[..., None], corners, 0), np.where(mask, labels, 0), mask)


def truth_of(boxes, labels, mask):
    none = np.zeros((*mask.shape, 0))
    return Truth(boxes.astype(np.float32), labels.astype(np.int32), np.zeros((*mask.shape, 0, 2)), none > 0, mask)


def random_raw(detector, seed, images=2):
    rng, count = np.random.default_rng(seed), sum(map(len, detector.anchors(SIZE)))
    shapes = {"scores": (images, count, detector.classes), "boxes": (images, count, 4)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_focal_loss_by_its_formula():
    x = np.linspace(-8, 8, 33)
    for target in (True, False):
        p = 1 / (1 + np.exp(-x))
        p_t, alpha = (p, 0.25) if target else (1 - p, 0.75)
        expected = -alpha * (1 - p_t) ** 2 * np.log(p_t)
        found = sigmoid_focal_loss(x, np.full(33, target))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert np.all(np.diff(found) * (1 if target else -1) < 0)  # falls with p_t


def test_focal_loss_in_closed_form():
    background = np.zeros(1, bool)
    prior = jnp.array([-np.log(99)])
    np.testing.assert_allclose(sigmoid_focal_loss(prior, background), 0.75 * 1e-4 * -np.log(0.99), rtol=1e-4)
    half = jnp.zeros(2)
    target = np.array([True, False])
    np.testing.assert_allclose(sigmoid_focal_loss(half, target, gamma=2, alpha=None), 0.25 * np.log(2), rtol=1e-6)
    x = jnp.linspace(-5, 5, 11)
    entropy = jax.nn.softplus(x)
    np.testing.assert_allclose(sigmoid_focal_loss(x, np.zeros(11, bool), gamma=0, alpha=0.5), entropy / 2, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradient_of_the_focal_loss(gamma):
    target = np.arange(9) % 2 == 0

    def loss(x):
        return sigmoid_focal_loss(x, target, gamma=gamma)

    check_grads(loss, (jnp.linspace(-4, 4, 9),), 1, modes=["rev"], rtol=1e-2, atol=1e-3)
    wild = jnp.array([-400.0, 400, -90, 90, 0, 1e4, -1e4, 30, -30], jnp.bfloat16)
    for flags in (target, ~target):
        value = jax.value_and_grad(lambda x, flags=flags: sigmoid_focal_loss(x, flags, gamma=gamma).sum())(wild)
        chex.assert_tree_all_finite(value)


def test_gradient_tends_to_that_of_the_cross_entropy():
    x, target = jnp.linspace(-3, 3, 7), np.arange(7) % 2 == 0
    slope = jax.grad(lambda x: sigmoid_focal_loss(x, target, gamma=1e-4).sum())(x)
    weight = np.where(target, 0.25, 0.75)
    np.testing.assert_allclose(slope, weight * (jax.nn.sigmoid(x) - target), rtol=1e-2)


def test_assignment_equals_the_authors_steps():
    detector = model()
    anchors = np.concatenate(detector.anchors(SIZE))
    corners = np.asarray(box.from_center(anchors))
    matched = jax.jit(jax.vmap(lambda b, m: retinanet.match(box.iou(b[:, None], corners), m)))
    lost = 0
    for seed in range(3):
        truth = scene(seed)
        match, count = matched(truth.boxes, truth.mask)
        for n in range(2):
            real = truth.mask[n]
            label, owner, expected = detectron_match(corners, truth.boxes[n][real], truth.labels[n][real])
            np.testing.assert_array_equal(match.positive[n], label > 0)
            np.testing.assert_array_equal(match.negative[n], label == 0)
            np.testing.assert_array_equal(match.box[n][label > 0], owner[label > 0])
            assert count[n] == expected
            lost += expected - (label > 0).sum()
    assert lost > 0


def test_a_forced_match_is_lost_below_the_negative_threshold():
    overlaps, mask = np.float32([[0.45, 0.42, 0.1], [0.0, 0.3, 0.35], [0.9, 0.9, 0.9]]), np.array([True, True, False])
    match, count = retinanet.match(overlaps, mask)
    assert match.positive.tolist() == [True, False, False]  # the second box has no anchor
    assert match.negative.tolist() == [False, False, True] and count == 2


def test_anchors():
    levels = model().anchors((128, 96))
    assert [len(x) for x in levels] == [9 * 16 * 12, 9 * 8 * 6, 9 * 4 * 3, 9 * 2 * 2, 9]
    wide, tall = 32 * 2**0.5, 32 / 2**0.5
    np.testing.assert_allclose(levels[0][:3], [[4, 4, wide, tall], [4, 4, 32, 32], [4, 4, tall, wide]], rtol=1e-6)
    np.testing.assert_allclose(
        np.prod(levels[4][:, 2:], -1) ** 0.5, np.repeat(512 * 2 ** (np.arange(3) / 3), 3), rtol=1e-6
    )
    np.testing.assert_allclose(levels[2][9, :2], [48, 16])


def test_losses_by_loops():
    detector, truth = model(), scene(3)
    anchors, raw = np.concatenate(detector.anchors(SIZE)), random_raw(model(), 0)
    corners = np.asarray(box.from_center(anchors))
    terms = jax.jit(lambda raw: detector.losses(raw, truth, SIZE))(raw)
    for n in range(2):
        real = truth.mask[n]
        label, owner, count = detectron_match(corners, truth.boxes[n][real], truth.labels[n][real])
        p = 1 / (1 + np.exp(-raw["scores"][n].astype(np.float64)))
        target = np.arange(2) == label[:, None] - 1
        loss = np.where(target, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
        np.testing.assert_allclose(terms["class"].total[n], loss[label >= 0].sum(), rtol=1e-5)
        wanted = box.encode(truth.boxes[n][owner[label > 0]], anchors[label > 0], (1, 1))
        error = np.abs(raw["boxes"][n][label > 0] - wanted)
        smooth = np.where(error < 0.11, error**2 / 0.22, error - 0.055)
        np.testing.assert_allclose(terms["box"].total[n], smooth.sum(), rtol=1e-5)
        assert terms["class"].count[n] == terms["box"].count[n] == count + 1


def test_hard_examples():
    """OHEM trains the anchors of the highest loss whose decoded boxes do not overlap, and divides by their number."""
    detector, truth, raw = model(hard=6, gamma=0.0, alpha=None), scene(3), random_raw(model(), 0)
    raw["boxes"] *= 0.2
    terms = detector.losses(raw, truth, SIZE)
    anchors = np.concatenate(detector.anchors(SIZE))
    for n in range(2):
        real = truth.mask[n]
        label, _, _ = detectron_match(np.asarray(box.from_center(anchors)), truth.boxes[n][real], truth.labels[n][real])
        x = raw["scores"][n].astype(np.float64)
        target = np.arange(2) == label[:, None] - 1
        loss = (np.logaddexp(0, x) - x * target).sum(-1)
        boxes, kept = np.asarray(box.decode(raw["boxes"][n], anchors, (1, 1))), []
        near = overlaps(boxes, boxes)
        for i in sorted(np.flatnonzero(label >= 0), key=lambda i: -loss[i]):
            if len(kept) < 6 and all(near[i, j] <= 0.5 for j in kept):
                kept.append(i)
        np.testing.assert_allclose(terms["class"].total[n], loss[kept].sum(), rtol=1e-5)
        assert terms["class"].count[n] == 6


def test_images_without_boxes_train():
    detector, truth, raw = model(), jax.tree.map(np.zeros_like, scene(0)), random_raw(model(), 1)

    def loss(raw):
        return sum(term.value() for term in detector.losses(raw, truth, SIZE).values())

    value, slopes = jax.value_and_grad(loss)(raw)
    chex.assert_tree_all_finite(slopes)
    assert value > 0 and not np.any(slopes["boxes"])


def test_decoding_by_a_loop():
    detector = model(candidates=40, count=15)
    raw = random_raw(detector, 2)
    raw["scores"] = 2 * raw["scores"] - 3
    found = jax.jit(lambda raw: detector.decode(raw, SIZE))(raw)
    for n in range(2):
        chosen, start = [], 0
        for level, anchors in enumerate(detector.anchors(SIZE)):
            p = 1 / (1 + np.exp(-raw["scores"][n, start : start + len(anchors)]))
            boxes = np.asarray(box.decode(raw["boxes"][n, start : start + len(anchors)], anchors, (1, 1)))
            boxes = np.clip(boxes, 0, [75, 96, 75, 96])
            order = np.argsort(-p.ravel(), kind="stable")[:40]
            chosen += [
                (p.ravel()[i], i % 2, boxes[i // 2]) for i in order if p.ravel()[i] > (0 if level == 4 else 0.05)
            ]
            start += len(anchors)
        kept = []
        for score, label, corners in sorted(chosen, key=lambda c: -c[0]):
            if all(label != k[1] or overlaps([corners], [k[2]]) <= 0.5 for k in kept):
                kept.append((score, label, corners))
        kept = kept[:15]
        assert found.mask[n].sum() == len(kept)
        np.testing.assert_allclose(found.scores[n, : len(kept)], [k[0] for k in kept], rtol=1e-5)
        assert found.labels[n, : len(kept)].tolist() == [k[1] for k in kept]
        np.testing.assert_allclose(found.boxes[n, : len(kept)], np.stack([k[2] for k in kept]), rtol=1e-4, atol=1e-3)


def test_scores_below_the_threshold_count_at_the_coarsest_level_alone():
    detector = model()
    raw = jax.tree.map(lambda x: 0 * x - 5, random_raw(detector, 0))
    found = detector.decode({**raw, "boxes": 0 * raw["boxes"]}, SIZE)
    coarsest = np.clip(box.from_center(detector.anchors(SIZE)[-1]), 0, [75, 96, 75, 96])
    assert found.mask.sum(1).min() > 0
    for corners in found.boxes[found.mask]:
        assert np.abs(coarsest - corners).max(1).min() < 1e-3


@pytest.mark.parametrize("size", [(96, 128), (75, 101), (61, 45)])
def test_network_and_anchors_have_one_layout(size):
    detector = model()
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    raw = jax.eval_shape(partial(detector.net.init_with_output, train=False), jax.random.key(0), images)[0]
    count = sum(map(len, detector.anchors(size)))
    assert raw["scores"].shape == (1, count, 2) and raw["boxes"].shape == (1, count, 4)


def test_prior_of_the_scores_and_loss_at_first():
    detector = model()
    images = jnp.zeros((1, *SIZE, 3))
    raw = jax.jit(lambda key: detector.net.init_with_output(key, images, train=False)[0])(jax.random.key(0))
    np.testing.assert_allclose(jax.nn.sigmoid(raw["scores"]), 0.01, rtol=1e-2)
    empty = jax.tree.map(np.zeros_like, scene(0, images=1))
    anchors = raw["scores"].size
    np.testing.assert_allclose(detector.losses(raw, empty, SIZE)["class"].value(), anchors * 7.5377e-7, rtol=2e-2)


def test_unknown_source_of_the_coarse_levels():
    with pytest.raises(ValueError, match=r"FPN\.coarse is 'c4': expected 'c5' or 'p5'"):
        retinanet.FPN(coarse="c4").init(jax.random.key(0), {})


@pytest.fixture
def small(monkeypatch):
    def net(num_classes, frozen_norm, dtype):
        return model(num_classes).net.clone(frozen_norm=frozen_norm, dtype=dtype)

    monkeypatch.setitem(experiment.NETS, "tiny", net)


def smoke(folder, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(folder), "data.image_size": 64, "data.max_boxes": 4,
            "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8, **changes,
        }
    )  # fmt: skip
    return config


def test_smoke(small, faces_folder, tmp_path):
    _, report = app.run(smoke(faces_folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "precision", "recall"} <= set(report.metrics)


def test_frozen_layers_need_weights():
    run = experiment.build(experiment.get_config("coco_r50"))
    with pytest.raises(ValueError, match=r"model.weights is empty: model.frozen keeps layers of the ResNet"):
        run.prepare()


def test_a_run_from_weights_keeps_what_is_frozen(small, faces_folder, tmp_path, monkeypatch):
    """Batch norms, stem and stage 2 of the backbone stay as in the file; all else is trained."""
    from facejax.interop import torchvision

    monkeypatch.setattr(
        torchvision, "load", lambda path, template: jax.tree.map(lambda x: np.full(x.shape, 0.1), template)
    )
    config = smoke(faces_folder, **{"model.frozen": True, "model.weights": "resnet.pth", "optim.schedule.warmup": 0})
    state, _ = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    for path, value in jax.tree_util.tree_leaves_with_path(state.params["backbone"]):
        names = [key.key for key in path]
        kept = "norm" in names or names[0] in ("conv1", "layer1_0")
        assert np.all(value == np.float32(0.1)) == kept, names
    for x in jax.tree.leaves(state.model_state):
        np.testing.assert_allclose(x, 0.1, rtol=1e-6)


PARAMETERS = {"coco_r50": 37_968_692, "coco_r101": 56_960_820}


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "ohem", "coco_r50"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert costs["parameters"] == PARAMETERS[preset]


def test_wrong_name():
    config = experiment.get_config()
    config.model.name = "resnet18"
    with pytest.raises(ValueError, match=r"model\.name is 'resnet18': expected one of tiny, resnet50, resnet101"):
        experiment.build(config)
