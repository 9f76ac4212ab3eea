import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import yolov1 as experiment
from facejax.detection import yolov1
from facejax.detection.base import Truth
from facejax.train import Options, app
from facejax.train.dry_run import dry_run
from tests.selection import full_but

SIZE = (60, 90)
ENDS = {"classes": (3,), "confidence": (2,), "boxes": (2, 4)}
LAYERS = ((4, 3, 2), yolov1.POOL, (6, 3, 1))


def model(**options):
    net = yolov1.Net(LAYERS, 16, grid=5, num_classes=3, norm=options.pop("norm", False))
    return yolov1.YOLOv1(net, **options)


def scene(seed, objects=6, images=3):
    """Ground truth with padding: the last object of the last image is none, and two centres share a cell."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.02, 0.98, (images, objects, 2)) * SIZE[::-1]
    centre[:, 1] = centre[:, 0]
    half = rng.uniform(1, 25, (images, objects, 2))
    boxes = np.concatenate([centre - half, centre + half], -1)
    mask = np.ones((images, objects), bool)
    mask[-1, -1] = False
    boxes[~mask] = 0
    labels = rng.integers(0, 3, (images, objects)).astype(np.int32)
    none = np.zeros((images, objects, 0))
    return Truth(boxes.astype(np.float32), labels, none[..., None].repeat(2, -1), none.astype(bool), mask)


def random_raw(seed, detector, images=3):
    rng, shape = np.random.default_rng(seed), (images, detector.net.grid, detector.net.grid)
    raw = {name: rng.normal(0.4, 0.3, (*shape, *end)).astype(np.float32) for name, end in ENDS.items()}
    raw["boxes"][:, ::2] -= 3 * np.eye(4, dtype=np.float32)[0]  # far to the left: no overlap, the RMSE decides
    return raw


def overlap(a, b):
    """IoU of two boxes in centre form."""
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)
    ]
    common = max(sides[0], 0) * max(sides[1], 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def brute(detector, raw, truth):
    """Sums of all terms, and the authors' gradient: weight times (target - output), cell after cell."""
    s, root = detector.net.grid, detector.square_root
    sums = dict.fromkeys(("box", "object", "background", "class"), 0.0)
    delta = jax.tree.map(lambda x: np.zeros_like(x, float), raw)
    by_rmse = 0
    for n in range(len(truth.boxes)):
        taken = {}
        for g in np.flatnonzero(truth.mask[n]):
            x1, y1, x2, y2 = truth.boxes[n, g] / np.tile(SIZE[::-1], 2)
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            taken.setdefault((int(y * s), int(x * s)), (x, y, x2 - x1, y2 - y1, truth.labels[n, g]))
        for i in range(s):
            for j in range(s):
                confidence, best = raw["confidence"][n, i, j], -1
                if (i, j) in taken:
                    *target, label = taken[i, j]
                    found = []
                    for x, y, w, h in np.float64(raw["boxes"][n, i, j]):
                        found.append(((j + x) / s, (i + y) / s, *((w * w, h * h) if root else (max(w, 0), max(h, 0)))))
                    overlaps = [overlap(b, target) for b in found]
                    errors = [np.sqrt(np.sum((np.array(b) - target) ** 2)) for b in found]
                    by_rmse += max(overlaps) == 0
                    best = int(np.argmax(overlaps) if max(overlaps) > 0 else np.argmin(errors))
                    sides = np.sqrt(target[2:]) if root else target[2:]
                    d = np.array([target[0] * s - j, target[1] * s - i, *sides]) - raw["boxes"][n, i, j, best]
                    sums["box"] += np.sum(d**2)
                    delta["boxes"][n, i, j, best] = detector.coord_weight * d
                    d = np.eye(3)[label] - raw["classes"][n, i, j]
                    sums["class"] += np.sum(d**2)
                    delta["classes"][n, i, j] = d
                for b in range(2):
                    d = overlaps[b] - confidence[b] if b == best else -confidence[b]
                    sums["object" if b == best else "background"] += d**2
                    delta["confidence"][n, i, j, b] = d * (1 if b == best else detector.background_weight)
    assert by_rmse > 0
    return sums, delta


