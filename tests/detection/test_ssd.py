from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ssd as experiment
from facejax.detection import ssd
from facejax.detection.base import Truth
from facejax.ops import boxes as box
from facejax.ops.matching import match_by_overlap
from facejax.train import Options, app
from facejax.train.dry_run import dry_run
from tests.selection import full_but

TRUNK = ssd.ReducedVGG((1, 1, 1, 1, 1), (4, 4, 6, 8, 8), 8)
SMALL = ssd.Net(2, TRUNK, ((4, 6, 3, 2, 1),), ("relu4_1", "relu7", "conv6_2"), (4, 6, 4), ("relu4_1",))
SOURCES = (ssd.Source(8, ((10, 20),)), ssd.Source(16, ((20, 34),), (2.0, 3.0)), ssd.Source(32, ((34, 50),)))
DETECTOR = ssd.SSD(SMALL, SOURCES, count=20, candidates=30)


def caffe_match(overlaps, positive):
    """The authors' loops over [A, G] overlaps: the box of each prior, -1 for none."""
    priors, boxes = overlaps.shape
    match, pool = np.full(priors, -1), list(range(boxes))
    while pool:
        best, pair = -1, None
        for i in range(priors):
            for j in pool:
                if match[i] == -1 and overlaps[i, j] > 1e-6 and overlaps[i, j] > best:
                    best, pair = overlaps[i, j], (i, j)
        if pair is None:
            break
        match[pair[0]] = pair[1]
        pool.remove(pair[1])
    for i in range(priors):
        if match[i] == -1 and boxes and overlaps[i].max() >= positive:
            match[i] = overlaps[i].argmax()
    return match


@pytest.mark.parametrize("seed", range(6))
def test_bipartite_matching_is_that_of_the_authors_loops(seed):
    rng = np.random.default_rng(seed)
    priors, boxes = (40, 7) if seed < 4 else (4, 7)
    overlaps = rng.choice(np.float32([0, 0.1, 0.3, 0.5, 0.7]), (priors, boxes))  # many ties
    if seed == 3:
        overlaps[:, 2] = 0
    mask = np.arange(boxes + 2) < boxes
    padded = np.concatenate([overlaps.T, np.full((2, priors), 0.9, np.float32)])
    found = jax.jit(ssd.match_bipartite)(padded, mask)
    expected = caffe_match(overlaps, 0.5)
    np.testing.assert_array_equal(np.where(found.positive, found.box, -1), expected)
    np.testing.assert_array_equal(found.negative, expected == -1)


def test_crowded_boxes_keep_a_prior_each_only_if_matching_is_bipartite():
    """Two boxes with the same best prior: the paper gives both one, a maximum per box gives it to the last."""
    overlaps, mask = np.float32([[0.6, 0.3, 0.1], [0.55, 0.2, 0.0]]), np.ones(2, bool)
    both = ssd.match_bipartite(overlaps, mask, positive=0.9)
    assert both.box[:2].tolist() == [0, 1] and both.positive.tolist() == [True, True, False]
    assert both.negative.tolist() == [False, False, True]
    one = match_by_overlap(overlaps, mask, positive=0.9, forced=0.0)
    assert one.box[0] == 1 and one.positive.tolist() == [True, False, False]


def test_no_boxes():
    found = ssd.match_bipartite(np.zeros((3, 5), np.float32), np.zeros(3, bool))
    assert not found.positive.any() and found.negative.all()


