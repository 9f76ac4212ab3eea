import chex
import jax
import numpy as np
import pytest
from scipy import stats

from experiments import human_quality as experiment
from facejax.data.quality_faces import unmeasured
from facejax.data.sources import Images
from facejax.quality import factors, human_quality


def test_comparisons_recover_a_planted_order():
    truth = np.random.default_rng(0).permutation(np.linspace(-2, 2, 40))
    given = human_quality.simulate(np.random.default_rng(1), truth, workers=12, pairs=200, noise=0.3, preference=0.2)
    assert (given.first != given.second).all()
    ratings = human_quality.complete_ratings(jax.random.key(0), given, 40)
    values = human_quality.human_quality(ratings)
    assert ratings.shape == (12, 40) and values.min() >= 0 and values.max() <= 1
    assert stats.kendalltau(values, truth).statistic > 0.85


def test_human_quality_is_the_median_of_scaled_ratings():
    ratings = np.array([[0.0, 5, 10], [1, 2, 3], [9, 8, 1]])
    chex.assert_trees_all_close(human_quality.human_quality(ratings), np.array([0, 0.5, 1], np.float32))
    with pytest.raises(ValueError, match="worker 0 gives all faces the same rating: expected different ones"):
        human_quality.human_quality(np.zeros((1, 4)))


def test_comparisons():
    rows = [
        (f"line {i}", {"worker": worker, "better": better, "worse": worse})
        for i, (worker, better, worse) in enumerate([("ann", "a", "b"), ("bob", "c", "a"), ("ann", "a", "d")], 2)
    ]
    found = human_quality.comparisons(rows[:2], ["a", "b", "c"])
    chex.assert_trees_all_equal(np.stack(found[:3]), np.array([[0, 1], [0, 2], [1, 0]]))
    with pytest.raises(ValueError, match="line 4: 'a' and 'd': expected two known images"):
        human_quality.comparisons(rows, ["a", "b", "c"])


def test_matcher_quality(unit_rows):
    rng = np.random.default_rng(0)
    people = np.repeat([0, 1, 2], 4)
    features = unit_rows(rng, 3, 16)[people] + 0.3 * rng.normal(size=(12, 16))
    gallery = np.repeat([0, 4, 8], 4)
    found = human_quality.matcher_quality(features, people, gallery)
    assert np.isnan(found[[0, 4, 8]]).all() and np.isfinite(found).sum() == 9
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    impostor = (unit @ unit[1])[4:]
    assert found[1] == pytest.approx((unit[1] @ unit[0] - impostor.mean()) / impostor.std(), rel=1e-5)
    features[2] = 0
    assert np.isnan(human_quality.matcher_quality(features, people, gallery)[2])


def test_factors():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    smooth = np.full((1, 16, 16, 3), 128, np.uint8)
    dark = (picture // 8).astype(np.uint8)
    assert factors.sharpness(picture) > 100 * factors.sharpness(smooth)
    assert factors.exposure(smooth) > 0.99 and factors.exposure(dark) < 0.2
    assert factors.contrast(picture) > 4 * factors.contrast(dark)
    half = smooth.copy()
    half[:, :, :8] = 20
    assert factors.light_symmetry(smooth) > 0.99 > factors.light_symmetry(half) + 0.5
    five = np.array([[[10.0, 10], [30, 10], [20, 20], [12, 30], [28, 30]]], np.float32)
    chex.assert_trees_all_close(factors.frontality(five), np.ones(1, np.float32), atol=1e-6)
    turned = five.copy()
    turned[0, 2, 0] = 28
    assert factors.frontality(turned)[0] < 0.25
    chex.assert_trees_all_close(factors.eye_distance(five), np.array([20.0], np.float32))
    with pytest.raises(ValueError, match=r"expected \[N, H, W, 3\]"):
        factors.sharpness(picture[0])


def test_presets_trace(presets_trace):
    presets_trace("human_quality")


@pytest.mark.parametrize("preset", ["synthetic", "matcher"])
def test_smoke(preset, smoke):
    _, report = smoke(f"human_quality:{preset}", **{"completion.steps": 20})
    assert report.arrays["targets"].shape == (72,)


def test_comparisons_from_a_file(tmp_path):
    rows = [f"w,p0/{i}.png,p1/{j}.png" for i in range(2) for j in range(2)]
    (tmp_path / "answers.csv").write_text("\n".join(["worker,better,worse", *rows]))
    config = experiment.get_config()
    config.comparisons.path = str(tmp_path / "answers.csv")

    def human():
        given = experiment.answers(known, config.seed, **config.comparisons)
        ratings = human_quality.complete_ratings(jax.random.key(config.seed), given, 4, **config.completion)
        return human_quality.human_quality(ratings)

    class Folder:
        names = tuple(f"p{i // 2}/{i % 2}.png" for i in range(4))

    known = unmeasured(Images(Folder, np.arange(4), 8), np.arange(4) // 2)
    values = human()
    assert values[:2].min() > values[2:].max()
    (tmp_path / "answers.csv").write_text("worker,best\nann,a\n")
    with pytest.raises(ValueError, match=r"answers\.csv: no column better, worse: expected worker, better, worse"):
        human()
    config.comparisons.path = ""
    with pytest.raises(ValueError, match="the quality of these images is unknown: expected a CSV"):
        human()


@pytest.mark.parametrize("score", ["frontality", "eye_distance"])
def test_landmark_measures_follow_the_yaw(score, smoke):
    _, report = smoke("human_quality:synthetic", score=score)
    assert report.metrics["yaw_correlation"] > 0.3


def test_bad_input(raises):
    raises("human_quality:synthetic", "expected 'human', 'matcher' or one of sharpness", score="charm")
