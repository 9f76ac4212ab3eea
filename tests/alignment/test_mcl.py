"""MCL: weights of landmarks and clusters, the loss, the assembled layer, and the phases of the training."""

import itertools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mcl as experiment
from facejax.alignment import mcl
from facejax.data.landmark_images import LandmarkImages
from facejax.data.landmarks import MIRRORS
from facejax.data.synthetic.faces import png
from facejax.train import Options, checkpoint, train
from facejax.train.dry_run import count

TINY = {
    "data.image_size": 16, "model.widths": (2, 3), "model.features": 4, "phases.held_out": 6,
    "phases.weighting": 1 / 3, "phases.centers": 2 / 3, "train.batch_size": 8, "train.steps": 6, "train.log_every": 1,
    "train.devices": 1, "eval.batch_size": 4, "optim.schedule.warmup": 0,
}  # fmt: skip
GROUPS = ((0, 3), (1,), (2, 4))


@pytest.mark.parametrize("landmarks", mcl.CLUSTERS)
def test_clusters_hold_every_landmark_once_and_mirror(landmarks):
    clusters = mcl.CLUSTERS[landmarks]
    mcl.owners(tuple(clusters.values()), landmarks)
    for name, rows in clusters.items():
        other = {"left eye": "right eye", "right eye": "left eye"}.get(name, name)
        assert set(MIRRORS[landmarks][list(rows)]) == set(clusters[other])


def test_loss_by_hand():
    truth = jnp.array([[[0.0, 0.0], [10.0, 0.0]], [[4.0, 4.0], [8.0, 4.0]]])
    points = truth + jnp.array([[[3.0, 4.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 0.0]]])
    weights = jnp.array([0.5, 1.5])
    found = mcl.normalized_error(points, truth, jnp.array([10.0, 0.0]), weights)  # the second has one eye
    np.testing.assert_allclose(found, [(0.5 * 25 + 1.5) / 200, 0.5 * 4 / 2], rtol=1e-6)
    slope = jax.grad(lambda p: mcl.normalized_error(p, truth, jnp.array([10.0, 2.0]), weights).sum())(points)
    np.testing.assert_allclose(slope[0], [[0.015, 0.02], [0, 0.015]], rtol=1e-6)
    np.testing.assert_allclose(slope[1], [[0, 0.25], [0, 0]], rtol=1e-6)