def test_losses_of_anchors_by_a_loop():
    rng = np.random.default_rng(0)
    logits, offsets, targets = (rng.normal(size=(30, n)).astype(np.float32) for n in (4, 4, 4))
    labels, kind = rng.integers(0, 3, 30), rng.choice(3, 30, p=[0.15, 0.7, 0.15])
    positive, negative = kind == 0, kind == 1
    scores, boxes = ssd.multibox_losses(logits, offsets, labels, targets, positive, negative, ratio=2.5)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    by_loss = sorted(np.flatnonzero(negative), key=lambda i: log_p[i, 0])
    hard = by_loss[: int(2.5 * positive.sum())]
    expected = np.zeros(30)
    expected[positive] = -log_p[positive, labels[positive] + 1]
    expected[hard] = -log_p[hard, 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    error = np.abs(offsets - targets)
    smooth = np.where(error < 1, error**2 / 2, error - 0.5).sum(-1)
    np.testing.assert_allclose(boxes, smooth * positive, rtol=1e-5)
    none = ssd.multibox_losses(logits, offsets, labels, targets, np.zeros(30, bool), negative)
    assert not np.any(none)


def test_priors_of_300_pixels():
    raw = {
        "boxes": [jnp.zeros((1, n, n, p, 4)) for n, p in zip((38, 19, 10, 5, 3, 1), (4, 6, 6, 6, 4, 4), strict=True)]
    }
    priors = ssd.SSD(ssd.ssd300()).priors(raw)
    assert priors.shape == (8732, 4)
    root = np.sqrt(30 * 60)
    first = [[4, 4, 30, 30], [4, 4, root, root], [4, 4, 30 * 2**0.5, 30 / 2**0.5], [4, 4, 30 / 2**0.5, 30 * 2**0.5]]
    np.testing.assert_allclose(priors[:4], first, rtol=1e-6)
    np.testing.assert_allclose(priors[4, :2], [12, 4])
    wide = [8, 8, 60 * 3**0.5, 60 / 3**0.5]
    np.testing.assert_allclose(priors[38 * 38 * 4 + 4], wide, rtol=1e-6)
    np.testing.assert_allclose(priors[-4:, :2], 150)
    np.testing.assert_allclose(priors[-3, 2:], np.sqrt(264 * 315), rtol=1e-6)


@pytest.mark.parametrize(("make", "size", "sources"), [(ssd.ssd300, 300, ssd.COCO300), (ssd.ssd512, 512, ssd.COCO512)])
def test_maps_at_the_published_sizes(make, size, sources):
    net = make(80)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    raw = jax.eval_shape(partial(net.init_with_output, train=False), jax.random.key(0), images)[0]
    assert [x.shape[-2] for x in raw["boxes"]] == [len(source.shapes()) for source in sources]
    assert ssd.SSD(net, sources).priors(raw).shape == ({300: 8732, 512: 24564}[size], 4)
    assert raw["scores"][0].shape[-1] == 81


@pytest.fixture(scope="module")
def small():
    """The network, its variables with heads that differ from zero, and raw predictions of two images."""
    images = np.random.default_rng(0).integers(0, 256, (2, 80, 99, 3)).astype(np.uint8)
    x = DETECTOR.preprocess(images)
    variables = jax.jit(lambda key: SMALL.init(key, x, train=False))(jax.random.key(0))
    return variables, x, jax.jit(lambda variables: SMALL.apply(variables, x, train=True))(variables)


def test_preprocessing_gives_blue_first_less_the_mean():
    image = np.full((1, 1, 1, 3), 200, np.uint8)
    image[..., 0] = 10
    np.testing.assert_allclose(DETECTOR.preprocess(image).ravel(), [96, 83, -113])


def test_norm_is_only_in_the_head():
    x = np.float32(np.random.default_rng(0).normal(size=(1, 2, 2, 5)) * 1e3)
    layer = ssd.L2Norm()
    y = layer.apply({"params": {"scale": np.full(5, 20.0)}}, x)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 20, rtol=1e-5)
    np.testing.assert_allclose(layer.apply({"params": {"scale": np.full(5, 20.0)}}, 1e-6 * x), y, rtol=1e-3)
    np.testing.assert_array_equal(layer.apply({"params": {"scale": np.full(5, 20.0)}}, 0 * x), 0)