@pytest.mark.parametrize("root", [True, False])
def test_losses_and_gradients_equal_brute_force(root):
    detector, truth = model(square_root=root), scene(0)
    raw = random_raw(1, detector)

    @jax.jit
    def loss(raw):
        terms = detector.losses(raw, truth, SIZE)
        return sum(term.value() for term in terms.values()), terms

    slopes, terms = jax.grad(loss, has_aux=True)(raw)
    sums, delta = brute(detector, raw, truth)
    weights = {"box": 5.0, "object": 1.0, "background": 0.5, "class": 1.0}
    for name, total in sums.items():
        np.testing.assert_allclose(terms[name].total.sum(), total, rtol=1e-5)
        np.testing.assert_allclose(terms[name].value(), weights[name] * total / 3, rtol=1e-5)
    for name, value in delta.items():  # theirs follows half the squared error
        np.testing.assert_allclose(slopes[name], -2 * value / 3, rtol=1e-4, atol=1e-5)


def test_the_first_object_of_a_cell_is_its_target():
    boxes = np.float32([[10, 10, 20, 20], [12, 12, 18, 18], [80, 50, 100, 70], [0, 0, 0, 0]])
    row, present = yolov1.cells(boxes, np.array([True, True, True, False]), 3, SIZE)
    wanted = np.zeros((3, 3), bool)
    wanted[0, 0] = wanted[2, 2] = True  # the centre (90, 60) lies on the border of the image
    np.testing.assert_array_equal(present, wanted)
    assert row[0, 0] == 0 and row[2, 2] == 2
    row, _ = yolov1.cells(boxes, np.array([False, True, True, False]), 3, SIZE)
    assert row[0, 0] == 1


def test_targets_decode_to_the_truth():
    """The loss of perfect predictions is 0, and they are the detections."""
    detector, truth = model(), scene(4)
    s = detector.net.grid
    raw = {
        k: np.zeros((3, s, s, *end), np.float32)
        for k, end in {"classes": (3,), "confidence": (2,), "boxes": (2, 4)}.items()
    }
    kept = []
    for n in range(3):
        for g in np.flatnonzero(truth.mask[n]):
            x1, y1, x2, y2 = truth.boxes[n, g] / np.tile(SIZE[::-1], 2)
            x, y = (x1 + x2) / 2 * s, (y1 + y2) / 2 * s
            i, j = int(y), int(x)
            if not raw["confidence"][n, i, j].any():
                kept.append((n, g))
                raw["confidence"][n, i, j, 1], raw["classes"][n, i, j, truth.labels[n, g]] = 1, 1
                raw["boxes"][n, i, j, 1] = x - j, y - i, np.sqrt(x2 - x1), np.sqrt(y2 - y1)
    perfect = detector.losses(raw, truth, SIZE)
    assert all(float(term.value()) < 1e-9 for term in perfect.values())
    found = jax.jit(lambda raw: model(threshold=1.0).decode(raw, SIZE))(raw)
    inside = np.clip(truth.boxes, 0, np.tile(SIZE[::-1], 2))
    assert int(found.mask.sum()) == len(kept) < truth.mask.sum()
    for n, g in kept:
        distance = np.abs(found.boxes[n] - inside[n, g]).max(1)
        best = int(distance.argmin())
        assert distance[best] < 1e-3 and found.labels[n, best] == truth.labels[n, g]
        np.testing.assert_allclose(found.scores[n, best], 1, rtol=1e-6)


def test_decode():
    """Scores are products, suppression is within a class, and negative factors give no detection."""
    detector = model(lowest=0.01)
    s = detector.net.grid
    raw = {
        "classes": np.zeros((1, s, s, 3), np.float32),
        "confidence": np.zeros((1, s, s, 2), np.float32),
        "boxes": np.full((1, s, s, 2, 4), 0.5, np.float32),
    }
    raw["classes"][0, 2, 1], raw["confidence"][0, 2, 1] = (0.8, 0.5, 0.001), (0.9, 0.6)
    raw["classes"][0, 4, 4], raw["confidence"][0, 4, 4] = -2, -2
    found = jax.tree.map(lambda x: np.asarray(x[0]), detector.decode(raw, SIZE))
    assert found.mask.sum() == 2  # both boxes of the cell are equal: one of them per class
    np.testing.assert_allclose(found.scores[:2], [0.72, 0.45], rtol=1e-6)
    np.testing.assert_array_equal(found.labels[:2], [0, 1])
    centre, half = np.array([1.5 / s * 90, 2.5 / s * 60]), np.array([90, 60]) / 8
    np.testing.assert_allclose(found.boxes[0], np.concatenate([centre - half, centre + half]), rtol=1e-5)