def test_weights_of_landmarks():
    np.testing.assert_allclose(mcl.landmark_weights(jnp.array([0.1, 0.3, 0.2, 0.2])), [0.5, 1.5, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(mcl.landmark_weights(jnp.full(4, 0.7)), 1, rtol=1e-6)
    assert jnp.isfinite(mcl.landmark_weights(jnp.zeros(4))).all()


def test_weights_of_clusters():
    found = mcl.cluster_weights(GROUPS, 5, 125.0)
    np.testing.assert_allclose(found.sum(1), 5, rtol=1e-6)
    for weights, rows in zip(found, GROUPS, strict=True):
        others = np.setdiff1d(range(5), rows)
        np.testing.assert_allclose(weights[list(rows)], 125 * 5 / (124 * len(rows) + 5), rtol=1e-6)
        np.testing.assert_allclose(weights[others], 5 / (124 * len(rows) + 5), rtol=1e-6)
    np.testing.assert_array_equal(mcl.cluster_weights(GROUPS, 5, 1.0), 1)


def layers(rng, exact=False):
    """Three shape prediction layers of five landmarks on seven features, of small integers if exact."""
    draw = (lambda *shape: rng.integers(-9, 9, shape)) if exact else (lambda *shape: rng.normal(size=shape))
    return {"kernel": jnp.float32(draw(3, 7, 10)), "bias": jnp.float32(draw(3, 10))}


@pytest.mark.parametrize("exact", [True, False])
def test_the_assembled_layer_is_every_landmarks_own(exact):
    """With integers no product is rounded, so that the order of the additions does not matter."""
    rng = np.random.default_rng(0)
    parts, features = layers(rng, exact), jnp.float32(rng.integers(-9, 9, (6, 7)))
    whole = mcl.assemble(parts, GROUPS)
    assert whole["kernel"].shape == (7, 10) and whole["bias"].shape == (10,)
    own = np.asarray(mcl.predicted(parts, features, 10))
    found = np.asarray(mcl.in_pixels(features @ whole["kernel"] + whole["bias"], 10))
    for layer, rows in enumerate(GROUPS):
        expected = own[layer][:, list(rows)]
        np.testing.assert_allclose(found[:, list(rows)], expected, rtol=0, atol=0 if exact else 1e-5)
    assert not np.allclose(found, own[0])


def test_emphasis_scales_the_gradient_of_a_landmarks_columns():
    """The features are frozen, so the loss of a layer separates into those of the landmarks."""
    rng = np.random.default_rng(1)
    parts, features = layers(rng), jnp.float32(rng.normal(size=(6, 7)))
    truth, sizes = jnp.float32(rng.normal(size=(6, 5, 2))), jnp.full(6, 3.0)
    weights = mcl.cluster_weights(GROUPS, 5, 8.0)

    def gradient(weights):
        def loss(parts):
            points = mcl.predicted(parts, features, 10)
            return mcl.normalized_error(points, truth, sizes, weights[:, None]).mean(1).sum()

        return jax.grad(loss)(parts)

    plain, weighted = gradient(np.ones((3, 5), np.float32)), gradient(weights)
    np.testing.assert_allclose(weighted["kernel"], plain["kernel"] * weights.repeat(2, 1)[:, None], rtol=1e-4)
    np.testing.assert_allclose(weighted["bias"], plain["bias"] * weights.repeat(2, 1), rtol=1e-4)


def test_parts_have_the_published_sizes():
    def size(net):
        images = jnp.zeros((1, 50, 50, 1))
        return count(jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))["params"])

    assert size(mcl.mcnet()) == 2_700_584
    assert size(mcl.mcnet(landmarks=29)) == 2_620_634


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mcl.owners(((0, 1), (1, 2)), 3), r"expected each of 3 landmarks in exactly one"),
        (lambda: mcl.cluster_weights(GROUPS, 5, 0.0), r"alpha is 0.0, expected above 0"),
        (lambda: mcl.assemble(layers(np.random.default_rng(0)), GROUPS[:2]), r"for 2 clusters, expected \[K, D, 2L\]"),
        (
            lambda: mcl.normalized_error(jnp.zeros((1, 5, 2)), jnp.zeros((1, 5, 2)), jnp.ones(1), jnp.ones(4)),
            r"and weights \(4,\), expected",
        ),
        (
            lambda: jax.eval_shape(mcl.Net().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False),
            r"images \(1, 16, 16, 3\), expected \[N, S, S, 1\]",
        ),
        (lambda: build(**{"data.kind": "aflw", "data.landmarks": 19}), r"clusters are known of 29, 68, 98"),
        (lambda: build(**{"phases.centers": 0.1}), r"phases.centers 0.1: expected rising parts of 1"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def build(preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict({**TINY, **changes})
    return experiment.build(config)


@pytest.fixture(scope="module")
def faces():
    """Twenty faces of noise."""
    rng = np.random.default_rng(2)
    return [
        {
            "image": png(rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)),
            "points": rng.uniform(8, 32, (68, 2)),
            "visible": np.ones(68, bool),
            "region": (20.0, 20.0, 40.0),
            "attributes": np.array([i % 2 == 0, False, False, True]),
        }
        for i in range(20)
    ]


def test_phases_follow_each_other(faces, monkeypatch, tmp_path):
    monkeypatch.setattr(LandmarkImages, "source", lambda self, split: faces)
    config = experiment.get_config()
    config.update_from_flattened_dict({**TINY, "train.save_every": 1, "train.save_seconds": 0.0, "train.keep": 6})
    made = experiment.build(config)
    names = [made.step_name(number) for number in range(1, 7)]
    assert names == ["basic", "basic", "measure", "weighting", "copy", "centers"]
    state, report = train(made, Options(**config.train), seed=0, workdir=tmp_path, quiet=True)
    assert {"nme", "nme_basic", "nme_weighted", "nme_pose"} <= set(report.metrics)
    rows = report.tables["Errors of the clusters, %"]
    for column, metric in (("assembled", "nme"), ("basic", "nme_basic"), ("weighted", "nme_weighted")):
        assert rows[0]["cluster"] == "all"
        np.testing.assert_allclose(rows[0][column], report.metrics[metric], rtol=1e-4)
        total = sum(row["landmarks"] * row[column] for row in rows[1:]) / 68
        np.testing.assert_allclose(total, report.metrics[metric], rtol=1e-5)

    saved = [checkpoint.read(tmp_path / "checkpoints", step).leaves for step in range(1, 7)]
    changes = {  # by the steps 2 to 6
        "params.net": [True, False, True, False, False],
        "params.centers": [False, False, False, True, True],
        "model_state.batch_stats": [True, False, True, False, False],
        "model_state.basic": [False, True, False, False, False],
        "model_state.weights": [False, True, False, False, False],
        "model_state.held_out": [False] * 5,
    }
    for name, part in ((name, part) for name in saved[0] for part in changes if name.startswith(part)):
        found = [not np.array_equal(before[name], after[name]) for before, after in itertools.pairwise(saved)]
        assert found == changes[part] or not any(found), name  # some biases have no gradient
    np.testing.assert_allclose(state.model_state["weights"].sum(), 68, rtol=1e-5)
    for name in ("kernel", "bias"):
        layer = saved[3][f"params.net.shape.{name}"]
        np.testing.assert_array_equal(saved[4][f"params.centers.{name}"], np.stack([layer] * 5))
        np.testing.assert_array_equal(
            state.model_state["basic"]["params"]["shape"][name], saved[1][f"params.net.shape.{name}"]
        )

    for step in (3, 4, 5, 6):  # as if the run had been killed before the second phase
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    resumed, again = train(experiment.build(config), Options(**config.train), seed=0, workdir=tmp_path, quiet=True)
    chex.assert_trees_all_equal(resumed.params, state.params)
    assert again.metrics == report.metrics


@pytest.mark.parametrize("preset", ["300w", "cofw"])
def test_published_optimizers(preset):
    """As in CFT: biases learn twice as fast, only kernels decay, and fine-tuning of 30,000 steps keeps its rate."""
    config = experiment.get_config(preset)
    layer = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    for phase, length, rates in (
        ("basic", 160_000, {0: 0.02, 29_999: 0.02, 30_000: 0.006, 159_999: 0.02 * 0.3**5}),
        ("weighting", 30_000, {0: 0.001, 29_999: 0.001}),
        ("centers", 30_000, {0: 0.001, 29_999: 0.001}),
    ):
        tx = experiment.make_optimizer(config, phase, length)
        layers = experiment.copies(layer, 5) if phase == "centers" else {"shape": layer, "bn": {"norm": layer}}
        zeros, ones = jax.tree.map(jnp.zeros_like, layers), jax.tree.map(jnp.ones_like, layers)
        for step, rate in rates.items():
            state = jax.tree.map(lambda x, n=step: jnp.full_like(x, n) if x.dtype == jnp.int32 else x, tx.init(layers))
            decay, moves = tx.update(zeros, state, layers)[0], tx.update(ones, state, zeros)[0]
            if phase != "centers":
                np.testing.assert_allclose(moves["bn"]["norm"]["bias"], -rate, rtol=1e-5)
                decay, moves = decay["shape"], moves["shape"]
            np.testing.assert_allclose(decay["kernel"], -rate * 5e-4, rtol=1e-5)
            np.testing.assert_array_equal(decay["bias"], 0)
            np.testing.assert_allclose(moves["bias"], -2 * rate, rtol=1e-5)
            np.testing.assert_allclose(moves["kernel"], -rate, rtol=1e-5)


def test_published_crops():
    assert experiment.get_config("cofw").data.crop == "box"
    assert experiment.get_config("300w").data.augment.colour == experiment.get_config("cofw").data.augment.colour == 0


def test_weights_follow_the_errors_on_held_out_faces(faces, monkeypatch):
    monkeypatch.setattr(LandmarkImages, "source", lambda self, split: faces)
    made = build()
    start = made.prepare()
    assert start["image"].shape == (6, 16, 16, 3)
    state = made.init(jax.random.key(0), start)
    measured, _ = jax.jit(made.steps["measure"])(state, {}, jax.random.key(0))
    rows = np.random.default_rng(0).permutation(20)[:6]
    points = (np.stack([faces[i]["points"] for i in rows]) - 20) * 16 / 40 + 7.5
    variables = {"params": state.params["net"], "batch_stats": state.model_state["batch_stats"]}
    found = jax.jit(lambda v: mcl.Net(68, (2, 3), 4).apply(v, experiment.grey(start["image"]), train=False))(variables)
    sizes = np.linalg.norm(points[:, 36:42].mean(1) - points[:, 42:48].mean(1), axis=-1)
    errors = (np.linalg.norm(found["points"] - points, axis=-1) / np.maximum(sizes, 1)[:, None]).mean(0)
    np.testing.assert_allclose(measured.model_state["weights"], 68 * errors / errors.sum(), rtol=1e-3)