def test_loss_is_finite_without_boxes_and_padding_changes_nothing(small):
    variables, x, _ = small
    rng, size = np.random.default_rng(1), (80, 99)
    corner = rng.uniform(0, 50, (2, 3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (2, 3, 2))], -1)

    def truth(padding, mask):
        padded = [
            np.pad(a, [(0, 0), (0, padding), *[(0, 0)] * (a.ndim - 2)]) for a in (boxes, np.ones((2, 3), int), mask)
        ]
        shape = (2, 3 + padding, 0)
        return Truth(padded[0], padded[1], np.zeros((*shape, 2)), np.zeros(shape, bool), padded[2])

    @jax.jit
    def value(params, truth):
        raw = SMALL.apply({"params": params}, x, train=True)
        return sum(term.value() for term in DETECTOR.losses(raw, truth, size).values())

    step = jax.value_and_grad(value)
    mask = np.array([[True, True, True], [True, False, False]])
    loss, gradient = step(variables["params"], truth(0, mask))
    padded, padded_gradient = step(variables["params"], truth(4, mask))
    assert loss > 0
    np.testing.assert_allclose(loss, padded, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, padded_gradient)
    empty, none = step(variables["params"], truth(0, np.zeros((2, 3), bool)))
    assert empty == 0 and not any(np.any(g) for g in jax.tree.leaves(none))


def test_decoding_by_a_loop(small):
    rng = np.random.default_rng(3)
    raw = jax.tree.map(lambda x: 2 * rng.normal(size=x.shape).astype(np.float32), small[2])
    raw["boxes"] = [x / 8 for x in raw["boxes"]]
    logits, offsets = (
        np.concatenate([np.reshape(x, (2, -1, x.shape[-1])) for x in raw[k]], 1) for k in ("scores", "boxes")
    )
    priors = DETECTOR.priors(raw)
    found = jax.jit(lambda raw: DETECTOR.decode(raw, (80, 99)))(raw)
    for n in range(2):
        p = np.exp(logits[n] - logits[n].max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        centre = priors[:, :2] + 0.1 * offsets[n, :, :2] * priors[:, 2:]
        side = priors[:, 2:] * np.exp(0.2 * offsets[n, :, 2:])
        boxes, kept = np.concatenate([centre - side / 2, centre + side / 2], -1), []
        for c in (0, 1):
            alive = [i for i in np.argsort(-p[:, c + 1], kind="stable") if p[i, c + 1] > 0.01][:30]
            while alive:
                i = alive.pop(0)
                kept.append((p[i, c + 1], c, i))
                alive = [j for j in alive if box.iou(boxes[i], boxes[j]) <= 0.45]
        kept = sorted(kept, reverse=True)[:20]
        assert found.mask[n].sum() == len(kept) > 5
        np.testing.assert_allclose(found.scores[n, : len(kept)], [k[0] for k in kept], rtol=1e-4)
        assert found.labels[n, : len(kept)].tolist() == [k[1] for k in kept]
        np.testing.assert_allclose(found.boxes[n, : len(kept)], boxes[[k[2] for k in kept]], rtol=1e-4, atol=1e-3)


def test_predictions_equal_to_the_targets_find_the_boxes(small):
    """Encoding and decoding agree, and every box is found."""
    boxes = np.float32([[[10, 12, 30, 33], [40, 20, 75, 52]], [[5, 30, 40, 75], [0, 0, 0, 0]]])
    mask = np.array([[True, True], [True, False]])
    priors, raw = DETECTOR.priors(small[2]), small[2]
    scores, offsets = [], []
    for n in range(2):
        match = ssd.match_bipartite(box.iou(boxes[n][:, None], box.from_center(priors)), mask[n])
        offsets.append(box.encode(boxes[n][match.box], priors))
        scores.append(20.0 * np.where(match.positive[:, None], [0, 0, 1], [1, 0, 0]))
    ends = np.cumsum([x[0, ..., 0].size for x in raw["boxes"]])[:-1]

    def split(x, like):
        return [part.reshape(y.shape) for part, y in zip(np.split(np.array(x), ends, 1), like, strict=True)]

    raw = {"scores": split(scores, raw["scores"]), "boxes": split(offsets, raw["boxes"])}
    found = DETECTOR.decode(raw, (80, 99))
    assert found.mask.sum(1).tolist() == [2, 1] and found.labels[found.mask].tolist() == [1, 1, 1]
    assert found.points.shape == (2, 20, 0, 2)
    for n in range(2):
        overlap = box.iou(found.boxes[n][:, None], boxes[n][mask[n]]).max(0)
        np.testing.assert_allclose(overlap, 1, rtol=1e-4)


def test_smoke(monkeypatch, faces_folder, tmp_path):
    net = SMALL.clone(num_classes=1)
    monkeypatch.setitem(experiment.NETS, "tiny", lambda classes, dtype: experiment.Model(net, SOURCES, 64.0))
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(faces_folder), "data.image_size": 64, "data.max_boxes": 4,
            "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8,
        }
    )  # fmt: skip
    _, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "precision", "recall"} <= set(report.metrics)


