"""SSH: layers and parts, anchors, assignment and mining, losses, detections, test pyramid; against loops in NumPy.

The loops count inclusive pixels, as the authors' code does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ssh as experiment
from facejax.detection import ssh
from facejax.detection.base import Truth
from facejax.interop import torchvision
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run

TINY = ssh.Net((1, 1, 1, 1, 1), (2, 2, 4, 4, 4), reduced=4, modules=(2, 2, 2))
SIZE = (80, 112)
SMALL = ssh.SSH(TINY, samples=24, sides=((16, 32), (48, 64), (80, 160)), candidates=40, count=30)


def truth(*faces, rows=6):
    """One image per argument, a list of boxes."""
    boxes, mask = np.zeros((len(faces), rows, 4), np.float32), np.zeros((len(faces), rows), bool)
    for i, image in enumerate(faces):
        boxes[i, : len(image)], mask[i, : len(image)] = np.reshape(image, (-1, 4)), True
    labels = np.zeros(mask.shape, np.int32)
    points = np.zeros((*mask.shape, 0, 2), np.float32)
    return Truth(*map(jnp.asarray, (boxes, labels, points, np.zeros((*mask.shape, 0), bool), mask)))


FACES = [[3, 2, 21, 20], [30, 20, 66, 58], [28, 22, 70, 64], [4, 3, 100, 78], [80, 50, 97, 66]]
TRUTH = truth(FACES, [], [[1, 1, 9, 8]])


@pytest.fixture(scope="module")
def raw():
    """Predictions of three images, with which about half of the anchors look like faces."""
    rng = np.random.default_rng(0)
    cells = [len(anchors) for anchors in SMALL.anchors(SIZE)]
    return tuple(
        (jnp.float32(rng.normal(size=(3, n, 2))), jnp.float32(rng.normal(0, 0.3, size=(3, n, 4)))) for n in cells
    )


def overlap(a, b):
    """IoU of two boxes in inclusive pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return width * height / (sum(area) - width * height)


