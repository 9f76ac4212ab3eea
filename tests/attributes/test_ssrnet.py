"""SSR-Net: the regression by hand, its range and gradients; the baselines; sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ssrnet as experiment
from facejax.attributes import ssrnet
from facejax.attributes.ssrnet import Stages, soft_stagewise
from facejax.train.dry_run import count, dry_run
from facejax.train.loop import Options


def stages(scores, shifts=0.0, stretches=0.0):
    """Stages of given scores [K, s]; the same shift and stretch everywhere unless they are lists."""
    scores = np.float32(scores)
    shifts = np.broadcast_to(np.float32(shifts), scores.shape)
    return Stages(scores, shifts, np.broadcast_to(np.float32(stretches), scores.shape[:1]))


def one_hot(*classes):
    return np.eye(3)[list(classes)]


def by_loops(scores, shifts, stretches, span):
    total, divisor = 0.0, 1.0
    for k in range(len(scores)):
        divisor *= len(scores[k]) * (1 + stretches[k])
        for i in range(len(scores[k])):
            total += scores[k][i] * (i - len(scores[k]) // 2 + shifts[k][i]) / divisor
    return span * total


@pytest.mark.smoke
def test_regression_by_hand():
    for classes in ((0, 0, 0), (1, 0, 2), (2, 2, 2)):
        expected = 101 * sum(i / 3 ** (k + 1) for k, i in enumerate(classes))
        assert soft_stagewise(stages(one_hot(*classes)), 101.0) == pytest.approx(expected, rel=1e-6)
    assert soft_stagewise(stages(one_hot(2, 2, 2)), 101.0) == pytest.approx(101 * 26 / 27)
    assert soft_stagewise(stages(np.zeros((3, 3)), 1.0), 99.0, centred=True) == 0
    assert soft_stagewise(stages(one_hot(1, 1, 1)), 99.0, centred=True) == 0
    assert soft_stagewise(stages(one_hot(2, 1, 1), 0, 0.5), 99.0, centred=True) == pytest.approx(99 / 3 / 1.5)
    fixed = soft_stagewise(stages(one_hot(2, 1, 1), 0.5, 0.5), 90.0, stretch_weight=0.0, shift_weight=0.0)
    assert fixed == pytest.approx(60 + 10 + 10 / 3)


def test_regression_against_loops():
    rng = np.random.default_rng(0)
    for sizes in ((3, 3, 3), (2, 5)):
        scores = [rng.uniform(0, 2, (4, n)) for n in sizes]
        shifts = [rng.uniform(-1, 1, (4, n)) for n in sizes]
        stretches = [rng.uniform(-0.9, 1, 4) for _ in sizes]
        found = soft_stagewise(
            Stages(*(list(map(jnp.float32, x)) for x in (scores, shifts, stretches))), 99.0, centred=True
        )
        for n in range(4):
            parts = ([x[n] for x in part] for part in (scores, shifts, stretches))
            assert found[n] == pytest.approx(by_loops(*parts, 99.0), rel=1e-5)


def test_a_bound_keeps_numbers_and_gradients_finite():
    """A stretch of -1 divides by zero in the published network."""
    broken = stages(one_hot(2, 1, 0), 0.0, -1.0)
    assert not np.isfinite(soft_stagewise(broken, 101.0))
    value, gradient = jax.value_and_grad(lambda s: soft_stagewise(Stages(*s), 101.0, smallest=0.1))(tuple(broken))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), stages(one_hot(2, 1, 1)))
    assert soft_stagewise(rounded, 101.0).dtype == jnp.float32


def test_loss():
    truth, predicted = jnp.float32([20, 30]), jnp.float32([23, 30])
    np.testing.assert_allclose(ssrnet.absolute_error(predicted, truth), [3, 0])
    assert np.isfinite(jax.grad(lambda x: ssrnet.absolute_error(x, truth).sum())(predicted)).all()
    np.testing.assert_allclose(ssrnet.absolute_error(jnp.float32([[1, 2, 6]]), jnp.zeros((1, 3))), [3])


def test_classes_and_their_expectation():
    net = ssrnet.SingleStageNet(27)
    truth = jnp.float32([18.0, 47.3, 75.0])
    place = truth / 101 * 27 - 0.5
    low = np.floor(place).astype(int)
    share, logits = place - low, np.full((3, 27), -50.0)
    logits[np.arange(3), low], logits[np.arange(3), low + 1] = np.log(1 - share), np.log(share)
    np.testing.assert_allclose(net.number(logits), truth, rtol=1e-4)  # the best logits give the truth
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    np.testing.assert_allclose(net.loss(jnp.float32(logits), truth), entropy, rtol=1e-4)
    assert (net.loss(jnp.zeros((3, 27)), truth) > net.loss(jnp.float32(logits), truth)).all()
    assert np.isfinite(net.loss(jnp.zeros((2, 27)), jnp.float32([0, 101]))).all()
    plain = ssrnet.SingleStageNet(1)
    np.testing.assert_allclose(plain.loss(truth + 2, truth), [2, 2, 2], rtol=1e-5)
    assert plain.number(truth) is truth


@pytest.mark.parametrize(("size", "expected"), [(64, (40_531, 41_279, 40_983)), (48, (38_991, 38_039, 37_983))])
def test_the_baselines_are_as_large(size, expected):
    def parameters(net):
        image = jnp.zeros((1, size, size, 3))
        return count(jax.eval_shape(lambda k: net.init(k, image, train=False), jax.random.key(0))["params"])

    sizes = [parameters(net) for net in (ssrnet.SSRNet(), ssrnet.SingleStageNet(27), ssrnet.SingleStageNet(1))]
    assert sizes == list(expected)
    assert max(sizes) < 1.03 * min(sizes)


def test_dropout_and_batch_statistics():
    net = ssrnet.SSRNet(widths=(4, 3))
    images = np.float32(np.random.default_rng(0).uniform(0, 255, (3, 40, 40, 3)))
    variables = jax.jit(lambda key: net.init(key, images, train=False))(jax.random.key(0))

    @jax.jit
    def train(key):
        return net.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    (first, updated), (second, _) = train(jax.random.key(1)), train(jax.random.key(2))
    assert (first != second).any()
    moved = updated["batch_stats"]["trunk"]["first0"]["bn"]["norm"]["mean"]
    before = variables["batch_stats"]["trunk"]["first0"]["bn"]["norm"]["mean"]
    assert (jnp.abs(moved) > jnp.abs(before)).all()


def test_wrong_input_raises():
    for net, smallest in ((ssrnet.SSRNet(), 38), (ssrnet.MultiSSRNet(), 16)):
        for shape in ((1, smallest - 1, 64, 3), (1, 64, 64, 1), (64, 64, 3)):
            with pytest.raises(ValueError, match=f"expected .* sides of {smallest} pixels or more"):
                net.init(jax.random.key(0), jnp.zeros(shape), train=False)
    for changes, message in (
        ({"model.name": "dex"}, "model.name is 'dex': expected one of ssrnet, classes, regression"),
        ({"model.name": "classes", "eval.weights": "x.h5"}, "expected model.name 'ssrnet', not 'classes'"),
        ({"data.attribute": "pose", "data.kind": "mega_age"}, "data.attribute is 'pose': mega_age has age"),
    ):
        config = experiment.get_config()
        config.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=message):
            experiment.build(config)


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets(preset):
    config = experiment.get_config(preset)
    made = experiment.build(config)
    assert made.batch["target"].shape == (config.train.batch_size,)
    if config.data.kind != "face_world":
        assert count(made.abstract_state(0).params) == 40_531
    if preset == "morph2":
        config.model.start = "/nowhere"
        with pytest.raises(ValueError, match=r"/nowhere holds no config\.json: expected a finished run"):
            experiment.build(config).prepare()
        assert dry_run(made, Options(**config.train))["parameters"] > 0