PARAMETERS = {"voc300": 26_285_486, "voc512": 27_188_676, "coco300": 34_305_206, "coco512": 36_038_196}


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "single", "voc300"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert costs["parameters"] == PARAMETERS[preset]


def test_caffe_decays_all_but_biases():
    settings = experiment.get_config("voc300").optim
    settings.weight_decay, ones = 0.5, jnp.ones((2, 2))
    params = {"trunk": {"fc6": {"kernel": ones, "bias": ones[0]}}, "relu4_3_norm": {"scale": ones[0]}}
    tx = experiment.make_optimizer(settings, 100)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["trunk"]["fc6"]["kernel"], -1e-3 * 1.5, rtol=1e-5)
    np.testing.assert_allclose(updates["trunk"]["fc6"]["bias"], -2e-3, rtol=1e-5)
    np.testing.assert_allclose(updates["relu4_3_norm"]["scale"], -1e-3 * 1.5, rtol=1e-5)


def test_both_sides_of_the_claim_have_as_many_priors():
    counts = {}
    for name in ("tiny", "tiny_single"):
        net, sources, _ = experiment.NETS[name](1, jnp.float32)
        images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
        raw = jax.eval_shape(partial(net.init_with_output, train=False), jax.random.key(0), images)[0]
        counts[name] = len(ssd.SSD(net, sources).priors(raw))
    assert counts == {"tiny": 6080, "tiny_single": 6144}


def test_weights_of_imagenet(monkeypatch):
    """fc6 and fc7 are subsampled; the first layer takes BGR of 0..255 less the mean."""
    from facejax.interop import torchvision

    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 2)).astype(np.float32)
    channels = np.arange(4096, dtype=np.float32)
    pixels = np.broadcast_to(np.arange(49, dtype=np.float32)[:, None, None], (49, 512, 4096)).reshape(-1, 4096)
    dense = {
        "fc6": {"kernel": pixels, "bias": channels},
        "fc7": {"kernel": np.add.outer(channels, channels), "bias": channels},
    }
    given = {"conv1_1": {"kernel": kernel, "bias": np.zeros(2, np.float32)}, "classifier": dense}
    monkeypatch.setattr(torchvision, "load", lambda path, template: {"params": given})
    found = experiment.read_weights("vgg16.pth")
    assert found["fc6"]["kernel"].shape == (3, 3, 512, 1024) and found["fc7"]["kernel"].shape == (1, 1, 1024, 1024)
    assert found["fc6"]["kernel"][:, :, 0, 0].tolist() == [[0, 3, 6], [21, 24, 27], [42, 45, 48]]
    assert found["fc7"]["kernel"][0, 0, 1, 2] == 12 and found["fc6"]["bias"][3] == 12
    image = rng.integers(0, 256, (1, 3, 3, 3)).astype(np.uint8)
    theirs = np.einsum("hwi,hwio->o", (image[0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], kernel)
    ours = np.einsum("hwi,hwio->o", ssd.SSD(SMALL).preprocess(image)[0], found["conv1_1"]["kernel"])
    np.testing.assert_allclose(ours + found["conv1_1"]["bias"], theirs, rtol=1e-4)


def test_wrong_name():
    config = experiment.get_config()
    config.model.name = "ssd300"
    with pytest.raises(ValueError, match=r"model\.name is 'ssd300': expected one of tiny, tiny_single, vgg300"):
        experiment.build(config)
