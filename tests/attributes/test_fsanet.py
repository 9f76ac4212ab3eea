"""FSA-Net: routing, mapping and aggregations against loops; stages, symmetric cases, options, published files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fsanet as experiment
from facejax.attributes import fsanet
from facejax.attributes.ssrnet import MultiSSRNet
from facejax.train.dry_run import count

RNG = np.random.default_rng(0)
SMALL = {"widths": (2, 3, 4, 5), "reduced": 6}


def normal(*shape):
    return np.float32(RNG.normal(size=shape))


def pixels(maps):
    """Maps [N, H, W, C] -> [N, 3, P, C]."""
    return np.stack([np.reshape(x, (len(x), -1, x.shape[-1])) for x in maps], 1)


def made(layer, *inputs, **options):
    """Random variables of a layer, and the layer as a compiled function of (variables, *inputs)."""
    shapes = jax.eval_shape(lambda key: layer.init(key, *inputs, **options), jax.random.key(0))
    variables = jax.tree.map(lambda x: 0.5 * normal(*x.shape), shapes)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda x: np.abs(x) + 1, variables["batch_stats"])
    return variables, jax.jit(lambda v, *x: layer.apply(v, *x, **options))


def routed(votes, iterations):
    """Routing of one example's votes [C, M, D], one capsule after the other."""
    logits = np.zeros(votes.shape[:2])
    for step in range(iterations):
        weights = np.exp(logits) / np.exp(logits).sum(0)
        capsules = []
        for c in range(len(votes)):
            s = sum(weights[c, m] * votes[c, m] for m in range(votes.shape[1]))
            square = s @ s
            capsules.append(square / (1 + square) * s / np.sqrt(square + 1e-7))
        if step + 1 < iterations:
            logits = logits + np.array([[capsules[c] @ votes[c, m] for m in range(votes.shape[1])] for c in range(3)])
    return np.array(capsules)


@pytest.mark.smoke
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_routing_against_loops(iterations):
    votes = normal(2, 3, 7, 5)
    found = fsanet.route(votes, iterations)
    for n in range(2):
        np.testing.assert_allclose(found[n], routed(np.float64(votes[n]), iterations), atol=1e-5)


def test_squash():
    vectors = jnp.float32([[3, 4], [0, 0], [0.03, 0.04]])
    lengths = np.linalg.norm(fsanet.squash(vectors), axis=1)
    np.testing.assert_allclose(lengths, [25 / 26, 0, 0.0025 / 1.0025], rtol=1e-4)
    gradient = jax.grad(lambda x: fsanet.squash(x).sum())(vectors)
    assert np.isfinite(gradient).all()


def test_one_routing_takes_the_mean_of_the_votes():
    votes = normal(1, 3, 4, 5)
    np.testing.assert_allclose(fsanet.route(votes, 1), fsanet.squash(votes.sum(2) / 3), rtol=1e-5)


@pytest.mark.parametrize("scoring", ["conv", "variance"])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5)])
def test_mapping_against_loops(scoring, height, width):
    maps = [normal(2, height, width, 6) for _ in range(3)]
    layer = fsanet.StructureMapping(scoring, vectors=4, rank=2)
    variables, run = made(layer, pixels(maps))
    found = run(variables, pixels(maps))
    weights = jax.tree.map(np.float64, variables["params"])

    def logistic(x, dense):
        return 1 / (1 + np.exp(-(x @ dense["kernel"] + dense["bias"])))

    for n in range(2):
        rows = [np.float64(x[n]).reshape(-1, 6) for x in maps]
        if scoring == "conv":
            scores = [logistic(x, weights["score"])[:, 0] for x in rows]
        else:
            scores = [((x - x.mean(1, keepdims=True)) ** 2).mean(1) for x in rows]
        left = logistic(np.concatenate(scores), weights["vectors"]).reshape(4, 2)
        expected = []
        for k in range(3):
            s = left @ logistic(scores[k], weights["pixels"]).reshape(2, -1)
            expected += [row / row.sum() @ np.concatenate(rows) for row in s]
        np.testing.assert_allclose(found[n], expected, atol=1e-4)
    constant = [jnp.full((1, height, width, 6), 3.0)] * 3
    np.testing.assert_allclose(run(variables, pixels(constant)), np.full((1, 12, 6), 3.0), rtol=1e-5)