def code_anchors(size, stride, sides):
    """The generator of py-faster-rcnn with ratio 1: a base box 0, 0, 15, 15 with centre 7.5, scaled and shifted."""
    return np.array(
        [
            [7.5 + x * stride - (side - 1) / 2, 7.5 + y * stride - (side - 1) / 2,
             7.5 + x * stride + (side - 1) / 2, 7.5 + y * stride + (side - 1) / 2]
            for y in range(-(-size[0] // stride)) for x in range(-(-size[1] // stride)) for side in sides
        ]
    )  # fmt: skip


def code_targets(detector, module, size, faces, face_scores):
    """Labels [A] (1 face, 0 background, -1 unused) and box targets [A, 4] of one image, one anchor after the other."""
    anchors = code_anchors(size, detector.strides[module], detector.sides[module])
    border = detector.borders[module]
    inside = [
        i for i, a in enumerate(anchors)
        if a[0] >= -border and a[1] >= -border and a[2] < size[1] + border and a[3] < size[0] + border
    ] or list(range(len(anchors)))  # fmt: skip
    faces = [np.subtract(face, [0, 0, 1, 1]) for face in faces]
    labels, targets = np.full(len(anchors), -1), np.zeros((len(anchors), 4))
    for i in inside:
        found = [overlap(anchors[i], face) for face in faces] or [0.0]
        best = int(np.argmax(found))
        labels[i] = 1 if found[best] >= detector.positive else 0 if found[best] < detector.negative else -1
        if labels[i] == 1:
            (aw, ah), (gw, gh) = (np.array(b[2:]) - b[:2] + 1 for b in (anchors[i], faces[best]))
            shift = faces[best][:2] + 0.5 * np.array([gw, gh]) - anchors[i][:2] - 0.5 * np.array([aw, ah])
            targets[i] = [shift[0] / aw, shift[1] / ah, np.log(gw / aw), np.log(gh / ah)]
    limit = int(detector.samples * detector.largest_share)
    by_score = sorted(range(len(anchors)), key=lambda i: face_scores[i])
    for i in [i for i in by_score if labels[i] == 1][limit:]:
        labels[i] = -1
    for i in [i for i in reversed(by_score) if labels[i] == 0][detector.samples - (labels == 1).sum() :]:
        labels[i] = -1
    return labels, targets


def code_losses(detector, module, size, faces, logits, offsets):
    """Scores and boxes loss of one image and module."""
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    labels, targets = code_targets(detector, module, size, faces, log_p[:, 1])
    used = labels >= 0
    scores = -log_p[np.arange(len(labels)), np.maximum(labels, 0)][used].mean()
    d = np.abs(offsets - targets)[labels == 1]
    return scores, np.where(d < 1 / 9, 4.5 * d**2, d - 0.5 / 9).sum() / used.sum(), labels


def test_parts_have_the_published_sizes():
    images = jnp.zeros((1, 64, 96, 3))
    shapes = jax.eval_shape(lambda key: ssh.ssh_vgg16().init(key, images, train=False), jax.random.key(0))
    sizes = {name: count(part) for name, part in shapes["params"].items()}
    laterals = sizes.pop("lateral_finer") + sizes.pop("lateral_coarser") + sizes.pop("fuse")
    assert sizes == {"vgg": 14_714_688, "module1": 335_244, "module2": 2_218_764, "module3": 2_218_764}
    assert laterals == 278_912
    fixed = 128 * 4 * 4  # the deconvolution's constants
    assert sum(sizes.values()) + laterals + fixed == 19_768_420


def test_the_branches_see_3_5_and_7_pixels():
    net = ssh.ContextModule(1)
    x = jnp.ones((1, 11, 11, 1))
    params = jax.tree.map(jnp.abs, net.init(jax.random.key(0), x))
    fields = jax.jacrev(lambda x: net.apply(params, x)[0, 5, 5])(x)[:, 0, :, :, 0]
    for channel, reach in enumerate((1, 1, 2, 3)):
        seen = np.zeros((11, 11), bool)
        seen[5 - reach : 6 + reach, 5 - reach : 6 + reach] = True
        np.testing.assert_array_equal(np.asarray(fields[channel]) != 0, seen)


def test_one_relu_after_the_concatenation():
    net = ssh.ContextModule(2)
    x = jnp.ones((1, 5, 5, 3))
    params = net.init(jax.random.key(0), x)
    shifted = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf - 1 if path[-2:][0].key in ("conv5x5", "conv7x7_2") and leaf.ndim == 1 else leaf, params
    )
    assert (net.apply(shifted, x)[..., 4:] == 0).all()
    plain = ssh.ContextModule(2, context=False)
    assert plain.apply(plain.init(jax.random.key(0), x), x).shape == net.apply(params, x).shape


def test_bilinear_deconvolution_of_a_constant():
    found = ssh.bilinear_deconvolution(jnp.ones((1, 3, 5, 2)))
    assert found.shape == (1, 6, 10, 2)
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], 1, atol=1e-6)
    np.testing.assert_allclose(found[:, 0, 1:-1], 0.75, atol=1e-6)
    np.testing.assert_allclose(found[0, 0, 0], 0.75**2, atol=1e-6)


def test_score_channels_are_background_of_all_anchors_then_face():
    net, x = ssh.DetectionModule(1, anchors=2), jnp.zeros((1, 1, 1, 3))
    params = net.init(jax.random.key(0), x)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.arange(4.0) if path[1].key == "scores" and leaf.ndim == 1 else leaf, params
    )
    np.testing.assert_allclose(net.apply(params, x)[0], [[[0, 2], [1, 3]]])


@pytest.mark.parametrize("size", [(640, 640), (80, 112), (48, 16)])
def test_anchors(size):
    detector = ssh.SSH(ssh.ssh_vgg16())
    found = detector.anchors(size)
    for anchors, inside, stride, sides, border in zip(
        found, detector.inside(size), detector.strides, detector.sides, detector.borders, strict=True
    ):
        wanted = code_anchors(size, stride, sides)
        low, high = anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2 - 1
        np.testing.assert_array_equal(np.concatenate([low, high], -1), wanted)
        within = (wanted[:, :2] >= -border).all(1) & (wanted[:, 2:] < np.array(size[::-1]) + border).all(1)
        np.testing.assert_array_equal(inside, within | ~within.any())
    if size == (640, 640):
        assert sum(map(len, found)) == 16_800


def test_losses_of_every_module_and_image(raw):
    terms = jax.jit(lambda raw, truth: SMALL.losses(raw, truth, SIZE))(raw, TRUTH)
    used = np.zeros(2, int)
    for m, (logits, offsets) in enumerate(raw):
        for i in range(3):
            faces = np.asarray(TRUTH.boxes[i])[np.asarray(TRUTH.mask[i])]
            scores, boxes, labels = code_losses(SMALL, m, SIZE, faces, *(np.asarray(x[i]) for x in (logits, offsets)))
            np.testing.assert_allclose(terms[f"scores_m{m + 1}"].total[i], scores, rtol=1e-5)
            np.testing.assert_allclose(terms[f"boxes_m{m + 1}"].total[i], boxes, rtol=1e-5, atol=1e-7)
            used += (labels == 1).sum(), (labels == 0).sum()
    assert used[0] >= 10 and used[1] > 100
    assert terms["boxes_m1"].value() == pytest.approx(float(terms["boxes_m1"].total.mean()))


