"""DAN: similarity transforms, warps and heatmaps against loops in NumPy; the stages; training stage by stage."""

import itertools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dan as experiment
from facejax.alignment import dan
from facejax.data.landmark_images import LandmarkImages
from facejax.data.synthetic.faces import png
from facejax.train import Options, checkpoint, train
from facejax.train.dry_run import count

NET = dan.DAN(stages=3, size=20, reach=3, landmarks=6, widths=(2, 3), features=4)
TINY = {
    "data.image_size": 16, "model.widths": (2, 2), "model.reach": 3, "model.features": 4, "model.crops": 16,
    "train.batch_size": 8, "train.steps": 4, "train.log_every": 1, "train.devices": 1, "eval.batch_size": 4,
}  # fmt: skip


def similarity(rng, scale=0.4, shift=3.0):
    """A similarity transform, as a matrix for row vectors and a shift."""
    size, angle = np.exp(rng.normal(0, scale)), rng.uniform(-2, 2)
    a, b = size * np.cos(angle), size * np.sin(angle)
    return np.array([[a, b], [-b, a]]), rng.normal(0, shift, 2)


def turned(matrix, shift):
    return dan.Similarity(jnp.float32(matrix)[None], jnp.float32(shift)[None])


def shapes(count, rng, landmarks=6, size=20):
    """Shapes [count, L, 2] around the middle of an image."""
    base = rng.uniform(0.25, 0.75, (landmarks, 2)) * size
    return np.stack([(base - size / 2) @ similarity(rng, 0.1)[0] + size / 2 for _ in range(count)]).astype(np.float32)


def test_fit_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    source, target = rng.normal(10, 5, (2, 7, 2)), rng.normal(0, 3, (2, 7, 2))
    found = dan.fit_similarity(jnp.float32(source), jnp.float32(target))
    for s, d, matrix, shift in zip(source, target, *found, strict=True):
        x, y, one, zero = s[:, 0], s[:, 1], np.ones(7), np.zeros(7)
        equations = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        a, b, *move = np.linalg.lstsq(equations, d.T.ravel(), rcond=None)[0]
        np.testing.assert_allclose(matrix, [[a, b], [-b, a]], atol=1e-5)
        np.testing.assert_allclose(shift, move, atol=1e-4)


def test_fit_recovers_a_transform_and_its_inverse():
    rng = np.random.default_rng(1)
    points, (matrix, shift) = rng.normal(8, 4, (1, 9, 2)), similarity(rng)
    moved = points @ matrix + shift
    found = dan.fit_similarity(jnp.float32(points), jnp.float32(moved))
    np.testing.assert_allclose(found.matrix[0], matrix, atol=1e-4)
    np.testing.assert_allclose(found.inverse(jnp.float32(moved)), points, atol=1e-4)
    mean = jnp.float32(rng.normal(8, 4, (1, 9, 2)))  # after any similarity Q the fit is T Q^-1
    straight, after = (dan.fit_similarity(jnp.float32(x), mean)(jnp.float32(x)) for x in (points, moved))
    np.testing.assert_allclose(after, straight, atol=1e-3)


@pytest.mark.parametrize("shape", [(12, 12), (11, 14), (9, 7)])
def test_warp_is_bilinear(shape):
    rng = np.random.default_rng(2)
    image, (matrix, shift) = rng.normal(size=(*shape, 2)).astype(np.float32), similarity(rng, 0.2, 2.0)
    found = dan.warp(jnp.asarray(image)[None], turned(matrix, shift))[0]
    back = np.linalg.inv(matrix)
    for y in range(shape[0]):
        for x in range(shape[1]):
            u, v = np.clip((np.array([x, y]) - shift) @ back, 0, [shape[1] - 1, shape[0] - 1])
            expected = 0
            for i in range(shape[0]):
                for j in range(shape[1]):
                    expected = expected + image[i, j] * max(0, 1 - abs(u - j)) * max(0, 1 - abs(v - i))
            np.testing.assert_allclose(found[y, x], expected, atol=1e-4)


