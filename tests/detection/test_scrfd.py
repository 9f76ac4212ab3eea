import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from experiments import scrfd as experiment
from facejax.detection import scrfd
from facejax.detection.base import Truth
from facejax.interop import scrfd as weights
from facejax.ops import boxes as box
from facejax.train import Options, app
from facejax.train.dry_run import dry_run
from tests.selection import full_but

SIZE = (96, 128)


def scene(seed, faces=5, images=2):
    """Ground truth with padding: `faces` boxes, of which the last image has one less."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (images, faces, 2))
    boxes = np.concatenate([low, low + rng.uniform(8, 60, (images, faces, 1)) * [1, 1.2]], -1)
    points = low[..., None, :] + rng.uniform(0.2, 0.8, (images, faces, 5, 2)) * (
        boxes[..., None, 2:] - low[..., None, :]
    )
    mask, visible = np.ones((images, faces), bool), rng.uniform(size=(images, faces, 5)) > 0.2
    mask[-1, -1] = False
    boxes[~mask], points[~mask], visible[~mask] = 0, 0, False
    return Truth(
        boxes.astype(np.float32), np.zeros((images, faces), np.int32), points.astype(np.float32), visible, mask
    )


def model(points=5, pool=True, **options):
    trunk = functools.partial(scrfd.ResidualTrunk, 4, (4, 4, 8, 8), (1, 1, 1, 1), pool=pool)
    net = scrfd.Net(trunk, 8, 8, 1, norm_groups=0, points=points)
    return scrfd.SCRFD(net, **options)


def random_raw(detector, seed, images=2, size=SIZE):
    rng, count = np.random.default_rng(seed), sum(detector.anchors(size)[2])
    shapes = {"scores": (images, count), "boxes": (images, count, 4), "points": (images, count, detector.points, 2)}
    raw = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**raw, "boxes": raw["boxes"] + 1.5}


def brute_atss(boxes, anchors, levels, top=9):
    """The paper's Algorithm 1 for one image without padding: index of the box per anchor, -1 for negatives."""
    corners = np.asarray(box.from_center(anchors))
    best, owner, start = np.full(len(anchors), -1.0), np.full(len(anchors), -1), 0
    starts = np.cumsum([0, *levels])
    for g, (x1, y1, x2, y2) in enumerate(boxes):
        candidates = []
        for start, stop in itertools.pairwise(starts):
            distance = np.hypot(anchors[start:stop, 0] - (x1 + x2) / 2, anchors[start:stop, 1] - (y1 + y2) / 2)
            candidates += list(start + np.argsort(distance.astype(np.float32) ** 2, kind="stable")[:top])
        overlaps = np.array([float(box.iou(boxes[g], corners[a])) for a in candidates])
        threshold = overlaps.mean() + overlaps.std(ddof=1)
        for a, overlap in zip(candidates, overlaps, strict=True):
            x, y = anchors[a, :2]
            inside = min(x - x1, y - y1, x2 - x, y2 - y) > 1e-3 * np.sqrt((x2 - x1) * (y2 - y1))
            if overlap >= threshold and inside and overlap > best[a]:
                best[a], owner[a] = overlap, g
    return owner


def test_atss_equals_the_algorithm():
    anchors, _, levels = model().anchors(SIZE)
    for seed in range(4):
        truth = scene(seed)
        for image in range(2):
            real = truth.mask[image]
            match = scrfd.atss(truth.boxes[image], truth.mask[image], anchors, levels)
            owner = brute_atss(truth.boxes[image][real], anchors, levels)
            found = np.where(match.positive, match.box, -1)
            assert (found >= 0).sum() > 0
            np.testing.assert_array_equal(found, owner)
            np.testing.assert_array_equal(match.negative, ~np.asarray(match.positive))


def test_a_box_equal_to_an_anchor_takes_it():
    anchors, _, levels = model().anchors((128, 128))
    row = 2 * (16 * 5 + 6) + 1  # stride 8, row 5, column 6, side 32
    boxes = np.asarray(box.from_center(anchors[row]))[None]
    match = scrfd.atss(boxes, np.ones(1, bool), anchors, levels)
    assert match.positive[row]
    np.testing.assert_allclose(anchors[row], [48, 40, 32, 32])  # centres lie at the corners of cells