def test_hard_samples():
    face = jnp.float32([5, 1, 4, 2, 9, 8, 7, 3])
    positive = jnp.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    positives, negatives = ssh.sampled(face, positive, ~positive, count=4, largest_share=0.5)
    assert np.flatnonzero(positives).tolist() == [1, 3] and np.flatnonzero(negatives).tolist() == [4, 5]
    positives, negatives = ssh.sampled(face, positive & (face == 4), ~positive, count=4, largest_share=0.5)
    assert np.flatnonzero(positives).tolist() == [2] and np.flatnonzero(negatives).tolist() == [4, 5, 6]


def test_images_without_faces_have_finite_losses_and_gradients(raw):
    empty = truth([], [], [])

    def loss(raw):
        return sum(term.value() for term in SMALL.losses(raw, empty, SIZE).values())

    value, gradients = jax.value_and_grad(loss)(raw)
    assert np.isfinite(value)
    for logits, offsets in gradients:
        assert np.isfinite(logits).all() and np.abs(logits).max() > 0
        assert (offsets == 0).all()


def code_proposals(detector, module, size, logits, offsets, candidates):
    """Boxes and scores of one image's module, by falling score."""
    face = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    found = []
    for a, t, score in zip(
        code_anchors(size, detector.strides[module], detector.sides[module]), offsets, face, strict=True
    ):
        side = a[2] - a[0] + 1
        x, y = (a[i] + 0.5 * side + t[i] * side for i in (0, 1))
        w, h = np.exp(t[2:]) * side
        corners = np.array([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h])
        found.append((score, corners.clip(0, [size[1] - 1, size[0] - 1] * 2)))
    return sorted(found, key=lambda row: -row[0])[:candidates]


def code_suppressed(rows, lowest, threshold, count):
    kept = []
    for score, corners in sorted(rows, key=lambda row: -row[0]):
        if score > lowest and all(overlap(corners, other) <= threshold for _, other in kept):
            kept.append((score, corners))
    return kept[:count]


def assert_detections(found, i, wanted):
    n = int(found.mask[i].sum())
    assert n == len(wanted)
    np.testing.assert_allclose(found.scores[i, :n], [score for score, _ in wanted], rtol=1e-5)
    np.testing.assert_allclose(found.boxes[i, :n], [corners for _, corners in wanted], atol=1e-3)
    assert (found.boxes[i, n:] == 0).all() and (found.scores[i, n:] == 0).all()


def test_decode(raw):
    found = jax.jit(lambda raw: SMALL.decode(raw, SIZE))(raw)
    for i in range(2):
        rows = [
            row for m, maps in enumerate(raw)
            for row in code_proposals(SMALL, m, SIZE, *(np.asarray(x[i]) for x in maps), SMALL.candidates)
        ]  # fmt: skip
        assert_detections(found, i, code_suppressed(rows, SMALL.lowest, SMALL.threshold, SMALL.count))


def test_scales_of_the_pyramid():
    np.testing.assert_allclose(ssh.pyramid_scales((400, 500)), [1.25, 2, 3, 4])
    np.testing.assert_allclose(ssh.pyramid_scales((1000, 500)), np.array([500, 800, 1200, 1600]) / 800 * 1.2)


def test_pyramid_joins_all_modules_but_the_last_of_the_largest_scale(raw):
    """The stub's predictions depend on the size only, so that the scales' proposals are known."""
    sizes, rng = [], np.random.default_rng(1)
    stored = {}

    def apply(inputs):
        size = inputs.shape[1:3]
        sizes.append(size)
        stored[size] = tuple(
            (jnp.float32(rng.normal(size=(1, len(a), 2))), jnp.float32(rng.normal(0, 0.3, (1, len(a), 4))))
            for a in SMALL.anchors(size)
        )
        return stored[size]

    image = np.full((1, 50, 60, 3), 255, np.uint8)
    found = SMALL.pyramid(apply, image, (0.5, 1.5))
    assert sizes == [(32, 32), (80, 96)]
    rows = []
    for scale, size, real, modules in ((0.5, (32, 32), (25, 30), 3), (1.5, (80, 96), (75, 90), 2)):
        for m in range(modules):
            maps = (np.asarray(x[0]) for x in stored[size][m])
            for score, corners in code_proposals(SMALL, m, size, *maps, SMALL.candidates):
                rows.append((score, corners.clip(0, [real[1] - 1, real[0] - 1] * 2) / scale))
    assert_detections(found, 0, code_suppressed(rows, SMALL.lowest, SMALL.threshold, SMALL.count))


