import chex
import jax
import jax.numpy as jnp
import numpy as np

from facejax.recognition import arcface, arcnegface


def test_arcnegface():
    cosine, label = jnp.array([[0.5, 0.1, -0.2]]), jnp.array([0])
    chex.assert_trees_all_close(
        arcnegface.arcnegface_logits(cosine, label), jnp.array([[1.510181, 20.233784, -4.076822]]), rtol=1e-5
    )
    cosine, label = jnp.asarray(np.random.default_rng(0).uniform(-0.95, 0.95, (5, 4))), jnp.array([0, 1, 2, 3, 0])
    chex.assert_trees_all_close(
        arcnegface.arcnegface_logits(cosine, label, alpha=1.0, sigma=1e12),
        arcface.margin_logits(cosine, label, easy=True),
        rtol=1e-4, atol=1e-3,
    )  # fmt: skip


def test_arcnegface_loss():
    """Cross-entropy of cosines; the weights of negatives have no gradient."""
    rng = np.random.default_rng(1)
    features, centres, labels = rng.normal(size=(5, 8)), rng.normal(size=(4, 8)), np.array([0, 3, 1, 1, 2])
    cosine = features @ centres.T / np.linalg.norm(features, axis=1)[:, None] / np.linalg.norm(centres, axis=1)
    logits = np.asarray(arcnegface.arcnegface_logits(jnp.asarray(cosine), labels, scale=16.0), np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    loss = arcnegface.arcnegface_loss(jnp.asarray(features), 3 * jnp.asarray(centres), labels, scale=16.0)
    chex.assert_trees_all_close(loss, expected, rtol=1e-4)
    slope = jax.grad(lambda c: arcnegface.arcnegface_logits(c, labels).sum())(jnp.asarray(cosine))
    target = arcnegface.arcnegface_logits(jnp.asarray(cosine), labels)[np.arange(5), labels] / 64
    weight = 1.2 * np.exp(-((cosine - target[:, None]) ** 2) / 2)
    others = labels[:, None] != np.arange(4)
    chex.assert_trees_all_close(slope[others], 64 * weight[others], rtol=1e-4)