def test_netvlad_and_metric_against_loops():
    vectors = normal(2, 9, 6)
    variables, run = made(fsanet.NetVLAD(3, 5), vectors)
    p = jax.tree.map(np.float64, variables["params"])
    found = run(variables, vectors)
    for n in range(2):
        residual = np.zeros((6, 3))
        for v in np.float64(vectors[n]):
            share = np.exp(v @ p["weights"] + p["biases"])
            for k in range(3):
                residual[:, k] += share[k] / share.sum() * (v - p["centres"][:, k])
        residual /= np.linalg.norm(residual, axis=0)
        expected = (residual / np.linalg.norm(residual)).reshape(-1) @ p["hidden"]
        np.testing.assert_allclose(found[n], expected.reshape(3, 5), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: run(variables, x).sum()))(jnp.zeros((1, 9, 6)))
    assert np.isfinite(gradient).all()
    variables, run = made(fsanet.MetricLayer(3, 5), vectors)
    p = variables["params"]
    expected = np.einsum("nme,ed->nmd", vectors, p["entries"]).swapaxes(1, 2) @ p["mixture"]
    np.testing.assert_allclose(run(variables, vectors), expected.swapaxes(1, 2), atol=1e-5)


def test_scores_of_zero_look_straight_ahead():
    images = np.float32(RNG.uniform(0, 255, (2, 24, 24, 3)))
    variables, run = made(fsanet.FSANet(**SMALL), images, train=False)
    for k in range(3):
        variables["params"][f"scores_{k}"] = jax.tree.map(np.zeros_like, variables["params"][f"scores_{k}"])
    np.testing.assert_array_equal(run(variables, images), np.zeros((2, 3)))


def test_the_middle_class_of_every_stage_is_zero():
    """Also of stages with different numbers of classes."""
    images, size = np.float32(RNG.uniform(0, 255, (2, 16, 16, 3))), 16
    for net in (fsanet.FSANet("none", classes=(5, 3, 7), size=size, **SMALL), MultiSSRNet(classes=(5, 3, 7), **SMALL)):
        variables, run = made(net, images, train=False)
        for name, layer in variables["params"].items():
            if name.startswith(("scores", "shift", "stretch")):
                variables["params"][name] = jax.tree.map(np.zeros_like, layer)
            if name.startswith("scores"):
                middle = np.zeros((3, layer["bias"].size // 3))
                middle[:, middle.shape[1] // 2] = 1
                variables["params"][name]["bias"] = np.float32(middle.ravel())
        np.testing.assert_array_equal(run(variables, images), np.zeros((2, 3)))


def test_fusion_holds_its_networks_side_by_side():
    nets = tuple(fsanet.FSANet(scoring, **SMALL) for scoring in ("variance", "none"))
    images = np.float32(RNG.uniform(0, 255, (2, 17, 23, 3)))
    variables, run = made(fsanet.Fusion(nets), images, train=False)
    found = run(variables, images)
    assert found.shape == (2, 2, 3)
    for k, net in enumerate(nets):
        alone = {kind: tree[f"nets_{k}"] for kind, tree in variables.items()}
        run = jax.jit(lambda v, net=net: net.apply(v, images, train=False))
        np.testing.assert_allclose(found[:, k], run(alone), rtol=1e-4)


def test_wrong_options_raise():
    with pytest.raises(ValueError, match="scoring is 'sum': expected one of conv, variance, none"):
        fsanet.FSANet("sum")
    with pytest.raises(ValueError, match="aggregation is 'mean': expected one of capsule, netvlad, metric"):
        fsanet.FSANet(aggregation="mean")
    with pytest.raises(ValueError, match=r"images of shape \(1, 15, 64, 3\)"):
        fsanet.FSANet().init(jax.random.key(0), jnp.zeros((1, 15, 64, 3)), train=False)
    for changes, message in (
        ({"model.name": "hopenet"}, "model.name is 'hopenet': expected fsanet or ssrnet"),
        ({"model.scorings": ()}, "model.scorings is empty: expected one or more of conv, variance, none"),
    ):
        config = experiment.get_config()
        with config.ignore_type():
            config.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=message):
            experiment.build(config)


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets(preset, tmp_path):
    config = experiment.get_config(preset)
    made = experiment.build(config)
    if preset == "aflw2000_published":
        assert made.train_step is None
        config.eval.weights = str(tmp_path)
        net = experiment.make_net(config)
        with pytest.raises(ValueError, match=r"0 files fsanet_capsule_3_16_2_21_5\.h5: expected one"):
            experiment.published(config, net)
        return
    parameters = count(made.abstract_state(0).params)
    if preset == "300w_lp":
        assert parameters == 236_615 + 236_550 + 692_707
    assert parameters > 90_000
    assert made.batch["target"].shape == (config.train.batch_size, 3)
