import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.quality import qan
from facejax.quality.pooling import set_pool


def test_parameter_count(count):
    convolutions = 7 * 7 * 3 * 64 + 64 + 2 * (9 * 64 * 64 + 64)
    assert count(qan.QualityBranch(stem=True), 1, 224, 224, 3)[0] == convolutions + 8 * 8 * 64 + 1 == 87_425


def test_pool():
    rng = np.random.default_rng(0)
    features, weights = jnp.asarray(rng.normal(size=(2, 5, 3))), jnp.asarray(rng.random((2, 5)))
    chex.assert_trees_all_close(set_pool(features, jnp.ones((2, 5))), features.mean(1), rtol=1e-5)
    chex.assert_trees_all_close(set_pool(features, 7 * weights), set_pool(features, weights), rtol=1e-5)
    one = jnp.zeros((2, 5)).at[:, 2].set(0.3)
    chex.assert_trees_all_close(set_pool(features, one), features[:, 2], rtol=1e-6)
    order = jnp.array([3, 1, 4, 0, 2])
    chex.assert_trees_all_close(set_pool(features[:, order], weights[:, order]), set_pool(features, weights), rtol=1e-5)


def test_pool_of_padded_sets():
    rng = np.random.default_rng(0)
    features, weights = jnp.asarray(rng.normal(size=(2, 5, 3))), jnp.asarray(rng.random((2, 5)))
    padded = jnp.concatenate([features, jnp.full((2, 2, 3), 9.0)], 1)
    mask = jnp.arange(7) < jnp.full((2, 1), 5)
    for weighting in ("l1", "minmax"):
        more = jnp.concatenate([weights, jnp.full((2, 2), 99.0)], 1)
        chex.assert_trees_all_close(
            set_pool(padded, more, mask, weighting=weighting),
            set_pool(features, weights, weighting=weighting),
            rtol=1e-5,
        )


def test_pool_of_degenerate_sets():
    """A single image, weights that are all zero or negative, no image at all, and shapes that do not match."""
    rng = np.random.default_rng(0)
    features, weights = jnp.asarray(rng.normal(size=(2, 5, 3))), jnp.asarray(rng.random((2, 5)))
    for weighting in ("l1", "minmax"):
        single = set_pool(features[:, :1], jnp.zeros((2, 1)), weighting=weighting)
        chex.assert_trees_all_close(single, features[:, 0], rtol=1e-6)
        chex.assert_trees_all_close(
            set_pool(features, jnp.full((2, 5), 0.4), weighting=weighting), features.mean(1), rtol=1e-5
        )
        assert not np.any(set_pool(features, weights, jnp.zeros((2, 5), bool), weighting=weighting))
    for none in (0.0, -1.0):
        chex.assert_trees_all_close(set_pool(features, jnp.full((2, 5), none)), features.mean(1), rtol=1e-5)
    below = weights.at[:, 1].set(-3.0)
    chex.assert_trees_all_close(set_pool(features, below), set_pool(features, weights.at[:, 1].set(0.0)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"set_pool: features, weights and mask of shapes"):
        set_pool(features, weights[:, :4])


def test_gradient_of_a_weight():
    rng = np.random.default_rng(1)
    features, weights, pull = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (4,), (3,)))
    weights = jnp.abs(weights) + 0.1
    gradient = jax.grad(lambda w: set_pool(features, w) @ pull)(weights)
    chex.assert_trees_all_close(gradient, (features - set_pool(features, weights)) @ pull / weights.sum(), atol=1e-6)


def test_set_triplet_loss():
    sets, people = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4))), jnp.array([0, 0, 1, 1, 2, 2])
    unit = sets / jnp.linalg.norm(sets, axis=1, keepdims=True)
    distance = jnp.sum((unit[:, None] - unit) ** 2, -1)
    hinges = [
        max(0.0, float(distance[a, p] - distance[a, n]) + 0.5)
        for a in range(6) for p in range(6) for n in range(6)
        if a != p and people[a] == people[p] and people[a] != people[n]
    ]  # fmt: skip
    chex.assert_trees_all_close(qan.set_triplet_loss(sets, people, margin=0.5), np.mean(hinges), rtol=1e-4)
    assert qan.set_triplet_loss(sets, jnp.zeros(6, int)) == 0
    assert np.isfinite(jax.grad(qan.set_triplet_loss)(jnp.zeros((4, 3)), people[:4])).all()


def test_quality_branch_has_no_activation():
    """On a map its logit is affine; the authors' branch on images also has a maximum."""
    images = jax.random.normal(jax.random.key(0), (2, 48, 48, 3))
    branch, middle = qan.QualityBranch(8, stem=True), qan.QualityBranch(8)
    assert branch.apply(branch.init(jax.random.key(0), images), images).shape == (2,)
    maps = images[:, :12, :12]
    shapes = middle.init(jax.random.key(0), maps)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    low, middling, high = (
        jax.scipy.special.logit(middle.apply(jax.tree.unflatten(tree, drawn), s * maps)) for s in (-1, 0, 1)
    )
    assert np.abs(high - low).min() > 0.05
    chex.assert_trees_all_close(high + low, 2 * middling, atol=1e-4)


def test_presets_trace(presets_trace):
    presets_trace("qan")


def test_smoke(smoke):
    state, report = smoke("qan:synthetic", **{"train.batch_size": 4})
    assert report.arrays["weights"].shape == (96,)
    assert set(state.params) == {"trunk", "quality", "people"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets.size": 17}, "no identity has sets.size 17 images"),
        ({"sets.size": 9, "train.batch_size": 2}, "no identity has two sets of sets.size 9 images"),
        ({"train.batch_size": 3}, "train.batch_size is 3 sets: expected an even number"),
        ({"branch": "stage9"}, "branch is 'stage9': expected one of stem"),
    ],
)
def test_bad_input(changes, message, raises):
    raises("qan:synthetic", message, **changes)


@pytest.mark.parametrize("change", ["train.devices", "train.microbatches"])
@pytest.mark.parametrize("name", ["qan", "qan_pp"])
def test_too_few_sets_on_a_device_raise(split_raises, name, change):
    split_raises(f"{name}:synthetic", "2 sets meet on a device", **{change: 4})