def test_warp_moves_the_image_as_its_points():
    image = np.zeros((1, 15, 15, 1), np.float32)
    image[0, 4, 9] = 1
    np.testing.assert_array_equal(dan.warp(image, turned(np.eye(2), np.zeros(2))), image)
    quarter = turned([[0, 1], [-1, 0]], [14, 0])  # right becomes down
    np.testing.assert_allclose(dan.warp(image, quarter)[0, ..., 0], np.rot90(image[0, ..., 0], -1), atol=1e-6)
    y, x = np.argwhere(np.asarray(dan.warp(image, quarter)[0, ..., 0]) > 0.5)[0]
    np.testing.assert_allclose(quarter(jnp.array([[[9.0, 4.0]]]))[0, 0], [x, y])


@pytest.mark.parametrize("size", [20, 17, 25])
def test_landmark_image(size):
    rng, reach = np.random.default_rng(3), 4
    points = rng.uniform(-6, size + 6, (3, 5, 2)).astype(np.float32)
    points[0, 0] = size // 2
    found, expected = dan.landmark_image(points, size, reach), np.zeros((3, size, size, 1))
    for image, inside in zip(expected, np.clip(points, reach, size - 1 - reach), strict=True):
        for x, y in inside:
            for column in range(int(x) - reach, int(x) + reach + 1):
                for row in range(int(y) - reach, int(y) + reach + 1):
                    value = 1 / (1 + np.sqrt((column - x) ** 2 + (row - y) ** 2 + 1e-6))
                    image[row, column] = max(image[row, column], value)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found[0, size // 2, size // 2], 1 / (1 + 1e-3), rtol=1e-6)


def test_loss_by_hand():
    truth = jnp.array([[[0.0, 0.0], [10.0, 0.0]], [[4.0, 4.0], [4.0, 4.0]]])
    points = truth + jnp.array([[[3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [2.0, 0.0]]])
    sizes = jnp.array([10.0, 0.0])  # both eyes of the second face are at the same place
    np.testing.assert_allclose(dan.landmark_error(points, truth, sizes), [(5 + 1) / 2 / 10, 1.0], rtol=1e-5)
    slope = jax.grad(lambda p: dan.landmark_error(p, truth, sizes).sum())(points)
    np.testing.assert_allclose(slope[0], [[0.03, 0.04], [0, 0.05]], rtol=1e-5)
    np.testing.assert_array_equal(slope[1, 0], 0)


def test_mean_shape_is_the_common_shape_in_the_middle():
    rng = np.random.default_rng(4)
    base = rng.normal(0, 4, (8, 2))
    turns = [similarity(rng, 0.3) for _ in range(4)]
    found = dan.mean_shape(jnp.float32(np.stack([base @ matrix + shift for matrix, shift in turns])), 41, 0.5)
    fit = dan.fit_similarity(jnp.float32(base)[None], found[None])
    np.testing.assert_allclose(fit(jnp.float32(base)), found[None], atol=1e-3)
    low, high = np.asarray(found).min(0), np.asarray(found).max(0)
    np.testing.assert_allclose((high - low).max(), 20.5, rtol=1e-5)
    np.testing.assert_allclose((low + high) / 2, 20, atol=1e-4)  # the middle of pixels 0 to 40


@pytest.fixture(scope="module")
def setting():
    """Images, variables with a mean shape, and the outputs."""
    rng = np.random.default_rng(5)
    images = rng.uniform(0, 255, (4, 20, 20, 1)).astype(np.float32)
    variables = jax.jit(lambda key: NET.init(key, images, train=False))(jax.random.key(0))
    statistics = {
        "mean_shape": shapes(1, rng)[0],
        "mean_image": rng.uniform(90, 150, (20, 20)).astype(np.float32),
        "deviation_image": rng.uniform(0, 60, (20, 20)).astype(np.float32),
    }
    variables = {**variables, dan.STATISTICS: statistics}
    return images, variables, run(variables, images)


def run(variables, images, net=NET):
    return jax.jit(lambda v: net.apply(v, images, train=False))(variables)


def silent(variables, *stages):
    """The variables with output layers of zero in some stages."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if path[0].key in stages and path[-2].key == "output" else x, variables["params"]
    )
    return {**variables, "params": params}


def test_stages_without_correction_keep_the_landmarks(setting):
    images, variables, out = setting
    kept = run(silent(variables, "stage2", "stage3"), images)
    np.testing.assert_allclose(kept["points"][2], out["points"][1], atol=1e-4)
    np.testing.assert_allclose(kept["points"][3], out["points"][1], atol=1e-4)
    still = run(silent(variables, "stage1"), images)
    np.testing.assert_array_equal(still["points"][1], still["points"][0])  # the mean shape: nothing is warped
    np.testing.assert_allclose(still["inputs"][1][..., :1], still["inputs"][0], atol=1e-3)


def test_a_stage_sees_the_last_ones_landmarks_on_the_mean_shape(setting):
    _, variables, out = setting
    mean = jnp.broadcast_to(variables[dan.STATISTICS]["mean_shape"], out["points"][1].shape)
    for stage in (2, 3):
        transform = dan.fit_similarity(out["points"][stage - 1], mean)
        seen = out["inputs"][stage - 1]
        np.testing.assert_allclose(seen[..., :1], dan.warp(out["inputs"][0], transform), atol=1e-4)
        drawn = dan.landmark_image(transform(out["points"][stage - 1]), 20, 3)
        np.testing.assert_allclose(seen[..., 1:2], drawn, atol=1e-5)
        blocks = np.asarray(seen[..., 2]).reshape(4, 10, 2, 10, 2)
        np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    assert not np.allclose(out["points"][3], out["points"][2])


def test_images_are_standardised_per_pixel(setting):
    images, variables, out = setting
    constants = variables[dan.STATISTICS]
    expected = (images[..., 0] - constants["mean_image"]) / np.maximum(constants["deviation_image"], 1)
    np.testing.assert_allclose(out["inputs"][0][..., 0], expected, rtol=1e-5)
    first = jax.jit(lambda v: NET.apply(v, images, train=False, last=1))(variables)
    np.testing.assert_allclose(first["points"][1], out["points"][1], atol=1e-5)
    assert len(first["points"]) == 2


def test_collapsed_landmarks_and_bfloat16_stay_finite(setting):
    images, variables, _ = setting
    target = jnp.broadcast_to(variables[dan.STATISTICS]["mean_shape"], (4, 6, 2))

    def loss(points):
        transform = dan.fit_similarity(points, target)
        return dan.warp(images, transform).sum() + dan.landmark_image(transform.inverse(transform(points)), 20).sum()

    assert jnp.isfinite(jax.jit(jax.grad(loss))(jnp.full((4, 6, 2), 7.0))).all()
    half = run(variables, images, NET.clone(dtype=jnp.bfloat16))["points"]
    assert all(points.dtype == jnp.float32 and jnp.isfinite(points).all() for points in half)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: dan.landmark_image(jnp.zeros((1, 5, 2)), 16), r"a reach of 8 in 16 pixels, expected less than half"),
        (lambda: dan.mean_shape(jnp.full((2, 5, 2), jnp.nan), 16, 0.5), r"expected \[N, L, 2\] finite numbers"),
        (lambda: dan.landmark_error(jnp.zeros((2, 5, 2)), jnp.zeros((2, 5, 2)), jnp.ones(1)), r"and sizes \(1,\)"),
        (lambda: apply(NET, (1, 20, 18, 1)), r"images \(1, 20, 18, 1\) for size 20, expected \[N, S, S, 1\]"),
        (lambda: apply(NET.clone(size=21), (1, 21, 21, 1)), r"for size 21, expected .*, even"),
        (lambda: apply(NET, (1, 20, 20, 1), last=4), r"last stage 4, expected 1 to 3"),
        (lambda: build(**{"model.starts": (0.5, 0.5)}), r"model.starts is \(0.5, 0.5\) of 4 steps: expected rising"),
        (lambda: build(**{"eval.stage": 3}), r"eval.stage is 3: expected 0 to 2, the number of stages"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def apply(net, shape, **options):
    return jax.eval_shape(lambda key: net.init(key, jnp.zeros(shape), train=False, **options), jax.random.key(0))


def build(preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict({**TINY, **changes})
    return experiment.build(config)


def test_parts_have_the_published_sizes():
    shapes = apply(dan.DAN(), (1, 112, 112, 1))["params"]
    assert count(shapes["stage1"]) == 11_144_136
    assert count(shapes["stage2"]["feature_image"]) == 805_952
    assert count(shapes["stage2"]) == 805_952 + 11_145_294


@pytest.fixture(scope="module")
def faces():
    """Twelve faces of noise."""
    rng = np.random.default_rng(6)
    return [
        {
            "image": png(rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)),
            "points": rng.uniform(8, 32, (68, 2)),
            "visible": np.ones(68, bool),
            "region": (20.0, 20.0, 40.0),
            "attributes": np.array([i % 2 == 0, False, False, True]),
        }
        for i in range(12)
    ]


def test_stages_are_trained_one_after_the_other(faces, monkeypatch, tmp_path):
    monkeypatch.setattr(LandmarkImages, "source", lambda self, split: faces)
    config = experiment.get_config()
    config.update_from_flattened_dict({**TINY, "train.save_every": 1, "train.save_seconds": 0.0, "train.keep": 4})
    made = experiment.build(config)
    assert [made.step_name(number) for number in (1, 2, 3, 4)] == ["stage1", "stage1", "stage2", "stage2"]
    state, report = train(made, Options(**config.train), seed=0, workdir=tmp_path, quiet=True)
    assert {"nme", "nme_stage1", "nme_mean_shape", "nme_pose", "nme_blur"} <= set(report.metrics)

    saved = [checkpoint.read(tmp_path / "checkpoints", step).leaves for step in (1, 2, 3, 4)]
    for name in saved[0]:
        stage = next((part for part in ("params.stage1", "params.stage2", "statistics") if part in name), "")
        same = [np.array_equal(before[name], after[name]) for before, after in itertools.pairwise(saved)]
        expected = {
            "params.stage1": (False, True, True),
            "params.stage2": (True, False, False),
            "statistics": (True,) * 3,
        }
        assert not stage or same == list(expected[stage]) or not saved[0][name].any(), name  # rates end at 0

    for step in (3, 4):  # as if the run had been killed between the stages
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    resumed, again = train(experiment.build(config), Options(**config.train), seed=0, workdir=tmp_path, quiet=True)
    chex.assert_trees_all_equal(resumed.params, state.params)
    assert again.metrics == report.metrics


def test_statistics_are_those_of_the_crops(faces, monkeypatch):
    monkeypatch.setattr(LandmarkImages, "source", lambda self, split: faces)
    data = LandmarkImages(
        image_size=16, augment={"rotation": 0.0, "scale": 0.0, "shift": 0.0, "flip": 0.0, "colour": 0}
    )
    found, images = experiment.statistics(data, 12, 4, seed=0), data.test().crops(range(12)).mean(-1)
    np.testing.assert_allclose(found["mean_image"], images.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["deviation_image"], images.std(0), rtol=1e-4)
    np.testing.assert_allclose(np.ptp(found["mean_shape"], 0).max(), 16 / data.enlarge, rtol=1e-5)
