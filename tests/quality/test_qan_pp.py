import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments import quality_common as common
from facejax.quality import qan_pp
from facejax.quality.pooling import set_pool
from facejax.recognition import arcface


def test_minmax_pool_leaves_the_worst_out():
    features = jnp.eye(3)
    chex.assert_trees_all_close(
        set_pool(features, jnp.array([-1.0, 0.0, 3.0]), weighting="minmax"), jnp.array([0.0, 0.2, 0.8]), rtol=1e-6
    )
    scores = jnp.array([0.3, -2.0, 1.1])
    chex.assert_trees_all_close(
        set_pool(features, 5 * scores - 4, weighting="minmax"),
        set_pool(features, scores, weighting="minmax"),
        rtol=1e-5,
    )
    for few in (jnp.array([-1.0, 1.0]), jnp.array([0.5])):
        chex.assert_trees_all_close(
            set_pool(features[: len(few)], few, weighting="minmax"), features[: len(few)].mean(0), rtol=1e-6
        )
    chex.assert_trees_all_close(set_pool(features, jnp.full(3, 2.0), weighting="minmax"), features.mean(0), rtol=1e-6)


def test_arcnegface():
    cosine, label = jnp.array([[0.5, 0.1, -0.2]]), jnp.array([0])
    chex.assert_trees_all_close(
        qan_pp.arcnegface_logits(cosine, label), jnp.array([[1.510181, 20.233784, -4.076822]]), rtol=1e-5
    )
    cosine, label = jnp.asarray(np.random.default_rng(0).uniform(-0.95, 0.95, (5, 4))), jnp.array([0, 1, 2, 3, 0])
    chex.assert_trees_all_close(
        qan_pp.arcnegface_logits(cosine, label, alpha=1.0, sigma=1e12),
        arcface.margin_logits(cosine, label, easy=True),
        rtol=1e-4, atol=1e-3,
    )  # fmt: skip


def test_arcnegface_loss():
    """Cross-entropy of cosines; the weights of negatives have no slope."""
    rng = np.random.default_rng(1)
    features, centres, labels = rng.normal(size=(5, 8)), rng.normal(size=(4, 8)), np.array([0, 3, 1, 1, 2])
    cosine = features @ centres.T / np.linalg.norm(features, axis=1)[:, None] / np.linalg.norm(centres, axis=1)
    logits = np.asarray(qan_pp.arcnegface_logits(jnp.asarray(cosine), labels, scale=16.0), np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    loss = qan_pp.arcnegface_loss(jnp.asarray(features), 3 * jnp.asarray(centres), labels, scale=16.0)
    chex.assert_trees_all_close(loss, expected, rtol=1e-4)
    slope = jax.grad(lambda c: qan_pp.arcnegface_logits(c, labels).sum())(jnp.asarray(cosine))
    target = qan_pp.arcnegface_logits(jnp.asarray(cosine), labels)[np.arange(5), labels] / 64
    weight = 1.2 * np.exp(-((cosine - target[:, None]) ** 2) / 2)
    others = labels[:, None] != np.arange(4)
    chex.assert_trees_all_close(slope[others], 64 * weight[others], rtol=1e-4)


def test_a_recogniser_is_trained_with_arcnegface(configured):
    _, config = configured("qan_pp:arcnegface")
    _, plain = configured("qan_pp:synthetic")
    ours, other = (common.recogniser(c, 0).centres for c in (config, plain))
    assert ours.shape == other.shape and np.abs(ours - other).max() > 1e-4


def test_presets_trace(presets_trace):
    presets_trace("qan_pp")


def test_smoke(smoke):
    _, report = smoke("qan_pp:synthetic", **{"train.batch_size": 4})
    assert report.arrays["weights"].shape == (96,)


def test_bad_input(refuses):
    refuses("qan_pp:synthetic", "weighting is 'softmax': expected 'minmax', 'l1' or 'mean'", weighting="softmax")