def test_quality_focal_loss():
    logits, target = jnp.linspace(-6, 6, 25), jnp.linspace(0, 1, 25)
    p = 1 / (1 + np.exp(-np.float64(logits)))
    entropy = -(target * np.log(p) + (1 - target) * np.log1p(-p))
    np.testing.assert_allclose(
        scrfd.quality_focal_loss(logits, target), (target - p) ** 2 * entropy, rtol=2e-4, atol=1e-7
    )
    np.testing.assert_allclose(scrfd.quality_focal_loss(logits, jax.nn.sigmoid(logits)), 0, atol=1e-10)
    check_grads(lambda x: scrfd.quality_focal_loss(x, target), (logits,), 1, modes=["rev"], rtol=1e-2, atol=1e-3)
    wild = jnp.array([-300.0, 300.0], jnp.bfloat16)
    value, slope = jax.value_and_grad(lambda x: scrfd.quality_focal_loss(x, jnp.array([1.0, 0.0])).sum())(wild)
    assert np.isfinite(float(value)) and np.isfinite(np.asarray(slope, float)).all()


def brute_losses(detector, raw, truth):
    """Sums and divisors of all terms, anchor by anchor."""
    anchors, strides, levels = detector.anchors(SIZE)
    sums = {name: [0.0, 0.0] for name in ("score", "box", "points")}
    for n in range(len(truth.boxes)):
        owner, positives = brute_atss(truth.boxes[n][truth.mask[n]], anchors, levels), 0
        for a in range(len(anchors)):
            logit, quality = float(raw["scores"][n, a]), 0.0
            score, (x, y), s = 1 / (1 + np.exp(-logit)), anchors[a, :2], strides[a]
            if owner[a] >= 0:
                left, top, right, bottom = raw["boxes"][n, a] * s
                box_here, target = np.float32([x - left, y - top, x + right, y + bottom]), truth.boxes[n, owner[a]]
                quality = float(box.iou(box_here, target))
                sums["box"][0] += score * (1 - float(box.diou(box_here / s, target / s)))
                sums["box"][1] += score
                sums["points"][1] += score
                positives += 1
                for point, offset, seen in zip(
                    truth.points[n, owner[a]], raw["points"][n, a], truth.visible[n, owner[a]]
                ):
                    error = np.abs(offset - (point - [x, y]) / s) * seen
                    sums["points"][0] += score * np.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18).sum()
            entropy = np.log1p(np.exp(-abs(logit))) + max(logit, 0) - logit * quality
            sums["score"][0] += (quality - score) ** 2 * entropy
        sums["score"][1] += max(positives, 1)
    return sums


def test_losses_equal_brute_force():
    detector, truth = model(), scene(3)
    truth.mask[-1] = False  # an image without faces counts as one positive
    raw = random_raw(detector, 0)
    terms = jax.jit(lambda raw: detector.losses(raw, truth, SIZE))(raw)
    brute = brute_losses(detector, raw, truth)
    weights = {"score": 1.0, "box": 2.0, "points": 0.1}
    for name, (total, count) in brute.items():
        np.testing.assert_allclose(terms[name].total.sum(), total, rtol=1e-4)
        np.testing.assert_allclose(terms[name].count.sum(), count, rtol=1e-5)
        np.testing.assert_allclose(terms[name].value(), weights[name] * total / count, rtol=1e-4)


def test_images_without_faces_train():
    detector, truth = model(), jax.tree.map(np.zeros_like, scene(0))
    raw = random_raw(detector, 1)

    def loss(raw):
        return sum(term.value() for term in detector.losses(raw, truth, SIZE).values())

    value, slopes = jax.value_and_grad(loss)(raw)
    chex.assert_tree_all_finite(slopes)
    assert value > 0 and not np.asarray(slopes["boxes"]).any()


def test_targets_decode_to_the_truth():
    detector, truth = model(), scene(6, faces=3)
    anchors, strides, levels = detector.anchors(SIZE)
    raw = {"scores": np.full((2, len(anchors)), -9.0, np.float32), "boxes": [], "points": []}
    for n in range(2):
        match = scrfd.atss(truth.boxes[n], truth.mask[n], anchors, levels)
        raw["scores"][n][np.asarray(match.positive)] = 9
        centres = anchors[:, :2]
        raw["boxes"].append(box.encode_distances(truth.boxes[n][match.box], centres, strides[:, None]))
        raw["points"].append((truth.points[n][match.box] - centres[:, None]) / strides[:, None, None])
    raw = {name: jnp.asarray(np.stack(value)) for name, value in raw.items()}
    found = detector.decode(raw, SIZE)
    for n in range(2):
        real = truth.boxes[n][truth.mask[n]]
        boxes = np.asarray(found.boxes[n][found.mask[n]])
        overlaps = np.asarray(box.iou(real[:, None], boxes))
        taken = np.unique(
            np.asarray(scrfd.atss(truth.boxes[n], truth.mask[n], anchors, levels).box)[raw["scores"][n] > 0]
        )
        assert (overlaps[taken].max(1) > 0.9999).all()
        rows = overlaps[taken].argmax(1)
        np.testing.assert_allclose(found.points[n][found.mask[n]][rows], truth.points[n][taken], atol=1e-3)
    perfect = detector.losses(raw, truth, SIZE)
    assert all(float(term.value()) < 1e-3 for term in perfect.values())