def test_preprocess():
    found = ssh.SSH(ssh.ssh_vgg16()).preprocess(np.array([[[[10, 20, 30]]]], np.uint8))
    np.testing.assert_allclose(found[0, 0, 0], [30 - 102.9801, 20 - 115.9465, 10 - 122.7717], rtol=1e-6)


def test_sizes_that_the_trunk_does_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"SSH: images of 100 x 96 pixels: expected sides that 16 divides"):
        jax.eval_shape(lambda: TINY.init(jax.random.key(0), jnp.zeros((1, 100, 96, 3)), train=False))


def test_maps_of_odd_sizes_fit_the_anchors():
    shapes = jax.eval_shape(lambda: TINY.init_with_output(jax.random.key(0), jnp.zeros((2, *SIZE, 3)), train=False)[0])
    assert [logits.shape for logits, _ in shapes] == [(2, len(a), 2) for a in SMALL.anchors(SIZE)]


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
    def tiny(**options):
        return ssh.SSH(ssh.Net((1, 1, 1), (2, 3, 4), 4, (1, 1, 1), **options), (2, 4, 8), ((8,) * 2,) * 3, base=8)

    monkeypatch.setitem(experiment.NETS, "tiny", tiny)


def test_smoke(small, faces_folder, tmp_path):
    _, report = app.run(smoke(faces_folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "ap_small", "precision", "recall"} <= set(report.metrics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize("preset", ["synthetic", "plain", "wider"])
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset == "wider":
        assert costs["parameters"] == 19_766_372
        assert config.train.steps * config.optim.schedule.boundaries[0] == 18_000


def test_the_baseline_has_the_width_and_nearly_the_size_of_the_branches():
    sizes = []
    for preset in ("synthetic", "plain"):
        run = experiment.build(experiment.get_config(preset))
        sizes.append(count(jax.eval_shape(run.init, jax.random.key(0)).params))
    assert abs(sizes[0] / sizes[1] - 1) < 0.1


def test_frozen_stages_and_the_rate_of_biases():
    settings = experiment.get_config("wider").optim
    settings.weight_decay, params = 0.5, {
        "vgg": {f"conv{i}_1": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)} for i in (1, 2, 3)},
        "fuse": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)},
    }  # fmt: skip
    tx = experiment.make_optimizer(settings, 100)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    for i in (1, 2):
        assert all((x == 0).all() for x in jax.tree.leaves(updates["vgg"][f"conv{i}_1"]))
    for layer, bias in ((updates["vgg"]["conv3_1"], -0.008 * 1.5), (updates["fuse"], -0.008)):
        np.testing.assert_allclose(layer["kernel"], -0.004 * 1.5, rtol=1e-5)
        np.testing.assert_allclose(layer["bias"], bias, rtol=1e-5)  # the authors decay VGG's biases alone


def test_frozen_stages_need_a_published_trunk():
    run = experiment.build(experiment.get_config("wider"))
    with pytest.raises(ValueError, match=r"model.trunk is empty: optim.frozen keeps stages of VGG"):
        run.prepare()


def test_a_run_begins_from_a_published_trunk(small, faces_folder, monkeypatch):
    rng, tensors, inputs = np.random.default_rng(0), {}, 3
    for place, width in ((0, 2), (3, 3), (6, 4)):
        tensors[f"features.{place}.weight"] = rng.normal(size=(width, inputs, 3, 3)).astype(np.float32)
        tensors[f"features.{place}.bias"] = rng.normal(size=width).astype(np.float32)
        inputs = width
    monkeypatch.setattr(torchvision, "read_weights", lambda path, key: tensors)
    run = experiment.build(smoke(faces_folder, **{"model.trunk": "vgg.pth"}))
    params = run.init(jax.random.key(0), run.prepare()).params
    kernel = np.asarray(params["vgg"]["conv2_1"]["kernel"])
    np.testing.assert_array_equal(kernel, tensors["features.3.weight"].transpose(2, 3, 1, 0))


def test_wrong_names():
    config = experiment.get_config()
    config.model.name = "vgg"
    with pytest.raises(ValueError, match=r"model\.name is 'vgg': expected one of tiny, vgg16"):
        experiment.build(config)