def test_boxes_are_clipped_after_suppression():
    """As in the authors' validation: two boxes that differ outside of the image alone are two detections."""
    detector = model()
    s = detector.net.grid
    raw = {name: np.zeros((1, s, s, *end), np.float32) for name, end in ENDS.items()}
    raw["classes"][0, 0, 0, 0], raw["confidence"][0, 0, 0] = 1, (0.9, 0.8)
    raw["boxes"][0, 0, 0] = [[0, 0, 0.5, 0.5], [0, 0, 1, 0.5]]  # IoU 1/4
    found = jax.tree.map(lambda x: np.asarray(x[0]), detector.decode(raw, SIZE))
    assert found.mask.sum() == 2
    np.testing.assert_allclose(found.boxes[:2], [[0, 0, 90 / 8, 60 / 8], [0, 0, 45, 60 / 8]], rtol=1e-5)
    assert not found.boxes[2:].any()


def test_images_without_objects_train():
    detector, truth = model(), jax.tree.map(np.zeros_like, scene(0))
    raw = random_raw(1, detector)
    terms, slopes = jax.value_and_grad(
        lambda raw: sum(term.value() for term in detector.losses(raw, truth, SIZE).values())
    )(raw)
    chex.assert_tree_all_finite(slopes)
    np.testing.assert_allclose(terms, 0.5 * np.sum(raw["confidence"] ** 2) / 3, rtol=1e-5)
    assert not slopes["boxes"].any() and not slopes["classes"].any()


def test_moving_an_object_within_its_cell_changes_x_and_y_alone():
    detector = model()
    raw = random_raw(2, detector, images=1)
    one = jax.tree.map(lambda x: x[:1, :1], scene(0))

    @jax.jit
    def slope(box):
        truth = one.replace(boxes=jnp.float32(box)[None, None])
        return jax.grad(lambda raw: detector.losses(raw, truth, SIZE)["box"].value())(raw)["boxes"]

    slopes = [slope([40, 30, 50, 44]), slope([41, 29, 51, 43])]
    same = np.isclose(*slopes, atol=1e-6).reshape(-1, 4).all(0)
    np.testing.assert_array_equal(same, [False, False, True, True])


@pytest.mark.parametrize("norm", [False, True])
def test_network(norm):
    detector = model(norm=norm)
    images = jax.random.uniform(jax.random.key(0), (2, 21, 27, 3))
    variables = detector.net.init(jax.random.key(1), images, train=False)

    @jax.jit
    def apply(variables, key):
        return detector.net.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    raw = apply(variables, jax.random.key(2))
    assert {name: x.shape for name, x in raw.items()} == {
        "classes": (2, 5, 5, 3), "confidence": (2, 5, 5, 2), "boxes": (2, 5, 5, 2, 4),
    }  # fmt: skip
    other = apply(variables, jax.random.key(3))
    assert not np.allclose(raw["classes"], other["classes"])  # dropout


def test_published_sizes():
    """Both networks end at the 7 x 7 map that the dense layers expect."""
    for layers in (yolov1.LAYERS, yolov1.FAST):
        strides = [stride for _, _, stride in layers if stride > 1]
        assert len(strides) == 6 and 448 / 2 ** len(strides) == 7
    net = yolov1.yolov1()
    raw = jax.eval_shape(
        lambda key: net.init_with_output(key, jnp.zeros((1, 448, 448, 3)), train=False)[0], jax.random.key(0)
    )
    assert sum(np.prod(x.shape) for x in raw.values()) == 1470


def smoke(folder, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(folder), "data.image_size": 64, "data.max_boxes": 4,
            "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8, **changes,
        }
    )  # fmt: skip
    return config


def test_smoke(monkeypatch, faces_folder, tmp_path):
    monkeypatch.setitem(experiment.NETS, "tiny", lambda **options: yolov1.Net(LAYERS, 16, grid=5, **options))
    _, report = app.run(smoke(faces_folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "precision", "recall"} <= set(report.metrics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "synthetic", "voc"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in ("voc", "voc_fast"):
        assert costs["parameters"] == {"voc": 271_703_550, "voc_fast": 45_089_374}[preset]
        assert config.train.steps == 135 * 258


def test_wrong_names():
    config = experiment.get_config()
    config.model.name = "slow"
    with pytest.raises(ValueError, match=r"model\.name is 'slow': expected one of tiny, yolo, fast"):
        experiment.build(config)
