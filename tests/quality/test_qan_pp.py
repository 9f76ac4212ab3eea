import chex
import jax.numpy as jnp

from facejax.quality.pooling import set_pool


def test_minmax_pool_drops_the_lowest_score():
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


def test_presets_trace(presets_trace):
    presets_trace("qan_pp")


def test_smoke(smoke):
    _, report = smoke("qan_pp:synthetic", **{"train.batch_size": 4})
    assert report.arrays["weights"].shape == (96,)


def test_bad_input(raises):
    raises("qan_pp:synthetic", "weighting is 'softmax': expected 'minmax', 'l1' or 'mean'", weighting="softmax")
