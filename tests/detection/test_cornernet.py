import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cornernet as experiment
from facejax.backbones.hourglass import Hourglass
from facejax.detection import cornernet
from facejax.detection.base import Truth
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run
from tests.selection import full_but

CLASSES = 2
SIZE, CELLS = (63, 47), (16, 12)
"""Of images and maps."""


def net(**options):
    trunk = Hourglass(2, (4, 4, 6), (1, 1, 1), stem=4, features=4)
    return cornernet.Net(trunk, CLASSES, width=4, pooled=4, **options)


def model(**options):
    return cornernet.CornerNet(net(), corners=12, pairs=60, count=20, **options)


def naive_pool(x, axis, forward):
    """Running maximum, one pixel after the other, and the place of each maximum; of one row or column [L]."""
    order = range(len(x))[::-1] if forward else range(len(x))
    best, place, values, places = -np.inf, 0, np.zeros(len(x)), np.zeros(len(x), int)
    for i in order:
        if x[i] > best:
            best, place = x[i], i
        values[i], places[i] = best, place
    return values, places


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 9)])
def test_corner_pooling_equals_naive_loops(size, forward):
    rng = np.random.default_rng(0)
    rows, columns, signal = rng.normal(size=(3, 2, *size, 3)).astype(np.float32)
    expected, slopes = np.zeros_like(rows), (np.zeros_like(rows), np.zeros_like(rows))
    for n, i, c in np.ndindex(2, size[1], 3):
        values, places = naive_pool(rows[n, :, i, c], 0, forward)
        expected[n, :, i, c] += values
        np.add.at(slopes[0][n, :, i, c], places, signal[n, :, i, c])
    for n, i, c in np.ndindex(2, size[0], 3):
        values, places = naive_pool(columns[n, i, :, c], 1, forward)
        expected[n, i, :, c] += values
        np.add.at(slopes[1][n, i, :, c], places, signal[n, i, :, c])
    found, back = jax.vjp(lambda r, c: cornernet.corner_pool(r, c, forward=forward), rows, columns)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for got, want in zip(back(signal), slopes, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_corner_pooling_is_idempotent_and_monotone():
    x = jax.random.normal(jax.random.key(0), (1, 6, 7, 2))
    nothing = jnp.zeros_like(x)
    once = cornernet.corner_pool(x, nothing, forward=True)
    np.testing.assert_array_equal(cornernet.corner_pool(once, nothing, forward=True), once)
    assert (np.diff(once, axis=1) <= 0).all() and (np.diff(once, axis=2) != 0).any()
    across = cornernet.corner_pool(nothing, x, forward=False)
    assert (np.diff(across, axis=2) >= 0).all()


def test_gaussian_focal_loss():
    """Against float64, at the prior, and at its limits."""
    logits, target = np.linspace(-6, 6, 25), np.linspace(0, 1, 25)
    p = 1 / (1 + np.exp(-logits))
    expected = np.where(target == 1, -((1 - p) ** 2) * np.log(p), -((1 - target) ** 4) * p**2 * np.log1p(-p))
    np.testing.assert_allclose(cornernet.gaussian_focal_loss(logits, target), expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(
        cornernet.gaussian_focal_loss(jnp.float32(cornernet.PRIOR), 1.0), 0.9**2 * np.log(10), rtol=1e-2
    )
    wild = jnp.array([-300.0, 300.0, 300.0], jnp.bfloat16)
    goals = jnp.array([1.0, 0.0, 1.0])
    value, slope = jax.value_and_grad(lambda x: cornernet.gaussian_focal_loss(x, goals).sum())(wild)
    np.testing.assert_allclose(value, 2 * (1 - 1e-4) ** 2 * -np.log(1e-4), rtol=1e-3)
    assert not np.asarray(slope, float).any()


def brute_pull_push(first, second, mask):
    """The authors' sums, pair by pair."""
    first, second = first[mask].astype(float), second[mask].astype(float)
    mean, n = (first + second) / 2, mask.sum()
    pull = sum((a - m) ** 2 + (b - m) ** 2 for a, b, m in zip(first, second, mean, strict=True)) / (n + 1e-4)
    push = sum(max(0, 1 - abs(a - b)) - 1 / (n + 1e-4) for a in mean for b in mean) / (n * (n - 1) + 1e-4)
    return pull, push


@pytest.mark.parametrize("real", [0, 1, 2, 5])
def test_pull_and_push(real):
    rng = np.random.default_rng(real)
    first, second = rng.normal(size=(2, 6)).astype(np.float32)
    mask = rng.permutation(np.arange(6) < real)
    found = cornernet.pull_push(first, second, mask)
    np.testing.assert_allclose(found, brute_pull_push(first, second, mask), rtol=1e-4, atol=1e-6)
    slopes = jax.grad(lambda a, b: sum(cornernet.pull_push(a, b, mask)), (0, 1))(first, second)
    chex.assert_tree_all_finite(slopes)
    assert all((np.asarray(s)[~mask] == 0).all() for s in slopes)


def test_separate_tags_have_no_loss_and_equal_ones_the_largest():
    apart, together, mask = jnp.array([0.0, 1.5, -1.0]), jnp.ones(3), jnp.ones(3, bool)
    np.testing.assert_allclose(cornernet.pull_push(apart, apart, mask), [0, 1e-4 / 6], atol=1e-6)
    np.testing.assert_allclose(cornernet.pull_push(together, together, mask), [0, 1], atol=1e-4)


def scene():
    """Two images with corners in different cells; the second has one object."""
    boxes = np.array([[[3, 5, 20, 30], [14, 33, 40, 60], [30, 2, 46, 26]], [[8, 8, 36, 50], [0] * 4, [0] * 4]], float)
    labels, mask = np.array([[0, 1, 0], [1, 0, 0]]), np.array([[True] * 3, [True, False, False]])
    return Truth(np.float32(boxes), labels, np.zeros((2, 3, 0, 2), np.float32), np.zeros((2, 3, 0), bool), mask)


def perfect(truth):
    """Maps that a perfect network would predict."""
    raw = {}
    for corner, first in (("top_left", 0), ("bottom_right", 2)):
        maps = {"heat": np.full((2, *CELLS, CLASSES), -9.0), "tag": np.zeros((2, *CELLS, 1))}
        maps["offset"] = np.zeros((2, *CELLS, 2))
        for n, k in zip(*np.nonzero(truth.mask), strict=True):
            place = truth.boxes[n, k, first : first + 2] * np.array(CELLS[::-1]) / SIZE[::-1]
            column, row = np.floor(place).astype(int)
            maps["heat"][n, row, column, truth.labels[n, k]] = 9
            maps["tag"][n, row, column] = 2 * k
            maps["offset"][n, row, column] = place - [column, row]
        raw[corner] = {name: jnp.asarray(value, jnp.float32) for name, value in maps.items()}
    return [raw]


def test_perfect_maps_decode_to_the_truth():
    truth, detector = scene(), model()
    raw = perfect(truth)
    found = jax.jit(lambda raw: detector.decode(raw, SIZE))(raw)
    terms = detector.losses(raw, truth, SIZE)
    for n in range(2):
        real = np.asarray(found.mask[n]) & (np.asarray(found.scores[n]) > 0.5)
        boxes, labels = np.asarray(found.boxes[n])[real], np.asarray(found.labels[n])[real]
        order, expected = np.argsort(boxes[:, 0]), truth.boxes[n][truth.mask[n]]
        rank = np.argsort(expected[:, 0])
        np.testing.assert_allclose(boxes[order], expected[rank], atol=1e-4)
        np.testing.assert_array_equal(labels[order], truth.labels[n][truth.mask[n]][rank])
    assert all(float(terms[name].value()) < 1e-3 for name in ("top_left", "bottom_right", "offset", "pull"))


def test_objects_at_the_border_and_none():
    """A corner at the last pixel stays on the map; without objects, losses and slopes are finite."""
    truth = scene()
    whole = truth.replace(boxes=np.float32(truth.boxes).copy())
    whole.boxes[0, 0] = [0, 0, SIZE[1], SIZE[0]]
    raw, detector = perfect(scene()), model()

    def loss(raw, truth):
        return sum(term.value() for term in detector.losses(raw, truth, SIZE).values())

    for case in (whole, jax.tree.map(np.zeros_like, truth)):
        value, slopes = jax.value_and_grad(loss)(raw, case)
        assert np.isfinite(value)
        chex.assert_tree_all_finite(slopes)
    assert not np.asarray(slopes[0]["top_left"]["tag"]).any()


def brute_decode(raw, detector):
    """Boxes, scores and labels of one image, pair by pair, with soft suppression in each class."""
    corners = []
    for maps in (raw["top_left"], raw["bottom_right"]):
        heat, found = 1 / (1 + np.exp(-maps["heat"])), []
        for row, column, c in np.ndindex(heat.shape):
            near = heat[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2, c]
            if heat[row, column, c] == near.max():
                place = np.array([column, row]) + maps["offset"][row, column]
                found.append((heat[row, column, c], c, place * SIZE[::-1] / CELLS[::-1], maps["tag"][row, column, 0]))
        corners.append(sorted(found, key=lambda f: -f[0])[: detector.corners])
    boxes = []
    for score, c, start, tag in corners[0]:
        for other, d, end, tag_end in corners[1]:
            if c == d and abs(tag - tag_end) <= detector.distance and (end >= start).all():
                boxes.append([(score + other) / 2, c, np.clip([*start, *end], 0, [*SIZE[::-1], *SIZE[::-1]])])
    boxes, final = sorted(boxes, key=lambda b: -b[0])[: detector.pairs], []
    for c in range(CLASSES):
        left = [b for b in boxes if b[1] == c]
        while left:
            best = max(left, key=lambda b: b[0])
            left = [b for b in left if b is not best]
            final.append((best[0], c, best[2]))
            for b in left:
                low, high = np.maximum(best[2][:2], b[2][:2]), np.minimum(best[2][2:], b[2][2:])
                inter = np.prod(np.maximum(high - low + 1, 0))
                areas = [np.prod(x[2][2:] - x[2][:2] + 1) for x in (best, b)]
                b[0] *= np.exp(-((inter / (sum(areas) - inter)) ** 2) / 0.5)
            left = [b for b in left if b[0] >= 1e-3]
    return sorted(final, key=lambda f: -f[0])[: detector.count]


def random_raw(seed):
    rng = np.random.default_rng(seed)
    return [{
        corner: {
            "heat": rng.normal(size=(1, *CELLS, CLASSES)).astype(np.float32),
            "tag": 0.3 * rng.normal(size=(1, *CELLS, 1)).astype(np.float32),
            "offset": rng.uniform(size=(1, *CELLS, 2)).astype(np.float32),
        }
        for corner in cornernet.CORNERS
    }]  # fmt: skip


def test_decoding_equals_brute_force():
    detector = model()
    decode = jax.jit(lambda raw: detector.decode(raw, SIZE))
    for seed in range(3):
        raw = random_raw(seed)
        expected = brute_decode(jax.tree.map(lambda x: x[0].astype(float), raw[0]), detector)
        found = jax.tree.map(lambda x: np.asarray(x[0]), decode(raw))
        assert found.mask.sum() == len(expected) > 3
        for i, (score, label, corners) in enumerate(expected):
            np.testing.assert_allclose(found.scores[i], score, rtol=1e-5)
            np.testing.assert_allclose(found.boxes[i], corners, atol=1e-4)
            assert found.labels[i] == label


def test_boxes_of_the_mirrored_image_join():
    detector, truth = model(), scene()
    raw = perfect(truth)
    nothing = jax.tree.map(lambda x: jnp.full_like(x, -9.0), raw)
    mirrored = truth.replace(boxes=np.where(truth.mask[..., None], truth.boxes[..., [2, 1, 0, 3]], 0))
    mirrored.boxes[..., [0, 2]] = np.where(truth.mask[..., None], SIZE[1] - mirrored.boxes[..., [0, 2]], 0)
    found = detector.decode(nothing, SIZE, perfect(mirrored))
    for n in range(2):
        real = np.asarray(found.scores[n]) > 0.5
        boxes = np.asarray(found.boxes[n])[real]
        expected = truth.boxes[n][truth.mask[n]]
        np.testing.assert_allclose(boxes[boxes[:, 0].argsort()], expected[expected[:, 0].argsort()], atol=1e-4)


def test_networks_with_and_without_corner_pooling_have_one_size():
    images = jnp.zeros((1, *SIZE, 3))
    counts = set()
    for pooling in (True, False):
        one = net(pooling=pooling)
        raw, variables = jax.eval_shape(lambda k, n=one: n.init_with_output(k, images, train=False), jax.random.key(0))
        counts.add(count(variables["params"]))
        assert [raw[1]["top_left"][name].shape for name in ("heat", "tag", "offset")] == [
            (1, *CELLS, n) for n in (CLASSES, 1, 2)
        ]
    assert len(raw) == 2 and len(counts) == 1


def test_peaks_of_a_small_map_are_padded():
    heat = jnp.zeros((1, 3, 4, 1)).at[0, 1, 2].set(0.7).at[0, 0, 0].set(0.6)
    found = cornernet.peaks(heat, 20, window=3)
    assert found.places.shape == (1, 20, 2) and found.mask.sum() == 3  # two, and a zero among zeros
    np.testing.assert_array_equal(found.places[0, :2], [[2, 1], [0, 0]])


def smoke(folder, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.kind": "retinaface", "data.path": str(folder), "data.image_size": 64, "data.max_boxes": 4,
            "model.corners": 10, "model.pairs": 30, "train.steps": 2, "train.batch_size": 8, "train.log_every": 1,
            "eval.batch_size": 8, **changes,
        }
    )  # fmt: skip
    return config


def test_smoke(faces_folder, tmp_path, monkeypatch):
    def tiny(classes, pooling, dtype):
        return cornernet.Net(Hourglass(1, (4, 4), (1, 1), stem=4, features=4), classes, 4, 4, pooling, dtype=dtype)

    monkeypatch.setitem(experiment.NETS, "tiny", tiny)
    _, report = app.run(smoke(faces_folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"ap", "ap_tiny", "precision", "recall"} <= set(report.metrics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "synthetic", "coco"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset.startswith("coco"):
        assert costs["parameters"] == 201_035_212


def test_wrong_names():
    config = experiment.get_config()
    config.model.name = "hourglass"
    with pytest.raises(ValueError, match=r"model\.name is 'hourglass': expected one of tiny, hourglass104"):
        experiment.build(config)
