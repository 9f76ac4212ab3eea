import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from facejax.quality import eqface
from facejax.quality.pooling import set_pool
from facejax.recognition import arcface


def test_parameter_count(count):
    assert count(eqface.QualityHead(), 1, 25_088, train=False)[0] == 12_847_104


def test_confidence_is_a_sigmoid_of_the_difference():
    head = eqface.QualityHead(8)
    features = jax.random.normal(jax.random.key(0), (5, 6))
    variables = head.init(jax.random.key(1), features, train=False)
    hidden = features @ variables["params"]["hidden"]["kernel"] / np.sqrt(1 + 1e-5)  # statistics at their start
    logits = jax.nn.relu(hidden) @ variables["params"]["out"]["kernel"]
    confidence = head.apply(variables, features, train=False)
    chex.assert_trees_all_close(confidence, jax.nn.sigmoid(logits[:, 0] - logits[:, 1]), rtol=1e-5)


def test_confident_loss():
    rng = np.random.default_rng(0)
    cosine, labels = jnp.asarray(rng.uniform(-0.9, 0.9, (4, 6))), jnp.array([0, 3, 5, 1])
    logits = arcface.margin_logits(cosine, labels, scale=0.96 * 64, easy=True)
    plain = jax.nn.logsumexp(logits, 1) - logits[jnp.arange(4), labels]
    chex.assert_trees_all_close(eqface.confident_loss(cosine, labels, jnp.ones(4), gamma=0.0), plain, rtol=1e-5)
    focal = eqface.confident_loss(cosine, labels, jnp.ones(4))
    chex.assert_trees_all_close(focal, (1 - jnp.exp(-plain)) ** 2 * plain, rtol=1e-5)
    assert (focal <= 1.00001 * plain).all()
    blind = jnp.full(4, 0.15)
    chex.assert_trees_all_close(
        eqface.confident_loss(cosine, labels, blind), jnp.full(4, (1 - 1 / 6) ** 2 * np.log(6)), rtol=1e-5
    )
    slopes = jax.grad(lambda c, q: eqface.confident_loss(c, labels, q).sum(), (0, 1))(cosine, blind)
    chex.assert_trees_all_close(slopes, jax.tree.map(jnp.zeros_like, slopes), atol=1e-6)
    check_grads(
        lambda c, q: eqface.confident_loss(c, labels, q, scale=4.0), (cosine, jnp.full(4, 0.7)), 1, modes="rev",
        rtol=0.02, atol=0.02,
    )  # fmt: skip


def test_stretched():
    given = jnp.array([-1.0, 0.2, 0.6, 1.0, 1.2, 7.0])
    chex.assert_trees_all_close(eqface.stretched(given), jnp.array([0.0, 0.0, 0.48, 0.96, 1.2, 1.2]), atol=1e-6)


def test_progress_is_the_weighted_mean():
    rng = np.random.default_rng(0)
    features, quality = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.random(5))
    for order in (range(5), (3, 1, 4, 0, 2)):
        progress = eqface.Progress(jnp.zeros(3), jnp.zeros(()))
        for i in order:
            progress = eqface.progressive_update(progress, features[i], quality[i])
        chex.assert_trees_all_close(progress.feature, set_pool(features, quality), rtol=1e-4)
    nothing = eqface.progressive_update(eqface.Progress(jnp.zeros(3), jnp.zeros(())), features[0], jnp.zeros(()))
    assert not np.any(nothing.feature)


def test_presets_trace(presets_trace):
    presets_trace("eqface")


def test_smoke(smoke):
    state, report = smoke("eqface:synthetic")
    assert {"set_tar_at_far_1e-2", "mean_tar_at_far_1e-2", "aoc"} <= report.metrics.keys()
    assert set(state.params) == {"head", "centres"}


def test_bad_input(refuses):
    refuses("eqface:synthetic", "expected an IResNet", **{"recogniser.name": "mobilefacenet"})