@pytest.mark.parametrize("size", [(96, 128), (75, 101), (61, 45), (73, 105)])
def test_network_and_anchors_have_one_layout(size):
    detector = model()
    variables = jax.eval_shape(lambda k: detector.net.init(k, jnp.zeros((1, *size, 3)), train=False), jax.random.key(0))
    raw = jax.eval_shape(lambda v: detector.net.apply(v, jnp.zeros((1, *size, 3)), train=False), variables)
    assert raw["scores"].shape == (1, len(detector.anchors(size)[0]))
    assert raw["points"].shape == (1, sum(detector.anchors(size)[2]), 5, 2)


def test_prior_of_the_scores():
    detector = model()
    images = jnp.zeros((1, 32, 32, 3))
    raw = jax.jit(lambda key: detector.net.init_with_output(key, images, train=False)[0])(jax.random.key(0))
    np.testing.assert_allclose(jax.nn.sigmoid(raw["scores"]), 0.01, rtol=1e-2)


def test_published_weights(test_data):
    """Raw outputs and detections of InsightFace's model on photographs."""
    net = scrfd.scrfd_500m(**scrfd.KEYPOINTS)
    detector = scrfd.SCRFD(net, lowest=0.5, threshold=0.4, plus_one=True)
    template = jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0))
    folder = test_data / "weights" / "scrfd"
    variables = weights.load(folder / "scrfd_500m_kps.onnx", template)
    recorded = np.load(folder / "reference.npz")
    apply = jax.jit(lambda images: net.apply(variables, detector.preprocess(images), train=False))
    decode = jax.jit(lambda raw: detector.decode(raw, (640, 640)))
    for name in ("random", "multiface", "trump_hillary", "largest_selfie"):
        raw = apply(recorded[f"{name}_input_uint8_bgr"][None, ..., ::-1])
        if f"{name}_out0" in recorded:
            outputs = [np.concatenate([recorded[f"{name}_out{3 * k + i}"][0] for i in range(3)]) for k in range(3)]
            np.testing.assert_allclose(jax.nn.sigmoid(raw["scores"][0]), outputs[0][:, 0], atol=1e-5)
            np.testing.assert_allclose(raw["boxes"][0], outputs[1], atol=1e-4)
            np.testing.assert_allclose(raw["points"][0].reshape(-1, 10), outputs[2], atol=1e-4)
        if f"{name}_dets" in recorded:
            found = jax.tree.map(lambda x: np.asarray(x[0]), decode(raw))
            expected, scale = recorded[f"{name}_dets"], recorded[f"{name}_scale"]
            assert found.mask.sum() == len(expected)
            np.testing.assert_allclose(found.boxes[found.mask] / scale, expected[:, :4], atol=0.01)
            np.testing.assert_allclose(found.scores[found.mask], expected[:, 4], atol=1e-5)
            np.testing.assert_allclose(found.points[found.mask] / scale, recorded[f"{name}_dets_kps"], atol=0.01)
    with pytest.raises(ValueError, match=r"the weights do not match the model .*in 2 places: shape"):
        other = jax.tree.map(lambda x: x, template)
        other["params"]["outputs0"]["cls"] = {
            "kernel": jax.ShapeDtypeStruct((3, 3, 64, 4), jnp.float32), "bias": jax.ShapeDtypeStruct((4,), jnp.float32),
        }  # fmt: skip
        weights.load(folder / "scrfd_500m_kps.onnx", other)


def smoke(folder, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(folder), "data.image_size": 64, "data.max_boxes": 4,
            "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8, **changes,
        }
    )  # fmt: skip
    return config


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(experiment.NETS, "tiny", lambda dtype, **options: model(pool=False).net)


def test_smoke(small, faces_folder, tmp_path):
    _, report = app.run(smoke(faces_folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "nme", "precision", "recall"} <= set(report.metrics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


PARAMETERS = {
    "wider_500m": 572_741, "wider_1g": 635_565, "wider_2_5g": 671_761, "wider_10g": 3_860_225, "wider_34g": 9_802_737,
    "wider_500m_kps": 631_410, "wider_2_5g_kps": 819_806, "wider_10g_kps": 4_229_902,
}  # fmt: skip


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "synthetic", "wider_500m_kps"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert costs["parameters"] == PARAMETERS[preset]
        assert config.train.steps == 640 * 201
        assert (config.optim.name, config.optim.weight_decay) == ("sgd", 5e-4)


def test_wrong_names():
    config = experiment.get_config()
    config.model.name = "0.5g"
    with pytest.raises(ValueError, match=r"model\.name is '0\.5g': expected one of tiny, tiny_deep, 500m"):
        experiment.build(config)
